"""What a fake model says, how fast, and how it fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from backends import errors
from backends.types import Usage

ERRORS: Mapping[str, type[errors.BackendError]] = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and kind.__module__ == errors.__name__
}
"""Name → class of every backend error, as a fault can be configured to raise it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """If the last user turn contains `contains`, the answer is `answer` (same placeholders as `FakeSettings.answer`)."""

    contains: str
    answer: str


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to fail.

    on: "start" or "ready" (those calls), "enter" (entering a stream or a session), "token" (in the middle of one).
    of: what "enter" and "token" concern.
    after: for "token": how many deltas (stream) or passes (session: `step`s and `score`s) come before it. Where it equals
        the number of deltas it strikes before the end of the stream; beyond that never.
    action: "raise" an error; "hang" for ever, until cancelled; be "slow": `seconds` more, at every token from `after` on.
    error: name of a class in `backends.errors`, or in Python a function (model name) → exception.
    times: how often it strikes in the backend's life; None: always.
    """

    on: Literal["start", "ready", "enter", "token"] = "token"
    of: Literal["stream", "session", "both"] = "both"
    after: int = 0
    action: Literal["raise", "hang", "slow"] = "raise"
    error: str | Callable[[str], Exception] = "BackendUnavailable"
    seconds: float = 0.0
    times: int | None = None

    def __post_init__(self) -> None:
        _one_of("on", self.on, ("start", "ready", "enter", "token"))
        _one_of("of", self.of, ("stream", "session", "both"))
        _one_of("action", self.action, ("raise", "hang", "slow"))
        if isinstance(self.error, str):
            _one_of("error", self.error, tuple(ERRORS))

    def exception(self, model: str) -> Exception:
        """What it raises."""
        if isinstance(self.error, str):
            return ERRORS[self.error](model, f"Model {model!r} fails as scripted ({self.error}).")
        return self.error(model)


@dataclass(frozen=True, slots=True)
class FakeSettings:
    """Settings of a fake model. All of it can be written in a configuration file (`from_mapping`).

    answer: what it says; `{name}` is the model's name, `{last}` the text of the last user turn. The default echoes. Where tools
        are offered, `<tool_call>\\n{"name": …, "arguments": {…}}\\n</tool_call>` in it is a call; results stand in the last user
        turn, as `<tool_response>`.
    rules: the first that matches replaces `answer`.
    reasoning: text streamed as reasoning before the answer.
    split: what one delta is: a "token" of its vocabulary, a "character", a "word" with the space before it, or the "whole".
    finish_reason: of a stream; None: "stop", or "length" where `max_tokens` cut it.
    usage: of a stream; None: counted in tokens of its vocabulary.
    first_delay: seconds before the first delta, or the first pass of a session. delay: seconds before every other one.
    words: its tokens beside the 256 bytes; None: a list of common words, Chinese and emoji among them.
    seed: of the pseudo-random part of its distributions. confidence: the share of probability on the scripted text, [0, 1).
    context: tokens that prompt and answer may have together.
    seats: streams and sessions at once (None: no limit). queue: how many more may wait.
    sessions: False makes it a model that only streams text. lookup: False makes `lookup` raise CapabilityMissing.
    max_k: most tokens that a TopK lists, as servers limit it; None: no limit.
    draft_noise: how far a scored draft is off (nats, `Session` says of what); None: none of its callers should draft. recall: False makes
        `recall` raise CapabilityMissing. reads_singly: a draft takes a pass, and its delay, for each of its ids. kept_steps: over
        how many steps `recall` goes back.
    """

    answer: str = "{name}: {last}"
    rules: tuple[Rule, ...] = ()
    reasoning: str = ""
    split: Literal["token", "character", "word", "whole"] = "token"
    finish_reason: str | None = None
    usage: Usage | None = None
    first_delay: float = 0.0
    delay: float = 0.0
    words: tuple[str, ...] | None = None
    seed: int = 0
    confidence: float = 0.85
    context: int = 4096
    seats: int | None = None
    queue: int = 0
    sessions: bool = True
    lookup: bool = True
    max_k: int | None = None
    draft_noise: float | None = 0.0
    recall: bool = True
    reads_singly: bool = False
    kept_steps: int = 0
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        _one_of("split", self.split, ("token", "character", "word", "whole"))
        if not 0 <= self.confidence < 1:
            raise ValueError("confidence must be at least 0 and below 1")
        if self.draft_noise is not None and self.draft_noise < 0:
            raise ValueError("draft_noise can't be negative")
        if self.first_delay < 0 or self.delay < 0:
            raise ValueError("a delay can't be negative")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> FakeSettings:
        """From a configuration. Raises ValueError for unknown keys and values, naming them."""
        values = dict(mapping)
        if "rules" in values:
            values["rules"] = tuple(_build(Rule, item) for item in values["rules"])
        if "faults" in values:
            values["faults"] = tuple(_build(Fault, item) for item in values["faults"])
        if values.get("usage") is not None:
            values["usage"] = _build(Usage, values["usage"])
        if values.get("words") is not None:
            values["words"] = tuple(values["words"])
        return _build(cls, values)


T = TypeVar("T", Rule, Fault, Usage, FakeSettings)


def _build(kind: type[T], mapping: Mapping[str, Any]) -> T:
    if isinstance(mapping, kind):
        return mapping
    known = [field.name for field in fields(kind)]
    for key in mapping:
        if key not in known:
            raise ValueError(f"unknown key {key!r}; known: {', '.join(known)}")
    return kind(**mapping)


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key} is {value!r}; it must be one of {', '.join(allowed)}")
