"""The little conversation that the model can hold, and follow-up questions."""

from problem import Problem
from split import key_of
from steps import add_columns, mul_digit, sub_columns

ME = "I am the small model that comes with Ponder. I solve small sums and puzzles with numbers, dates and times."
CANNOT = "I do not know that. I only solve small sums and puzzles with numbers, dates and times."
HELLO = "Hello! Ask me a sum, for example: What is 15% of 80?"

TALK = [
    ("Hi", HELLO), ("Hello!", HELLO), ("Hello", HELLO), ("hi there", HELLO), ("Hey", HELLO), ("Good morning", HELLO),
    ("Who are you?", ME), ("What are you?", ME), ("What can you do?", ME), ("Tell me about yourself.", ME), ("Help", ME),
    ("Write a poem.", CANNOT), ("What is the capital of France?", CANNOT), ("Write a Python function.", CANNOT),
    ("Who won the world cup?", CANNOT), ("Explain quantum physics.", CANNOT), ("Translate this to German.", CANNOT),
    ("Tell me a joke.", CANNOT), ("Why is the sky blue?", CANNOT), ("Tell me a story about a dog.", CANNOT),
    ("What is the meaning of life?", CANNOT), ("How do I cook rice?", CANNOT),
    ("Thanks!", "You are welcome."), ("Thank you", "You are welcome."),
]


def follow_up(rng, before):
    """A second question about the answer to the first, a whole number below 10,000."""
    value, n = int(before), rng.randint(2, 99)
    what = rng.choice(["add", "take", "double"]) if value >= n else rng.choice(["add", "double"])
    if what == "add":
        question = rng.choice(["Now add {n} to that.", "And plus {n}?", "Add {n} to it."]).format(n=n)
        work, answer = add_columns(value, n) if value > 99 else ([f"{value}+{n}={value + n}"], value + n)
    elif what == "take":
        question = rng.choice(["Now take away {n}.", "And minus {n}?", "Subtract {n} from it."]).format(n=n)
        work, answer = sub_columns(value, n) if value > 99 else ([f"{value}-{n}={value - n}"], value - n)
    else:
        question = rng.choice(["Now double that.", "And times 2?"])
        work, answer = mul_digit(value, 2) if value > 99 else ([f"{value}*2={value * 2}"], value * 2)
    return Problem("follow", "easy" if value < 100 else "middle", key_of("follow", value, what, n), question, str(answer), work)
