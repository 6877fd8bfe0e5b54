"""Patterns of names: `*` stands for anything, every other character for itself."""

from __future__ import annotations

from collections.abc import Iterable


def matches(patterns: Iterable[str], name: str) -> bool:
    """Whether any of the patterns is this name."""
    return any(_matches(pattern, name) for pattern in patterns)


def _matches(pattern: str, name: str) -> bool:
    """Every part between two stars where it comes first: no later place could serve the parts behind it better. So it takes no more than
    one look through the name for each part; a regular expression would try all places of all of them."""
    first, *parts = pattern.split("*")
    if not parts:
        return pattern == name
    last = parts.pop()
    at, end = len(first), len(name) - len(last)
    if end < at or not (name.startswith(first) and name.endswith(last)):
        return False
    for part in parts:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True
