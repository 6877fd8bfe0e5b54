"""Answering a route: the arm's wiring first, then its fallbacks, as long as the client has seen nothing of an answer."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Protocol

import anyio

from gateway.experiments.fallback import TooSlow, cause_of, next_fallback
from gateway.experiments.route import Cause
from gateway.ledger.meter import RunMeter
from gateway.observability.record import RequestRecord
from gateway.runtime import Prepared
from gateway.web.account import Account
from gateway.wire.errors import APIError, timed_out
from strategies.planning import Plan

Prepare = Callable[[str], Awaitable[Prepared]]
"""Model name → what runs it. Raises APIError."""


class Restartable(Protocol):
    """A sink that can begin again with another wiring while nothing of an answer has gone out."""

    @property
    def pristine(self) -> bool:
        """Whether nothing has."""
        ...

    def restart(self, prepared: Prepared) -> None:
        """Forget what was taken so far."""
        ...


class Attempts:
    """Of one request. `first` plans it, `run` runs it; both try the fallbacks of its route, if it has one."""

    def __init__(self, account: Account, prepare: Prepare) -> None:
        self.prepare = prepare
        self._account = account
        self._tried: list[str] = []
        self._patience: anyio.CancelScope | None = None

    @property
    def record(self) -> RequestRecord:
        """Of the request."""
        return self._account.record

    async def first(self, model: str) -> Prepared:
        """The first wiring that can be tried, beginning with this. Raises APIError."""
        return await self._planned(model)

    async def run(
        self, prepared: Prepared, sink: Restartable, attempt: Callable[[Prepared], Awaitable[Exception | None]]
    ) -> Exception | None:
        """What went wrong in the end, None for an answer. attempt: returns what went wrong."""
        while True:
            failure = await self._attempt(prepared, attempt)
            if failure is None or not sink.pristine:
                return _told(failure)
            following = await self._following(cause_of(failure), failure)
            if following is None:
                return _told(failure)
            prepared = following
            self._account.record.first_token = None
            sink.restart(prepared)

    def watch(self, choice: int, plan: Plan) -> RunMeter:
        """What meters one run."""
        return self._account.watch(choice, plan)

    async def _attempt(
        self, prepared: Prepared, attempt: Callable[[Prepared], Awaitable[Exception | None]]
    ) -> Exception | None:
        account = self._account
        account.wiring = account.record.wiring = prepared.wiring
        account.record.shape = prepared.plan.shape
        patience = account.choice.route.patience if account.choice is not None else None
        if patience is None:
            return await attempt(prepared)
        failure: Exception | None = None
        with anyio.move_on_after(patience) as self._patience:
            failure = await attempt(prepared)
        if self._patience.cancelled_caught and failure is None:
            return TooSlow(f"Nothing was written within {patience:g} seconds.")
        return failure

    def saw_something(self) -> None:
        """An event of the run: once text has come, the patience has no end."""
        if self._patience is not None and self._account.record.first_token is not None:
            self._patience.deadline = math.inf

    async def _planned(self, model: str) -> Prepared:
        self._tried.append(model)
        try:
            prepared = await self.prepare(model)
        except APIError as error:
            following = await self._following("error", error) if error.code == "model_not_ready" else None
            if following is None:
                raise
            return following
        self._account.check(self._account.record.model or model, prepared.wiring, prepared.plan.models)
        return prepared

    async def _following(
        self, cause: Cause | None, failure: Exception, refused: APIError | None = None
    ) -> Prepared | None:
        """The next wiring to try after a failure, if there is one that can be tried. refused: why the last one could not be."""
        choice = self._account.choice
        if choice is None or cause is None:
            return None
        fallback = next_fallback(choice.route, cause, self._tried)
        if fallback is None:
            return None
        last = refused or failure
        code = last.code if isinstance(last, APIError) else type(last).__name__
        self._account.attempts.append((self._tried[-1], f"{cause}: {code}"))
        try:
            return await self._planned(fallback.model)
        except APIError as error:
            return await self._following(cause, failure, error)


def _told(failure: Exception | None) -> Exception | None:
    return timed_out(str(failure)) if isinstance(failure, TooSlow) else failure
