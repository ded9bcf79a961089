"""Addition, subtraction, multiplication, division."""

from problem import Problem, phrase
from split import key_of
from steps import add_columns, divide_digit, divide_long, mul_digit, multiply, running, sub_columns

ADD = ["What is {q}?", "Calculate {q}.", "Work out {q}.", "{q} = ?", "Please add {q}.", "Find the sum {q}."]
SUB = ["What is {q}?", "Calculate {q}.", "Work out {q}.", "{q} = ?", "Find {q}."]
MUL = ["What is {q}?", "Calculate {q}.", "Work out {q}.", "{q} = ?", "Find the product {q}."]


def spaced(rng, symbol, *numbers):
    """`3+4`, `3 + 4`, or in words."""
    words = {"+": " plus ", "-": " minus ", "*": " times "}
    join = rng.choice([symbol, f" {symbol} ", f" {symbol} ", words[symbol]])
    return join.join(map(str, numbers))


def add(rng, depth):
    if depth == "trivial":
        a, b = rng.randint(1, 99), rng.randint(1, 9)
        work = [f"{a}+{b}={a + b}"]
        if rng.random() < 0.3:
            a, b = b, a
        numbers = [a, b]
    elif depth == "easy":
        numbers = [rng.randint(10, 99), rng.randint(10, 99)]
        work, _ = add_columns(*numbers)
    elif depth == "middle":
        low, high = rng.choice([(100, 999), (100, 999), (1000, 9999)])
        numbers = [rng.randint(low, high), rng.randint(100, high)]
        rng.shuffle(numbers)
        work, _ = add_columns(*numbers)
    else:
        numbers = [rng.randint(100, rng.choice([999, 9999])) for _ in range(rng.randint(4, 6))]
        work, _ = running(numbers[0], numbers[1:])
    key = key_of("add", *numbers, commutes=True)
    question = phrase(rng, ADD, q=spaced(rng, "+", *numbers))
    return Problem("add", depth, key, question, str(sum(numbers)), work)


def sub(rng, depth):
    if depth == "hard":
        return _add_and_subtract(rng)
    if depth == "trivial":
        b = rng.randint(1, 9)
        a = rng.randint(b, 99)
        work = [f"{a}-{b}={a - b}"]
    elif depth == "easy":
        a, b = sorted([rng.randint(10, 99), rng.randint(10, 99)], reverse=True)
        work, _ = sub_columns(a, b)
    else:
        low, high = rng.choice([(100, 999), (100, 999), (1000, 9999)])
        a, b = sorted([rng.randint(low, high), rng.randint(100, high)], reverse=True)
        work, _ = sub_columns(a, b)
    text = spaced(rng, "-", a, b)
    if rng.random() < 0.15:
        question = f"Subtract {b} from {a}."
    else:
        question = phrase(rng, SUB, q=text)
    return Problem("sub", depth, key_of("sub", a, b), question, str(a - b), work)


def _add_and_subtract(rng):
    """A chain such as 4312 - 877 + 1290 - 335 + 98."""
    start = total = rng.randint(1000, 9999)
    text, operands = str(total), []
    for i in range(rng.randint(3, 5)):
        if (i == 0 or rng.random() < 0.5) and total > 200:
            n = rng.randint(100, min(total, 9999))
            text += f" - {n}"
            operands.append(-n)
        else:
            n = rng.randint(100, 2999)
            text += f" + {n}"
            operands.append(n)
        total += operands[-1]
    work, total = running(start, operands)
    question = phrase(rng, SUB, q=text)
    return Problem("sub", "hard", key_of("sub", start, *operands), question, str(total), work)


def mul(rng, depth):
    if depth == "trivial":
        a = rng.randint(2, 49)
        b = rng.choice([2, 2, 10, 10, 1])
        work = [f"{a}*{b}={a * b}"]
    elif depth == "easy":
        if rng.random() < 0.35:
            a, b = rng.randint(2, 10), rng.randint(2, 10)
            work = [f"{a}*{b}={a * b}"]
        else:
            a, b = rng.randint(11, 99), rng.randint(2, 9)
            work, _ = mul_digit(a, b)
    elif depth == "middle":
        if rng.random() < 0.4:
            a, b = rng.randint(100, 999), rng.randint(3, 9)
            work, _ = mul_digit(a, b)
        else:
            a, b = rng.randint(11, 99), rng.randint(11, 99)
            work, _ = multiply(a, b)
    else:
        a, b = rng.randint(101, 999), rng.randint(12, 99)
        if rng.random() < 0.35:
            b = rng.randint(101, 999)
        work, _ = multiply(a, b)
    key = key_of("mul", a, b, commutes=True)
    if depth in ("trivial", "easy") and rng.random() < 0.4:
        a, b = b, a
    if depth == "easy" and len(work) > 1:
        a, b = max(a, b), min(a, b)
    question = phrase(rng, MUL, q=spaced(rng, "*", a, b))
    return Problem("mul", depth, key, question, str(a * b), work)


def div(rng, depth):
    if depth == "trivial":
        b = rng.choice([2, 10, 10, 1])
        q = rng.randint(2, 30 if b == 2 else 49)
        a, rest = b * q, 0
        work = [f"{a}/{b}={q}"]
    elif depth == "easy":
        b, q = rng.randint(2, 10), rng.randint(2, 10)
        a, rest = b * q, 0
        work = [f"{b}*{q}={a}", f"{a}/{b}={q}"]
    else:
        if depth == "middle":
            b = rng.randint(3, 9)
            a = rng.randint(100, rng.choice([999, 9999]))
            work, q, rest = divide_digit(a, b)
        else:
            b = rng.randint(11, 39)
            a = rng.randint(1000, 99999)
            work, q, rest = divide_long(a, b)
    key = key_of("div", a, b)
    if depth in ("trivial", "easy"):
        forms = ["What is {a} / {b}?", "What is {a} divided by {b}?", "Calculate {a}/{b}.", "Divide {a} by {b}."]
        answer, matcher = str(q), "number"
    elif rng.random() < 0.3:
        forms = ["What is the remainder of {a} divided by {b}?", "What is {a} mod {b}?"]
        answer, matcher = str(rest), "number"
        work = work + [f"remainder {rest}"]
    elif rng.random() < 0.4:
        forms = ["What is {a} // {b}, the whole part only?", "Divide {a} by {b} and drop the remainder."]
        answer, matcher = str(q), "number"
    else:
        forms = ["Divide {a} by {b} with remainder.", "What is {a} divided by {b}, with remainder?"]
        answer, matcher = f"{q} remainder {rest}", "exact"
        work = work + [f"remainder {rest}"]
    return Problem("div", depth, key, phrase(rng, forms, a=a, b=b), answer, work, matcher)
