"""File → `Settings`, or every problem in it with its line and key."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from gateway.settings.check import check
from gateway.settings.errors import Problem, SettingsError
from gateway.settings.models import ModelSettings
from gateway.settings.schema import Settings
from gateway.settings.schema_json import json_schema
from gateway.settings.source import KeyPath, Source, dotted, read

_BACKENDS = [get_args(kind.model_fields["backend"].annotation)[0] for kind in get_args(get_args(ModelSettings)[0])]

# pydantic's wording where ours tells the operator more; {name} come from the error's context.
_WORDING = {
    "missing": "is required",
    "union_tag_not_found": f"`backend` is required: one of {', '.join(_BACKENDS)}",
    "union_tag_invalid": "backend: {tag!r} is not one of {expected_tags}",
    "string_type": "must be a string",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping",
    "list_type": "must be a list",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A valid configuration, the file it came from (paths in it are relative to that), and where its keys are written."""

    settings: Settings
    file: Path
    source: Source

    def resolve(self, path: str) -> Path:
        """A path written in the file."""
        return (self.file.parent / Path(path).expanduser()).resolve()


def load(file: Path, environ: Mapping[str, str] = os.environ) -> Loaded:
    """Read and validate a configuration. Raises SettingsError with all problems found."""
    source = read(file, environ)
    if not isinstance(source.value, dict):
        raise SettingsError([Problem(file, None, "", "must be a mapping with the key models")])
    try:
        settings = Settings.model_validate(source.value)
    except ValidationError as error:
        # Inputs stay out of the messages: a misplaced secret must not reach a log.
        details = error.errors(include_url=False, include_input=False)
        raise SettingsError([_problem(source, item["type"], item["loc"], item) for item in details]) from None
    loaded = Loaded(settings, file, source)
    problems = [source.problem(path, message) for path, message in check(settings, loaded.resolve)]
    if problems:
        raise SettingsError(problems)
    return loaded


def _problem(source: Source, kind: str, loc: Sequence[str | int], item: Mapping[str, Any]) -> Problem:
    path = _key_path(source.value, loc)
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(loc[-1]), _known_keys(loc[:-1]), n=1, cutoff=0.5)
        return source.problem(path, "unknown key" + (f"; did you mean {near[0]!r}?" if near else ""))
    if kind == "string_pattern_mismatch" and loc and loc[-1] == "[key]":
        return source.problem(path, "a name has letters, digits and . _ - / only")
    if kind == "string_pattern_mismatch" and item["ctx"]["pattern"].startswith("^https?:"):
        return source.problem(path, "must be an address that begins with http:// or https://")
    if kind in ("too_short", "string_too_short"):
        return source.problem(path, _too_short(**item["ctx"]))
    wording = _WORDING.get(kind)
    message = wording.format(**item.get("ctx", {})) if wording else str(item["msg"]).removeprefix("Value error, ")
    return source.problem(path, message[:1].lower() + message[1:])


def _too_short(min_length: int, field_type: str = "String", actual_length: int | None = None) -> str:
    """field_type: pydantic's word for what has a length; a secret's is "Value"."""
    if min_length == 1:
        return "must not be empty"
    counted = "characters" if field_type in ("String", "Value") else "entries"
    return f"must have at least {min_length} {counted}" + (
        f", not {actual_length}" if actual_length is not None else ""
    )


def _key_path(root: Any, loc: Sequence[str | int]) -> KeyPath:
    """Pydantic's location without what it adds: the tag of a union's member, and `[key]`."""
    path: list[str | int] = []
    value: Any = root
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        there = part in value if isinstance(value, dict) else isinstance(value, list) and part in range(len(value))
        if there:
            value = value[part]
            path.append(part)
        elif last and isinstance(value, dict) and part != "[key]":
            path.append(part)  # a missing key
    return tuple(path)


def _known_keys(loc: Sequence[str | int]) -> list[str]:
    """The keys a section may have, found by walking the JSON schema along pydantic's location."""
    root = json_schema()

    def follow(node: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in node:
            node = root["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        return node

    node = root
    for part in loc:
        node = follow(node)
        if "discriminator" in node:
            node = {"$ref": node["discriminator"]["mapping"].get(part, "")}
        elif isinstance(part, int):
            node = node.get("items", {})
        elif part in node.get("properties", {}):
            node = node["properties"][part]
        else:
            patterns = [*node.get("patternProperties", {}).values(), node.get("additionalProperties"), {}]
            node = patterns[0] or {}
    return list(follow(node).get("properties", {}))


__all__ = ["Loaded", "dotted", "load"]
