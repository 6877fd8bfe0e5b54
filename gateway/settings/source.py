"""YAML → plain values, with the line of every key kept and environment variables put in.

Stricter than YAML: keys are strings, none is written twice, merge keys (`<<`) are refused, a file holds one document.
`${NAME}` and `${NAME:-default}` are replaced inside string values only (never in keys, numbers or comments), once: what a
variable holds is not looked through again. `$${` writes a plain `${`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gateway.settings.errors import Problem, SettingsError

KeyPath = tuple[str | int, ...]

_VARIABLE = re.compile(r"\$\$\{|\$\{(?P<name>[^}:]*)(?::-(?P<default>[^}]*))?\}|\$\{")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HALF = re.compile("[\ud800-\udfff]")
_NO_TEXT = "holds half a character (a lone surrogate), which can't be written as UTF-8"


def dotted(path: KeyPath) -> str:
    """A key path as it is shown: `models.qwen.stop[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


class _Loader(yaml.SafeLoader):
    """Reads plain words as YAML 1.2 does: `on`, `no` and 12:30 are text, not a boolean or a number to the base of sixty."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


@dataclass(slots=True)
class Source:
    """A file's value, and the line (from 1) of every key and list item in it."""

    file: Path
    value: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def line(self, path: KeyPath) -> int | None:
        """Line of the key, or of the nearest key around it that is written in the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)

    def problem(self, path: KeyPath, message: str) -> Problem:
        """A problem at that key."""
        return Problem(self.file, self.line(path), dotted(path), message)


def read(file: Path, environ: Mapping[str, str] | None) -> Source:
    """Read a file. environ: None leaves `${…}` as it is. Raises SettingsError with every problem found."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError([Problem(file, None, "", f"can't be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise SettingsError([Problem(file, None, "", "is not UTF-8 text")]) from error
    try:
        reader = _read_text(file, text, environ)
    except yaml.YAMLError as error:
        raise SettingsError([_syntax(file, error)]) from error
    except RecursionError as error:
        raise SettingsError([Problem(file, None, "", "nests too deeply")]) from error
    if reader.problems:
        raise SettingsError(reader.problems)
    return reader.source


def _read_text(file: Path, text: str, environ: Mapping[str, str] | None) -> _Reader:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        reader = _Reader(Source(file), environ, loader)
        if node is not None:
            reader.source.value = reader.build(node, ())
    finally:
        loader.dispose()
    return reader


def _syntax(file: Path, error: yaml.YAMLError) -> Problem:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        what = " ".join(part for part in (error.context, error.problem) if part)
        return Problem(file, mark.line + 1 if mark else None, "", f"not valid YAML: {what}")
    if isinstance(error, yaml.reader.ReaderError):
        return Problem(file, None, "", f"not valid YAML: the character U+{error.character:04X} is not allowed")
    return Problem(file, None, "", f"not valid YAML: {error}")


class _Reader:
    def __init__(self, source: Source, environ: Mapping[str, str] | None, loader: _Loader) -> None:
        self.source = source
        self.environ = environ
        self.loader = loader
        self.problems: list[Problem] = []
        self._open: set[int] = set()

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        line = node.start_mark.line + 1
        self.source.lines.setdefault(path, line)
        if id(node) in self._open:
            return self._fail(path, line, "an anchor must not contain itself")
        kind = "map" if isinstance(node, yaml.MappingNode) else "seq" if isinstance(node, yaml.SequenceNode) else None
        if kind is not None and node.tag != f"tag:yaml.org,2002:{kind}":
            return self._fail(path, line, f"not a value this file may hold: {node.tag}")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._scalar(node, path, line)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                self._fail(path, line, "merge keys (<<) are not supported")
                continue
            if key_node.tag != "tag:yaml.org,2002:str":
                written = key_node.value if isinstance(key_node, yaml.ScalarNode) else "this key"
                self._fail(path, line, f"keys must be strings: put {written} in quotes")
                continue
            key = key_node.value
            if _HALF.search(key):
                self._fail(path, line, f"the key {key!a} {_NO_TEXT}")
                continue
            if key in value:
                first = self.source.lines[(*path, key)]
                self._fail((*path, key), line, f"written twice (first on line {first})")
                continue
            self.source.lines[(*path, key)] = line
            value[key] = self.build(value_node, (*path, key))
        return value

    def _scalar(self, node: yaml.Node, path: KeyPath, line: int) -> Any:
        try:
            value = self.loader.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError):  # a foreign tag, or a value that does not fit it
            return self._fail(path, line, f"not a value this file may hold: {node.tag}")
        if isinstance(value, str):
            if self.environ is not None:
                value = self._substitute(value, self.environ, path, line)
            # YAML's "\ud800", or a variable that is no UTF-8: in an answer it would be an error of every request.
            return self._fail(path, line, _NO_TEXT) if _HALF.search(value) else value
        if value is None or isinstance(value, bool | int | float):
            return value
        return self._fail(path, line, f"not a value this file may hold: {node.tag}")

    def _substitute(self, text: str, environ: Mapping[str, str], path: KeyPath, line: int) -> str:
        def replace(match: re.Match[str]) -> str:
            if match.group() == "$${":
                return "${"
            name, default = match["name"], match["default"]
            if name is None or not _NAME.fullmatch(name):
                self._fail(path, line, f"{match.group()!r} is not ${{NAME}} or ${{NAME:-default}}")
                return ""
            # As in a shell, `:-` also covers a variable that is set but empty.
            found = environ.get(name)
            if default is not None:
                return found or default
            if found is None:
                self._fail(path, line, f"environment variable {name} is not set")
                return ""
            return found

        return _VARIABLE.sub(replace, text)

    def _fail(self, path: KeyPath, line: int, message: str) -> None:
        self.problems.append(Problem(self.source.file, line, dotted(path), message))
