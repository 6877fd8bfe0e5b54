"""What a configuration may say. Every field's description ends up in `config/schema.json`.

Strict throughout: unknown keys are errors, and no value is turned into another type (`"4"` is not 4). Rules that need more than
one field are in `gateway.settings.check`, where they can name the line of each.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from backends.fake.settings import ERRORS
from backends.openai_http.settings import address_problem
from backends.vllm.settings import DRAFT_NOISE
from gateway.settings import operations
from gateway.settings.base import Count, Headers, HeaderValue, Name, Seconds, Strict
from gateway.settings.resilience import Resilience, Shedding, Tracing


def _address(url: str) -> str:
    if (problem := address_problem(url)) is not None:
        raise ValueError(problem)
    return url


def _error(name: str) -> str:
    if name not in ERRORS:
        raise ValueError(f"must be one of {', '.join(ERRORS)}")
    return name


def _unlike(urls: list[str]) -> list[str]:
    if len(set(urls)) != len(urls):
        raise ValueError("names a server twice")
    return urls


# What a backend would refuse when it is built is refused here, where the line is known.
Address = Annotated[str, Field(pattern=r"^https?://[^\s]+$"), AfterValidator(_address)]


class AnyModel(Strict):
    """What every model has, whatever reaches it."""

    owned_by: str = Field(default="modelnet", min_length=1, description="Shown in /v1/models.")
    description: str | None = Field(default=None, description="Shown in /v1/models.")
    reasoning: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2, max_length=2)] | None = Field(
        default=None,
        description='Marks around text that is cut before an answer is handed on, e.g. ["<think>", "</think>"].',
    )
    hedge_after: Seconds | None = Field(
        default=None,
        description="Seconds of silence after which a stage of text is asked for a second time, beside the first; null: never.",
    )


class LlamaCppModel(AnyModel):
    """A model in this process, on llama.cpp. Name its weights by `weights` or by `path`."""

    backend: Literal["llama_cpp"]
    weights: Name | None = Field(
        default=None, description="A name in weights.yaml; downloaded and checked when first needed."
    )
    path: str | None = Field(
        default=None,
        min_length=1,
        description="A GGUF file; relative to the configuration file. `~` is your home directory.",
    )
    context: Annotated[int, Field(ge=128)] = Field(
        default=4096, description="Tokens of one request: prompt and answer."
    )
    seats: Annotated[int, Field(ge=1, le=256)] = Field(
        default=4, description="Requests served at once. How many share a pass: `batching`."
    )
    queue: Annotated[int, Field(ge=0)] = Field(
        default=16, description="Requests that may wait for a seat; more are refused (503)."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] = Field(
        default=0.0, description="Where the request says nothing; 0 is greedy."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(default=1.0, description="Where the request says nothing.")
    chat_template: str | None = Field(
        default=None,
        min_length=1,
        description="A Jinja file instead of the model's own template; relative to the configuration file.",
    )
    k_max: Count | None = Field(default=None, description="Most tokens that its sessions list; null: the vocabulary.")
    threads: Count | None = Field(default=None, description="Most threads for one pass; null: all cores of the budget.")
    repack: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Rearrange the weights for this CPU: faster, takes a second copy in memory; auto tries it safely first.",
    )
    batching: Literal["exact", "fast"] = Field(
        default="exact",
        description="Requests that share a pass: as many as leave each other's numbers as they are to the last bit, or all (faster).",
    )
    prefix_cache: bool = Field(
        default=True, description="Keep the beginnings of prompts in free seats, for prompts that begin alike."
    )
    chunk: Count = Field(default=64, description="Prompt tokens per pass; between two, other requests take a step.")


class ServerModel(AnyModel):
    """A model behind a server that speaks the OpenAI API: what all kinds of them have."""

    model: str = Field(default="", description="The server's name for the model; empty: the name used here.")
    api_key: HeaderValue | None = Field(
        default=None, description="Sent as a bearer token. Use ${NAME}; never write it here."
    )
    headers: Headers = Field(default_factory=dict, description="Sent with every request.")
    connect_timeout: Seconds = Field(default=5.0, description="Seconds to connect.")
    first_byte_timeout: Seconds = Field(
        default=120.0, description="Seconds to the first byte of a stream; a whole answer has limits.request_seconds."
    )
    chunk_timeout: Seconds = Field(default=60.0, description="Longest silence inside an answer, seconds.")
    keep_alive: Seconds = Field(default=4.0, description="Seconds that an idle connection is kept.")
    verify: bool = Field(default=True, description="Check TLS certificates.")
    seats: Count | None = Field(default=256, description="Requests at once; null: no limit.")
    queue: Annotated[int, Field(ge=0)] = Field(
        default=256, description="Requests that may wait; more are refused (503)."
    )
    include_usage: bool = Field(
        default=True, description="Ask for token counts; off for servers that refuse stream_options."
    )
    extra_body: dict[str, Any] = Field(default_factory=dict, description="Fields added to every request body.")
    sessions: Literal["auto", "on", "off"] = Field(default="auto", description="Whether it can be a member of a group.")


class OpenAIModel(ServerModel):
    """A model behind any server that speaks the OpenAI API."""

    backend: Literal["openai"]
    base_url: Address = Field(description="Up to and with the version: https://host/v1.")
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="max_completion_tokens for servers that refuse the older name."
    )
    vocabulary: str | None = Field(
        default=None,
        min_length=1,
        description="Its tokenizer.json, the directory with it, or a GGUF file; relative to this file.",
    )
    end_tokens: list[str] = Field(default_factory=list, description="Texts of the tokens that end a turn.")
    max_logprobs: Count = Field(default=20, description="The server's limit of log-probabilities per position.")
    score_parallel: Count = Field(default=8, description="Requests at once for one scored draft.")


class VLLMModel(ServerModel):
    """A model behind one or more vLLM servers; with our extension in them it can be a member of a group."""

    backend: Literal["vllm"]
    urls: Annotated[list[Address], AfterValidator(_unlike)] = Field(
        min_length=1, description="One for every server of this model, up to and with the version: http://host:8000/v1."
    )
    heartbeat: Seconds = Field(default=10.0, description="Seconds between signs of life; three missed ones end it.")
    step_timeout: Seconds = Field(default=60.0, description="Seconds for one step of a session.")
    draft_noise: Annotated[float, Field(ge=0, le=10)] | None = Field(
        default=DRAFT_NOISE,
        description="How far (nats) a scored draft may be from single steps: 0 for engines whose results do not depend on the batch.",
    )
    retry: Seconds = Field(default=1.0, description="Seconds for which an unreachable server is left out; doubles.")
    retry_most: Seconds = Field(default=30.0, description="The most that it doubles to, seconds.")


class HostedModel(AnyModel):
    """A model that somebody else hosts, asked by litellm; text only. Needs the extra `hosted`."""

    backend: Literal["hosted"]
    model: str = Field(min_length=1, description="litellm's name for it, with the provider: anthropic/claude-….")
    api_key: HeaderValue | None = Field(
        default=None, description="Use ${NAME}; null: what the provider's own environment variable says."
    )
    api_base: str | None = Field(
        default=None, pattern=r"^https?://[^\s]+$", description="Instead of the provider's address."
    )
    timeout: Seconds = Field(default=120.0, description="Seconds to connect, and between two parts of an answer.")
    seats: Count | None = Field(default=64, description="Requests at once; null: no limit.")
    queue: Annotated[int, Field(ge=0)] = Field(
        default=64, description="Requests that may wait; more are refused (503)."
    )
    extra_body: dict[str, Any] = Field(default_factory=dict, description="Arguments added to every call.")


class FakeRule(Strict):
    """An answer to questions that contain a text."""

    contains: str = Field(description="Text in the last user turn.")
    answer: str = Field(description="The answer to it.")


class FakeFault(Strict):
    """One way to fail."""

    on: Literal["start", "ready", "enter", "token"] = Field(default="token", description="When it strikes.")
    of: Literal["stream", "session", "both"] = Field(default="both", description="What enter and token concern.")
    after: Annotated[int, Field(ge=0)] = Field(default=0, description="Deltas or passes before it.")
    action: Literal["raise", "hang", "slow"] = Field(default="raise", description="What happens.")
    error: Annotated[str, AfterValidator(_error)] = Field(
        default="BackendUnavailable", description="Name of a backend error."
    )
    seconds: Annotated[float, Field(ge=0)] = Field(default=0.0, description="How much slower.")
    times: Count | None = Field(default=None, description="How often it strikes; null: always.")


class FakeModel(AnyModel):
    """A scripted model: for trying out wirings and failures without weights."""

    backend: Literal["fake"]
    answer: str = Field(
        default="{name}: {last}", description="What it says; {name}: its name, {last}: the last user turn."
    )
    rules: list[FakeRule] = Field(default_factory=list, description="The first that matches replaces the answer.")
    reasoning_text: str = Field(default="", description="Streamed as reasoning before the answer.")
    split: Literal["token", "character", "word", "whole"] = Field(default="token", description="What one delta is.")
    first_delay: Annotated[float, Field(ge=0)] = Field(default=0.0, description="Seconds before the first token.")
    delay: Annotated[float, Field(ge=0)] = Field(default=0.0, description="Seconds before every other token.")
    seed: int = Field(default=0, description="Of the pseudo-random part of its distributions.")
    confidence: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.85, description="Probability on the scripted text."
    )
    context: Count = Field(default=4096, description="Tokens that prompt and answer may have together.")
    seats: Count | None = Field(default=None, description="Requests at once; null: no limit.")
    queue: Annotated[int, Field(ge=0)] = Field(default=0, description="Requests that may wait for a seat.")
    sessions: bool = Field(default=True, description="Whether it can be a member of a group.")
    lookup: bool = Field(default=True, description="Whether its sessions can look up single tokens.")
    max_k: Count | None = Field(default=None, description="Most tokens that its sessions list; null: no limit.")
    draft_noise: Annotated[float, Field(ge=0, le=10)] | None = Field(
        default=0.0, description="How far (nats) a scored draft is from single steps; null: it is not to be sent any."
    )
    recall: bool = Field(
        default=True, description="Whether its sessions keep what was found at every place of a draft."
    )
    reads_singly: bool = Field(default=False, description="Whether a draft takes a pass for each of its tokens.")
    kept_steps: Annotated[int, Field(ge=0, le=64)] = Field(
        default=0, description="Over how many steps its sessions keep what was found."
    )
    faults: list[FakeFault] = Field(default_factory=list, description="How it fails.")


ModelSettings = Annotated[
    LlamaCppModel | OpenAIModel | VLLMModel | HostedModel | FakeModel, Field(discriminator="backend")
]


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
