"""What is kept of every answer: one flat value that goes to a line of JSON and back.

A question is *finished* when a record of its key without an error is there. The key says everything that an answer depends on, so
that a changed question, wiring or setting is asked again and nothing else is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from strategies.evaluation.judging import Equal, Verdict, judge
from strategies.evaluation.questions import AnswerKind, Question


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stage of one answer. seconds: from its start to its last token; first_token: to its first.

    models, roles: of its branches. tokens: model → (read, written), in its own tokens. fusion: how exact a group was, as the API
    tells it; None for a single writer. right, given: of its text, as if it were the answer. disagreements: where a member of a
    group would have written something else: (piece, what was written, member, what it would have written).
    """

    stage: int
    models: tuple[str, ...]
    roles: tuple[str, ...]
    text: str
    seconds: float
    first_token: float | None
    finish_reason: str
    tokens: Mapping[str, tuple[int, int]]
    fusion: Mapping[str, Any] | None = None
    right: bool = False
    given: str | None = None
    disagreements: tuple[tuple[int, str, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """One question answered by one wiring, or the failure to. seconds: as the client waited; first_token: to the answer's first.

    prompt_tokens, completion_tokens: of all stages and members. judged: what a judging model said, where one was asked.
    """

    key: str
    task: str
    question: str
    wiring: str
    kind: AnswerKind
    expected: str
    text: str = ""
    finish_reason: str = ""
    seconds: float = 0.0
    first_token: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    stages: tuple[StageRecord, ...] = ()
    right: bool = False
    given: str | None = None
    how: str | None = None
    judged: str | None = None
    error: str | None = None
    at: str = ""

    @property
    def outcome(self) -> str:
        """right, wrong, none (the text gives no answer) or failed."""
        if self.error is not None:
            return "failed"
        return "right" if self.right else "none" if self.given is None else "wrong"


def key_of(task: str, question: Question, wiring: str, settings: Mapping[str, Any]) -> str:
    """16 hex digits over all that an answer depends on. settings: what every request of the run asks for."""
    asked = [task, question.id, question.text, wiring, dict(sorted(settings.items()))]
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]


def verdict_on(question: Question, text: str, cut: bool, equal: Equal | None = None) -> Verdict:
    """As `judge`; a text that was cut short before it marked an answer gives none: its last number is somewhere on the way."""
    verdict = judge(question, text, equal, cut=cut)
    return Verdict(False, None, None) if cut and verdict.how == "last" else verdict


def scored(record: Record, question: Question, equal: Equal | None = None, judged: bool | None = None) -> Record:
    """The record with its answer, and those of its stages, judged anew. judged: a judging model's word on the answer."""
    verdict = verdict_on(question, record.text, record.finish_reason == "length", equal)
    stages = []
    for stage in record.stages:
        found = verdict_on(question, stage.text, stage.finish_reason == "length", equal)
        stages.append(replace(stage, right=found.right, given=found.given))
    right = verdict.right if judged is None else judged
    given = verdict.given if judged is None else (verdict.given or record.text.strip()[:80] or None)
    if judged is not None and stages:  # one judgement for one text
        stages[-1] = replace(stages[-1], right=right, given=given)
    return replace(
        record,
        kind=question.kind, expected=question.answer, stages=tuple(stages), right=right, given=given, how=verdict.how,
    )  # fmt: skip


def to_line(record: Record) -> str:
    """As one line of JSON, without its line break."""
    return json.dumps(asdict(record), ensure_ascii=False, separators=(",", ":"))


_STAGE = {entry.name for entry in fields(StageRecord)}
_RECORD = {entry.name for entry in fields(Record)}


def from_line(line: str) -> Record:
    """Raises ValueError if it is no record. Fields of later versions are passed over."""
    value = json.loads(line)
    try:
        stages = tuple(_stage(stage) for stage in value["stages"])
        return Record(**{key: value[key] for key in value.keys() & _RECORD} | {"stages": stages})
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not an answer's record: {error}") from error


def _stage(value: Mapping[str, Any]) -> StageRecord:
    known = {key: value[key] for key in value.keys() & _STAGE}
    tokens = {model: (int(read), int(wrote)) for model, (read, wrote) in value["tokens"].items()}
    differing = tuple(
        (int(at), str(said), str(who), str(other)) for at, said, who, other in value.get("disagreements", ())
    )
    changed = {
        "models": tuple(value["models"]),
        "roles": tuple(value["roles"]),
        "tokens": tokens,
        "disagreements": differing,
    }
    return StageRecord(**known | changed)


@dataclass(slots=True)
class Answers:
    """The records of a run by key: a finished one stays, a failure makes room for what comes after it."""

    by_key: dict[str, Record] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        held = self.by_key.get(record.key)
        if held is None or held.error is not None:
            self.by_key[record.key] = record

    def extend(self, records: Iterable[Record]) -> None:
        for record in records:
            self.add(record)

    def finished(self, key: str) -> bool:
        held = self.by_key.get(key)
        return held is not None and held.error is None
