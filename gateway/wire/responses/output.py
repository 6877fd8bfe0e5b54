"""Pieces of an answer → output items, and the events that tell of them.

The order of events is the contract with clients: an item is announced before its parts, a part before its text, and each is told
to be done before the next one begins. Clients keep one item open at a time, and drop what was never announced.

    response.created, response.in_progress
    per item   response.output_item.added
        text       content_part.added, output_text.delta…, output_text.done, content_part.done
        refusal    content_part.added, refusal.delta…, refusal.done, content_part.done
        reasoning  content_part.added, reasoning_text.delta…, reasoning_text.done, content_part.done
        call       function_call_arguments.delta…, function_call_arguments.done
               response.output_item.done
    response.completed | response.incomplete | response.failed
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backends.types import ToolCallDelta
from gateway.wire.errors import APIError

Event = dict[str, Any]
"""`type` and all other fields but `sequence_number`."""

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Finish reasons after which a response is incomplete, and why it then is."""
_FIELDS = {"output_text": "text", "reasoning_text": "text", "refusal": "refusal"}
"""Type of a part → where its text stands."""


class TornCall(Exception):
    """More arguments of a tool call came after another call had begun: its end was told already."""


@dataclass(slots=True)
class Output:
    """The items of one answer. Each method returns the events it caused."""

    items: list[dict[str, Any]] = field(default_factory=list)
    _texts: list[str] = field(default_factory=list)  # of the open part, or call
    _logprobs: list[Any] = field(default_factory=list)
    _open: bool = False
    _part: str = ""  # type of the open part
    _call: int = -1  # index of the open or last tool call

    def text(self, text: str, logprobs: Sequence[Mapping[str, Any]] = ()) -> list[Event]:
        """More of the answer. logprobs: of its tokens, as chat tells them."""
        events = self._begin("message", "output_text", "msg")
        self._texts.append(text)
        self._logprobs += logprobs
        short = [_short(token) for token in logprobs]
        return [*events, self._of_part("response.output_text.delta", delta=text, logprobs=short)]

    def refusal(self, text: str) -> list[Event]:
        """More of what is said in place of an answer: a part of the same message."""
        events = self._begin("message", "refusal", "msg")
        self._texts.append(text)
        return [*events, self._of_part("response.refusal.delta", delta=text)]

    def reasoning(self, text: str) -> list[Event]:
        """More of what led to the answer."""
        events = self._begin("reasoning", "reasoning_text", "rs")
        self._texts.append(text)
        return [*events, self._of_part("response.reasoning_text.delta", delta=text)]

    def call(self, part: ToolCallDelta) -> list[Event]:
        """More of a tool call. Raises TornCall."""
        events: list[Event] = []
        if part.index != self._call:
            if part.index < self._call:
                raise TornCall
            events = self.close()
            self._call = part.index
            call = {"call_id": part.id or _id("call"), "name": part.name or "", "arguments": ""}
            events.append(self._added({"id": _id("fc"), "type": "function_call", **call}))
        if part.arguments:
            self._texts.append(part.arguments)
            events.append(self._of_item("response.function_call_arguments.delta", delta=part.arguments))
        return events

    def finish(self, finish_reason: str) -> list[Event]:
        """The answer is over."""
        events = [] if self.items else self._begin("message", "output_text", "msg")  # an empty answer is a message too
        return [*events, *self.close("incomplete" if finish_reason in _INCOMPLETE else "completed")]

    def close(self, status: str = "completed") -> list[Event]:
        """End the open item, if there is one."""
        if not self._open:
            return []
        item = self.items[-1]
        if item["type"] == "function_call":
            item["arguments"] = text = "".join(self._texts)
            self._texts = []
            events = [self._of_item("response.function_call_arguments.done", name=item["name"], arguments=text)]
        else:
            events = self._close_part()
        item["status"] = status
        self._open = False
        return [*events, self._at("response.output_item.done", item=dict(item))]

    def _close_part(self) -> list[Event]:
        kind, text = self._part, "".join(self._texts)
        said: dict[str, Any] = {_FIELDS[kind]: text}
        part = {"type": kind, **said}
        if kind == "output_text":
            part |= {"annotations": [], "logprobs": self._logprobs}
            said["logprobs"] = [_short(token) for token in self._logprobs]
        done = self._of_part(f"response.{kind}.done", **said)
        events = [done, self._of_part("response.content_part.done", part=part)]
        item = self.items[-1]
        item["content"] = [*item["content"], part]  # a new list: events that were made hold the one before
        self._texts, self._logprobs = [], []
        return events

    def _begin(self, kind: str, part: str, prefix: str) -> list[Event]:
        if self._open and self.items[-1]["type"] == kind:
            if self._part == part:
                return []
            events = self._close_part()
        else:
            more: dict[str, Any] = {"role": "assistant"} if kind == "message" else {"summary": []}
            events = [*self.close(), self._added({"id": _id(prefix), "type": kind, **more, "content": []})]
        self._part = part
        empty: dict[str, Any] = {"type": part, _FIELDS[part]: ""}
        if part == "output_text":
            empty |= {"annotations": [], "logprobs": []}
        return [*events, self._of_part("response.content_part.added", part=empty)]

    def _added(self, item: dict[str, Any]) -> Event:
        item["status"] = "in_progress"
        self.items.append(item)
        self._open = True
        return self._at("response.output_item.added", item=dict(item))

    def _at(self, kind: str, **more: Any) -> Event:
        return {"type": kind, "output_index": len(self.items) - 1, **more}

    def _of_item(self, kind: str, **more: Any) -> Event:
        return {"type": kind, "item_id": self.items[-1]["id"], "output_index": len(self.items) - 1, **more}

    def _of_part(self, kind: str, **more: Any) -> Event:
        return self._of_item(kind, content_index=len(self.items[-1]["content"]), **more)


