"""The sections about bad days: retries, breakers, shedding, draining; and about seeing them: traces."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gateway.settings.base import Count, Headers, Name, Seconds, Strict

Share = Annotated[float, Field(ge=0, le=1)]
Priority = Literal["low", "normal", "high"]


class Retries(Strict):
    """When a model's server is asked again: only if it had not begun with the request, and before anything of an answer was seen."""

    most: Annotated[int, Field(ge=0, le=10)] = Field(default=2, description="Times that one request is asked again.")
    pause: Annotated[float, Field(ge=0, le=60)] = Field(
        default=0.1, description="Seconds before the first time; doubles, with a random part."
    )
    longest: Annotated[float, Field(ge=0, le=60)] = Field(
        default=2.0, description="Longest Retry-After that is waited for, seconds; a longer one is told to the client."
    )
    share: Share = Field(
        default=0.2, description="Repetitions of every kind, per model, as a part of its requests: the budget."
    )
    reserve: Annotated[float, Field(ge=0, le=1000)] = Field(
        default=5.0, description="Repetitions that a model's budget holds at most, and at the beginning."
    )
    stages: Annotated[int, Field(ge=0, le=10)] = Field(
        default=1,
        description="Times that a stage whose text nobody has seen is run again when its model breaks off; from the same budget.",
    )


class BreakerSection(Strict):
    """When a model that keeps failing is left alone for a while (503)."""

    enabled: bool = Field(default=True, description="Whether there is any.")
    window: Annotated[float, Field(ge=1, le=3600)] = Field(default=30.0, description="Seconds that are looked at.")
    least: Count = Field(default=10, description="Requests in that time before anything is concluded.")
    share: Annotated[float, Field(gt=0, le=1)] = Field(default=0.5, description="Part of them that failed.")
    pause: Annotated[float, Field(gt=0, le=3600)] = Field(
        default=5.0, description="Seconds until one request may try again; doubles each time that it fails."
    )
    pause_most: Annotated[float, Field(gt=0, le=3600)] = Field(default=60.0, description="The most it doubles to.")

    @model_validator(mode="after")
    def _in_order(self) -> BreakerSection:
        if self.pause > self.pause_most:
            raise ValueError("pause is longer than pause_most")
        return self


class Resilience(Strict):
    """What is done about models that fail."""

    retries: Retries = Field(default_factory=Retries, description="When a server is asked again.")
    breaker: BreakerSection = Field(
        default_factory=BreakerSection, description="When a model that keeps failing is left alone."
    )


class Shedding(Strict):
    """Who is refused first when the gateway fills up (`limits.concurrent_requests`)."""

    low: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.8, description="Part of the places that requests of low priority may fill; beyond it they get a 429."
    )
    normal: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.95, description="The same for those of normal priority. High priority may fill all."
    )
    keys: dict[Name, Priority] = Field(
        default_factory=dict,
        description="Priority of a key's requests, by the key's id; normal for all others. x-modelnet-priority may lower it.",
    )


class Tracing(Strict):
    """OpenTelemetry traces, sent by OTLP over HTTP. Needs `pip install modelnet-gateway[otel]`."""

    endpoint: str = Field(
        pattern=r"^https?://[^\s]+$", description="Where traces are sent, e.g. http://localhost:4318/v1/traces."
    )
    headers: Headers = Field(default_factory=dict, description="Sent along. Use ${NAME}.")
    sample: Share = Field(
        default=1.0, description="Part of the requests that is traced, where the client has not decided (traceparent)."
    )
    service: str = Field(default="modelnet-gateway", min_length=1, description="service.name of the traces.")
    timeout: Seconds = Field(default=5.0, description="Seconds for sending one batch.")
