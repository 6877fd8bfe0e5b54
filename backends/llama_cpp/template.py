"""Chat templates: the model's own, rendered as its authors' library would, or a plain transcript for a model without one."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from backends.types import Message

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})

TRANSCRIPT = (
    "This is a conversation between a user and a helpful assistant. "
    "The assistant's answers are correct, clear and to the point.\n\n"
    "User:\nWhat is two plus two?\n\nAssistant:\nTwo plus two is four.\n\n"
    "{% for message in messages %}"
    "{{ {'assistant': 'Assistant', 'user': 'User', 'tool': 'Tool', 'function': 'Tool'}.get(message.role, 'System') }}:\n"
    "{{ message.content | trim }}\n\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
"""For models without a template. The answer begins on its own line, so its first token carries no space. Without the example
turn a small base model repeats the question more often than it answers it."""

TRANSCRIPT_STOPS = tuple(
    f"{lines}{who}:" for who in ("User", "Assistant", "System", "Tool") for lines in ("\n\n", "\n")
)
"""What ends an answer in a transcript: the next turn's head, whichever it is. With an empty line before it, that goes too."""


class TemplateRefused(ValueError):
    """The template itself raised, or could not make sense of the conversation. The message is the template's."""


class ChatTemplate:
    """A compiled template. bos, eos: the texts of those tokens, which templates write themselves."""

    def __init__(self, source: str, bos: str = "", eos: str = "") -> None:
        """Raises jinja2.TemplateSyntaxError."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        self._template = environment.from_string(source)
        self._tokens = {"bos_token": bos, "eos_token": eos}

    def render(self, turns: Sequence[Mapping[str, Any]]) -> str:
        """The prompt up to where the assistant speaks. Raises TemplateRefused."""
        try:
            return self._template.render(messages=turns, add_generation_prompt=True, **self._tokens)
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError, LookupError) as error:
            raise TemplateRefused(str(error)) from error


def as_turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Turns as templates expect them: the message's fields, with its text as content."""
    return [{**message.extra, "role": message.role, "content": message.content} for message in messages]


class _Generation(Extension):
    """`{% generation %}` marks the assistant's part for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - as its base class declares it

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: object, indent: int | None = None, **_options: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(layout: str) -> str:
    return datetime.datetime.now().astimezone().strftime(layout)
