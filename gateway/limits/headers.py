"""What clients are told about their limits, as OpenAI words it."""

from __future__ import annotations

import math

from gateway.limits.verdict import Verdict


def rate_headers(verdict: Verdict) -> dict[str, str]:
    """x-ratelimit-{limit,remaining,reset}-{requests,tokens}, for the limits that the key has."""
    headers: dict[str, str] = {}
    for kind, reading in (("requests", verdict.requests), ("tokens", verdict.tokens)):
        if reading is not None:
            headers[f"x-ratelimit-limit-{kind}"] = str(reading.limit)
            headers[f"x-ratelimit-remaining-{kind}"] = str(reading.remaining)
            headers[f"x-ratelimit-reset-{kind}"] = duration(reading.reset)
    return headers


def duration(seconds: float) -> str:
    """Rounded up to milliseconds, written as Go writes durations, since OpenAI does: 0s, 120ms, 8.64s, 6m0s, 1h0m1.5s."""
    millis = max(0, math.ceil(round(seconds * 1000, 6)))
    if millis < 1000:
        return f"{millis}ms" if millis else "0s"
    minutes, rest = divmod(millis, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
