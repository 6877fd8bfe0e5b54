"""A client's request handed to one of a model's servers as it came, and the answer back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from backends.errors import BackendError, BackendTimeout, BackendUnavailable
from backends.openai_http.forwarding import Forwarding as ToOne
from backends.seats import Seat, Seats
from backends.types import ForwardRequest, Usage
from backends.vllm.replica import Replica


class Forwarding:
    """See `backends.protocol.ForwardingBackend`. in_order: the servers, the one to ask first in front.

    A server that can't be reached, or fails before it answers, is left out for a while and the next one asked. One that breaks off
    later is left out too.
    """

    __slots__ = ("_in_order", "_replica", "_request", "_seat", "_seats", "_there")

    def __init__(self, seats: Seats, in_order: Callable[[], Sequence[Replica]], request: ForwardRequest) -> None:
        self._seats = seats
        self._in_order = in_order
        self._request = request
        self._seat: Seat | None = None
        self._replica: Replica | None = None
        self._there: ToOne | None = None

    async def __aenter__(self) -> Self:
        self._seat = await self._seats.take()
        try:
            await self._somewhere()
        except BaseException:
            self._seat.release()
            raise
        return self

    async def _somewhere(self) -> None:
        error: BackendError | None = None
        for replica in self._in_order():
            there = replica.text.forward(self._request)
            replica.load += 1
            try:
                await there.__aenter__()
            except BackendUnavailable as found:
                replica.load -= 1
                replica.failed()
                error = found
            except BackendTimeout:
                replica.load -= 1
                replica.failed()
                raise
            except BaseException:
                replica.load -= 1
                raise
            else:
                replica.reached()
                self._replica, self._there = replica, there
                return
        assert error is not None
        raise error

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._there is not None and self._replica is not None:
            self._replica.load -= 1
            if isinstance(error, BackendUnavailable | BackendTimeout):
                self._replica.failed()
            await self._there.__aexit__(kind, error, trace)
        if self._seat is not None:
            self._seat.release()

    @property
    def usage(self) -> Usage | None:
        return None if self._there is None else self._there.usage

    @property
    def wrote(self) -> bool:
        return self._there is not None and self._there.wrote

    @property
    def over(self) -> bool:
        return self._there is not None and self._there.over

    async def read(self) -> bytes:
        assert self._there is not None
        return await self._there.read()
