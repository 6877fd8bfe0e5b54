"""`tools` and what belongs to it, the older `functions` too → `Tools`.

The older pair is read as tools of which at most one is called; the answer then says `function_call`. Whoever writes the answer
sees the newer form only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.wire.errors import bad_request
from gateway.wire.fields import Fields, array, boolean, kind_of, mapping, string
from strategies.engine import Tool, Tools

MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MODES = ("none", "auto", "required")


@dataclass(frozen=True, slots=True)
class AskedTools:
    """tools: None where none are to be called. native: the fields for a server that knows tools. legacy: they came as functions.
    foreign: the field with a kind of tool that is no function, and which."""

    tools: Tools | None = None
    native: Mapping[str, Any] = field(default_factory=dict)
    legacy: bool = False
    foreign: tuple[str, str] | None = None


NONE = AskedTools()


def decode_tools(fields: Fields) -> AskedTools:
    """Raises APIError (400)."""
    parallel = boolean(fields, "parallel_tool_calls")
    listed, functions = array(fields, "tools") or [], array(fields, "functions") or []
    if listed and functions:
        raise bad_request("functions is the older form of tools: only one of them can be used.", "functions")
    if functions:
        return _functions(fields, functions)
    for choice in ("tool_choice", "function_call"):
        _no_choice(fields, choice, "tools" if choice == "tool_choice" else "functions", bool(listed))
    if not listed:
        return NONE
    return _tools(fields, listed, parallel)


def _tools(fields: Fields, listed: list[Any], parallel: bool | None) -> AskedTools:
    if len(listed) > MAX_TOOLS:
        raise bad_request(f"At most {MAX_TOOLS} tools are possible.", "tools")
    tools, foreign = [], None
    for index, item in enumerate(listed):
        name = f"tools[{index}]"
        kind = string(_object(item, name), "type", f"{name}.type") or "function"
        if kind == "function":
            tools.append(_function(item.get("function"), f"{name}.function"))
        else:
            foreign = foreign or (name, kind)
    _once(tools, "tools")
    native = {key: fields[key] for key in ("tools", "tool_choice", "parallel_tool_calls") if key in fields}
    chosen, allowed = fields.get("tool_choice"), None
    if isinstance(chosen, dict) and chosen.get("type") == "allowed_tools":
        chosen, allowed = _allowed(chosen)
    mode, named = _choice(chosen, "tool_choice", "tool_choice.function.name")
    if isinstance(chosen, dict) and mode == "named" and chosen.get("type") == "custom":
        foreign = foreign or ("tool_choice", "custom")
    elif named is not None:
        _known(named, tools, "tool_choice.function.name")
    for each in allowed or ():
        _known(each, tools, "tool_choice.allowed_tools.tools")
    if mode == "none":
        return AskedTools(None, native, foreign=None)
    offered = tuple(tool for tool in tools if allowed is None or tool.name in allowed)
    asked = Tools(offered, mode, named, parallel is not False) if offered else None
    return AskedTools(asked, native, foreign=foreign)


def _functions(fields: Fields, functions: list[Any]) -> AskedTools:
    if len(functions) > MAX_TOOLS:
        raise bad_request(f"At most {MAX_TOOLS} functions are possible.", "functions")
    tools = [_function(item, f"functions[{index}]") for index, item in enumerate(functions)]
    _once(tools, "functions")
    chosen = fields.get("function_call")
    if isinstance(chosen, dict):
        chosen = {"type": "function", "function": chosen}
    mode, named = _choice(chosen, "function_call", "function_call.name", ("none", "auto"))
    if named is not None:
        _known(named, tools, "function_call.name")
    native: dict[str, Any] = {"tools": [{"type": "function", "function": item} for item in functions]}
    if chosen is not None:
        native["tool_choice"] = chosen
    asked = None if mode == "none" else Tools(tuple(tools), mode, named, parallel=False)
    return AskedTools(asked, native, legacy=True)


def _function(value: Any, name: str) -> Tool:
    function = _object(value, name)
    called = _name(function.get("name"), f"{name}.name")
    boolean(function, "strict", f"{name}.strict")
    parameters = mapping(function, "parameters", f"{name}.parameters") or {}
    if parameters.get("type", "object") != "object":
        raise bad_request(f'{name}.parameters must be a JSON schema of type "object".', f"{name}.parameters")
    return Tool(called, string(function, "description", f"{name}.description") or "", parameters)


def _choice(
    chosen: Any, name: str, name_field: str, modes: tuple[str, ...] = _MODES
) -> tuple[Any, str | None]:  # the first is one of `Tools.choice`
    """The mode, and the name of the one function that must be called."""
    if chosen is None:
        return "auto", None
    if isinstance(chosen, str):
        if chosen not in modes:
            raise bad_request(f"{name} must be one of {', '.join(modes)}, or name a function.", name)
        return chosen, None
    if not isinstance(chosen, dict):
        raise bad_request(f"{name} must be a string or an object, not {kind_of(chosen)}.", name)
    if chosen.get("type", "function") == "custom":
        return "named", None
    if chosen.get("type", "function") != "function":
        raise bad_request(f"{name}.type must be function, custom or allowed_tools.", f"{name}.type")
    return "named", _name(_object(chosen.get("function"), f"{name}.function").get("name"), name_field)


def _allowed(chosen: dict[str, Any]) -> tuple[str, list[str]]:
    """`{"type": "allowed_tools", "allowed_tools": {"mode": …, "tools": […]}}`: the mode and the names."""
    name = "tool_choice.allowed_tools"
    value = _object(chosen.get("allowed_tools"), name)
    mode = string(value, "mode", f"{name}.mode")
    if mode not in ("auto", "required"):
        raise bad_request(f"{name}.mode must be auto or required.", f"{name}.mode")
    names = []
    for index, item in enumerate(array(value, "tools", f"{name}.tools") or []):
        at = f"{name}.tools[{index}]"
        function = _object(_object(item, at).get("function"), f"{at}.function")
        names.append(_name(function.get("name"), f"{at}.function.name"))
    if not names:
        raise bad_request(f"{name}.tools must not be empty.", f"{name}.tools")
    return mode, names


def _no_choice(fields: Fields, choice: str, offers: str, offered: bool) -> None:
    """A choice among things that were not offered; a word that means nothing then is fine."""
    chosen = fields.get(choice)
    if chosen is not None and not isinstance(chosen, str | dict):
        raise bad_request(f"{choice} must be a string or an object, not {kind_of(chosen)}.", choice)
    if choice == "tool_choice" and offered:
        return
    if chosen not in (None, "none", "auto"):
        raise bad_request(f"{choice} needs {offers}.", choice)


def _once(tools: list[Tool], name: str) -> None:
    names = [tool.name for tool in tools]
    if twice := next((each for each in names if names.count(each) > 1), None):
        raise bad_request(f"{name} must have different names; {twice} comes twice.", name)


def _known(called: str, tools: list[Tool], name: str) -> None:
    if all(tool.name != called for tool in tools):
        raise bad_request(f"{name} is {called!r}, which is none of the tools.", name)


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad_request(f"{name} must be an object, not {kind_of(value)}.", name)
    return value


def _name(value: Any, name: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise bad_request(f"{name} must be a name of 1 to 64 letters, digits, _ and -.", name)
    return value
