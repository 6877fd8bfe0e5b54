"""Which failures let another model try, and which one."""

from __future__ import annotations

from collections.abc import Collection

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
from gateway.experiments.route import Cause, Fallback, Route

_TABLE: dict[type[BackendError], Cause | None] = {
    BackendError: "error",
    BackendUnavailable: "error",
    BackendTimeout: "timeout",
    CircuitOpen: "error",
    BackendOverloaded: "overload",
    ContextTooLong: "context",
    RequestRejected: None,  # the client's to mend: another model would be asked the same wrong thing
    BackendAuthFailed: "error",
    CapabilityMissing: None,  # so is this: it would hide from a client that it got something else than it asked for
    SessionClosed: "error",
}


class TooSlow(Exception):
    """An attempt had written nothing when its patience ended."""


def cause_of(error: BaseException) -> Cause | None:
    """Why an attempt failed, None where no other model should be asked."""
    if isinstance(error, TooSlow):
        return "timeout"
    for kind in type(error).__mro__:
        if kind in _TABLE:
            return _TABLE[kind]
    return None


def next_fallback(route: Route, cause: Cause, tried: Collection[str]) -> Fallback | None:
    """The first fallback for a cause whose model was not tried in this request."""
    for fallback in route.fallbacks:
        if cause in fallback.on and fallback.model not in tried:
            return fallback
    return None
