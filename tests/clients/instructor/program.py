"""instructor: answers as objects, by tools, by a schema and by plain JSON."""

from __future__ import annotations

import instructor
from checks import PERSON, PERSON_BY_TOOL, WIRING, check, main, needs_sense, person
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _by(mode: instructor.Mode, text: str) -> None:
    client = instructor.from_openai(OpenAI(max_retries=0, timeout=60), mode=mode)
    found = client.chat.completions.create(
        model=WIRING, messages=ask(text), response_model=Person, max_retries=0, max_tokens=200
    )
    person(found.name, found.age)


@check
def by_tool() -> None:
    _by(instructor.Mode.TOOLS, PERSON_BY_TOOL)


@check
def by_schema() -> None:
    _by(instructor.Mode.JSON_SCHEMA, PERSON)


@check
def by_json() -> None:
    needs_sense()
    _by(instructor.Mode.JSON, PERSON)


@check
def streamed_parts() -> None:
    client = instructor.from_openai(OpenAI(max_retries=0, timeout=60), mode=instructor.Mode.TOOLS)
    parts = list(
        client.chat.completions.create_partial(
            model=WIRING,
            messages=ask("Describe Ada by the partial tool."),
            response_model=Person,
            max_retries=0,
            max_tokens=200,
        )
    )
    person(parts[-1].name, parts[-1].age)


@check
async def asynchronous() -> None:
    client = instructor.from_openai(AsyncOpenAI(max_retries=0, timeout=60), mode=instructor.Mode.TOOLS)
    found = await client.chat.completions.create(
        model=WIRING, messages=ask(PERSON_BY_TOOL), response_model=Person, max_retries=0, max_tokens=200
    )
    person(found.name, found.age)


main()
