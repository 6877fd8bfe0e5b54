"""Puts a role's template into a conversation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from backends.types import Message
from strategies.planning.plan import Role
from strategies.prompting.prompts import PLACEHOLDER, Language, PromptSet
from strategies.topology import Shape

_FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_IDEOGRAPH = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
# Words of alphabets count once each. Kana and hangul count by the character, as ideographs do, so that a text which is mostly
# kana is not taken for Chinese.
_OTHER_WORD = re.compile(
    r"[\u3040-\u30ff\uac00-\ud7af]|[^\W\d_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U000323af]+"
)


def compose(
    messages: Sequence[Message], role: Role, shape: Shape, prompts: PromptSet, answer: str | None = None
) -> tuple[Message, ...]:
    """The conversation that a branch is given.

    answer: what the stage that it reads handed on; None for a branch that reads the question only.

    All messages stay as they are but the last user message, if it is the last message of all: it becomes the role's template with
    `{question}` (its own text) and `{answer}` filled in; its other parts (images) and fields stay. Where the last message is not
    the user's (a tool's result, the start of an answer), a branch that reads an answer gets its template as a further user
    message, with the last user message as the question; any other branch gets the conversation unchanged. So does every branch
    whose template is empty. The template is chosen by shape, role and the language of the question.
    """
    if not messages:
        return ()
    asked = next((message for message in reversed(messages) if message.role == "user"), messages[-1])
    template = prompts.template(shape, role, language_of(asked.content))
    if not template:
        return tuple(messages)
    told = _filled(template, {"question": asked.content, "answer": answer or ""})
    if messages[-1].role == "user":
        return (*messages[:-1], _with_text(messages[-1], told))
    if answer is None:
        return tuple(messages)
    return (*messages, Message("user", told))


def language_of(text: str) -> Language:
    """ "zh" when more CJK ideographs than words of other scripts stand in the text (outside fenced code), else "en"."""
    prose = _FENCED.sub(" ", text)
    if not prose.strip():
        prose = text
    return "zh" if len(_IDEOGRAPH.findall(prose)) > len(_OTHER_WORD.findall(prose)) else "en"


def _filled(template: str, values: Mapping[str, str]) -> str:
    """The template with its placeholders replaced in one pass: what is put in is never read as a template itself."""
    return PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), template)


def _with_text(message: Message, text: str) -> Message:
    """The message with another text. Content that was more than text keeps its other parts, the text where its first text was."""
    parts = message.extra.get("content")
    if parts is None:
        return replace(message, content=text)
    told = {"type": "text", "text": text}
    kept: list[Any] = []
    for part in parts if isinstance(parts, list | tuple) else ():
        if not (isinstance(part, Mapping) and part.get("type") == "text"):
            kept.append(part)
        elif told not in kept:
            kept.append(told)
    if told not in kept:
        kept.insert(0, told)
    return replace(message, content=text, extra={**message.extra, "content": kept})
