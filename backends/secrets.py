"""The secrets that this process sends to servers, so that they can be taken out of what servers send back.

A server may say in an error what it was sent, headers and all, and that must reach neither a client nor the log. What a secret looks like
can't be told from its text: so whoever is given one says so here. Kept for the life of the process, also when a model is gone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

SHORTEST = 6
"""Characters. Shorter values would be found in any text, and are no secrets worth the name."""

_known: set[str] = set()
_pattern: re.Pattern[str] | None = None


def keep_secret(values: Iterable[str | None]) -> None:
    """These are never to be shown. None and what is too short is left out."""
    global _pattern  # noqa: PLW0603 - one process, one set of secrets: whatever shows text must not need to be told whose it is
    new = {value for value in values if value is not None and len(value) >= SHORTEST} - _known
    if new:
        _known.update(new)
        longest_first = sorted(_known, key=len, reverse=True)
        _pattern = re.compile("|".join(map(re.escape, longest_first)))


def censored(text: str) -> str:
    """The text without them."""
    return text if _pattern is None else _pattern.sub("…", text)
