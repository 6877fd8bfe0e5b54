"""Waiting for several members at once, and not for ever."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import TypeVar

import anyio

from backends.errors import BackendError, BackendTimeout
from backends.protocol import Session

T = TypeVar("T")

CLOSE_SECONDS = 1.0
"""How long a dropped member's session may take to close; what it holds is freed at the latest at the end of the stage."""


class Deadline:
    """A block that must be left within some seconds. Raises `Late`."""

    __slots__ = ("_name", "_scope", "_seconds")

    def __init__(self, name: str, seconds: float) -> None:
        self._name = name
        self._seconds = seconds

    def __enter__(self) -> None:
        self._scope = anyio.move_on_after(self._seconds)
        self._scope.__enter__()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool | None:
        swallowed = self._scope.__exit__(kind, error, trace)  # type: ignore[arg-type]
        if self._scope.cancelled_caught:
            raise Late(self._name, f"Model {self._name!r} took longer than {self._seconds:g} seconds for a step.")
        return swallowed


class Late(BackendTimeout):
    """A member took longer for a step than its group may wait."""


async def close(session: Session) -> None:
    """Close a session that may be broken, without waiting for long."""
    with (
        anyio.move_on_after(CLOSE_SECONDS),
        suppress(BackendError),
    ):  # it was dropped for an error, and that one is reported
        await session.close()


async def together(calls: Sequence[Awaitable[T]]) -> list[T]:
    """Results of all calls, made side by side; if one fails, the others are cancelled and its own error is raised."""
    if len(calls) == 1:
        return [await calls[0]]
    results: dict[int, T] = {}

    async def keep(index: int, call: Awaitable[T]) -> None:
        results[index] = await call

    try:
        async with anyio.create_task_group() as tasks:
            for index, call in enumerate(calls):
                tasks.start_soon(keep, index, call)
    except BaseExceptionGroup as group:
        raise first_error(group) from None
    return [results[index] for index in range(len(calls))]


async def contained(calls: Sequence[tuple[int, Awaitable[T]]]) -> tuple[list[T | None], dict[int, BackendError]]:
    """Results of all members' calls, made side by side; None for those who failed, and with what they did."""
    failed: dict[int, BackendError] = {}

    async def kept(member: int, call: Awaitable[T]) -> T | None:
        try:
            return await call
        except BackendError as error:
            failed[member] = error
            return None

    return await together([kept(member, call) for member, call in calls]), failed


def first_error(error: BaseException) -> BaseException:
    """The first leaf of a tree of exception groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
