"""What servers of OpenAI's API leave out or write otherwise in chat answers, as clients are used to it.

An answer that is handed on keeps all else. Left alone is what is not wrong but a matter of taste, such as "stop" at the end of a call.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from backends.openai_http.calls import call_id, is_another, text_of
from backends.types import FINISH_REASONS


def mend_choice(choice: dict[str, Any], *, one_call: bool = False) -> bool:
    """A choice of an answer that is not streamed. one_call: as of `Calls`. Whether anything was to be done."""
    message = choice.get("message")
    if not isinstance(message, dict):
        return False
    mended = mend_reason(choice)
    for holder, key in ((choice, "logprobs"), (message, "content"), (message, "refusal")):
        if key not in holder:
            holder[key], mended = None, True
    if "tool_calls" in message:
        before = orjson.dumps(message)
        Calls(one_call).mend(message, indexed=False, cut=choice.get("finish_reason") == "length")
        if message.get("tool_calls") and message["content"] == "":
            message["content"] = None
        mended = mended or orjson.dumps(message) != before
    return mended


def mend_reason(choice: dict[str, Any]) -> bool:
    """Some servers have words of their own for an ordinary end. Whether this one had."""
    reason = choice.get("finish_reason")
    if reason is None or (isinstance(reason, str) and reason in FINISH_REASONS):
        return False
    choice["finish_reason"] = "stop"
    return True


@dataclass(slots=True)
class Calls:
    """The tool calls of one choice. Which parts are another call is decided by `calls.is_another`.

    one: the client wants at most one, and no server's word is taken for it.
    """

    one: bool = False
    _at: dict[int, tuple[int, str | None]] = field(
        default_factory=dict
    )  # the server's index → ours, and the server's id
    _taken: set[int] = field(default_factory=set)
    _first: int | None = None
    _names: dict[int, Any] = field(default_factory=dict)  # as they were told
    _empty: set[int] = field(default_factory=set)  # those without arguments so far
    _told: dict[int, str] = field(default_factory=dict)  # the arguments of those that have no id of the server's

    def mend(self, holder: dict[str, Any], *, indexed: bool = True, cut: bool = False) -> None:
        """Those of a message, or (indexed) parts of them in a delta. cut: the message is not whole, and is not to look so."""
        calls = holder.get("tool_calls")
        if not calls:
            del holder["tool_calls"]
            return
        kept = []
        for place, call in enumerate(calls if isinstance(calls, list) else ()):
            if not isinstance(call, dict):
                continue
            index = self._part(call, place, call.get("index") if indexed else None)
            if index == self._first:
                kept.append(call)
            if indexed:
                call["index"] = index
            function = call.get("function")
            if not isinstance(function, dict):
                continue
            if isinstance(function.get("arguments"), dict | list):
                function["arguments"] = orjson.dumps(function["arguments"]).decode()
            if indexed:
                self._name(index, function)
            if _says_something(function.get("arguments")):
                self._empty.discard(index)
            elif not indexed and not cut:
                function["arguments"] = "{}"
        if self.one and self._taken:
            holder["tool_calls"] = kept
            if not kept:
                del holder["tool_calls"]

    @property
    def any(self) -> bool:
        """Whether there was one: some servers say in every delta that there is none."""
        return bool(self._taken)

    def rest(self) -> list[dict[str, Any]]:
        """Parts that are still to come when the choice is over: arguments of functions that have none."""
        empty, self._empty = self._empty & self._names.keys(), set()
        return [
            {"index": index, "function": {"arguments": "{}"}}
            for index in sorted(empty)
            if not self.one or index == self._first
        ]

    def _part(self, call: dict[str, Any], place: int, at: Any) -> int:
        id = call.get("id") or None
        at = at if isinstance(at, int) else place
        known = self._at.get(at)
        function = call.get("function")
        name, arguments = (
            (function.get("name"), text_of(function.get("arguments"))) if isinstance(function, dict) else ("", "")
        )
        if known is None or is_another(known[1], self._told.get(known[0], ""), id, name, arguments):
            index = at if at not in self._taken else max(self._taken) + 1
            if self._first is None:
                self._first = index
            self._taken.add(index)
            self._empty.add(index)
            self._at[at] = index, id
            if id is None:
                self._told[index] = arguments
            call["id"], call["type"] = id or call_id(), call.get("type") or "function"
            return index
        if known[0] in self._told:
            self._told[known[0]] += arguments
        for key in ("id", "type"):  # told with the first part, or made up; clients put together what comes twice
            call.pop(key, None)
        return known[0]

    def _name(self, index: int, function: dict[str, Any]) -> None:
        """Leaves out a name that was told, for the same reason."""
        name = function.get("name")
        if index not in self._names:
            if name:
                self._names[index] = name
        elif name == self._names[index]:
            del function["name"]


def _says_something(arguments: Any) -> bool:
    return bool(arguments.strip() if isinstance(arguments, str) else arguments)
