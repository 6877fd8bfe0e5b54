"""Prompts that are read before they are whole, in sessions that wait until they are.

A client may ask in the JSON object of an OPEN, under FIELD, that of the messages

- `"early": "whole"` all is read; the session then waits to be followed, and gives its place to whoever wants it meanwhile
- `"early": "blocks"` so much is read as fills blocks of the prefix cache, for who will send the prompt as a request of another kind
- `"early": "settled"` so far is read as the next prompt will likely begin, which goes on where this one does: what ends it as it ended the
  prompt before (an instruction, the marks of a template) is left out, and so is the token before that, which may still grow
- `"after": n` session n of the same connection is followed: the new one takes over its place and what both begin with. n may be on
  its way still, and need not exist any more. It has ended then, whatever came of the OPEN, if that was understood

What is read early waits for no place: it gets one that nobody wants, or OVERLOADED.

WELCOME says `early` where this can be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

FIELD = "modelnet"

Reads = Literal["whole", "blocks", "settled"] | None
"""What is read early; None where a session is opened to be used."""


class Asked(NamedTuple):
    """prompt: messages as they are rendered, or ids. after: the session that is followed."""

    prompt: Any
    reads: Reads = None
    after: int | None = None


def asked(prompt: Any, session: int) -> Asked:
    """Of the prompt in the OPEN of this session. Raises ValueError."""
    said = prompt.get(FIELD) if isinstance(prompt, dict) else None
    if said is None:
        return Asked(prompt)
    if not isinstance(said, dict):
        raise ValueError(f"{FIELD} must be an object")  # noqa: TRY004 - as what else is wrong with it
    reads, after = said.get("early"), said.get("after")
    if reads not in (None, "whole", "blocks", "settled"):
        raise ValueError("early must be whole, blocks or settled")
    if after is not None and (type(after) is not int or after < 0):
        raise ValueError("after must be the number of a session")
    if after == session:
        raise ValueError("after must be another session")
    return Asked({key: value for key, value in prompt.items() if key != FIELD}, reads, after)


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids both begin with."""
    size = min(len(a), len(b))
    differ = np.flatnonzero(np.asarray(a[:size], np.int64) != np.asarray(b[:size], np.int64))
    return int(differ[0]) if len(differ) else size


def settled(prompt: Sequence[int], before: Sequence[int]) -> int:
    """How many ids of a prompt will likely begin the next one, too. before: the one before it, which it goes on from somewhere inside."""
    return max(0, len(prompt) - common(prompt[::-1], before[::-1]) - 1)
