"""Facts about numbers, percentages, gcd, modular powers, bases, linear equations."""

from math import gcd as true_gcd

from problem import Problem, phrase
from split import key_of
from steps import add_columns, from_base, gcd_steps, mul_digit, multiply, power_mod, sub_columns, to_base

UNITS = [
    ("days are in {n} weeks", 7), ("months are in {n} years", 12), ("legs do {n} dogs have", 4),
    ("legs do {n} spiders have", 8), ("legs do {n} ants have", 6), ("wheels do {n} cars have", 4),
    ("sides do {n} triangles have", 3), ("corners do {n} squares have", 4), ("minutes are in {n} hours", 60),
    ("eggs are in {n} dozen", 12), ("fingers are on {n} hands", 5), ("cents are in {n} dollars", 100),
]


def fact(rng, depth):
    """Trivial: one look at the number. Easy: one fact times a count."""
    if depth == "easy":
        text, each = rng.choice(UNITS)
        n = rng.randint(2, 12)
        question = f"How many {text.format(n=n)}?"
        return Problem("fact", "easy", key_of("fact", each, n, text), question, str(each * n), [f"{n}*{each}={n * each}"])
    what = rng.choice(["parity", "larger", "smaller", "after", "before", "last"])
    n = rng.randint(1, rng.choice([99, 999]))
    matcher = "number"
    if what == "parity":
        answer, matcher = ("even", "odd")[n % 2], "choice"
        question = phrase(rng, ["Is {n} even or odd?", "Even or odd: {n}?"], n=n)
        work = [f"{n} ends in {n % 10}, {answer}"]
    elif what in ("larger", "smaller"):
        m = n
        while m == n:
            m = rng.randint(1, rng.choice([99, 999]))
        answer = str(max(n, m) if what == "larger" else min(n, m))
        question = phrase(rng, ["Which is {w}, {n} or {m}?", "Which number is {w}: {n} or {m}?"], w=what, n=n, m=m)
        work = [f"{n} or {m}: {what} {answer}"]
        return Problem("fact", "trivial", key_of("fact", what, n, m, commutes=True), question, answer, work)
    elif what in ("after", "before"):
        answer = str(n + 1 if what == "after" else n - 1)
        question = phrase(rng, ["What number comes {w} {n}?", "Which number is just {w} {n}?"], w=what, n=n)
        work = [f"{what} {n}: {answer}"]
    else:
        answer = str(n % 10)
        question = phrase(rng, ["What is the last digit of {n}?", "Which digit does {n} end in?"], n=n)
        work = [f"{n} ends in {answer}"]
    return Problem("fact", "trivial", key_of("fact", what, n), question, answer, work, matcher)


def _sum(a, sign, b):
    """a plus or minus b, in columns where they are long."""
    if max(a, b) < 100:
        return [f"{a}{'+' if sign > 0 else '-'}{b}={a + sign * b}"]
    return (add_columns if sign > 0 else sub_columns)(a, b)[0]


