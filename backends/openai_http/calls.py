"""Tool calls in the chunks of a stream, whatever form a server gives them → `ToolCallDelta`s of one form.

Servers differ: some repeat id and name in every fragment, some leave out the id or the index, some give whole calls one after the
other under one index, with ids or without, some give arguments as an object, and some still speak of a `function_call`.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from backends.types import ToolCallDelta


class Malformed(ValueError):
    """Something that is no tool call."""


@dataclass(slots=True)
class _Call:
    """One call so far. id: the server's, or our own where it gives none. held: arguments that came before the name. told: all arguments,
    where the server gives no id."""

    index: int
    given: str | None
    id: str
    name: str | None = None
    held: str = ""
    has_arguments: bool = False
    told: str = ""


@dataclass(slots=True)
class CallReader:
    """Reads the calls of one answer. `calls`: all so far, in the order in which they began."""

    calls: list[_Call] = field(default_factory=list)
    _by_index: dict[int, _Call] = field(default_factory=dict)

    def read(self, delta: Mapping[str, Any]) -> tuple[ToolCallDelta, ...]:
        """What a chunk's delta says of calls. Raises Malformed where it is of no known form."""
        entries = delta.get("tool_calls") or []
        if not isinstance(entries, list):
            raise Malformed("tool_calls is not a list")
        if isinstance(legacy := delta.get("function_call"), dict):
            entries = [*entries, {"index": 0, "function": legacy}]
        return tuple(found for place, entry in enumerate(entries) if (found := self._entry(entry, place)) is not None)

    def finish(self) -> tuple[ToolCallDelta, ...]:
        """The answer is over: arguments for calls that have none. Raises Malformed for a call without a name."""
        if any(call.name is None for call in self.calls):
            raise Malformed("a tool call has no name")
        empty = [call for call in self.calls if not call.has_arguments]
        for call in empty:
            call.has_arguments = True
        return tuple(ToolCallDelta(call.index, arguments="{}") for call in empty)

    def _entry(self, entry: Any, place: int) -> ToolCallDelta | None:
        if not isinstance(entry, dict):
            raise Malformed("a tool call is not an object")
        function = entry.get("function")
        if not isinstance(function, dict):
            function = {}
        index, id, name = entry.get("index"), entry.get("id"), function.get("name")
        arguments = text_of(function.get("arguments"))
        call = self._call(
            index if isinstance(index, int) else place, id if isinstance(id, str) and id else None, name, arguments
        )
        call.has_arguments = call.has_arguments or bool(arguments.strip())
        if call.name is not None:
            return ToolCallDelta(call.index, arguments=arguments) if arguments else None
        if not isinstance(name, str) or not name:
            call.held += arguments
            return None
        call.name = name
        return ToolCallDelta(call.index, call.id, name, call.held + arguments)

    def _call(self, index: int, id: str | None, name: Any, arguments: str) -> _Call:
        """The call that a fragment belongs to."""
        call = self._by_index.get(index)
        if call is None or is_another(call.given, call.told, id, name, arguments):
            call = _Call(len(self.calls), id, id or call_id())
            self.calls.append(call)
            self._by_index[index] = call
        if call.given is None:
            call.told += arguments
        return call


def is_another(given: str | None, told: str, id: str | None, name: Any, arguments: str) -> bool:
    """Whether a fragment is another call than the one under its index. given: that one's id from its server; told: its arguments so far.

    Another id is another call. Where neither has one, it is if it names a function and begins an object where the other's is whole:
    servers that merely repeat the name do not begin again.
    """
    if id is not None or given is not None:
        return id is not None and given is not None and id != given
    if not (isinstance(name, str) and name and told and arguments.lstrip().startswith("{")):
        return False
    try:
        return isinstance(orjson.loads(told), dict)
    except orjson.JSONDecodeError:
        return False


def call_id() -> str:
    """For a call that its server gives none."""
    return f"call_{uuid.uuid4().hex[:24]}"


def text_of(arguments: Any) -> str:
    """Arguments as JSON text; nothing where there are none."""
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
