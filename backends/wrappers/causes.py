"""What an error says about the backend that raised it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from backends.errors import (
    BackendAuthFailed,
    BackendError,
    BackendOverloaded,
    BackendTimeout,
    BackendUnavailable,
    CapabilityMissing,
    CircuitOpen,
    ContextTooLong,
    RequestRejected,
    SessionClosed,
)

Verdict = Literal["fault", "fine", "nothing"]
"""fault: it failed. fine: it works, and refused this one. nothing: it says nothing about whether it works."""

_TABLE: Mapping[type[BackendError], tuple[str, Verdict]] = {
    BackendError: ("error", "fault"),
    BackendUnavailable: ("unavailable", "fault"),
    CircuitOpen: ("circuit_open", "nothing"),  # we said so ourselves
    BackendTimeout: ("timeout", "fault"),
    BackendOverloaded: ("overloaded", "nothing"),  # leaving it alone is what queues and Retry-After are for
    ContextTooLong: ("context_too_long", "fine"),
    RequestRejected: ("rejected", "fine"),
    BackendAuthFailed: ("auth_failed", "nothing"),  # a pause mends nothing, and would hide the reason
    CapabilityMissing: ("capability_missing", "fine"),
    SessionClosed: ("session_closed", "nothing"),
}
CRASHED = "crashed"
"""Cause of an exception that no backend should raise."""

CAUSES: tuple[str, ...] = (*(name for name, _ in _TABLE.values()), CRASHED)
"""All names that `cause` gives: a closed set, fit for a metric's label."""


def cause(error: BaseException) -> str:
    """A short name for what happened."""
    return _row(error)[0]


def verdict(error: BaseException) -> Verdict:
    """What it says about the backend."""
    return _row(error)[1]


def _row(error: BaseException) -> tuple[str, Verdict]:
    for kind in type(error).__mro__:
        if kind in _TABLE:
            return _TABLE[kind]
    return CRASHED, "fault"
