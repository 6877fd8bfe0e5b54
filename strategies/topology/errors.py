"""How a wrong wiring is shown: one sentence, and a caret under the column it is about."""

from __future__ import annotations

import unicodedata

CARET_WIDTH = 100
"""Terminal cells that `caret` shows of the text at most."""


class TopologyError(ValueError):
    """A text that is no wiring, or one that can't be.

    text: the whole text. column: 0-based index into it, `len(text)` for its end; in sentences columns count from 1.
    message: what was found and what was expected, without the position.
    """

    def __init__(self, text: str, column: int, message: str) -> None:
        super().__init__(text, column, message)
        self.text = text
        self.column = column
        self.message = message

    def __str__(self) -> str:
        return f"column {self.column + 1}: {self.message}"

    def caret(self) -> str:
        """Two lines: the text (around the column, if it is long) and a caret under the column.

        The caret is padded by display width, so it stands right under wide characters too. Control characters are shown
        as their pictures, so a text is always one line.
        """
        cells = [_cell(character) for character in self.text]
        start, end = _window([width for _, width in cells], min(self.column, len(cells)))
        before = cells[start : self.column]
        lead = "…" if start > 0 else ""
        tail = "…" if end < len(cells) else ""
        shown = lead + "".join(character for character, _ in cells[start:end]) + tail
        return shown + "\n" + " " * (len(lead) + sum(width for _, width in before)) + "^"


def _cell(character: str) -> tuple[str, int]:
    """What is shown for a character, and how many terminal cells that takes."""
    code, category = ord(character), unicodedata.category(character)
    if code < 0x20:
        return chr(0x2400 + code), 1
    if category in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return "\N{REPLACEMENT CHARACTER}", 1
    if category in ("Mn", "Me"):
        return character, 0
    return character, 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def _window(widths: list[int], column: int) -> tuple[int, int]:
    """The part of a line to show: all of it if it fits, else what stands around the column."""
    if sum(widths) <= CARET_WIDTH:
        return 0, len(widths)
    start = end = column
    room = CARET_WIDTH // 2
    while start > 0 and room - widths[start - 1] >= 0:
        start -= 1
        room -= widths[start]
    room = CARET_WIDTH - sum(widths[start:column])
    while end < len(widths) and room - widths[end] >= 0:
        room -= widths[end]
        end += 1
    return start, end
