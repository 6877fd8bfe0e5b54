"""What a client is told whose key does not do: wrong, not meant for this, used up for now, or for good. Worded as OpenAI does."""

from __future__ import annotations

import math

from gateway.keys.key import Rights
from gateway.keys.keyring import Why
from gateway.limits.headers import duration
from gateway.limits.verdict import Ask, Verdict
from gateway.wire.errors import SERVER, APIError

_KEYS: dict[Why, str] = {
    "missing": "No API key provided: send it as a bearer token.",
    "wrong": "Incorrect API key provided.",
    "expired": "This API key has expired.",
    "revoked": "This API key has been revoked.",
}


def unauthorized(why: Why) -> APIError:
    """A 401."""
    headers = {"www-authenticate": "Bearer"}
    return APIError(401, _KEYS[why], type="authentication_error", code="invalid_api_key", headers=headers)


def elsewhere(what: str) -> APIError:
    """A 403 for a page of elsewhere, where callers need no key. what: the header that tells."""
    message = (
        f"Without keys only this machine's own programs and pages may call: this {what} is another. See `server.cors`."
    )
    return APIError(403, message, code="forbidden", param=what)


def not_allowed(model: str) -> APIError:
    """A 403: there is such a model, and the key is not for it."""
    return APIError(403, f"This API key may not use {model[:128]!r}.", code="model_not_found", param="model")


def limits_unknown() -> APIError:
    """A 503: whether there is room left can't be found out now."""
    message = "The limits of this API key can't be checked at the moment."
    return APIError(503, message, type=SERVER, code="overloaded", retry_after=1.0)


def refusal(verdict: Verdict, ask: Ask, rights: Rights) -> APIError:
    """A 429. x-should-retry is false where no wait would help."""
    reason = verdict.refused
    if reason == "budget":
        message = "This API key has used up its budget."
        return APIError(429, message, type="insufficient_quota", code="insufficient_quota", retry=False)
    if reason == "too_large":
        message = (
            "Request too large for this API key: all stages and members may take "
            f"{ask.tokens} tokens, and its limit is {rights.tokens_per_minute} per minute."
        )
        return APIError(429, message, type="tokens", code="rate_limit_exceeded", retry=False)
    limits = {
        "requests": f"requests per min: limit {rights.requests_per_minute}",
        "tokens": f"tokens per min: limit {rights.tokens_per_minute}, requested {ask.tokens}",
        "concurrency": f"requests at once: limit {rights.concurrency}",
        "budget_held": "its budget: what is left is held by requests that are still running",
    }
    again = f" Please try again in {duration(verdict.wait)}."
    return APIError(
        429,
        f"Rate limit reached for this API key on {limits[reason or 'requests']}.{again}",
        type="tokens" if reason == "tokens" else "requests",
        code="rate_limit_exceeded",
        retry_after=verdict.wait,
        headers={"retry-after-ms": str(max(1, math.ceil(verdict.wait * 1000)))},
    )
