"""What both logits processors have in common: they say which rows of a batch are ours; here these become frames."""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelnet_vllm import link as wire
from modelnet_vllm.kept import Keeping
from modelnet_vllm.link import Link, Links, message
from modelnet_vllm.tag import Tag
from modelnet_vllm.top import Distributions

log = logging.getLogger("vllm.modelnet")


@dataclass(frozen=True)
class _Job:
    """One row for each mark; or, where `first` is a position, the rows of the one mark's draft from there on."""

    found: Distributions
    tags: tuple[Tag, ...]
    first: int | None = None


class Tap:
    """Sends the distributions of rows. One per engine process.

    hooks: True once this version's hooks are in place: only whole inputs are sent, and drafts are scored. Told to the API
    server, which otherwise waits for the engine's own output before it believes a frame.
    """

    def __init__(self) -> None:
        self.hooks = False
        self._keeping = Keeping()
        self._links = Links(self._hello, self._handle, self._keeping.forget_link)
        self._speaks: bool | None = None
        self._later: deque[_Job] = deque()
        self._ready = threading.Condition()
        self._waiter: threading.Thread | None = None

    def send(self, logits: Any, tags: Sequence[Tag]) -> None:
        """logits: [len(tags), V], the last row of each input. Ours to keep."""
        if self.speaks():
            self._emit(_Job(Distributions(logits, max(tag.k for tag in tags)), tuple(tags)))

    def send_rows(self, logits: Any, tag: Tag, first: int) -> None:
        """logits: [n, V], the rows of one draft from position `first` on."""
        if self.speaks():
            self._emit(_Job(Distributions(logits, tag.k), (tag,), first))

    def speaks(self) -> bool:
        """Of several processes that compute the same logits, only the first one sends."""
        if self._speaks is None:
            self._speaks = _first_rank()
        return self._speaks

    def _emit(self, job: _Job) -> None:
        found = job.found
        if job.first is None:
            self._keeping.batch((((tag.path, tag.session), tag.seq) for tag in job.tags), found)
        else:
            (tag,) = job.tags
            self._keeping.draft((tag.path, tag.session), tag.seq, found)
        if found.event is None:
            self._deliver(job)
            return
        # On an accelerator another thread waits for the copies: the engine's goes on to the next batch.
        with self._ready:
            self._later.append(job)
            if self._waiter is None:
                self._waiter = threading.Thread(target=self._wait, name="modelnet-tap", daemon=True)
                self._waiter.start()
            self._ready.notify()

    def _deliver(self, job: _Job) -> None:
        ids, logprobs, outside = job.found.arrays()
        by_path: dict[str, list[bytes]] = {}
        if job.first is not None:
            by_path[job.tags[0].path] = [_rows(job.tags[0], job.first, ids, logprobs, outside)]
        else:
            for row, tag in enumerate(job.tags):
                part, k = slice(row, row + 1), tag.k
                # The batch was cut at the largest k of all; what this row's own k leaves out is outside too.
                rest = outside[part] + np.exp(logprobs[part, k:]).sum(-1)
                by_path.setdefault(tag.path, []).append(_rows(tag, 0, ids[part, :k], logprobs[part, :k], rest))
        for path, messages in by_path.items():
            link = self._links.to(path)
            if link is not None:
                link.send(b"".join(messages))  # one wake-up of the API server for the whole batch

    def _wait(self) -> None:
        while True:
            with self._ready:
                while not self._later:
                    self._ready.wait()
                job = self._later.popleft()
            try:
                self._deliver(job)
            except Exception:
                log.exception("modelnet: distributions could not be sent")

    # The link's thread

    def _hello(self) -> bytes:
        from vllm import __version__

        return message(wire.HELLO, json.dumps({"hooks": self.hooks, "vllm": __version__}).encode())

    def _handle(self, link: Link, kind: int, body: bytes) -> None:
        if kind == wire.LOOKUP:
            session, seq, request, back = wire.LOOKUP_HEAD.unpack_from(body)
            ids = np.frombuffer(body, "<i4", -1, wire.LOOKUP_HEAD.size)
            values = self._keeping.logprobs((link.path, session), seq, ids, back)
            data = b"" if values is None else values.astype("<f4").tobytes()
            link.send(message(wire.VALUES, wire.VALUES_HEAD.pack(session, request), data))
        elif kind == wire.FORGET:
            self._keeping.forget((link.path, wire.SESSION.unpack(body)[0]))
        elif kind == wire.ASK_ECHO:
            link.send(message(wire.ECHO, body))


def _rows(tag: Tag, first: int, ids: Any, logprobs: Any, outside: Any) -> bytes:
    rows, k = ids.shape
    head = wire.ROWS_HEAD.pack(tag.session, tag.seq, first, rows, k)
    return message(
        wire.ROWS, head, ids.astype("<i4").tobytes(), logprobs.astype("<f4").tobytes(), outside.astype("<f4").tobytes()
    )


def _first_rank() -> bool:
    try:
        from vllm.distributed.parallel_state import get_tp_group

        return bool(get_tp_group().rank_in_group == 0)
    except (ImportError, AssertionError):  # not initialised: there is only this process
        return True


_tap: Tap | None = None


def tap() -> Tap:
    """This process's tap."""
    global _tap  # noqa: PLW0603 - a process has one, whoever asks first
    if _tap is None:
        _tap = Tap()
    return _tap
