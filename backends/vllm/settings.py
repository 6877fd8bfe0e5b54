"""Where a model's vLLM servers are and how to talk to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from backends.openai_http.settings import OpenAIHTTPSettings

DRAFT_NOISE = 0.6
"""Nats: half as much again as was measured with bfloat16 weights."""


@dataclass(frozen=True, slots=True)
class VLLMSettings:
    """
    urls: one for every server of this model, up to and with the version, e.g. "http://localhost:8000/v1".
    model: its name there; "": the catalogue name. api_key: sent as a bearer token; headers: sent with every request. Neither
        ever shows in `repr`.
    connect_timeout, first_byte_timeout, chunk_timeout, keep_alive, verify, include_usage, extra_body: as in
        `OpenAIHTTPSettings`. `chat_template_kwargs` in extra_body shape the prompts of sessions too.
    seats: streams and token sessions at once (None: no limit here; the servers have their own); queue: how many more may wait.
    sessions: "auto": open token sessions if the servers have the extension; "on": they must; "off": text only.
    heartbeat: seconds between signs of life on a connection; three missed ones end it, on either side.
    step_timeout: seconds for one step of a session; its first one, which reads the prompt, has `first_byte_timeout`.
    draft_noise: what its sessions say of scored drafts (nats, `protocol.DraftingSession`); None: they are sent none. 0.0 is true of
        engines whose results do not depend on what else is in a batch.
    retry: seconds for which a server that could not be reached is left out; doubles up to `retry_most`.
    """

    urls: tuple[str, ...]
    model: str = ""
    api_key: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    connect_timeout: float = 5.0
    first_byte_timeout: float = 120.0
    chunk_timeout: float = 60.0
    keep_alive: float = 4.0
    verify: bool = True
    seats: int | None = None
    queue: int = 256
    include_usage: bool = True
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    sessions: Literal["auto", "on", "off"] = "auto"
    heartbeat: float = 10.0
    step_timeout: float = 60.0
    draft_noise: float | None = DRAFT_NOISE
    retry: float = 1.0
    retry_most: float = 30.0

    def __post_init__(self) -> None:
        if not self.urls:
            raise ValueError("urls must name at least one server")
        if len(set(self.urls)) != len(self.urls):
            raise ValueError("urls names a server twice")
        if self.sessions not in ("auto", "on", "off"):
            raise ValueError('sessions must be "auto", "on" or "off"')
        if min(self.heartbeat, self.step_timeout, self.retry, self.retry_most) <= 0:
            raise ValueError("a time must be positive")
        if self.draft_noise is not None and self.draft_noise < 0:
            raise ValueError("draft_noise can't be negative")
        for url in self.urls:
            self.text(url)  # checks the rest

    def text(self, url: str) -> OpenAIHTTPSettings:
        """How to reach one of the servers for text. Seats are counted for all of them together, not here."""
        return OpenAIHTTPSettings(
            base_url=url,
            model=self.model,
            api_key=self.api_key,
            headers=self.headers,
            connect_timeout=self.connect_timeout,
            first_byte_timeout=self.first_byte_timeout,
            chunk_timeout=self.chunk_timeout,
            keep_alive=self.keep_alive,
            verify=self.verify,
            seats=None,
            include_usage=self.include_usage,
            extra_body=self.extra_body,
            sessions="off",
        )
