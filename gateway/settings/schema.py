"""What a configuration may say. Every field's description ends up in `config/schema.json`.

Strict throughout: unknown keys are errors, and no value is turned into another type (`"4"` is not 4). Rules that need more than
one field are in `gateway.settings.check`, where they can name the line of each.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gateway.settings import operations
from gateway.settings.base import Count, Name, Seconds, Strict
from gateway.settings.models import ModelSettings
from gateway.settings.resilience import Resilience, Shedding, Tracing


class Alias(Strict):
    """A wiring under a name of its own."""

    expression: str = Field(min_length=1, description="The wiring, e.g. s2p:qwen>smol|gemma. May use other aliases.")
    description: str | None = Field(default=None, description="Shown in /v1/models.")
    prompts: str | None = Field(default=None, description="Name of the prompt set.")
    fuser: str | None = Field(
        default=None,
        description="How a group's distributions become one, with settings behind a colon: linear, geometric, gated:threshold=0.8, …",
    )
    on_member_failure: Literal["fail", "drop"] | None = Field(
        default=None, description="Whether a group fails with a member that fails or is late, or goes on without it."
    )
    member_seconds: Seconds | None = Field(
        default=None,
        description="A member of a group that takes longer for a step is late; for its first step it has ten times as long.",
    )
    drafts: Literal["off", "auto", "on", "always"] | None = Field(
        default=None,
        description="Whether to read ahead and verify: off, auto (groups, where it changes nothing), on, or always, paying or not.",
    )
    early_prefill: Literal["off", "auto"] | None = Field(
        default=None,
        description="Whether models read what the stage before still writes, where they can.",
    )
    quorum: Literal["off", "auto"] | None = Field(
        default=None, description="Whether groups go on without late members that can't change what is said next."
    )
    stage_max_tokens: Count | None = Field(default=None, description="Tokens of each stage but the last.")
    max_tokens: Count | None = Field(default=None, description="Tokens of the answer where the request names none.")


class Limits(Strict):
    """What one request, and all together, may take."""

    body_bytes: Count = Field(default=4_194_304, description="Larger request bodies are refused (413).")
    messages: Count = Field(default=1024, description="Messages of a request.")
    choices: Annotated[int, Field(ge=1, le=128)] = Field(default=8, description="Answers to one request (n).")
    max_tokens: Count = Field(default=32_768, description="Largest max_tokens a request may ask for.")
    answer_max_tokens: Count = Field(
        default=1024, description="Tokens of an answer where neither request nor alias says."
    )
    stage_max_tokens: Count = Field(
        default=512, description="Tokens of each stage but the last where the alias does not say."
    )
    top_k: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=64, description="Tokens that each member of a group lists per step."
    )
    drafts: Literal["off", "auto", "on", "always"] = Field(
        default="auto",
        description="Whether to read ahead and verify, where neither request nor alias says: off, auto, on, always.",
    )
    early_prefill: Literal["off", "auto"] = Field(
        default="auto",
        description="Whether models read what the stage before still writes, where neither request nor alias says: off, or auto.",
    )
    quorum: Literal["off", "auto"] = Field(
        default="auto",
        description="Whether groups go on without late members that can't change what is said next, where neither request nor alias says.",
    )
    on_member_failure: Literal["fail", "drop"] = Field(
        default="fail",
        description="What happens to a group whose member fails or is late, where the alias does not say.",
    )
    member_seconds: Seconds | None = Field(
        default=None, description="When a member of a group is late, where the alias does not say; null: never."
    )
    request_seconds: Seconds = Field(default=600.0, description="Time for a whole request; then 504.")
    concurrent_requests: Count = Field(default=256, description="Chat requests at once; more are refused (503).")
    wiring_length: Count = Field(default=512, description="Characters of a wiring.")
    wiring_depth: Annotated[int, Field(ge=1, le=12)] = Field(default=8, description="Parentheses open at once.")
    wiring_stages: Count = Field(default=16, description="Stages of a wiring.")
    wiring_members: Count = Field(default=32, description="Models of a wiring, every mention counted.")


class Log(Strict):
    """The log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level written.")
    format: Literal["json", "console"] = Field(
        default="json", description="One JSON object a line, or text for people."
    )
    prompts: bool = Field(
        default=False, description="Write the messages of requests to the log. They are private: off by default."
    )


