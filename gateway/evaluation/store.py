"""A run's directory.

    run.json         what is asked: tasks, paths, settings; grows when a later sitting asks more
    questions.jsonl  the questions, so that a report needs nothing else (may be left out when a run is passed on)
    answers.jsonl    one answer a line, only ever appended to

A line is written whole by one call and brought to the disk before the next question counts as done, so an interruption at any
moment loses at most the answers under way. What is left of a line that was torn is cut off when the file is opened again. A lock
keeps a second run out.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gateway.evaluation.errors import SpecError, StoreError
from gateway.evaluation.sources import Task
from gateway.evaluation.spec import FORMAT, Settings, Spec
from strategies.evaluation.paths import Path as WiringPath
from strategies.evaluation.questions import Question
from strategies.evaluation.records import Answers, Record, from_line, to_line

RUN, QUESTIONS, ANSWERS = "run.json", "questions.jsonl", "answers.jsonl"


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run as it stands on the disk. questions: task → id → question; without the file, ids alone make do with what was recorded."""

    path: Path
    tasks: Mapping[str, tuple[str, ...]]
    paths: tuple[WiringPath, ...]
    settings: Settings
    models: tuple[str, ...]
    notes: Mapping[str, Any]
    questions: Mapping[str, Mapping[str, Question]]
    answers: Answers


class Store:
    """An open directory that answers are added to."""

    def __init__(self, directory: Path, descriptor: int, answers: Answers, cut: int) -> None:
        self.directory = directory
        self.answers = answers
        self.cut = cut  # bytes of a torn line that were dropped
        self._descriptor = descriptor

    def append(self, record: Record) -> None:
        """Keep an answer. Raises StoreError."""
        data = (to_line(record) + "\n").encode()
        try:
            while data:  # a short write is rare and legal
                data = data[os.write(self._descriptor, data) :]
            os.fsync(self._descriptor)
        except OSError as error:
            raise StoreError(f"{self.directory / ANSWERS}: {error}") from error
        self.answers.add(record)


@contextlib.contextmanager
def open_store(directory: Path) -> Iterator[Store]:
    """For a run. Raises StoreError: another run writes there, a line is damaged, the place can't be written."""
    file = directory / ANSWERS
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise StoreError(f"{file}: {error.strerror or error}") from error
    try:
        _lock(descriptor, directory)
        cut = _cut_torn_line(descriptor)
        yield Store(directory, descriptor, read_answers(file), cut)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, directory: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not a POSIX system: two runs at once are then the user's to avoid
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise StoreError(f"{directory}: another run is writing there") from error


def _cut_torn_line(descriptor: int) -> int:
    size = os.fstat(descriptor).st_size
    end, block = size, 1 << 16
    while end > 0:
        start = max(0, end - block)
        os.lseek(descriptor, start, os.SEEK_SET)
        data = os.read(descriptor, end - start)
        if (found := data.rfind(b"\n")) >= 0:
            keep = start + found + 1
            break
        end = start
    else:
        keep = 0
    if keep < size:
        os.ftruncate(descriptor, keep)
    return size - keep


def read_answers(file: Path) -> Answers:
    """All answers of a file; what follows the last line break is a torn line and passed over. Raises StoreError."""
    answers = Answers()
    try:
        data = file.read_bytes()
    except OSError as error:
        raise StoreError(f"{file}: {error.strerror or error}") from error
    *lines, _ = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            answers.add(from_line(line.decode()))
        except ValueError as error:
            raise StoreError(f"{file}:{number}: {error}") from error
    return answers


def write_run(directory: Path, spec: Spec, answers: Answers | None = None) -> Spec:
    """Put down what is asked, together with what earlier sittings asked; the whole of it. answers: those of earlier sittings, which belong
    into one table with this one's only if names still mean what they did. Raises SpecError, StoreError."""
    earlier = _earlier(directory)
    if earlier is not None:
        if answers is not None:
            _check_meanings(directory, earlier, spec, answers)
        spec = _merged(directory, earlier, spec)
    value = {
        "format": FORMAT,
        "tasks": {
            task.name: {"source": task.source, "questions": [q.id for q in task.questions]} for task in spec.tasks
        },
        "models": list(spec.models),
        "paths": [asdict(path) for path in spec.paths],
        "settings": spec.settings.value(),
        "notes": dict(spec.notes),
    }
    lines = [json.dumps({"task": t.name, **asdict(q)}, ensure_ascii=False) for t in spec.tasks for q in t.questions]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _replace(directory / QUESTIONS, "\n".join(lines) + "\n")
        _replace(directory / RUN, json.dumps(value, ensure_ascii=False, indent=1) + "\n")
    except OSError as error:
        raise StoreError(f"{directory}: {error.strerror or error}") from error
    return spec


