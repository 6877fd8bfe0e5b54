"""The mark that makes a request of the engine one of ours.

It travels in `SamplingParams.extra_args["modelnet"]` as *bytes*. Requests from outside arrive as JSON, which has no bytes: nobody
can pose as a session through `vllm_xargs`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

KEY = "modelnet"
NO_REWIND = 0xFFFFFFFF
LAST, EVERY = 1, 2

_TAG = struct.Struct("<4sQIHHII")
_MAGIC = b"MNT1"


@dataclass(frozen=True)
class Tag:
    """One input of one session.

    session: unique in the API server that made it. seq: number of the input within the session; goes back with the frames.
    k: tokens to list. mode: LAST: the distribution after the input's last token; EVERY: after each token from position
    `first` (0-based, in the whole sequence) on. keep: tokens of the session that are kept before the input's are appended;
    None: all. path: socket of the API server's link.
    """

    session: int
    seq: int
    k: int
    mode: int
    first: int
    keep: int | None
    path: str

    def extra_args(self) -> dict[str, Any]:
        keep = NO_REWIND if self.keep is None else self.keep
        head = _TAG.pack(_MAGIC, self.session, self.seq, self.k, self.mode, self.first, keep)
        return {KEY: head + self.path.encode()}


def tag_of(params: Any) -> Tag | None:
    """The mark of a request's sampling parameters, None if it is not ours."""
    extra = getattr(params, "extra_args", None)
    data = extra.get(KEY) if extra else None
    if not isinstance(data, bytes) or len(data) < _TAG.size:
        return None
    magic, session, seq, k, mode, first, keep = _TAG.unpack_from(data)
    if magic != _MAGIC:
        return None
    return Tag(session, seq, k, mode, first, None if keep == NO_REWIND else keep, data[_TAG.size :].decode())
