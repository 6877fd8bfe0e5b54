"""The sections of whoever runs the gateway for others: keys, limits, ledger, prices, routes, the admin API."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, SecretStr, Tag

from gateway.settings.base import Count, HeaderValue, Name, Seconds, Strict

LONGEST_PATTERN = 256
Pattern = Annotated[str, Field(min_length=1, max_length=LONGEST_PATTERN)]
Rate = Annotated[int, Field(ge=1, le=100_000_000)]


def unix_seconds(moment: str) -> float:
    """2026-11-23, or 2026-11-23T08:00:00Z; without a zone it is UTC. Raises ValueError."""
    parsed = datetime.fromisoformat(moment)
    try:  # a zone can move it out of the years that UTC has here, and then nothing could show it
        return (parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)).astimezone(UTC).timestamp()
    except OverflowError as error:
        raise ValueError("must be in the years 1 to 9999 of UTC") from error


def _moment(text: str) -> str:
    unix_seconds(text)
    return text


Moment = Annotated[
    str,
    Field(pattern=r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2})?(Z|[+-]\d{2}:\d{2})?)?$"),
    AfterValidator(_moment),
]
"""A moment, as `unix_seconds` reads it."""


class Budget(Strict):
    """What a key may spend. Exactly one of money and tokens."""

    money: Annotated[float, Field(ge=1e-9, le=9_000_000)] | None = Field(
        default=None, description="In the currency of `prices`."
    )
    tokens: Count | None = Field(default=None, description="Tokens of all models, read and written.")
    per: Literal["total", "day", "month"] = Field(default="total", description="Days and months are UTC's.")


class StaticKey(Strict):
    """A key of the configuration, with what it may."""

    key: Annotated[HeaderValue, Field(min_length=8)] = Field(description="The key itself. Use ${NAME}.")
    name: Name = Field(description="What logs, limits and the ledger know it by.")
    models: list[Pattern] = Field(
        default_factory=lambda: ["*"],
        min_length=1,
        description="Every model of a request must match one; * is anything.",
    )
    wirings: list[Pattern] = Field(
        default_factory=lambda: ["*"],
        min_length=1,
        description="The name asked for, or the wiring it stands for, must match one.",
    )
    requests_per_minute: Rate | None = Field(default=None, description="null: no limit.")
    tokens_per_minute: Rate | None = Field(default=None, description="Of all stages and members; null: no limit.")
    concurrency: Count | None = Field(default=None, description="Requests at once; null: no limit.")
    budget: Budget | None = Field(default=None, description="What it may spend; null: no limit.")


def _kind_of_key(value: Any) -> str:
    return "with rights" if isinstance(value, dict | StaticKey) else "plain"


AnyKey = Annotated[
    Annotated[HeaderValue, Field(min_length=8), Tag("plain")] | Annotated[StaticKey, Tag("with rights")],
    Discriminator(_kind_of_key),
]


class KeyStore(Strict):
    """Keys that are made while the gateway runs: `modelnet keys`, and the admin API."""

    database: SecretStr | None = Field(
        default=None,
        description="A file (relative to this one) or a postgresql:// URL; by default keys.db in $MODELNET_STATE.",
    )
    refresh_seconds: Annotated[float, Field(ge=0.1, le=60)] = Field(
        default=1.0, description="A key that another process made or revoked holds here after at most this."
    )


class SharedLimits(Strict):
    """Where processes that serve the same keys count together."""

    url: SecretStr = Field(description="redis://, rediss://, valkey:// or unix://: a Valkey or Redis server.")
    timeout: Annotated[float, Field(gt=0, le=5)] = Field(
        default=0.25, description="Seconds for its answer; one that takes longer counts as down."
    )
    when_down: Literal["local", "closed", "open"] = Field(
        default="local",
        description="While it is down: local (every process by itself), closed (refuse, 503) or open (no limits).",
    )
    prefix: Name = Field(default="modelnet", description="Of every name stored there.")


class Ledger(Strict):
    """What is kept of every request."""

    enabled: bool = Field(default=True, description="Whether anything is.")
    database: SecretStr | None = Field(
        default=None,
        description="A file (relative to this one) or a postgresql:// URL; by default ledger.db in $MODELNET_STATE.",
    )
    days: Annotated[float, Field(gt=0)] | None = Field(
        default=90.0, description="How long rows are kept; null: for ever."
    )
    flush_seconds: Annotated[float, Field(ge=0.02, le=60)] = Field(
        default=0.25, description="Time between two batches: what a killed process may lose."
    )
    queue: Annotated[int, Field(ge=100, le=1_000_000)] = Field(
        default=20_000, description="Rows that may wait in memory while the database can't be written."
    )
    texts: bool = Field(default=False, description="Keep messages and answers too. They are private: off by default.")


class Price(Strict):
    """Of a model, per million tokens."""

    prompt: Annotated[float, Field(ge=0, le=1_000_000)] = Field(default=0.0, description="Of tokens read.")
    completion: Annotated[float, Field(ge=0, le=1_000_000)] = Field(default=0.0, description="Of tokens written.")


class Prices(Strict):
    """What tokens cost."""

    currency: Annotated[str, Field(min_length=1, max_length=16)] = Field(default="USD", description="A label.")
    models: dict[Name, Price] = Field(
        default_factory=dict, description="By model, per million tokens. Others cost nothing."
    )


class Step(Strict):
    """A weight from a moment on."""

    at: Moment = Field(description="When: 2026-11-23, or 2026-11-23T08:00:00Z.")
    weight: Annotated[float, Field(ge=0)] = Field(description="The weight from then on.")


class Arm(Strict):
    """One of the wirings that share a route's requests."""

    model: str = Field(min_length=1, description="Any model name: a model, an alias, a wiring.")
    weight: Annotated[float, Field(ge=0)] = Field(default=1.0, description="Its part, against the other arms' weights.")
    ramp: list[Step] = Field(default_factory=list, description="A weight that changes with time, instead of `weight`.")
    smooth: bool = Field(default=False, description="Between two steps of the ramp the weight changes evenly.")


