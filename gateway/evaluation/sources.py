"""Question sets by name.

    arithmetic                          built in, made from the seed; so are equations, derivatives, logic
    path/to/set.jsonl, set.csv          a file: question, answer, optional id, kind, also, A, B, C…
    hf:openai/gsm8k:main:test           Hugging Face: repository, then configuration and split if they need naming
    Name=…                              any of these under a name of its own

`columns` renames a source's fields: {"question": "problem", "answer": "solution"}.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.evaluation.errors import SpecError
from strategies.evaluation.generated import MAKERS, generated
from strategies.evaluation.questions import Question, question_from

GENERATED_COUNT = 20
"""Questions of a built-in set where no number is asked for."""


@dataclass(frozen=True, slots=True)
class Task:
    """A named question set."""

    name: str
    source: str
    questions: tuple[Question, ...]


def read_task(
    text: str, count: int | None, seed: int, columns: Mapping[str, str] | None = None, sample: bool = False
) -> Task:
    """The first `count` questions of a source. sample: in an order shuffled by the seed, so that more of them begin with the same ones.

    Raises SpecError that says what and where.
    """
    name, source = _named(text)
    if source in MAKERS:
        return Task(name or source, source, tuple(generated(source, count or GENERATED_COUNT, seed)))
    if source.startswith("hf:"):
        rows = _hugging_face(source.removeprefix("hf:"))
        name = name or source.removeprefix("hf:").split(":")[0].rsplit("/", 1)[-1]
    else:
        rows = _file(Path(source).expanduser())
        name = name or Path(source).stem
    questions = _questions(source, rows, None if sample else count, columns or {})
    if sample:
        random.Random(f"{seed}/{name}").shuffle(questions)
        questions = questions[:count]
    if not questions:
        raise SpecError(f"{source}: no questions")
    twice = (
        {q.id for q in questions if sum(q.id == other.id for other in questions) > 1}
        if len(questions) < 5000
        else set()
    )
    if twice or len({q.id for q in questions}) != len(questions):
        raise SpecError(f"{source}: several questions have the id {sorted(twice)[:1] or '?'}")
    return Task(name, source, tuple(questions))


def _named(text: str) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    if equals and name and not any(c in name for c in "/\\:.") and source:
        return name, source
    return "", text


def _questions(
    source: str, rows: Iterable[tuple[str, Mapping[str, Any]]], count: int | None, columns: Mapping[str, str]
) -> list[Question]:
    questions: list[Question] = []
    for place, row in rows:
        if count is not None and len(questions) >= count:
            break
        try:
            questions.append(question_from(_renamed(row, columns, len(questions) + 1)))
        except ValueError as error:
            raise SpecError(f"{source}:{place}: {error}") from error
    return questions


def _renamed(row: Any, columns: Mapping[str, str], number: int) -> Any:
    """A row with the fields that a question has; what is no object stays what it is, to be refused."""
    if not isinstance(row, Mapping):
        return row
    return {"id": str(number), **row, **{ours: row[theirs] for ours, theirs in columns.items() if theirs in row}}


def _file(path: Path) -> Iterator[tuple[str, Any]]:
    if not path.exists():
        known = ", ".join(MAKERS)
        raise SpecError(
            f"{path}: no such file, and none of the built-in sets ({known}); data sets of a hub begin with hf:"
        )
    try:
        if path.suffix.lower() in (".csv", ".tsv"):
            with path.open(encoding="utf-8-sig", newline="") as file:
                delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
                reader = csv.DictReader(file, delimiter=delimiter, strict=True)
                for row in reader:
                    yield (
                        str(reader.line_num),
                        {key: value for key, value in row.items() if key and value not in (None, "")},
                    )
            return
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield str(number), json.loads(line)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SpecError(f"{path}: {error}") from error
    except json.JSONDecodeError as error:
        raise SpecError(f"{path}:{number}: not a line of JSON: {error}") from error


def _hugging_face(name: str) -> Iterator[tuple[str, Any]]:
    """Reads from the hub or its cache, through the `datasets` library."""
    try:
        import datasets
    except ImportError as error:
        raise SpecError("data sets of the hub need: pip install 'modelnet-gateway[datasets]'") from error
    path, _, rest = name.partition(":")
    config, _, split = rest.partition(":")
    try:
        found = datasets.load_dataset(path, config or None, split=split or "test")
        for number, row in enumerate(found, 1):
            yield str(number), row
    except SpecError:
        raise
    except Exception as error:  # the library raises its own, the hub client's and the network's errors alike
        raise SpecError(f"hf:{name}: {type(error).__name__}: {error}") from error
