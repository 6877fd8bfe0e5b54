"""From a conversation to token ids, so that nobody can write a control token into it.

A rendered template mixes the template's text, whose control tokens count, with the clients' text, where "<|im_end|>" is ten
characters. Before rendering, a mark (a private-use character that occurs nowhere else) is put into every place of the
clients' text where a control token's spelling begins, or where one could be completed by what the template writes beside it.
After rendering, control tokens are found by their spelling, the marks are taken out, and what lies between two control
tokens is encoded as plain text in one piece. That is what llama.cpp does with a whole string (cut at control tokens, encode
the rest), so a conversation without such spellings gets the same ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from backends.llama_cpp.library import CONTROL, LSTRIP, RSTRIP, UNKNOWN, LoadedModel
from backends.llama_cpp.template import ROLES, ChatTemplate, TemplateRefused, as_turns
from backends.types import Message


class Controls:
    """The control tokens of a vocabulary, by spelling. strip: ids that swallow white space before, after them."""

    def __init__(
        self,
        ids: Mapping[str, int],
        strip_before: frozenset[int] = frozenset(),
        strip_after: frozenset[int] = frozenset(),
    ) -> None:
        self._ids = {text: id for text, id in ids.items() if len(text) > 1}  # one character can't be told from text
        self._strip_before = strip_before
        self._strip_after = strip_after
        longest_first = sorted(self._ids, key=lambda text: (-len(text), text))
        spelled = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._pattern = re.compile(spelled)
        self._begins = re.compile(f"(?=(?:{spelled}))")
        self._heads = {text[:n] for text in self._ids for n in range(1, len(text))}
        self._tails = {text[n:] for text in self._ids for n in range(1, len(text))}
        self._longest = max(map(len, self._ids), default=0)

    def guard(self, text: str, mark: str) -> str:
        """The text with marks, so that no control token can be read in it or across its ends."""
        if not text or not self._ids:
            return text
        places = {match.start() + 1 for match in self._begins.finditer(text)}
        reach = min(len(text), self._longest - 1)
        places |= {len(text) - n + 1 for n in range(1, reach + 1) if text[-n:] in self._heads}
        places |= {n - 1 for n in range(1, reach + 1) if text[:n] in self._tails}
        if len(text) < self._longest - 1 and any(text in control for control in self._ids):
            places.add(0)  # it could be the middle of one
        for place in sorted(places, reverse=True):
            text = text[:place] + mark + text[place:]
        return text

    def split(self, rendered: str, mark: str) -> Iterator[int | str]:
        """Control ids, and the plain texts between them (never empty), without marks."""
        at = 0
        swallow = False
        for match in self._pattern.finditer(rendered):
            id = self._ids[match.group()]
            text = rendered[at : match.start()].replace(mark, "")
            text = text.lstrip() if swallow else text
            text = text.rstrip() if id in self._strip_before else text
            if text:
                yield text
            yield id
            at = match.end()
            swallow = id in self._strip_after
        text = rendered[at:].replace(mark, "")
        if text := text.lstrip() if swallow else text:
            yield text


def controls_of(model: LoadedModel) -> Controls:
    """Those of a loaded model."""
    attributes = model.attributes()
    ids = [id for id, value in enumerate(attributes) if value & (CONTROL | UNKNOWN)]
    return Controls(
        {model.text(id).decode(errors="replace"): id for id in reversed(ids)},
        frozenset(id for id in ids if attributes[id] & LSTRIP),
        frozenset(id for id in ids if attributes[id] & RSTRIP),
    )


class Prompter:
    """Renders and encodes conversations for one model."""

    def __init__(self, model: LoadedModel, template: ChatTemplate) -> None:
        self._model = model
        self._template = template
        self._controls = controls_of(model)
        self._bos, self._add_bos = model.bos()

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the prompt, BOS (once) included where the model wants it. Raises TemplateRefused."""
        turns = as_turns(messages)
        for turn in turns:
            if turn["role"] not in ROLES:  # templates write roles between the halves of control tokens
                raise TemplateRefused(f"the role must be one of {', '.join(sorted(ROLES))}")
        mark = _unused_character(turns)
        guarded = [{**_guarded(turn, self._controls, mark), "role": turn["role"]} for turn in turns]
        return self._encoded(self._template.render(guarded), mark)

    def encode_text(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text that is the whole prompt: control tokens are recognised in it. special: with BOS, once, where the model
        wants it."""
        return self._encoded(text, _unused_character([{"": text}]), special)

    def _encoded(self, text: str, mark: str, special: bool = True) -> list[int]:
        ids: list[int] = []
        for part in self._controls.split(text, mark):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids.extend(self._model.tokenize(part.encode(errors="replace")))
        if special and self._add_bos and self._bos is not None and ids[:1] != [self._bos]:
            ids.insert(0, self._bos)
        return ids


def _guarded(value: Any, controls: Controls, mark: str) -> Any:
    if isinstance(value, str):
        return controls.guard(value, mark)
    if isinstance(value, Mapping):
        names = (str(key) for key in value)  # templates look fields up by name: an identifier stays as it is
        safe = (name if name.isidentifier() else controls.guard(name, mark) for name in names)
        return {name: _guarded(item, controls, mark) for name, item in zip(safe, value.values(), strict=True)}
    if isinstance(value, list | tuple):
        return [_guarded(item, controls, mark) for item in value]
    return value


def _unused_character(turns: list[dict[str, Any]]) -> str:
    said = repr(turns)  # private-use characters are escaped by repr, so look for those too
    for code in range(0xE000, 0xF8FF):
        if f"\\u{code:04x}" not in said and chr(code) not in said:
            return chr(code)
    raise TemplateRefused("the conversation uses every private-use character")
