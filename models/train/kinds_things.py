"""Sorting, counting, clock, calendar and word problems."""

from problem import Problem, phrase
from split import key_of
from steps import insert_sort

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July",
          "August", "September", "October", "November", "December"]
MONTH_DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
NAMES = ["Tom", "Anna", "Ben", "Mia", "Sam", "Lily", "Max", "Eva"]
ITEMS = ["apples", "books", "coins", "cards", "pens", "stamps", "shells", "marbles"]


def sort(rng, depth):
    count = {"easy": 3, "middle": rng.randint(5, 6), "hard": rng.randint(8, 12)}[depth]
    numbers = rng.sample(range(10, 100), count)
    work, ordered = insert_sort(numbers)
    text = ", ".join(map(str, numbers))
    forms = ["Sort {t} from small to large.", "Put {t} in ascending order.", "Sort these numbers: {t}", "Order {t} from smallest to largest."]
    return Problem("sort", depth, key_of("sort", *numbers, commutes=True), phrase(rng, forms, t=text),
                   ", ".join(map(str, ordered)), work, "exact")


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def count(rng, depth):
    """Letters of a string in capitals; each step names place, letter and count so far. A long string is first copied
    in tens: a step then has its letter in the ten of its line."""
    size = {"easy": rng.randint(3, 6), "middle": rng.randint(8, 12), "hard": rng.randint(18, 26)}[depth]
    pool = rng.sample(LETTERS, rng.randint(3, 6))
    wanted = rng.choice(pool)
    text = "".join(wanted if rng.random() < 0.3 else rng.choice(pool) for _ in range(size))
    steps, seen = [], 0
    for i, letter in enumerate(text):
        seen += letter == wanted
        steps.append(f"{i + 1}{letter}{seen}")
    tens = range(0, size, 10)
    work = ["-".join(text[i:i + 10] for i in tens)] if depth == "hard" else []
    work += [" ".join(steps[i:i + 10]) for i in tens]
    forms = ['How many times does "{w}" appear in "{t}"?', 'Count the letter "{w}" in "{t}".', 'How many "{w}" are in "{t}"?']
    return Problem("count", depth, key_of("count", wanted, text), phrase(rng, forms, w=wanted, t=text), str(seen), work)


def _time(minutes):
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def _later(hour, minute, add_h, add_m):
    """One line each for minutes, hours and the clock time."""
    total = minute + add_m
    carry, left = divmod(total, 60)
    lines = [f"{minute}+{add_m}={total}={carry}h{left}"]
    hours = hour + add_h + carry
    lines.append(f"{hour}+{add_h}+{carry}={hours}" + (f"-24={hours - 24}" if hours >= 24 else ""))
    lines.append(f"={_time(hours % 24 * 60 + left)}")
    return lines, hours % 24, left


def clock(rng, depth):
    hour, minute = rng.randint(0, 23), rng.randint(0, 59)
    start = _time(hour * 60 + minute)
    if depth == "easy":
        add_m = rng.randint(1, 59)
        work, h, m = _later(hour, minute, 0, add_m)
        forms = ["What time is it {m} minutes after {s}?", "It is {s}. What time is it in {m} minutes?"]
        key, question = key_of("clock", start, add_m), phrase(rng, forms, m=add_m, s=start)
    elif depth == "middle":
        add_h, add_m = rng.randint(1, 11), rng.randint(1, 59)
        work, h, m = _later(hour, minute, add_h, add_m)
        forms = ["What time is it {h} hours and {m} minutes after {s}?", "A train leaves at {s} and takes {h} hours {m} minutes. When does it arrive?",
                 "It is {s}. What time is it in {h} hours and {m} minutes?"]
        key, question = key_of("clock", start, add_h, add_m), phrase(rng, forms, h=add_h, m=add_m, s=start)
    else:
        steps = [(rng.randint(0, 4), rng.randint(5, 59)) for _ in range(rng.randint(4, 6))]
        h, m, work = hour, minute, [start]
        for i, (add_h, add_m) in enumerate(steps):
            # What is still to add stands behind the time: the next part is read there.
            work[-1] += "+" + ",".join(f"{h}h{m}" for h, m in steps[i:])
            lines, h, m = _later(h, m, add_h, add_m)
            work += lines
        parts = [f"{h} h {m} min" for h, m in steps]
        key = key_of("clock", start, *[n for step in steps for n in step])
        question = f"A trip starts at {start}. Its parts take {', '.join(parts[:-1])} and {parts[-1]}. When does it end?"
    return Problem("clock", depth, key, question, f"{h:02d}:{m:02d}", work, "exact")