Cause = Literal["error", "overload", "timeout", "context"]
_MENDABLE: tuple[Cause, ...] = ("error", "overload", "timeout")


class Fallback(Strict):
    """What is tried next where an attempt failed before it had written anything."""

    on: list[Cause] = Field(
        default_factory=lambda: list(_MENDABLE),
        min_length=1,
        description="Causes: a model failed, had no room, was too slow, or the text does not fit its context.",
    )
    model: str = Field(min_length=1, description="Any model name.")


class Shadow(Strict):
    """A second wiring that gets copies of requests. Nobody waits for it, and nobody sees it fail."""

    model: str = Field(min_length=1, description="Any model name.")
    share: Annotated[float, Field(gt=0, le=1)] = Field(default=1.0, description="Part of the requests that are copied.")
    texts: bool = Field(default=False, description="Keep question and answer in the ledger, to compare them.")


class RouteSettings(Strict):
    """A public model name whose requests several wirings share."""

    arms: Annotated[dict[Name, Arm], Field(min_length=1, max_length=32)] = Field(description="By name.")
    description: str | None = Field(default=None, description="Shown in /v1/models.")
    sticky: list[Annotated[str, Field(pattern=r"^(user|key|conversation|header:[a-z0-9-]+)$")]] = Field(
        default_factory=lambda: ["user", "key"],
        min_length=1,
        description="Who stays on one arm: the first of these that a request has. user, key, conversation, header:NAME.",
    )
    salt: str | None = Field(default=None, description="Another one deals all subjects anew; by default the name.")
    override: bool = Field(
        default=False, description="Requests may choose: x-modelnet-arm, or modelnet.arm in the body."
    )
    shadow: Shadow | None = Field(default=None, description="A second wiring that gets copies.")
    fallbacks: list[Fallback] = Field(default_factory=list, description="Tried in this order.")
    patience: Seconds | None = Field(
        default=None, description="Seconds until the first text of an attempt; then it counts as timed out."
    )


class Shadows(Strict):
    """Bounds of all shadow copies together."""

    concurrency: Count = Field(default=8, description="Copies at once; what comes beyond is not copied.")
    seconds: Seconds = Field(default=120.0, description="Time for one.")


class Admin(Strict):
    """The admin API: keys, reports and the state of things, on a port of its own."""

    key: Annotated[HeaderValue, Field(min_length=16)] = Field(
        description="Its own key; no other opens it. Use ${NAME}."
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="Address to serve it on.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(default=8001, description="Port; 0 takes a free one.")
