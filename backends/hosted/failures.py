"""litellm's errors as ours. Its texts hold addresses and keys at times, so they are shown only where they speak of the request."""

from __future__ import annotations

import re
from typing import Any

from backends.errors import (
    BackendAuthFailed,
    BackendError,
    BackendOverloaded,
    BackendTimeout,
    BackendUnavailable,
    ContextTooLong,
    RequestRejected,
)
from backends.openai_http.failures import presentable, retry_after

TABLE: tuple[tuple[str, type[BackendError], str], ...] = (
    ("ContextWindowExceededError", ContextTooLong, ""),
    ("AuthenticationError", BackendAuthFailed, "refused the gateway's credentials"),
    ("PermissionDeniedError", BackendAuthFailed, "refused the gateway's credentials"),
    ("PaymentRequiredError", BackendAuthFailed, "refused the gateway's credentials"),
    ("BudgetExceededError", BackendAuthFailed, "refused the gateway's credentials"),
    ("Timeout", BackendTimeout, "did not answer in time"),
    ("RateLimitError", BackendOverloaded, "is at capacity; try again shortly"),
    ("NotFoundError", BackendUnavailable, "does not know this model"),
    ("LiteLLMUnknownProvider", BackendUnavailable, "is of a provider that litellm does not know"),
    ("BadRequestError", RequestRejected, "rejected the request"),
    ("UnprocessableEntityError", RequestRejected, "rejected the request"),
    ("MidStreamFallbackError", BackendUnavailable, "broke off its answer"),
    ("ServiceUnavailableError", BackendOverloaded, "is at capacity; try again shortly"),
    ("InternalServerError", BackendUnavailable, "failed"),
    ("BadGatewayError", BackendUnavailable, "failed"),
    ("APIConnectionError", BackendUnavailable, "can't be reached, or broke the connection"),
    ("APIResponseValidationError", BackendUnavailable, "answered something that is not its protocol"),
    ("APIError", BackendUnavailable, "failed"),
    ("OpenAIError", BackendUnavailable, "failed"),
)
"""Name in `litellm.exceptions`, ours, what is said of the model's service. The first that fits counts."""

LASTING = ("NotFoundError", "LiteLLMUnknownProvider")
"""Those of the table that stay until the configuration is mended."""

_PREFIX = re.compile(r"^(?:litellm\.)?\w+(?:Error|Exception|Timeout): |^\w+Exception - ")


def from_litellm(litellm: Any, model: str, error: Exception) -> BackendError:
    """The error of ours for anything that a call of litellm raised."""
    made = _mapped(litellm, model, error)
    made.__cause__ = error
    return made


def _mapped(litellm: Any, model: str, error: Exception) -> BackendError:
    service = f"The service of model {model!r}"
    if _status(error) in (401, 402, 403):
        return BackendAuthFailed(model, f"{service} refused the gateway's credentials.")
    for name, ours, text in TABLE:
        kind = getattr(litellm.exceptions, name, None)
        if kind is None or not isinstance(error, kind):
            continue
        if ours is ContextTooLong:
            return ContextTooLong(model, f"The conversation is too long for model {model!r}.")
        if ours is BackendOverloaded:
            headers = getattr(error, "litellm_response_headers", None) or {}
            return BackendOverloaded(model, f"{service} {text}.", retry_after(headers))
        if ours is RequestRejected:
            if _status(error) >= 500:
                return BackendUnavailable(model, f"{service} failed.")
            said = str(getattr(error, "message", ""))
            while (shorter := _PREFIX.sub("", said)) != said:
                said = shorter
            said = presentable(said)
            return RequestRejected(
                model, f"{service} {text}{': ' + said if said else '.'}", int(getattr(error, "status_code", 400) or 400)
            )
        made = ours(model, f"{service} {text}.")
        made.lasting = name in LASTING
        return made
    if isinstance(error, TimeoutError):
        return BackendTimeout(model, f"{service} did not answer in time.")
    return BackendUnavailable(model, f"{service} failed.")


def _status(error: BaseException) -> int:
    """The HTTP status that the service gave: litellm takes some of 500 for another, by the words in its body."""
    origin = error
    while (beneath := origin.__cause__ or origin.__context__) is not None:
        origin = beneath if isinstance(getattr(beneath, "status_code", None), int) else origin
        if origin is not beneath:
            break
    status = getattr(origin, "status_code", None)
    return status if isinstance(status, int) else 0