class Server(Strict):
    """The HTTP side."""

    cors: list[Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")]] = Field(
        default_factory=lambda: ["http://localhost:*", "http://127.0.0.1:*"],
        description='Origins whose pages may call the gateway. ":*" at the end is any port; "*" alone is everyone.',
    )
    keepalive_seconds: Annotated[float, Field(gt=0, le=15)] = Field(
        default=15.0, description="A silent stream gets a comment this often, so that load balancers don't cut it."
    )
    idle_seconds: Annotated[int, Field(ge=1, le=3600)] = Field(
        default=75,
        description="A connection without requests is kept so long: longer than clients and proxies keep theirs, or their next request may "
        "meet its end.",
    )
    shutdown_seconds: Annotated[float, Field(ge=0, le=3600)] = Field(
        default=10.0, description="Time that running answers get at the end."
    )
    drain_seconds: Annotated[float, Field(ge=0, le=3600)] = Field(
        default=0.0,
        description="At the end, time in which /readyz already says no while all else goes on, for load balancers to notice.",
    )
    watch_seconds: Annotated[float, Field(ge=0.1, le=3600)] | None = Field(
        default=None,
        description="Look this often whether the configuration's files have changed, and reload; null: never.",
    )
    log: Log = Field(default_factory=Log, description="The log, on standard error.")


class Threads(Strict):
    """Processor cores for embedded models."""

    cores: Count | None = Field(
        default=None, description="Cores for all embedded models together; default: all usable ones."
    )


class Settings(Strict):
    """Configuration of the gateway."""

    models: Annotated[dict[Name, ModelSettings], Field(min_length=1)] = Field(
        description="The models, by the name used in wirings."
    )
    aliases: dict[Name, Alias] = Field(default_factory=dict, description="Wirings under names of their own.")
    prompts: dict[Name, str] = Field(
        default_factory=dict,
        description="Further prompt sets: name → file, relative to this one. default and paper are built in.",
    )
    limits: Limits = Field(default_factory=Limits, description="What a request may take.")
    server: Server = Field(default_factory=Server, description="The HTTP side.")
    threads: Threads = Field(default_factory=Threads, description="Processor cores.")
    keys: list[operations.AnyKey] = Field(
        default_factory=list,
        description="Keys that clients may use, plain or with rights. With none, only this machine may connect. Use ${NAME}.",
    )
    key_store: operations.KeyStore = Field(
        default_factory=operations.KeyStore, description="Keys that are made while the gateway runs."
    )
    shared_limits: operations.SharedLimits | None = Field(
        default=None, description="Where processes that serve the same keys count together."
    )
    ledger: operations.Ledger = Field(default_factory=operations.Ledger, description="What is kept of every request.")
    prices: operations.Prices = Field(default_factory=operations.Prices, description="What tokens cost.")
    routes: dict[Name, operations.RouteSettings] = Field(
        default_factory=dict, description="Model names whose requests several wirings share."
    )
    shadows: operations.Shadows = Field(
        default_factory=operations.Shadows, description="Bounds of all shadow copies together."
    )
    resilience: Resilience = Field(default_factory=Resilience, description="What is done about models that fail.")
    shedding: Shedding = Field(default_factory=Shedding, description="Who is refused first when the gateway fills up.")
    tracing: Tracing | None = Field(default=None, description="OpenTelemetry traces; null: none.")
    admin: operations.Admin | None = Field(default=None, description="The admin API, on a port of its own.")
