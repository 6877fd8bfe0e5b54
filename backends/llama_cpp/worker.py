"""The thread that computes for one model: it collects what sessions want next and decides what goes into a pass.

Order of operations
    Callers post from the event loop; posts are done in their order, between two passes. A sequence has at most one piece of
    work at a time. A loop's turn: do what was posted; passes with one token of each sequence that decodes; one pass with one
    chunk of the sequence whose turn it is to read. So a long prompt delays the others by one chunk per token, never by itself.
    After a pass, sequences that were just answered are given `LINGER` seconds to come back before a pass starts without them:
    otherwise two halves of the sessions would go on taking turns, each paying for a whole pass.
Failure
    A pass that fails fails the work in it, and its sequences are emptied; the rest goes on. An error of our own ends the
    thread: all work fails, then and from then on, and `failure` says why.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from backends.llama_cpp.context import Context, DecodeFailed
from backends.llama_cpp.library import log
from backends.llama_cpp.logits import Logits

LINGER = 0.0005

Read = Callable[[Logits], Any]
Done = Callable[[list[Any] | Exception], None]


class Stopped(Exception):
    """The worker has ended."""


@dataclass(slots=True, eq=False)
class Work:
    """Tokens to append to a sequence, at positions `start`…; the last `rows` of them want their logits read.

    singly: one token a pass, batched with other sequences'; otherwise in chunks. at: how many of the tokens the sequence holds
    already (of a prompt; none if it was emptied meanwhile). cut: it may hold others behind those: forget them first. read: runs in
    the worker's thread on a row's logits. kept: `at` as it turned out to be, once a row was read. done: called once in the worker's
    thread, with the list of what `read` returned or the error; not after a `free`.
    """

    sequence: int
    start: int
    tokens: Sequence[int]
    rows: int
    singly: bool
    cut: bool
    read: Read
    done: Done
    at: int = 0
    kept: int = 0
    found: list[Any] = field(default_factory=list)


class Worker:
    """Owns the context from `start` to `stop`."""

    def __init__(self, name: str, context: Context, width: int) -> None:
        """width: the most sequences whose single tokens share a pass."""
        self._context = context
        self._width = width
        self._posted: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._work: dict[int, Work] = {}  # by sequence, the one that waits longest first
        self._answered: dict[int, float] = {}
        self._emptied: set[int] = set()  # after a failure: nothing of what was to be kept is there
        self._ending = False
        self.failure: Exception | None = None
        self.passes = 0
        self.prompt_tokens = 0
        self.decoded_tokens = 0
        self.kept_tokens = 0
        self._thread = threading.Thread(target=self._run, name=f"llama_cpp-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._ending

    def submit(self, work: Work) -> None:
        """Raises Stopped."""
        self._post(lambda: self._accept(work))

    def free(self, sequence: int, keep: int = 0) -> None:
        """Drop its work and empty it but for its first `keep` tokens; what is posted for it afterwards is another session's. Never
        raises."""
        with contextlib.suppress(Stopped):  # then the context goes as a whole
            self._post(lambda: self._release(sequence, keep))

    def stop(self) -> None:
        """Finish the pass under way, fail what waits, end the thread and wait for it. Idempotent."""
        with self._wake:
            self._ending = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _post(self, action: Callable[[], None]) -> None:
        with self._wake:
            if self._ending:
                raise Stopped
            self._posted.append(action)
            self._wake.notify()

    # All below runs in the worker's thread.

    def _run(self) -> None:
        try:
            while self._collect():
                self._decode_step()
                self._read_chunk()
        except Exception as error:  # noqa: BLE001 - a thread has nobody to raise to
            log.exception("the worker of a model died")
            self.failure = error
        with self._wake:
            self._ending = True
            left = [*self._posted]
            self._posted.clear()
        for action in left:  # what comes too late still gets its answer
            action()
        for work in [*self._work.values()]:
            self._finish(work, Stopped())

    def _collect(self) -> bool:
        """Do what was posted; wait if there is nothing else to do. False: the end."""
        while True:
            with self._wake:
                while not (self._posted or self._work or self._ending):
                    self._wake.wait()
                if self._ending:
                    return False
                actions = [*self._posted]
                self._posted.clear()
            for action in actions:
                action()
            if not self._linger():
                return True

    def _linger(self) -> bool:
        """Whether to look again for posts: some were just answered and may be back at once. Waits for one."""
        now = time.monotonic()
        self._answered = {sequence: then for sequence, then in self._answered.items() if now - then < LINGER}
        if not self._answered or not self._work:
            return not self._work
        left = min(self._answered.values()) + LINGER - now
        with self._wake:
            if not self._posted and not self._ending:
                self._wake.wait(left)
        return True

    def _accept(self, work: Work) -> None:
        self._answered.pop(work.sequence, None)
        if work.sequence in self._emptied and not work.start:
            self._emptied.discard(work.sequence)
            work.at = 0
        work.kept = work.at
        self.kept_tokens += work.kept
        try:
            if work.cut:
                self._context.forget(work.sequence, work.start + work.at)
        except DecodeFailed as error:
            log.error("a rewind failed: %s", error)
            work.done(error)
        else:
            self._work[work.sequence] = work

    def _release(self, sequence: int, keep: int) -> None:
        self._work.pop(sequence, None)
        self._answered.pop(sequence, None)
        try:
            self._context.forget(sequence, keep)
        except DecodeFailed:  # memories that are no caches of tokens can't be cut back
            self._empty(sequence)

    def _empty(self, sequence: int) -> None:
        self._context.forget(sequence)
        self._emptied.add(sequence)

    def _decode_step(self) -> None:
        """One token of each sequence that decodes singly.

        In the order of their numbers: in a pass, llama.cpp computes together only what has successive numbers in that order.
        """
        works = sorted((work for work in self._work.values() if work.singly), key=lambda work: work.sequence)
        for at in range(0, len(works), self._width):
            part = works[at : at + self._width]
            self.decoded_tokens += len(part)
            self._pass([(work, 1) for work in part])

    def _read_chunk(self) -> None:
        """The next chunk of the one that waits longest; then it goes to the end of the line."""
        work = next((work for work in self._work.values() if not work.singly), None)
        if work is None:
            return
        count = min(self._context.chunk, len(work.tokens) - work.at)
        plain = len(work.tokens) - work.rows - work.at  # tokens that want no logits
        count = min(count, max(plain, 0) + self._context.rows)
        del self._work[work.sequence]
        self._work[work.sequence] = work
        self.prompt_tokens += count
        self._pass([(work, count)])

    def _pass(self, parts: list[tuple[Work, int]]) -> None:
        rows = [
            (work.sequence, work.start + at, work.tokens[at], at >= len(work.tokens) - work.rows)
            for work, count in parts
            for at in range(work.at, work.at + count)
        ]
        self.passes += 1
        try:
            logits = iter(self._context.decode(rows))
        except DecodeFailed as error:
            log.error("a pass over %d tokens failed: %s", len(rows), error)
            for work, _ in parts:
                self._empty(work.sequence)
                self._finish(work, error)
            return
        taken = iter(rows)
        for work, count in parts:
            work.found.extend(work.read(next(logits)) for _, row in zip(range(count), taken, strict=False) if row[3])
            work.at += count
            if work.at == len(work.tokens):
                self._finish(work, work.found)

    def _finish(self, work: Work, outcome: list[Any] | Exception) -> None:
        self._work.pop(work.sequence, None)
        if work.singly:
            self._answered[work.sequence] = time.monotonic()
        work.done(outcome)
