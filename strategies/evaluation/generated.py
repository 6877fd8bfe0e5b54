"""Question sets that need no file: made from a seed, the same ones every time, with exact answers.

arithmetic    sums with parentheses over small whole numbers            a number
equations     linear equations in one unknown                           a number
derivatives   polynomials and products, to be differentiated            an expression
logic         who is taller, older, faster: a chain of comparisons      a choice of four
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from strategies.evaluation.questions import Question, question_from

Maker = Callable[[random.Random], dict[str, str]]


def generated(task: str, count: int, seed: int) -> list[Question]:
    """The first `count` questions of a built-in set; more of them begin with the same ones. Raises KeyError for another name."""
    make, source = MAKERS[task], random.Random(f"{task}/{seed}")
    return list(_distinct(task, make, source, count, seed))


def _distinct(task: str, make: Maker, source: random.Random, count: int, seed: int) -> Iterator[Question]:
    seen: set[str] = set()
    while len(seen) < count:
        row = make(source)
        if row["question"] not in seen:
            seen.add(row["question"])
            yield question_from({"id": f"{task}-{seed}-{len(seen)}", **row})


def _arithmetic(source: random.Random) -> dict[str, str]:
    a, b, c, d = (source.randint(2, 99) for _ in range(4))
    forms = [
        (f"{a} + {b} * {c}", a + b * c),
        (f"({a} + {b}) * {c % 10 + 2}", (a + b) * (c % 10 + 2)),
        (f"{a} * {b % 12 + 2} - {c} * {d % 12 + 2}", a * (b % 12 + 2) - c * (d % 12 + 2)),
        (f"{a * (b % 9 + 2)} / {b % 9 + 2} + {c} - {d}", a + c - d),
    ]
    text, value = source.choice(forms)
    return {"question": f"What is {text}?", "answer": str(value), "kind": "number"}


def _equation(source: random.Random) -> dict[str, str]:
    unknown, value = source.choice("xyzknt"), source.randint(-20, 20)
    a, c = source.sample([n for n in range(-12, 13) if n not in (0, 1, -1)], 2)
    b = source.randint(-60, 60)
    right = (a - c) * value + b
    return {
        "question": f"Solve {a}*{unknown} {_signed(b)} = {c}*{unknown} {_signed(right)} for {unknown}.",
        "answer": str(value),
        "kind": "number",
    }


def _signed(number: int) -> str:
    return f"{'-' if number < 0 else '+'} {abs(number)}"


def _derivative(source: random.Random) -> dict[str, str]:
    x = source.choice("xtuz")
    if source.random() < 0.25:
        n, name = source.randint(2, 5), source.choice(["sin", "cos", "exp"])
        inner = {"sin": f"cos({x})", "cos": f"-sin({x})", "exp": f"exp({x})"}[name]
        question, answer = f"{x}**{n}*{name}({x})", f"{n}*{x}**{n - 1}*{name}({x}) + {x}**{n}*({inner})"
    else:
        powers = sorted(source.sample(range(6), source.randint(2, 4)), reverse=True)
        if powers[0] == 0 or powers == [1, 0]:
            powers = [3, *powers]
        terms = [(source.choice([-1, 1]) * source.randint(2, 30), power) for power in powers]
        question = _polynomial(terms, x)
        answer = _polynomial([(a * n, n - 1) for a, n in terms if n], x)
    return {"question": f"Differentiate {question} with respect to {x}.", "answer": answer, "kind": "expression"}


def _polynomial(terms: list[tuple[int, int]], x: str) -> str:
    text = ""
    for factor, power in terms:
        written = f"{abs(factor)}" + ("" if power == 0 else f"*{x}" if power == 1 else f"*{x}**{power}")
        sign = " - " if factor < 0 else " + "
        text += (sign if text else sign.strip().replace("+", "")) + written
    return text


_NAMES = ("Anna", "Ben", "Chen", "Dora", "Emil", "Fang", "Greta", "Hugo", "Ines", "Jun")
_WORDS = (("taller", "tallest", "shortest"), ("older", "oldest", "youngest"), ("faster", "fastest", "slowest"))


def _logic(source: random.Random) -> dict[str, str]:
    order = source.sample(_NAMES, 4)
    more, most, least = source.choice(_WORDS)
    facts = [f"{order[i]} is {more} than {order[i + 1]}." for i in range(3)]
    source.shuffle(facts)
    asked, answer = source.choice([(most, order[0]), (least, order[3]), (f"second {most}", order[1])])
    choices = sorted(order)
    return {
        "question": f"{' '.join(facts)} Who is the {asked} of the four?",
        "answer": "ABCD"[choices.index(answer)],
        **dict(zip("ABCD", choices, strict=True)),
    }


MAKERS: dict[str, Maker] = {
    "arithmetic": _arithmetic,
    "equations": _equation,
    "derivatives": _derivative,
    "logic": _logic,
}