def response_value(
    *, id: str, created: int, model: str, terms: Mapping[str, Any], status: str, output: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The response object, without what is only known at its end."""
    return {
        "id": id,
        "object": "response",
        "created_at": created,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": list(output),
        **terms,
        "usage": None,
    }


def closing_event(
    response: Mapping[str, Any], finish_reason: str, usage: Mapping[str, Any], extension: Mapping[str, Any], now: int
) -> Event:
    """The last event of an answer that is there, with the whole response. response: from `response_value`. usage: as chat tells it.
    now: Unix time, seconds."""
    why = _INCOMPLETE.get(finish_reason)
    status = "completed" if why is None else "incomplete"
    read, written = usage.get("prompt_tokens_details", {}), usage.get("completion_tokens_details", {})
    whole = {
        **response,
        "status": status,
        "completed_at": now if why is None else None,
        "incomplete_details": None if why is None else {"reason": why},
        "usage": {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": read.get("cached_tokens", 0), "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": written.get("reasoning_tokens", 0)},
            "total_tokens": usage["total_tokens"],
        },
        "modelnet": extension,
    }
    return {"type": f"response.{status}", "response": whole}


def failed_event(response: Mapping[str, Any], error: APIError) -> Event:
    """The last event of an answer that failed under way."""
    kind = "rate_limit_exceeded" if error.status == 429 else "invalid_prompt" if error.status < 500 else "server_error"
    said = {"code": kind, "message": error.message}  # the codes are a closed set
    return {"type": "response.failed", "response": {**response, "status": "failed", "error": said}}


def _short(token: Mapping[str, Any]) -> dict[str, Any]:
    """A token's log-probability as events tell it: without bytes."""
    top = [{"token": other["token"], "logprob": other["logprob"]} for other in token["top_logprobs"]]
    return {"token": token["token"], "logprob": token["logprob"], "top_logprobs": top}


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
