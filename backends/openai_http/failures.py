"""What goes wrong on the wire, as errors of ours: one table for exceptions, one for HTTP statuses.

Texts of a server are shown to clients only where they speak about the request (400, 404, 413, 422 and the like), without
addresses and shortened; everything else is our own words. The rest is in the `__cause__`, for the log.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import orjson

from backends.errors import (
    BackendAuthFailed,
    BackendError,
    BackendOverloaded,
    BackendTimeout,
    BackendUnavailable,
    ContextTooLong,
    RequestRejected,
)
from backends.openai_http.connections import Broken, BrokenOff, NotHTTP
from backends.openai_http.sse import SSEError
from backends.secrets import censored

EXCEPTIONS: tuple[tuple[type[Exception], type[BackendError], str], ...] = (
    (TimeoutError, BackendTimeout, "did not answer in time"),  # aiohttp's ServerTimeoutError and its kin are such
    (aiohttp.ClientConnectorDNSError, BackendUnavailable, "can't be found"),
    (aiohttp.ClientSSLError, BackendUnavailable, "can't be reached securely"),
    (aiohttp.ServerFingerprintMismatch, BackendUnavailable, "can't be reached securely"),
    (aiohttp.ClientConnectorError, BackendUnavailable, "can't be reached"),
    (aiohttp.ClientConnectionError, BackendUnavailable, "broke the connection"),
    (aiohttp.ClientPayloadError, BackendUnavailable, "broke off in the middle of its answer"),
    (aiohttp.InvalidURL, BackendUnavailable, "has an address that can't be used"),
    (aiohttp.ClientResponseError, BackendUnavailable, "answered something that is not its protocol"),
    (aiohttp.ClientError, BackendUnavailable, "could not be asked"),  # all others, those of newer versions too
    (Broken, BackendUnavailable, "broke the connection"),
    (BrokenOff, BackendUnavailable, "broke off in the middle of its answer"),
    (NotHTTP, BackendUnavailable, "answered something that is not its protocol"),
    (SSEError, BackendUnavailable, "answered something that is not its protocol"),
    (orjson.JSONDecodeError, BackendUnavailable, "answered something that is not its protocol"),
    (socket.gaierror, BackendUnavailable, "can't be found"),
    (ssl.SSLError, BackendUnavailable, "can't be reached securely"),
    (OSError, BackendUnavailable, "can't be reached"),
)
"""Foreign exception, ours, what is said of the model's server. The first that fits counts."""

NETWORK: tuple[type[Exception], ...] = tuple(kind for kind, _, _ in EXCEPTIONS)
"""What to catch around anything that touches the wire."""


_LOGGED = 300
"""Characters of a server's own words that the log gets."""


class UpstreamStatus(Exception):
    """The cause of an error that came as an HTTP status or an error event: for the log."""

    def __init__(self, status: int, text: str) -> None:
        # In full it may hold what was asked and answered: servers like to repeat that.
        super().__init__(f"status {status}: {censored(text)[:_LOGGED]}")
        self.status = status
        self.text = text


@dataclass(frozen=True, slots=True)
class _Said:
    """What an error body says."""

    message: str = ""
    kind: str = ""
    code: str = ""
    param: str | None = None


def from_exception(model: str, error: Exception) -> BackendError:
    """The error of ours for an exception of the network or the wire."""
    for kind, ours, text in EXCEPTIONS:
        if isinstance(error, kind):
            made = ours(model, f"The server of model {model!r} {text}.")
            # What the operating system says comes from connecting: a connection that ends later is `Broken` or `BrokenOff`.
            made.repeatable = isinstance(error, OSError) and not isinstance(error, TimeoutError)
            return made
    return BackendUnavailable(model, f"The server of model {model!r} failed.")


