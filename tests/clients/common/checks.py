"""What every client's program is told, and how it tells what it saw. Standard library only: it runs in the client's environment.

A program registers functions with `check` and ends with `main()`. Each outcome is a line of JSON on standard output.
The models are scripted (see `scripts.py`): a question has one answer, whatever the wiring. With SCRIPTED=0 they are small real
ones, of which only the form is asked.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

BASE_URL = os.environ["OPENAI_BASE_URL"]
KEY = os.environ["OPENAI_API_KEY"]
WIRING = os.environ["WIRING"]
SCRIPTED = os.environ.get("SCRIPTED", "1") == "1"

HELLO = "Say hello."
HELLO_SAID = "Hello from all of us. 是的 😀 naïve"
WEATHER = "What is the weather in Paris, in Fahrenheit?"
WEATHER_SAID = "It is 69.8 °F in Paris. 好的 👍"
PERSON = "Describe Ada as JSON."
PERSON_BY_TOOL = "Describe Ada by the tool."
NAME, AGE = "Ada", 36

PERSON_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}

CALLED: list[tuple[str, Any]] = []
"""What the tools below were called with."""


def get_weather(city: str) -> str:
    """The weather in a city, in Celsius."""
    CALLED.append(("get_weather", city))
    return "21 degrees"


def to_fahrenheit(celsius: int) -> str:
    """Turn degrees Celsius into Fahrenheit."""
    CALLED.append(("to_fahrenheit", celsius))
    return f"{celsius * 9 / 5 + 32}"


TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": function.__name__,
            "description": function.__doc__,
            "parameters": {
                "type": "object",
                "properties": {argument: {"type": kind}},
                "required": [argument],
                "additionalProperties": False,
            },
        },
    }
    for function, argument, kind in ((get_weather, "city", "string"), (to_fahrenheit, "celsius", "integer"))
]


def call(name: str, arguments: str) -> str:
    """Do what a model asked for."""
    functions: dict[str, Callable[..., str]] = {"get_weather": get_weather, "to_fahrenheit": to_fahrenheit}
    return functions[name](**json.loads(arguments))


def said(text: object, expected: str) -> None:
    """A scripted model says exactly this; a real one says something."""
    assert isinstance(text, str) and text, repr(text)
    if SCRIPTED:
        assert text == expected, f"{text!r} is not {expected!r}"


def person(name: object, age: object) -> None:
    """As `said`, of the structured answer."""
    assert isinstance(name, str) and isinstance(age, int), (name, age)
    if SCRIPTED:
        assert (name, age) == (NAME, AGE), (name, age)


def looped(text: object) -> None:
    """The tools were called one after the other, and then the model answered."""
    said(text, WEATHER_SAID)
    assert CALLED == [("get_weather", "Paris"), ("to_fahrenheit", 21)], CALLED


class Skip(Exception):
    """Not to be had here; the message says why."""


def needs_sense() -> None:
    """What follows wants a model that understands."""
    if not SCRIPTED:
        raise Skip("a small model need not do that")


_CHECKS: list[Callable[[], Any]] = []


def check(function: Callable[[], Any]) -> Callable[[], Any]:
    """Part of the program; may be asynchronous."""
    _CHECKS.append(function)
    return function


def _where() -> str:
    """The line of the program, and the error."""
    _, error, trace = sys.exc_info()
    lines = [f"line {frame.lineno}" for frame in traceback.extract_tb(trace) if frame.filename.endswith("/client.py")]
    return f"{', '.join(lines)}: {type(error).__name__}: {str(error)[:1000]}"


def main() -> None:
    """Run all, in order."""
    for function in _CHECKS:
        CALLED.clear()
        outcome, why, began = "passed", "", time.monotonic()
        try:
            result = function()
            if inspect.iscoroutine(result):
                asyncio.run(result)
        except Skip as error:
            outcome, why = "skipped", str(error)
        except BaseException:  # noqa: BLE001 - told, with the rest still to be run
            outcome, why = "failed", _where()
        took = round(time.monotonic() - began, 2)
        line = {"check": function.__name__, "outcome": outcome, "why": why, "seconds": took}
        sys.stdout.write(json.dumps(line) + "\n")