def _percent_lines(p, n):
    """p percent of n from tenths and half tenths; all values whole."""
    tens, half = divmod(p, 10)
    lines = [f"10% of {n}={n // 10}"] if n % 10 == 0 else []
    total = tens * (n // 10)
    if tens > 1:
        lines += mul_digit(n // 10, tens)[0] if n >= 200 and n % 100 else [f"{tens}*{n // 10}={total}"]
    if half:
        five = n // 20
        lines.append(f"5% of {n}={five}")
        if tens:
            lines += _sum(total, 1, five)
        total += five
    assert total * 100 == p * n
    return lines, total


OF = ["What is {p}% of {n}?", "Calculate {p}% of {n}.", "Find {p}% of {n}.", "How much is {p} percent of {n}?"]


def percent(rng, depth):
    if depth == "trivial":
        p, n = rng.choice([(10, 10 * rng.randint(1, 99)), (50, 2 * rng.randint(1, 40)), (100, rng.randint(1, 200))])
        work = [f"{p}% of {n}={p * n // 100}"]
        total = p * n // 100
    elif depth == "easy":
        p, n = rng.choice([5, 20, 30, 40, 60, 70, 80, 90]), 20 * rng.randint(1, 30)
        work, total = _percent_lines(p, n)
    elif depth == "middle":
        p, n = 10 * rng.randint(1, 9) + 5, 20 * rng.randint(1, 40)
        work, total = _percent_lines(p, n)
        if rng.random() < 0.5:
            return _price(rng, [(p, rng.choice([1, -1]))], n)
    else:
        while True:
            n = 20 * rng.randint(5, 40)
            changes = [(rng.choice([5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 60, 70, 80]), rng.choice([1, -1])) for _ in range(rng.randint(3, 4))]
            value, whole = n, True
            for p, sign in changes:
                whole = whole and value % (20 if p % 10 else 10) == 0
                value = value + sign * value * p // 100
            if whole and 0 < value < 3000:
                return _price(rng, changes, n)
    return Problem("percent", depth, key_of("percent", p, n), phrase(rng, OF, p=p, n=n), str(total), work)


def _price(rng, changes, n):
    """A price that rises and falls; each change is a percentage of the current price. With several changes, those still
    to come stand behind the price."""
    value, work, parts = n, [], []
    for i, (p, sign) in enumerate(changes):
        lines, part = _percent_lines(p, value)
        if len(changes) > 1:
            work.append(str(value) + ",".join(f"{s * q:+d}%" for q, s in changes[i:]))
        work += lines + _sum(value, sign, part)
        value += sign * part
        parts.append(f"{'rises' if sign > 0 else 'falls'} by {p}%")
    thing = rng.choice(["price", "rent", "salary", "number"])
    question = f"A {thing} of {n} {', then '.join(parts)}. What is it {rng.choice(['now', 'in the end'])}?"
    depth = "middle" if len(changes) == 1 else "hard"
    key = key_of("percent", n, *[f"{sign * p}" for p, sign in changes])
    return Problem("percent", depth, key, question, str(value), work)


def gcd(rng, depth):
    if depth == "hard":
        return _lcm(rng) if rng.random() < 0.5 else _gcd_three(rng)
    top = 20 if depth == "easy" else 99
    common = rng.randint(1, top // 4)
    a, b = [common * rng.randint(1, top // common) for _ in range(2)]
    if a == b:
        b = a + common
    work, answer = gcd_steps(a, b)
    forms = ["What is the gcd of {a} and {b}?", "Find gcd({a}, {b}).", "What is the greatest common divisor of {a} and {b}?"]
    return Problem("gcd", depth, key_of("gcd", a, b, commutes=True), phrase(rng, forms, a=a, b=b), str(answer), work)


def _lcm(rng):
    common = rng.randint(2, 12)
    a, b = [common * rng.randint(2, 99 // common) for _ in range(2)]
    if a == b:
        a += common
    work, g = gcd_steps(a, b)
    a, b = max(a, b), min(a, b)
    factor = b // g
    work.append(f"{b}/{g}={factor}")
    if factor < 10:
        lines, answer = mul_digit(a, factor)
    else:
        lines, answer = multiply(a, factor)
    work += lines
    assert answer == a * b // true_gcd(a, b)
    forms = ["What is the lcm of {a} and {b}?", "Find lcm({a}, {b}).", "What is the least common multiple of {a} and {b}?"]
    key = key_of("lcm", a, b, commutes=True)
    if rng.random() < 0.5:
        a, b = b, a
    return Problem("gcd", "hard", key, phrase(rng, forms, a=a, b=b), str(answer), work)


def _gcd_three(rng):
    common = rng.randint(2, 12)
    numbers = [common * rng.randint(2, 99 // common) for _ in range(rng.randint(3, 5))]
    work, g = gcd_steps(numbers[0], numbers[1])
    for n in numbers[2:]:
        work.append(f"{g} and {n}:")
        lines, g = gcd_steps(g, n)
        work += lines
    text = ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"
    forms = ["What is the gcd of {t}?", "What is the greatest common divisor of {t}?"]
    return Problem("gcd", "hard", key_of("gcd", *numbers, commutes=True), phrase(rng, forms, t=text), str(g), work)


def modpow(rng, depth):
    e = {"easy": lambda: 2, "middle": lambda: rng.randint(3, 7), "hard": lambda: rng.randint(10, 20)}[depth]()
    a, m = rng.randint(2, 9), rng.randint(5, 13)
    if depth == "easy":
        a = rng.randint(2, 12)
    work, answer = power_mod(a, e, m)
    forms = ["What is {a}^{e} mod {m}?", "Calculate {a}^{e} mod {m}.", "What is {a} to the power {e}, modulo {m}?", "Find the remainder of {a}^{e} divided by {m}."]
    return Problem("modpow", depth, key_of("modpow", a, e, m), phrase(rng, forms, a=a, e=e, m=m), str(answer), work)


def base(rng, depth):
    to = rng.random() < 0.5
    if depth == "easy":
        b, n = 2, rng.randint(2, 31)
    elif depth == "middle":
        b = rng.choice([2, 2, 3, 4, 5, 6, 7, 8, 9])
        n = rng.randint(16, 127 if b == 2 else 99)
    elif rng.random() < 0.4:
        b, n = 2, rng.randint(256, 1023)
    else:
        return _two_bases(rng)
    digits = to_base(n, b)[1]
    name = rng.choice(["binary", "base 2"]) if b == 2 else f"base {b}"
    if to:
        work, answer = to_base(n, b)
        forms = ["Write {n} in {name}.", "Convert {n} to {name}.", "What is {n} in {name}?"]
        question = phrase(rng, forms, n=n, name=name)
    else:
        work, answer = from_base(digits, b)
        forms = ["Convert {d} from {name} to decimal.", "What is {name} {d} in decimal?", "The number {d} is in {name}. What is it in decimal?"]
        question = phrase(rng, forms, d=digits, name=name)
    return Problem("base", depth, key_of("base", b, n), question, str(answer), work, "exact" if to else "number")


def _two_bases(rng):
    b, c = rng.sample([2, 3, 4, 5, 6, 7, 8, 9], 2)
    n = rng.randint(60, 199)
    digits = to_base(n, b)[1]
    first, _ = from_base(digits, b)
    second, answer = to_base(n, c)
    question = phrase(rng, ["Convert {d} from base {b} to base {c}.", "What is base {b} {d} in base {c}?"], d=digits, b=b, c=c)
    return Problem("base", "hard", key_of("base", b, c, n), question, answer, first + second, "exact")


def lineq(rng, depth):
    x = rng.randint(1, 20)
    if depth == "easy":
        a, b = rng.choice([(1, rng.randint(1, 40)), (rng.randint(2, 9), 0)])
        left = f"x + {b}" if b else f"{a}x"
        c = a * x + b
        work = [f"x={c}-{b}={x}"] if b else [f"x={c}/{a}={x}"]
        operands = (a, b, c)
        sides = f"{left} = {c}"
    elif depth == "middle":
        a = rng.randint(2, 9)
        b = rng.choice([rng.randint(1, 30), -rng.randint(1, min(30, a * x - 1))])
        c = a * x + b
        sides = f"{a}x {'+' if b > 0 else '-'} {abs(b)} = {c}"
        work = [f"{a}x={c}{'-' if b > 0 else '+'}{abs(b)}={a * x}", f"x={a * x}/{a}={x}"]
        operands = (a, b, c)
    else:
        return _bracket_equation(rng, x)
    forms = ["Solve {s}.", "Solve for x: {s}", "Find x if {s}.", "What is x if {s}?"]
    return Problem("lineq", depth, key_of("lineq", *operands), phrase(rng, forms, s=sides), str(x), work)


def _bracket_equation(rng, x):
    """a(x + b) + c(x + d) = e x + f, opened and gathered step by step."""
    a, c, b, d = [rng.randint(2, 9) for _ in range(4)]
    e = rng.randint(1, a + c - 1)
    f = (a + c - e) * x + a * b + c * d
    sides = f"{a}(x + {b}) + {c}(x + {d}) = {e}x + {f}"
    k, const = a + c, a * b + c * d
    work = [
        f"{a}(x+{b})={a}x+{a * b}", f"{c}(x+{d})={c}x+{c * d}",
        f"{a}+{c}={k}", f"{a * b}+{c * d}={const}", f"{k}x+{const}={e}x+{f}",
        f"{k}x-{e}x={k - e}x", f"{f}-{const}={f - const}", f"{k - e}x={f - const}",
        f"x={f - const}/{k - e}={x}",
    ]
    forms = ["Solve {s}.", "Solve for x: {s}", "Find x if {s}."]
    return Problem("lineq", "hard", key_of("lineq", a, b, c, d, e, f), phrase(rng, forms, s=sides), str(x), work)
