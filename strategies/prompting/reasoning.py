"""Cuts what a model thought aloud from what it hands on."""

from __future__ import annotations

import re


def cut_reasoning(text: str, marks: tuple[str, str]) -> str:
    """The text without its reasoning blocks and without white space around it.

    marks: what opens and what closes a block, e.g. ("<think>", "</think>"). Raises ValueError if one is empty.

    - Blocks may nest; the outermost closing mark ends them.
    - A closing mark without an opening one: all before it was reasoning (some chat templates open the block in the prompt).
    - A block that is never closed reaches to its last closing mark, if it holds one (a model that speaks of the mark inside
      its reasoning), else to the end.
    - If nothing is left, the model spent all its budget thinking. Then the reasoning itself is handed on, without the marks:
      the next model can do more with it than with nothing.
    """
    opening, closing = marks
    if not opening or not closing:
        raise ValueError("the marks around reasoning are not empty")
    found = list(re.finditer(f"{re.escape(opening)}|{re.escape(closing)}", text))
    kept: list[str] = []
    depth, behind, last_close = 0, 0, -1
    for mark in found:
        closes = mark[0] == closing and (depth > 0 or opening != closing)
        if not closes:
            if depth == 0:
                kept.append(text[behind : mark.start()])
                last_close = -1
            depth += 1
        elif depth == 0:
            kept.clear()
            behind = mark.end()
        else:
            depth -= 1
            behind = last_close = mark.end()
    if depth == 0:
        kept.append(text[behind:])
    elif last_close >= 0:
        kept.append(text[last_close:])
    answer = "".join(kept).strip()
    if answer:
        return answer
    return text.replace(opening, "").replace(closing, "").strip()
