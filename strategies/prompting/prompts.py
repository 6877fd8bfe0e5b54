"""Sets of role templates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from strategies.planning.plan import Role
from strategies.prompting.tooling import BUILT_IN, PLACEHOLDERS, TOOL_TEXTS, ToolText
from strategies.topology import Shape

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
ROLES: tuple[Role, ...] = get_args(Role)
DEFAULT = "default"
TOOLS = "tools"
SECTIONS: tuple[str, ...] = (DEFAULT, *get_args(Shape), TOOLS)

PLACEHOLDER = re.compile(r"\{([A-Za-z_]+)\}")
_NEEDED: dict[Role, frozenset[str]] = {
    "solver": frozenset({"question"}),
    "reviewer": frozenset({"answer"}),
    "verifier": frozenset({"answer"}),
}
_ALLOWED: dict[Role, frozenset[str]] = {
    "solver": frozenset({"question"}),
    "reviewer": frozenset({"question", "answer"}),
    "verifier": frozenset({"question", "answer"}),
}


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Role templates.

    templates: (section, role, language) → template, where a section is a shape, or "default" for the shapes that have no
    template of their own. A template holds `{question}` (the last user message) and, for reviewer and verifier, `{answer}` (the
    answer handed on). An empty template leaves the conversation as it is.
    tools: what is said about tools where it is not the built-in text (strategies.prompting.tooling).
    """

    name: str
    templates: Mapping[tuple[str, Role, Language], str] = field(default_factory=dict)
    tools: Mapping[tuple[ToolText, Language], str] = field(default_factory=dict)

    def template(self, shape: Shape, role: Role, language: Language) -> str:
        """The template: that of the shape before the default's, within each the language asked for before any other.

        "" (leave the conversation as it is) where there is none.
        """
        order = (language, *(other for other in LANGUAGES if other != language))
        for section in (shape, DEFAULT):
            for spoken in order:
                found = self.templates.get((section, role, spoken))
                if found is not None:
                    return found
        return ""

    def tool_text(self, which: ToolText, language: Language, **values: str) -> str:
        """One of the texts about tools, with its placeholder filled in."""
        text = self.tools.get((which, language), BUILT_IN[which, language])
        return PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), text)

    @classmethod
    def from_mapping(cls, name: str, mapping: Mapping[str, Any]) -> PromptSet:
        """Read a set from plain data, as a YAML file gives it:

            default:                    # or a shape: single, si, pi, s2p, p2s, mixed
              solver:                   # or reviewer, verifier
                en: "{question} …"      # or zh
            single:
              solver: ""                # one text for all languages
            tools:
              auto:                     # or any other of strategies.prompting.tooling
                en: "…"

        White space around templates is dropped. Raises ValueError, beginning with the path of the key at fault ("default.solver.en"),
        for unknown keys, wrong types, unknown or missing placeholders.
        """
        templates: dict[tuple[str, Role, Language], str] = {}
        tools: dict[tuple[ToolText, Language], str] = {}
        for section, parts in _items(mapping, "", SECTIONS):
            for part, wordings in _items(parts, section, TOOL_TEXTS if section == TOOLS else ROLES):
                path = f"{section}.{part}"
                spoken = dict.fromkeys(LANGUAGES, wordings) if isinstance(wordings, str) else wordings
                for language, text in _items(spoken, path, LANGUAGES):
                    if section == TOOLS:
                        tools[part, language] = _checked_tool_text(text, f"{path}.{language}", part)
                    else:
                        templates[section, part, language] = _checked(text, f"{path}.{language}", part)
        return cls(name, templates, tools)


PASS_THROUGH = PromptSet("none")
"""Tells nobody anything: every stage gets the conversation as it came, and no answers of others."""


def _items(value: Any, path: str, allowed: tuple[Any, ...]) -> list[tuple[Any, Any]]:
    """The items of a mapping whose keys are checked."""
    if not isinstance(value, Mapping):
        expected = f"expected a mapping of {', '.join(allowed)}"
        # A fault of the data, as all others here: one kind of error for whoever reads the file.
        raise ValueError(f"{path or 'prompt set'}: {expected}, found {type(value).__name__}")  # noqa: TRY004
    for key in value:
        if key not in allowed:
            raise ValueError(f"{path}{'.' if path else ''}{key}: unknown key, expected one of {', '.join(allowed)}")
    return list(value.items())


def _checked(template: Any, path: str, role: Role) -> str:
    if not isinstance(template, str):
        raise ValueError(f"{path}: expected text, found {type(template).__name__}")  # noqa: TRY004 - as in _items
    text = template.strip()
    used = frozenset(PLACEHOLDER.findall(text))
    for unknown in sorted(used - _ALLOWED[role]):
        raise ValueError(f"{path}: a {role}'s template has no {{{unknown}}}, only {_listed(_ALLOWED[role])}")
    if text and not _NEEDED[role] <= used:
        raise ValueError(f"{path}: a {role}'s template needs {_listed(_NEEDED[role])}")
    return text


def _checked_tool_text(text: Any, path: str, which: ToolText) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{path}: expected text, found {type(text).__name__}")  # noqa: TRY004 - as in _items
    used, needed = frozenset(PLACEHOLDER.findall(text)), PLACEHOLDERS[which]
    if used != needed:
        raise ValueError(f"{path}: needs {_listed(needed) or 'no placeholder'}, found {_listed(used) or 'none'}")
    return text.strip()


def _listed(names: frozenset[str]) -> str:
    return " and ".join(f"{{{name}}}" for name in sorted(names, reverse=True))
