"""What a configuration may say of a model, for each backend that can reach one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from backends.fake.settings import ERRORS
from backends.openai_http.settings import address_problem
from backends.vllm.settings import DRAFT_NOISE
from gateway.settings.base import Count, Headers, HeaderValue, Name, Seconds, Strict


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