def from_response(model: str, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
    """The error of ours for an HTTP status that is not 200."""
    said = _read(body)
    error = _too_long(model, status, said) or _by_status(model, status, headers, said)
    error.__cause__ = UpstreamStatus(status, body[:2000].decode(errors="replace"))
    # Only a server that says when to come again has asked for it.
    error.repeatable = isinstance(error, BackendOverloaded) and error.retry_after is not None
    return error


def from_event(model: str, payload: Any) -> BackendError:
    """The error of ours for an `{"error": …}` in a body or stream that began as a success."""
    said = _said(payload)
    status = int(said.code) if said.code.isdigit() and 400 <= int(said.code) <= 599 else 500
    error = _too_long(model, 400, said) or _by_status(model, status, {}, said)
    error.__cause__ = UpstreamStatus(status, _written(payload)[:2000])
    return error


def not_protocol(model: str, detail: Any) -> BackendUnavailable:
    """It answered, but not as an OpenAI-compatible server does. detail: text, or JSON as it was read; for the log only."""
    error = BackendUnavailable(model, f"The server of model {model!r} answered something that is not its protocol.")
    error.__cause__ = UpstreamStatus(200, (detail if isinstance(detail, str) else _written(detail))[:2000])
    return error


def is_missing_route(error: BackendError) -> bool:
    """If the server answered that it has no such route, or not for this model (vLLM: "does not support Embeddings API")."""
    cause = error.__cause__
    if not isinstance(cause, UpstreamStatus):
        return False
    return cause.status in (404, 405, 501) or (cause.status == 400 and "does not support" in cause.text)


def _by_status(model: str, status: int, headers: Mapping[str, str], said: _Said) -> BackendError:
    server = f"The server of model {model!r}"
    if status in (401, 402, 403) or said.code == "insufficient_quota":
        return BackendAuthFailed(model, f"{server} refused the gateway's credentials.")
    if status == 404:
        # The client named a model of ours that exists: what is missing upstream is the operator's to mend.
        missing = BackendUnavailable(model, f"{server} does not know this model or route.")
        missing.lasting = True
        return missing
    if status in (408, 504):
        return BackendTimeout(model, f"{server} did not answer in time.")
    if status in (429, 503, 529):
        return BackendOverloaded(model, f"{server} is at capacity; try again shortly.", retry_after(headers))
    if 400 <= status < 500:
        text = presentable(said.message)
        what = f"{server} rejected the request{': ' + text if text else '.'}"
        return RequestRejected(model, what, status=status, param=said.param)
    if status >= 500:
        return BackendUnavailable(model, f"{server} failed.")
    return BackendUnavailable(model, f"{server} answered something that is not its protocol.")


_LENGTH = re.compile(
    r"context[ _](length|window|size)|maximum model length|max_model_len|prompt is too long|too long to fit",
    re.IGNORECASE,
)
_LIMIT = re.compile(
    r"(?:maximum context length is|context length is only|context length|context size|maximum model length)"
    r"(?: of)?[ (]*(\d+)",
    re.IGNORECASE,
)
_TOKENS = re.compile(r"(?:you requested|requested|passed|request \(|total length|length)[ (]*(\d+)", re.IGNORECASE)


def _too_long(model: str, status: int, said: _Said) -> ContextTooLong | None:
    """If the body says that the context is too short: OpenAI's code, llama.cpp's type, or vLLM's words."""
    marked = said.code == "context_length_exceeded" or said.kind == "exceed_context_size_error"
    if not marked and not (status in (400, 413, 422) and _LENGTH.search(said.message)):
        return None
    limit, tokens = _LIMIT.search(said.message), _TOKENS.search(said.message)
    return ContextTooLong(
        model,
        f"The conversation is too long for model {model!r}"
        + (f", which can read {limit[1]} tokens." if limit else "."),
        tokens=int(tokens[1]) if tokens else None,
        limit=int(limit[1]) if limit else None,
    )


def _read(body: bytes) -> _Said:
    """OpenAI's error body, vLLM's older flat one, FastAPI's `detail`, or plain text."""
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _Said(body[:500].decode(errors="replace"))
    return _said(payload)


_FIELD = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")
"""What a field of a request may be called: a server may say anything there."""


def _said(payload: Any) -> _Said:
    error = payload.get("error", payload) if isinstance(payload, dict) else payload
    if not isinstance(error, dict):
        return _Said(error if isinstance(error, str) else _written(error)[:500])
    message = error.get("message") or error.get("detail") or ""
    param = error.get("param")
    code, kind = error.get("code"), error.get("type")
    return _Said(
        message if isinstance(message, str) else _written(message),
        str(kind) if isinstance(kind, str | int) else "",
        str(code) if isinstance(code, str | int) else "",
        param if isinstance(param, str) and _FIELD.fullmatch(param) and censored(param) == param else None,
    )


def _written(value: Any) -> str:
    """JSON as text. What was read may nest deeper than can be written again; nobody would read it."""
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        return ""


_ADDRESS = re.compile(
    r"""
    \b[a-z][a-z0-9+.-]*://[^\s"'<>)]+           # any URL
    | \[[0-9a-f:]*:[0-9a-f:]+\](:\d+)?          # IPv6 in brackets
    | \b\d{1,3}(\.\d{1,3}){3}(:\d+)?\b          # IPv4
    | \b(localhost|[a-z0-9-]+(\.[a-z0-9-]+)*\.[a-z]{2,}|[a-z][a-z0-9-]*):\d{2,5}\b  # host:port
    | \bBearer\s+\S+ | \bsk-[\w*-]+             # keys
    | (?<![\w/])(/[\w.-]+){2,}                  # paths
    """,
    re.IGNORECASE | re.VERBOSE,
)


def presentable(text: str) -> str:
    """A server's words without addresses, keys and paths, on one line, at most 400 characters."""
    text = " ".join(_ADDRESS.sub("…", censored(text)).split())
    return text if len(text) <= 400 else text[:399] + "…"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from Retry-After (seconds or a date) or retry-after-ms."""
    headers = {name.lower(): value for name, value in headers.items()}
    try:
        if (value := headers.get("retry-after-ms")) is not None:
            seconds = float(value) / 1000
        elif (value := headers.get("retry-after")) is None:
            return None
        elif re.fullmatch(r"\s*[\d.]+\s*", value):
            seconds = float(value)
        else:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None
    return max(0.0, seconds)
