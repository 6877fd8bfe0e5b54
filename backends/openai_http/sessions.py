"""A portable token session: the ids stand here, the server is asked anew at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio
import numpy as np

from backends.errors import BackendError, ContextTooLong, SessionClosed
from backends.openai_http.dialects import Dialect
from backends.types import LogProbs, SomeIds, TopK


class HTTPSession:
    """freed: called once, when the session is closed. most: the largest k there can be."""

    def __init__(
        self,
        name: str,
        dialect: Dialect,
        prompt: Sequence[int],
        limit: int | None,
        k: int,
        parallel: int,
        freed: Callable[[], None],
        most: int | None = None,
    ) -> None:
        self._name = name
        self._dialect = dialect
        self._ids = list(prompt)
        self._prompt = len(self._ids)
        self._limit = limit
        self._k = k
        self._most = k if most is None else most
        self._parallel = parallel
        self._freed = freed
        self._here: TopK | None = None
        self._closed = False

    @property
    def prompt_tokens(self) -> int:
        return self._prompt

    @property
    def context(self) -> int | None:
        return self._limit

    def widen(self, k: int) -> bool:
        before = self._k
        self._k = max(before, min(k, self._most))
        return self._k > before

    async def step(self, append: Sequence[int] = ()) -> TopK:
        """One request."""
        ids = self._with(append)
        top = await self._dialect.top(ids, self._k)
        self._stand(ids, top)
        return top

    async def score(self, draft: Sequence[int]) -> list[TopK]:
        """As many requests as the draft has ids, side by side."""
        if not len(draft):
            raise ValueError("a draft has at least one id")
        ids = self._with(draft)
        found: dict[int, TopK] = {}
        failed: list[BackendError] = []
        limiter = anyio.CapacityLimiter(self._parallel)

        async def ask(length: int) -> None:
            try:
                async with limiter:
                    found[length] = await self._dialect.top(ids[:length], self._k)
            except BackendError as error:  # raised below, as itself and not as a group
                failed.append(error)
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for length in range(len(self._ids) + 1, len(ids) + 1):
                group.start_soon(ask, length)
        if failed:
            raise failed[0]
        tops = [found[length] for length in sorted(found)]
        self._stand(ids, tops[-1])
        return tops

    async def lookup(self, ids: SomeIds) -> LogProbs:
        """From the last TopK where it lists them all, else one request per `max_logprobs` ids."""
        self._alive()
        if self._here is None:
            raise RuntimeError("lookup is for after a step or score, and before a rewind")
        known = dict(zip(self._here.ids.tolist(), self._here.logprobs.tolist(), strict=True))
        missing = [id for id in dict.fromkeys(int(id) for id in ids) if id not in known]
        if missing:
            values = await self._dialect.lookup(self._ids, missing)
            self._alive()
            known |= dict(zip(missing, values.tolist(), strict=True))
        return np.array([known[int(id)] for id in ids], dtype=np.float64)

    async def rewind(self, n: int) -> None:
        self._alive()
        if not 0 <= n <= len(self._ids) - self._prompt:
            raise ValueError(f"can't drop {n} of {len(self._ids) - self._prompt} appended ids")
        del self._ids[len(self._ids) - n :]
        self._here = None

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._freed()

    def _with(self, append: Sequence[int]) -> list[int]:
        self._alive()
        ids = [*self._ids, *(int(id) for id in append)]
        if self._limit is not None and len(ids) + 1 > self._limit:  # servers want room for the token they write
            message = f"Model {self._name!r} can read {self._limit} tokens; {len(ids) + 1} are needed."
            raise ContextTooLong(self._name, message, tokens=len(ids) + 1, limit=self._limit)
        return ids

    def _stand(self, ids: list[int], top: TopK) -> None:
        self._alive()
        self._ids, self._here = ids, top

    def _alive(self) -> None:
        if self._closed:
            raise SessionClosed(self._name, "The session is closed.")