def calendar(rng, depth):
    if depth == "hard":
        return _date_after(rng, rng.randint(100, 300))
    if depth == "middle" and rng.random() < 0.5:
        return _date_after(rng, rng.randint(20, 60))
    day, n = rng.randint(0, 6), rng.randint(1, 6) if depth == "easy" else rng.randint(15, 99)
    weeks, rest = divmod(n, 7)
    work = [f"{n}={weeks}*7+{rest}"] if n > 6 else []
    walk = [DAYS[(day + i) % 7] for i in range(rest + 1)]
    work.append(" ".join(w if i == 0 else f"{i} {w}" for i, w in enumerate(walk)))
    forms = ["Today is {d}. What day is it in {n} days?", "What day of the week is {n} days after {d}?"]
    return Problem("calendar", depth, key_of("calendar", day, n), phrase(rng, forms, d=DAYS[day], n=n), walk[-1], work, "exact")


def _date_after(rng, n):
    """Month by month, in a year that is not a leap year."""
    month = rng.randint(0, 11)
    day = rng.randint(1, MONTH_DAYS[month])
    question = phrase(rng, ["What date is {n} days after {m} {d}?", "Today is {m} {d}. What date is it in {n} days?"], n=n, m=MONTHS[month], d=day)
    question += rng.choice([" (no leap year)", " (not a leap year)"])
    key = key_of("date", month, day, n)
    total = day + n
    work = [f"{day}+{n}={total}"]
    while total > MONTH_DAYS[month]:
        work.append(f"{MONTHS[month]} {MONTH_DAYS[month]}: {total}-{MONTH_DAYS[month]}={total - MONTH_DAYS[month]}")
        total -= MONTH_DAYS[month]
        month = (month + 1) % 12
    work.append(f"{MONTHS[month]} {total}")
    depth = "hard" if n >= 100 else "middle"
    return Problem("calendar", depth, key, question, f"{MONTHS[month]} {total}", work, "exact")


