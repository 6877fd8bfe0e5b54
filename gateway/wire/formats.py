"""What the text of an answer must look like: `response_format`, `modelnet.constraint`, and vLLM's names for the same → `Constraint`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.wire.errors import bad_request
from gateway.wire.fields import Fields, array, boolean, kind_of, mapping, string
from strategies.engine import Constraint

MAX_SOURCE = 65_536
"""Characters of a regular expression or grammar, and of all choices together."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KINDS = ("text", "json_object", "json_schema")


@dataclass(frozen=True, slots=True)
class Format:
    """constraint: None where any text will do, or where we can't read what is asked. param: the field it came in.

    native: the fields for a server that knows them; empty where only we can hold it. foreign: why only such a server can.
    """

    constraint: Constraint | None = None
    param: str = "response_format"
    native: Mapping[str, Any] = field(default_factory=dict)
    foreign: str | None = None


ANY = Format()


def decode_format(fields: Fields, extension: Fields) -> Format:
    """extension: the value of `modelnet`. At most one field may ask for something. Raises APIError (400)."""
    asked = [read(fields, key) for key, read in _READERS.items() if key in fields]
    asked.append(_own(extension))
    asked = [each for each in asked if each is not ANY]
    if len(asked) > 1:
        one, other = asked[0].param, asked[1].param
        raise bad_request(f"{one} and {other} can't be used together.", other)
    return asked[0] if asked else ANY


def _response_format(fields: Fields, key: str) -> Format:
    shape = mapping(fields, key) or {}
    kind = shape.get("type")
    if kind not in _KINDS:
        raise bad_request(f"{key}.type must be one of {', '.join(_KINDS)}.", key)
    if kind == "text":
        return ANY
    native = {key: shape}
    if kind == "json_object":
        return Format(Constraint("json_object"), native=native)
    name = f"{key}.json_schema"
    schema = mapping(shape, "json_schema", name)
    if schema is None:
        raise bad_request(f"{name} is missing.", name)
    called = string(schema, "name", f"{name}.name")
    if called is None or not _NAME.fullmatch(called):
        raise bad_request(f"{name}.name must be a name of 1 to 64 letters, digits, _ and -.", f"{name}.name")
    string(schema, "description", f"{name}.description")
    boolean(schema, "strict", f"{name}.strict")
    wanted = mapping(schema, "schema", f"{name}.schema")
    return Format(_schema({} if wanted is None else wanted), native=native)


def _own(extension: Fields) -> Format:
    name = "modelnet.constraint"
    value = mapping(extension, "constraint", name)
    if value is None:
        return ANY
    if set(value) == {"regex"}:
        return Format(Constraint("regex", _source(value, "regex", f"{name}.regex")), f"{name}.regex")
    if set(value) == {"grammar"}:
        return Format(Constraint("grammar", _source(value, "grammar", f"{name}.grammar")), f"{name}.grammar")
    raise bad_request(f'{name} must be {{"regex": …}} or {{"grammar": …}}.', name)


def _json(fields: Fields, key: str, name: str) -> Constraint:
    value = fields[key]
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise bad_request(f"{name} is not valid JSON: {error}", name) from None
    if not isinstance(value, dict):
        raise bad_request(f"{name} must be a JSON schema, not {kind_of(value)}.", name)
    return _schema(value)


def _regex(fields: Fields, key: str, name: str) -> Constraint:
    return Constraint("regex", _source(fields, key, name))


def _choice(fields: Fields, key: str, name: str) -> Constraint:
    choices = array(fields, key, name) or []
    if not choices or not all(isinstance(choice, str) and choice for choice in choices):
        raise bad_request(f"{name} must be a list of texts.", name)
    if sum(map(len, choices)) > MAX_SOURCE:
        raise bad_request(f"{name} must have at most {MAX_SOURCE} characters.", name)
    # One of these JSON values would be quoted; a grammar's strings are written as JSON's are.
    return Constraint("grammar", "start: " + " | ".join(orjson.dumps(choice).decode() for choice in choices))


def _object(fields: Fields, key: str, name: str) -> Constraint | None:
    return Constraint("json_object") if boolean(fields, key, name) else None


Reader = Callable[[Fields, str, str], Constraint | None]

_STRUCTURED: Mapping[str, Reader] = {"json": _json, "regex": _regex, "choice": _choice, "json_object": _object}


def _guided(read: Reader) -> Callable[[Fields, str], Format]:
    return lambda fields, key: Format(read(fields, key, key), key, {key: fields[key]})


def _structured(fields: Fields, key: str) -> Format:
    """vLLM's `structured_outputs`: one of `_STRUCTURED`, beside settings of that server."""
    value = mapping(fields, key) or {}
    present = {name: item for name, item in value.items() if item is not None}
    kinds = [name for name in present if name in _STRUCTURED]
    if len(kinds) > 1:
        raise bad_request(f"{key} can hold only one of {', '.join(kinds)}.", key)
    native = {key: value}
    if not kinds:
        return Format(param=key, native=native, foreign=_FOREIGN) if present else ANY
    constraint = _STRUCTURED[kinds[0]](present, kinds[0], f"{key}.{kinds[0]}")
    return ANY if constraint is None else Format(constraint, f"{key}.{kinds[0]}", native)


def _grammar(fields: Fields, key: str) -> Format:
    return Format(param=key, native={key: fields[key]}, foreign=_FOREIGN)


_FOREIGN = "Only a vLLM server reads a grammar of this form; modelnet.constraint.grammar holds for every wiring."

_READERS: Mapping[str, Callable[[Fields, str], Format]] = {
    "response_format": _response_format,
    "structured_outputs": _structured,
    "guided_json": _guided(_json),
    "guided_regex": _guided(_regex),
    "guided_choice": _guided(_choice),
    "guided_grammar": _grammar,
}

FIELDS = frozenset(_READERS)
"""The fields of a request that are read here."""


def _source(fields: Fields, key: str, name: str) -> str:
    source = string(fields, key, name)
    if not source:
        raise bad_request(f"{name} must not be empty.", name)
    if len(source) > MAX_SOURCE:
        raise bad_request(f"{name} must have at most {MAX_SOURCE} characters.", name)
    return source


def _schema(schema: Fields) -> Constraint:
    return Constraint("json_schema", orjson.dumps(schema).decode())
