"""Where a server is and how to talk to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit


def address_problem(url: str) -> str | None:
    """Why a URL can't be the address of an API; None if it can. Never repeats any of it."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return "must hold a host and a port as a URL writes them"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "must begin with http:// or https:// and name a host"
    if parts.username or parts.password or parts.query or parts.fragment:
        return "must hold no credentials, query or fragment; a key goes to api_key"
    return None


@dataclass(frozen=True, slots=True)
class OpenAIHTTPSettings:
    """
    base_url: up to and with the version, e.g. "http://localhost:8000/v1". model: its name there; "": the catalogue name.
    api_key: sent as a bearer token; headers: sent with every request. Neither ever shows in `repr`.
    connect_timeout: for a connection. first_byte_timeout: from the request until the answer's first byte, the reading of
        the prompt included. chunk_timeout: between two reads of a stream, any byte counts. Seconds.
    keep_alive: seconds an idle connection is kept; below the 5 s after which uvicorn (and so vLLM) closes it, so that no
        request meets a connection that is just being closed.
    verify: check TLS certificates.
    seats: streams and token sessions at once (None: no limit); queue: how many more may wait.
    include_usage: ask for token counts at the end of a stream; off for servers that refuse `stream_options`.
    max_tokens_field: "max_completion_tokens" for servers that refuse the older name.
    extra_body: fields for every chat request and rendered prompt, e.g. {"chat_template_kwargs": {"enable_thinking": False}}.
        What a request says itself wins.
    sessions: "auto": open token sessions if the server and `vocabulary` allow it; "on": they must; "off": text only.
    vocabulary: the model's tokenizer.json, or the directory with it (generation_config.json and the like beside it say
        which ids end a turn), or a GGUF file.
    end_tokens: texts of the tokens that end a turn, instead of what those files say.
    max_logprobs: the server's limit per position (vLLM: `--max-logprobs`, 20 unless set otherwise there).
    score_parallel: requests at once for one scored draft.
    """

    base_url: str
    model: str = ""
    api_key: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    connect_timeout: float = 5.0
    first_byte_timeout: float = 120.0
    chunk_timeout: float = 60.0
    keep_alive: float = 4.0
    verify: bool = True
    seats: int | None = 256
    queue: int = 256
    include_usage: bool = True
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    sessions: Literal["auto", "on", "off"] = "auto"
    vocabulary: str | None = None
    end_tokens: tuple[str, ...] = ()
    max_logprobs: int = 20
    score_parallel: int = 8

    def __post_init__(self) -> None:
        if (problem := address_problem(self.base_url)) is not None:
            raise ValueError(f"base_url {problem}")
        if self.sessions not in ("auto", "on", "off"):
            raise ValueError('sessions must be "auto", "on" or "off"')
        if min(self.connect_timeout, self.first_byte_timeout, self.chunk_timeout, self.keep_alive) <= 0:
            raise ValueError("a timeout must be positive")
        if self.max_logprobs < 1 or self.score_parallel < 1:
            raise ValueError("max_logprobs and score_parallel must be at least 1")

    @property
    def api(self) -> str:
        """`base_url` without a slash at its end."""
        return self.base_url.rstrip("/")

    @property
    def root(self) -> str:
        """The server's own root, where vLLM and llama.cpp keep what is not part of the OpenAI API."""
        return self.api.removesuffix("/v1")