def word(rng, depth):
    steps = {"easy": 2, "middle": rng.randint(3, 4), "hard": rng.randint(6, 8)}[depth]
    if depth != "hard" and rng.random() < 0.4:
        return _shopping(rng, depth)
    name, item = rng.choice(NAMES), rng.choice(ITEMS)
    have = rng.randint(5, 60)
    start, text, moves, operands = have, [f"{name} has {have} {item}."], [], [have]
    left = steps
    while left > 0:
        kinds = ["gain", "lose"] + (["packs", "packs", "share"] if left > 1 or depth == "easy" else []) + (["double"] if have < 60 else []) + \
                (["half"] if have % 2 == 0 and have > 10 else [])
        what = rng.choice(kinds)
        if what == "packs" and left > 1 and have < 150:
            n, each = rng.randint(2, 9), rng.randint(2, 9)
            text.append(rng.choice(["Then {n} friends bring {e} {i} each.", "Then {n} bags with {e} {i} each are added."]).format(n=n, e=each, i=item))
            moves.append(("+", n, each))
            have, left = have + n * each, left - 2
            operands += ["p", n, each]
        elif what == "share" and left > 1 and have > 12:
            n = rng.randint(2, 5)
            each = rng.randint(1, min(9, have // n - 1)) if have // n > 1 else 1
            text.append(f"{name} gives {n} friends {each} {item} each.")
            moves.append(("-", n, each))
            have, left = have - n * each, left - 2
            operands += ["s", n, each]
        elif what == "double":
            text.append(f"Then the number doubles.")
            moves.append(("*", 2))
            have, left = have * 2, left - 1
            operands.append("d")
        elif what == "half":
            text.append(f"Half of them are lost.")
            moves.append(("/", 2))
            have, left = have // 2, left - 1
            operands.append("h")
        elif what == "lose" and have > 10:
            n = rng.randint(2, min(have - 2, 60))
            text.append(rng.choice(["{a} loses {n}.", "{a} gives away {n}.", "{a} sells {n} of them."]).format(a=name, n=n))
            moves.append(("-", n))
            have, left = have - n, left - 1
            operands.append(-n)
        elif what in ("gain", "lose") and have < 150:
            n = rng.randint(2, 50)
            text.append(rng.choice(["{a} buys {n} more.", "{a} finds {n} more.", "{a} gets {n} from {b}."]).format(a=name, n=n, b=rng.choice(NAMES)))
            moves.append(("+", n))
            have, left = have + n, left - 1
            operands.append(n)
    work, result = _moves(start, moves, listed=depth == "hard")
    assert result == have
    text.append(f"How many {item} does {name} have {rng.choice(['now', 'in the end', 'left'])}?")
    return Problem("word", depth, key_of("word", *operands), " ".join(text), str(have), work)


def _moves(have, moves, listed):
    """A story as sums: ("+", 5) is five more, ("+", 2, 5) two times five more. A long story is first read into a list,
    26,*2,+8*5,+46; the rest of the list then follows each result, so that no step is skipped or done twice."""
    written = [move[0] + "*".join(map(str, move[1:])) for move in moves]
    lines = [",".join([str(have), *written])] if listed else []
    for i, (sign, *factors) in enumerate(moves):
        n = factors[0]
        if len(factors) == 2:
            n *= factors[1]
            lines.append(f"{factors[0]}*{factors[1]}={n}")
        result = {"+": have + n, "-": have - n, "*": have * n, "/": have // n}[sign]
        rest = "".join("," + w for w in written[i + 1:]) if listed else ""
        lines.append(f"{have}{sign}{n}={result}{rest}")
        have = result
    return lines, have


def _shopping(rng, depth):
    """Two steps: one thing and change. Three or four: two things, and perhaps change."""
    name = rng.choice(NAMES)
    a, b = rng.sample(["pen", "book", "card", "cup", "hat", "lamp"], 2)
    n, p, m, q = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 9)
    if depth == "easy":
        paid = rng.choice([20, 50, 100])
        while n * p > paid:
            n = rng.randint(2, 9)
            p = rng.randint(2, 9)
        question = f"A {a} costs {p} dollars. {name} buys {n} and pays with {paid} dollars. How much change does {name} get?"
        work = [f"{n}*{p}={n * p}", f"{paid}-{n * p}={paid - n * p}"]
        return Problem("word", depth, key_of("shop", n, p, paid), question, str(paid - n * p), work)
    cost = n * p + m * q
    work = [f"{n}*{p}={n * p}", f"{m}*{q}={m * q}", f"{n * p}+{m * q}={cost}"]
    question = f"A {a} costs {p} dollars and a {b} costs {q} dollars. {name} buys {n} {a}s and {m} {b}s"
    if rng.random() < 0.5:
        paid = rng.choice([k for k in (100, 150, 200) if k >= cost])
        work.append(f"{paid}-{cost}={paid - cost}")
        question += f" and pays with {paid} dollars. How much change does {name} get?"
        return Problem("word", depth, key_of("shop", n, p, m, q, paid), question, str(paid - cost), work)
    return Problem("word", depth, key_of("shop", n, p, m, q), question + ". How many dollars is that?", str(cost), work)
