"""What a client is told when something goes wrong: one table from our errors to OpenAI's.

`APIError` is what the edge itself raises (a bad request, a missing key). `to_api_error` maps everything else; a test holds the
table to be complete over every BackendError and every error of a wiring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import orjson

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

INVALID = "invalid_request_error"
SERVER = "server_error"


MOST_SHOWN = 2000
"""Characters of a message: it repeats a little of what was sent, not all of it."""
MOST_PARAM = 200


class APIError(Exception):
    """An answer that is an error, as OpenAI words it.

    status: of HTTP. type, code, param: as in the body. retry: False where repeating the request can't help (SDKs repeat 408,
    409, 429 and 5xx by themselves, and every repetition costs a whole wiring). retry_after: seconds, if known.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        retry: bool = True,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = _shortened(message, MOST_SHOWN)
        self.type = type
        self.code = code
        self.param = param if param is None else _shortened(param, MOST_PARAM)
        self.retry = retry
        self.retry_after = retry_after
        self.extra_headers = dict(headers or {})

    def value(self) -> dict[str, Any]:
        """`{"error": {message, type, param, code}}`."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        """The same as JSON."""
        return orjson.dumps(self.value())

    def headers(self) -> dict[str, str]:
        """Headers besides the content type."""
        headers = dict(self.extra_headers)
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        if not self.retry:
            headers["x-should-retry"] = "false"
        return headers


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def bad_request(message: str, param: str | None = None, code: str | None = None) -> APIError:
    """A 400: the client's to mend."""
    return APIError(400, message, param=param, code=code)


def unsupported(param: str, message: str) -> APIError:
    """A 400 for what is meant well but can't be honoured."""
    return APIError(400, message, param=param, code="unsupported_parameter")


def unsupported_endpoint(message: str) -> APIError:
    """A 404 for a model that is there, asked for what it does not have at all."""
    return APIError(404, message, param="model", code="unsupported_endpoint")


def not_found(path: str) -> APIError:
    """A path that is not served."""
    return APIError(404, f"Unknown path: {path}", code="unknown_url")


def model_not_found(message: str) -> APIError:
    """A model name that is no wiring of known models."""
    return APIError(404, message, code="model_not_found", param="model")


def internal_error() -> APIError:
    """Our fault. Says nothing about the cause: that is for the log."""
    return APIError(500, "Internal error of the gateway.", type=SERVER, code="internal_error", retry=False)


def overloaded(message: str, retry_after: float = 1.0) -> APIError:
    """Saturated."""
    return APIError(503, message, type=SERVER, code="overloaded", retry_after=retry_after)


def left_alone(message: str, retry_after: float) -> APIError:
    """A model that keeps failing and is not asked for a moment."""
    return APIError(503, message, type=SERVER, code="backend_unavailable", retry_after=retry_after)


def timed_out(message: str) -> APIError:
    """Too slow. A repetition would be as slow."""
    return APIError(504, message, type=SERVER, code="timeout", retry=False)


def _rejected(error: RequestRejected) -> APIError:
    # Statuses that say something about the client's request go through; an upstream's 404 or 409 is about the gateway's
    # own request, and 422 is never used here.
    status = error.status if error.status in (403, 413) else 400
    return APIError(status, error.message, code="request_rejected", param=error.param)


_TABLE: dict[type[BackendError], Callable[[Any], APIError]] = {
    BackendError: lambda e: APIError(502, e.message, type=SERVER, code="backend_error", retry=False),
    BackendUnavailable: lambda e: APIError(
        502, e.message, type=SERVER, code="backend_unavailable", retry=not e.lasting
    ),
    CircuitOpen: lambda e: left_alone(e.message, e.retry_after or 1.0),
    BackendTimeout: lambda e: timed_out(e.message),
    BackendOverloaded: lambda e: overloaded(e.message, e.retry_after or 1.0),
    ContextTooLong: lambda e: bad_request(e.message, "messages", "context_length_exceeded"),
    RequestRejected: _rejected,
    BackendAuthFailed: lambda e: APIError(502, e.message, type=SERVER, code="backend_auth_failed", retry=False),
    CapabilityMissing: lambda e: bad_request(e.message, "model", "unsupported_model"),
    SessionClosed: lambda e: internal_error(),
}


def to_api_error(error: BaseException) -> APIError:
    """The error as the client sees it. What is not in the table is a 500 that says nothing."""
    if isinstance(error, APIError):
        return error
    for kind in type(error).__mro__:
        mapped = _TABLE.get(kind)
        if mapped is not None:
            return mapped(error)
    return internal_error()
