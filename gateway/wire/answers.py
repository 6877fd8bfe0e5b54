"""A plan's events → what a client sees: the order and the parts of an answer, streamed or whole.

One `Choice` reads the events of one run and gives out `Piece`s; the stream writes each as a chunk, the JSON body joins them.
So joined deltas equal the whole text by construction.

Stages that run side by side are shown one after another, in the order of the plan: what a later stage says is held back until
the earlier ones have finished. Reasoning never follows content.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backends.types import TokenLogprob, ToolCallDelta, Usage
from gateway.wire.logprobs import Logprobs, logprobs_value
from strategies.engine.events import Delta, Event, Finished, MemberDropped, Recorded, StageFinished
from strategies.planning.plan import Plan

STAGE_BREAK = "\n\n"
"""Between the shown texts of two stages."""


@dataclass(frozen=True, slots=True)
class Piece:
    """More of a choice: of the answer, (refusal) of what is said in its place, or (reasoning) of what led to it. `stage`: who wrote it.

    tokens, tool_calls: as in `Delta`, of the answer only.
    """

    text: str
    stage: int
    reasoning: bool = False
    tokens: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCallDelta, ...] = ()
    refusal: bool = False


@dataclass(slots=True)
class Choice:
    """One answer in the making.

    one_call: the client wants at most one tool call, and no server's word is taken for it. dropped: members that left a group so
    far. recorded: how a group came to its pieces, where that was asked for.
    """

    plan: Plan
    show_stages: bool
    one_call: bool = False
    finished: Finished | None = None
    dropped: list[MemberDropped] = field(default_factory=list)
    recorded: list[Recorded] = field(default_factory=list)
    _held: dict[int, list[str]] = field(default_factory=dict)
    _done: set[int] = field(default_factory=set)
    _showing: int = 0
    _last_shown: int | None = None
    _answering: bool = False

    def read(self, event: Event) -> list[Piece]:
        """What the client sees of an event; often nothing."""
        if isinstance(event, Delta):
            if event.stage == len(self.plan.stages) - 1:
                return self._answer(event)
            return self._intermediate(event)
        if isinstance(event, StageFinished):
            return self._stage_finished(event.report.stage)
        if isinstance(event, Finished):
            self.finished = event
        elif isinstance(event, MemberDropped):
            self.dropped.append(event)
        elif isinstance(event, Recorded):
            self.recorded.append(event)
        return []

    def _answer(self, delta: Delta) -> list[Piece]:
        pieces = []
        # A server may mark reasoning between parts of its answer; clients expect none after content has begun.
        if delta.reasoning and not self._answering:
            pieces.extend(self._reason(delta.reasoning, delta.stage))
        calls = delta.tool_calls
        if calls and self.one_call:
            calls = tuple(call for call in calls if call.index == 0)
        if delta.text or delta.tokens or calls:
            self._answering = True
            pieces.append(Piece(delta.text, delta.stage, tokens=delta.tokens, tool_calls=calls))
        if delta.refusal or delta.refusal_tokens:
            self._answering = True
            pieces.append(Piece(delta.refusal, delta.stage, tokens=delta.refusal_tokens, refusal=True))
        return pieces

    def _intermediate(self, delta: Delta) -> list[Piece]:
        text = delta.reasoning + delta.text
        if not self.show_stages or not text:
            return []
        if delta.stage == self._showing:
            return self._reason(text, delta.stage)
        self._held.setdefault(delta.stage, []).append(text)
        return []

    def _stage_finished(self, stage: int) -> list[Piece]:
        self._done.add(stage)
        pieces: list[Piece] = []
        while self._showing in self._done and self._showing < len(self.plan.stages) - 1:
            self._showing += 1
            if held := self._held.pop(self._showing, None):
                pieces.extend(self._reason("".join(held), self._showing))
        return pieces

    def _reason(self, text: str, stage: int) -> list[Piece]:
        new_stage = self._last_shown not in (None, stage)
        self._last_shown = stage
        return [Piece(STAGE_BREAK + text if new_stage else text, stage, reasoning=True)]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A whole call. arguments: JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished choice. logprobs, refusal_logprobs: of the tokens of `text` and of `refusal`; None where none were asked for or told."""

    text: str
    reasoning: str
    finish_reason: str
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: Sequence[Mapping[str, Any]] | None = None
    refusal: str = ""
    refusal_logprobs: Sequence[Mapping[str, Any]] | None = None


def answer(pieces: Iterable[Piece], finish_reason: str, logprobs: Logprobs | None) -> Answer:
    """The pieces of a choice, joined."""
    text: list[str] = []
    reasoning: list[str] = []
    refusal: list[str] = []
    told: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    calls: dict[int, tuple[str, str, list[str]]] = {}
    for piece in pieces:
        (reasoning if piece.reasoning else refusal if piece.refusal else text).append(piece.text)
        if logprobs is not None:
            (refused if piece.refusal else told).extend(logprobs.values(piece.tokens))
        for call in piece.tool_calls:
            _, _, arguments = calls.setdefault(call.index, (call.id or "", call.name or "", []))
            arguments.append(call.arguments)
    made = tuple(ToolCall(id, name, "".join(arguments)) for _, (id, name, arguments) in sorted(calls.items()))
    # Text without tokens: its server told none. An empty list would say that there are none.
    known = logprobs is not None and (told or refused or not (any(text) or any(refusal)))
    tokens = (told, refused) if known else (None, None)
    return Answer("".join(text), "".join(reasoning), finish_reason, made, tokens[0], "".join(refusal), tokens[1])


def completion(
    *,
    id: str,
    created: int,
    model: str,
    fingerprint: str,
    answers: Sequence[Answer],
    usage: Mapping[str, Any],
    extension: Mapping[str, Any],
    legacy: bool = False,
) -> dict[str, Any]:
    """The body of an answer that is not streamed. legacy: a call is written as a `function_call`."""
    return {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "system_fingerprint": fingerprint,
        "choices": [_choice(index, each, legacy) for index, each in enumerate(answers)],
        "usage": usage,
        "modelnet": extension,
    }


def _choice(index: int, answer: Answer, legacy: bool) -> dict[str, Any]:
    calls = answer.tool_calls
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": answer.refusal or None}
    if calls or answer.refusal:
        message["content"] = answer.text or None
    if calls:
        message |= _calls_value(calls, legacy)
    if answer.reasoning:
        message["reasoning_content"] = message["reasoning"] = answer.reasoning
    logprobs = None if answer.logprobs is None else logprobs_value(answer.logprobs, answer.refusal_logprobs)
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": answer.finish_reason}


def _calls_value(calls: Sequence[ToolCall], legacy: bool) -> dict[str, Any]:
    values = [{"name": call.name, "arguments": call.arguments} for call in calls]
    if legacy:
        return {"function_call": values[0]}
    made = zip(calls, values, strict=True)
    return {"tool_calls": [{"id": call.id, "type": "function", "function": value} for call, value in made]}


def usage_value(usages: Iterable[Usage]) -> dict[str, Any]:
    """What was really spent: all stages, members and choices added up, each in its own model's tokens. Details only where a server told
    some."""
    total = sum(usages, Usage())
    value: dict[str, Any] = {
        "prompt_tokens": total.prompt_tokens,
        "completion_tokens": total.completion_tokens,
        "total_tokens": total.prompt_tokens + total.completion_tokens,
    }
    if total.cached_tokens is not None:
        value["prompt_tokens_details"] = {"cached_tokens": total.cached_tokens}
    if total.reasoning_tokens is not None:
        value["completion_tokens_details"] = {"reasoning_tokens": total.reasoning_tokens}
    return value
