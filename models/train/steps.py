"""Worked steps: the small moves that every reference chain is made of.

Each function returns `(lines, result)`. A line holds one operation on one or
two digits, with its operands restated next to it, so that a model with a few
layers can learn the step by looking a few tokens back. Results grow from the
right: after the colon stands everything written down so far, and the last
line of a block therefore holds its whole result.

Every function asserts its own result against Python's arithmetic; a chain
with a wrong line cannot be generated.
"""


def add_columns(a, b, rest="", width=0):
    """478+56 -> 478+056 / 8+6+0=14:4 / 7+5+1=13:34 / 4+0+1=5:534. `rest`: what is still to do, see `running`."""
    width = max(len(str(a)), len(str(b)), width)
    top, bottom = str(a).zfill(width), str(b).zfill(width)
    lines, carry, done = [f"{top}+{bottom}{rest}"], 0, ""
    for i in range(width - 1, -1, -1):
        total = int(top[i]) + int(bottom[i]) + carry
        done = (str(total) if i == 0 else str(total % 10)) + done
        lines.append(f"{top[i]}+{bottom[i]}+{carry}={total}:{done}")
        carry = total // 10
    assert int(done) == a + b
    return lines, a + b


def sub_columns(a, b, rest="", width=0):
    """478-59 -> 478-059 / 18-9-0=9:9 / 7-5-1=1:19 / 4-0-0=4:419.

    A column that must borrow shows it as a leading 1; the next line then
    takes 1 away.
    """
    assert a >= b
    full = max(len(str(a)), width)
    top, bottom = str(a).zfill(full), str(b).zfill(full)
    lines, borrow, done = [f"{top}-{bottom}{rest}"], 0, ""
    for i in range(full - 1, -1, -1):
        upper, lower = int(top[i]), int(bottom[i])
        need = upper - lower - borrow < 0
        digit = upper - lower - borrow + (10 if need else 0)
        done = str(digit) + done
        lines.append(f"{'1' if need else ''}{upper}-{lower}-{borrow}={digit}:{done}")
        borrow = int(need)
    assert int(done) == a - b
    if done != str(a - b) and not width:
        lines.append(f"={a - b}")
    return lines, a - b


def running(total, operands, width=5):
    """total plus the signed operands, one after another. Each head line carries what is still to do, so that the next
    operand is read from the line above and not looked for in the question, and all numbers have the same width, so
    that it is a plain copy: 00012+00005,-00003 / ... / 00017-00003 / ... / =14."""
    lines = []
    for i, n in enumerate(operands):
        rest = "".join(f",{'-' if m < 0 else '+'}{abs(m):0{width}d}" for m in operands[i + 1:])
        block, total = (sub_columns if n < 0 else add_columns)(total, abs(n), rest, width)
        lines += block
    return lines + [f"={total}"], total


def mul_digit(a, d, zeros=0):
    """47*60 -> 47*60 / 7*6=42+0=42:20 / 4*6=24+4=28:2820."""
    lines, carry, done = [f"{a}*{d}{'0' * zeros}"], 0, "0" * zeros
    digits = str(a)
    for i in range(len(digits) - 1, -1, -1):
        product = int(digits[i]) * d
        total = product + carry
        done = (str(total) if i == 0 else str(total % 10)) + done
        lines.append(f"{digits[i]}*{d}={product}+{carry}={total}:{done}")
        carry = total // 10
    assert int(done) == a * d * 10**zeros
    return lines, int(done)


def multiply(a, b):
    """One row per digit of b from the right, each added to the sum so far."""
    lines, total = [], None
    for place, digit in enumerate(reversed(str(b))):
        if digit == "0":
            continue
        row, product = mul_digit(a, int(digit), place)
        lines += row
        if total is None:
            total = product
        else:
            column, total = add_columns(total, product)
            lines += column
    assert total == a * b
    return lines, total


def divide_digit(a, d):
    """Long division by one digit: 847/7 -> 08/7=1r1:1 / 14/7=2r0:12 / 07/7=1r0:121."""
    lines, rest, done = [f"{a}/{d}"], 0, ""
    for digit in str(a):
        current = rest * 10 + int(digit)
        quotient = current // d
        done += str(quotient)
        lines.append(f"{rest}{digit}/{d}={quotient}r{current % d}:{done}")
        rest = current % d
    assert (int(done), rest) == divmod(a, d)
    if done != str(a // d):
        lines.append(f"={a // d}")
    return lines, a // d, rest


def divide_long(a, d):
    """Long division by two digits, over a table of the multiples of d."""
    lines = [f"{a}/{d}", ",".join(f"{k}:{d * k}" for k in range(1, 10))]
    rest, done = 0, ""
    for digit in str(a):
        current = rest * 10 + int(digit)
        quotient, rest = divmod(current, d)
        done += str(quotient)
        lines.append(f"{current}={quotient}:{current}-{quotient * d}={rest}:{done}")
    assert (int(done), rest) == divmod(a, d)
    lines.append(f"={a // d}")
    return lines, a // d, rest


def gcd_steps(a, b):
    """Euclid: 84-36*2=84-72=12 / 36-12*3=36-36=0 / gcd 12."""
    big, small = max(a, b), min(a, b)
    lines = []
    while small:
        q = big // small
        lines.append(f"{big}-{small}*{q}={big}-{small * q}={big - small * q}")
        big, small = small, big - small * q
    lines.append(f"gcd {big}")
    return lines, big


def power_mod(base, exponent, modulus):
    """3^3 mod 7 -> 1:3=3 / 2:3*3=9=1*7+2 / 3:2*3=6=0*7+6."""
    value = base % modulus
    lines = [f"1:{base}={base // modulus}*{modulus}+{value}"]
    for k in range(2, exponent + 1):
        product = value * base
        q, rest = divmod(product, modulus)
        lines.append(f"{k}:{value}*{base}={product}={q}*{modulus}+{rest}")
        value = rest
    assert value == pow(base, exponent, modulus)
    return lines, value


def to_base(n, base):
    """45 in base 2 -> 45/2=22r1:1 / 22/2=11r0:01 / ..."""
    lines, done, value = [], "", n
    while value:
        q, rest = divmod(value, base)
        done = str(rest) + done
        lines.append(f"{value}/{base}={q}r{rest}:{done}")
        value = q
    assert int(done, base) == n
    return lines, done


def from_base(digits, base):
    """1011 from base 2 -> 0*2+1=1;011 / 1*2+0=2;11 / ... the unread digits follow."""
    lines, value = [], 0
    for i, digit in enumerate(digits):
        lines.append(f"{value}*{base}+{digit}={value * base + int(digit)};{digits[i + 1:]}")
        value = value * base + int(digit)
    assert value == int(digits, base)
    return lines, value


def insert_sort(numbers):
    """Insertion: each line names the next number and the sorted list with it."""
    lines, done = [], []
    for n in numbers:
        done = sorted(done + [n])
        lines.append(f"{n}:" + ",".join(map(str, done)))
    return lines, done


def add_line(a, b):
    return [f"{a}+{b}={a + b}"], a + b
