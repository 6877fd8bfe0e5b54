"""Patterns of names: `*` stands for anything, every other character for itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache


def matches(patterns: Iterable[str], name: str) -> bool:
    """Whether any of the patterns is this name."""
    return any(pattern == "*" or _compiled(pattern).fullmatch(name) is not None for pattern in patterns)


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    # Runs of stars become one: nested repetitions would let a pattern take exponential time.
    return re.compile(".*".join(re.escape(part) for part in re.split(r"\*+", pattern)), re.DOTALL)
