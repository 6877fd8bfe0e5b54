"""Places for the requests that keep models busy, over all routes together, and their end when the gateway shuts down."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, Protocol

import anyio

from gateway.wire.errors import APIError, overloaded

Priority = Literal["low", "normal", "high"]
_ALL: Mapping[Priority, float] = {"low": 1.0, "normal": 1.0, "high": 1.0}


class Running(Protocol):
    """A request that can be ended."""

    def cancel(self) -> None:
        """End it; it is told why by `Admission.ending`."""
        ...


class Admission:
    """most: requests at once; further ones are refused, not queued: queues belong to the models.

    shares: priority → part of the places that its requests may fill; so the more important ones still find some.
    draining: an end is near, and probes are told; requests are still taken. ending: none is taken any more.
    shed: priority → how many were refused.
    """

    def __init__(self, most: int, shares: Mapping[Priority, float] = _ALL) -> None:
        self._running: set[Running] = set()
        self.draining = False
        self.ending = False
        self.shed: dict[Priority, int] = dict.fromkeys(_ALL, 0)
        self.resize(most, shares)

    def resize(self, most: int, shares: Mapping[Priority, float] = _ALL) -> None:
        """From now on so many. Who has a place keeps it."""
        self.most = most
        self._most_of = {priority: math.ceil(most * shares.get(priority, 1.0)) for priority in _ALL}

    @property
    def taken(self) -> int:
        """Places that are taken now."""
        return len(self._running)

    @contextmanager
    def place(self, priority: Priority = "normal") -> Iterator[anyio.CancelScope]:
        """A place, and the scope that ends the request in it. Raises APIError (429, 503)."""
        scope = anyio.CancelScope()
        self.enter(scope, priority)
        try:
            yield scope
        finally:
            self.leave(scope)

    def enter(self, request: Running, priority: Priority = "normal") -> None:
        """Take a place; `leave` it whatever happens. Raises APIError: 503 where there is none, 429 where those that are left are for
        more important requests."""
        if self.ending:
            raise shutting_down()
        taken = len(self._running)
        if taken >= self._most_of[priority]:
            self.shed[priority] += 1
            if taken >= self.most:
                raise overloaded("The gateway is at capacity; try again shortly.")
            raise shed(priority)
        self._running.add(request)

    def leave(self, request: Running) -> None:
        """Give the place back."""
        self._running.discard(request)

    def end_all(self) -> None:
        """End every running request, and refuse new ones."""
        self.draining = self.ending = True
        for scope in tuple(self._running):
            scope.cancel()


def shed(priority: Priority) -> APIError:
    """A 429 for a request that others go before."""
    message = f"The gateway is busy, and takes no more requests of {priority} priority; try again shortly."
    return APIError(429, message, type="rate_limit_error", code="shed", retry_after=1.0)


def shutting_down() -> APIError:
    """A 503 of a gateway that is about to end."""
    return overloaded("The gateway is shutting down.")
