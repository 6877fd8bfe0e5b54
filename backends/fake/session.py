"""A token session of a fake model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from backends.errors import BackendError, CapabilityMissing, ContextTooLong, SessionClosed
from backends.fake.model import FakeModel, Probabilities, cut, logs, noisy
from backends.fake.settings import FakeSettings
from backends.types import LogProbs, SomeIds, TopK


class FakeSession:
    """Strict where others are lenient: misuse that a real backend might survive raises RuntimeError or ValueError here.

    pause: awaited before every pass with the number of passes so far; where delays and faults happen.
    freed: called once, when the session is closed.
    """

    def __init__(
        self,
        name: str,
        model: FakeModel,
        settings: FakeSettings,
        prompt: Sequence[int],
        k: int,
        pause: Callable[[int], Awaitable[None]],
        freed: Callable[[], None],
    ) -> None:
        self._name = name
        self._model = model
        self._settings = settings
        self._ids = list(prompt)
        self._prompt = len(self._ids)
        self._k = k if settings.max_k is None else min(k, settings.max_k)
        self._pause = pause
        self._freed = freed
        self._passes = 0
        self._here: Probabilities | None = None
        self._scored: list[Probabilities] = []
        self._closed = False
        self._busy = False

    @property
    def prompt_tokens(self) -> int:
        return self._prompt

    @property
    def context(self) -> int:
        return self._settings.context

    @property
    def ids(self) -> tuple[int, ...]:
        """Prompt and appended ids, for tests."""
        return tuple(self._ids)

    def widen(self, k: int) -> bool:
        before, k = self._k, k if self._settings.max_k is None else min(k, self._settings.max_k)
        self._k = max(before, k)
        return self._k > before

    async def step(self, append: Sequence[int] = ()) -> TopK:
        with self._call():
            await self._pass(append)
            return self._look()

    async def score(self, draft: Sequence[int]) -> list[TopK]:
        if not len(draft):
            raise ValueError("a draft has at least one id")
        with self._call():
            before, found = len(self._ids), (self._here, self._scored)
            try:
                for part in [[id] for id in draft] if self._settings.reads_singly else [draft]:
                    await self._pass(part)
            except BackendError:  # as in real ones the session has not moved
                del self._ids[before:]
                self._here, self._scored = found
                raise
            rows = [self._model.distribution(self._ids[: before + n]) for n in range(1, len(draft) + 1)]
            if noise := self._settings.draft_noise:
                rows = [noisy(row, noise, self._ids[: before + n]) for n, row in enumerate(rows, start=1)]
            self._scored, self._here = rows, rows[-1]
            return [cut(row, self._k) for row in rows]

    @property
    def draft_noise(self) -> float | None:
        return self._settings.draft_noise

    @property
    def reads_singly(self) -> bool:
        return self._settings.reads_singly

    @property
    def kept_steps(self) -> int:
        return self._settings.kept_steps

    async def recall(self, back: int, ids: SomeIds) -> LogProbs:
        with self._call():
            if not self._settings.lookup or not self._settings.recall:
                raise CapabilityMissing(self._name, f"Model {self._name!r} can't look up single tokens of a draft.")
            if self._settings.kept_steps and back >= max(1, len(self._scored)):
                raise CapabilityMissing(self._name, f"Model {self._name!r} does not keep that any more.")
            if not 1 <= back < len(self._scored):
                raise RuntimeError("recall is for the places of a draft just scored, but the last")
            return logs(self._scored[-1 - back][np.asarray(ids, dtype=np.int64)])

    async def lookup(self, ids: SomeIds) -> LogProbs:
        with self._call():
            if not self._settings.lookup:
                raise CapabilityMissing(self._name, f"Model {self._name!r} can't look up single tokens.")
            if self._here is None:
                raise RuntimeError("lookup is for after a step or score, and before a rewind")
            return logs(self._here[np.asarray(ids, dtype=np.int64)])

    async def rewind(self, n: int) -> None:
        with self._call():
            if not 0 <= n <= len(self._ids) - self._prompt:
                raise ValueError(f"can't drop {n} of {len(self._ids) - self._prompt} appended ids")
            del self._ids[len(self._ids) - n :]
            self._here, self._scored = None, []

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._freed()

    @contextmanager
    def _call(self) -> Iterator[None]:
        if self._closed:
            raise SessionClosed(self._name, "The session is closed.")
        if self._busy:
            raise RuntimeError("two tasks use one session at once")
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    async def _pass(self, append: Sequence[int]) -> None:
        new = [int(id) for id in append]
        if any(not 0 <= id < len(self._model) for id in new):
            raise ValueError("an id is outside the vocabulary")
        if (tokens := len(self._ids) + len(new)) > self._settings.context:
            raise too_long(self._name, tokens, self._settings.context)
        await self._pause(self._passes)
        if self._closed:
            raise SessionClosed(self._name, "The session was closed meanwhile.")
        self._passes += 1
        self._ids += new
        before, kept = self._scored, self._settings.kept_steps
        self._here = self._model.distribution(self._ids)
        self._scored = [*(before[-kept:] if len(new) == 1 else ()), self._here] if kept else []

    def _look(self) -> TopK:
        assert self._here is not None
        return cut(self._here, self._k)


def too_long(name: str, tokens: int, limit: int) -> ContextTooLong:
    return ContextTooLong(
        name, f"Model {name!r} can read {limit} tokens; {tokens} are needed.", tokens=tokens, limit=limit
    )