def _earlier(directory: Path) -> StoredRun | None:
    return read_run(directory, with_answers=False) if (directory / RUN).exists() else None


def _check_meanings(directory: Path, earlier: StoredRun, spec: Spec, answers: Answers) -> None:
    """Of what has answered so far: a model that only failed may be mended."""
    wirings = {record.wiring for record in answers.by_key.values() if record.error is None}
    models = {name for path in earlier.paths if path.wiring in wirings for name in path.order}
    concerned = {*(f"alias {name}" for name in wirings), *(f"model {name}" for name in models)}
    for what, held in earlier.notes.get("means", {}).items():
        if spec.notes.get("means", {}).get(what, held) != held and (
            what in concerned or (wirings and what.startswith("prompt set "))
        ):
            raise SpecError(f"{directory} holds answers of another {what}: it has changed since. Choose another --out.")


def _merged(directory: Path, earlier: StoredRun, spec: Spec) -> Spec:
    """Both sittings' tasks, questions and paths. The settings have to be the same: answers to others don't belong in one table."""
    before, now = earlier.settings.value(), spec.settings.value()
    differing = [f"{key} {before[key]!r}, now {now[key]!r}" for key in now if before[key] != now[key]]
    if differing:
        raise SpecError(f"{directory} holds a run with other settings: {'; '.join(differing)}. Choose another --out.")
    tasks: dict[str, Task] = {}
    for name, held in earlier.questions.items():
        tasks[name] = Task(name, "", tuple(held.values()))
    for task in spec.tasks:
        held = dict(earlier.questions.get(task.name, {}))
        for question in task.questions:
            if held.setdefault(question.id, question).text != question.text:
                raise SpecError(
                    f"{directory}: question {question.id} of {task.name} was another one before. Choose another --out."
                )
        tasks[task.name] = Task(task.name, task.source, tuple((held | {q.id: q for q in task.questions}).values()))
    merged = dict.fromkeys((*earlier.paths, *spec.paths))
    unique = {path.wiring: path for path in merged}
    models = tuple(dict.fromkeys((*earlier.models, *spec.models)))
    return Spec(
        tuple(tasks.values()),
        tuple(unique.values()),
        spec.settings,
        models,
        spec.mirrored,
        {
            **earlier.notes,
            **spec.notes,
            "means": {**earlier.notes.get("means", {}), **spec.notes.get("means", {})},
            "sittings": [*earlier.notes.get("sittings", []), *spec.notes.get("sittings", [])],
        },
    )


def _replace(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(file)


def read_run(directory: Path, with_answers: bool = True) -> StoredRun:
    """A run's directory. Raises StoreError."""
    file = directory / RUN
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        if value["format"] != FORMAT:
            raise StoreError(f"{file}: of another version (format {value['format']})")
        tasks = {name: tuple(task["questions"]) for name, task in value["tasks"].items()}
        paths = tuple(
            WiringPath(path["wiring"], path["structure"], tuple(path["order"]), path["twin"]) for path in value["paths"]
        )
        settings = Settings(**value["settings"])
        models, notes = tuple(value["models"]), value["notes"]
        questions = _read_questions(directory / QUESTIONS, tasks)
    except OSError as error:
        raise StoreError(f"{directory} holds no run: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{file}: not a run: {type(error).__name__} {error}") from error
    answers = read_answers(directory / ANSWERS) if with_answers and (directory / ANSWERS).exists() else Answers()
    return StoredRun(directory, tasks, paths, settings, models, notes, questions, answers)


def _read_questions(file: Path, tasks: Mapping[str, tuple[str, ...]]) -> dict[str, dict[str, Question]]:
    found: dict[str, dict[str, Question]] = {name: {} for name in tasks}
    if file.exists():
        for line in file.read_text(encoding="utf-8").split("\n"):  # not splitlines: a question may hold U+2028
            if not line:
                continue
            row = json.loads(line)
            task = row.pop("task")
            row["also"], row["choices"] = tuple(row["also"]), tuple(row["choices"])
            if task in found:
                found[task][row["id"]] = Question(**row)
    return found
