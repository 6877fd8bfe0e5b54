"""What of an answer that is still being written is sure to be handed on."""

from __future__ import annotations

from strategies.prompting.reasoning import cut_reasoning

LONGEST_WORD = 24
"""Characters of an unfinished word at most; longer ones (of scripts without spaces) are no such words."""


def partial_answer(written: str, marks: tuple[str, str] | None, *, ended: bool = False) -> str:
    """The beginning of what will be handed on, as far as can be told from what is written by now.

    marks: as `cut_reasoning` takes them; None: there is no reasoning to cut. With marks nothing is sure until they have closed a block:
    some chat templates open one in the prompt, so that what is written first may be reasoning though nothing says so. A word that may
    still grow is left out: it would be read as other tokens than the whole word will be. ended: if what is written is all.
    """
    if marks is not None:
        opening, closing = marks
        end = written.rfind(closing)
        inside = written.count(opening) % 2 == 1 if opening == closing else written.rfind(opening) > end
        if end < 0 or inside or not written[end + len(closing) :].strip():
            return ""
        written = cut_reasoning(written, marks)
    if ended:
        return written
    space = max(written.rfind(" "), written.rfind("\n"))
    if space < len(written) - LONGEST_WORD:
        return written
    return written[: max(space, 0)].rstrip()
