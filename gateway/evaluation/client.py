"""One question over HTTP, as any client would ask it: streamed, with the stages shown, so that each one's text and time is kept."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp

from gateway.evaluation.errors import GatewayGone, SpecError
from gateway.evaluation.spec import Settings
from gateway.wire.answers import STAGE_BREAK
from strategies.evaluation.records import StageRecord

SILENCE_SECONDS = 120.0
"""The gateway writes at least a comment every 15 s."""
LINE_BYTES = 1 << 24


class Refused(Exception):
    """The gateway's word against one request. again: whether asking later may help; after: in how many seconds, where it says so."""

    def __init__(self, message: str, status: int | None, again: bool = False, after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.again = again
        self.after = after


class Unreachable(Exception):
    """No answer at all: nothing listens, or the connection was lost."""


@dataclass(slots=True)
class Reply:
    """What came back. stages: empty where the server tells none."""

    text: str = ""
    finish_reason: str = ""
    seconds: float = 0.0
    first_token: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    stages: tuple[StageRecord, ...] = ()
    wiring: str | None = None


@dataclass(slots=True)
class _Reading:
    """A stream as far as it has come."""

    began: float
    content: list[str] = field(default_factory=list)
    shown: dict[int, list[str]] = field(default_factory=dict)
    shown_last: int | None = None
    first: float | None = None
    finish: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)
    extension: Mapping[str, Any] = field(default_factory=dict)

    def take(self, chunk: Mapping[str, Any]) -> None:
        self.usage = chunk.get("usage") or self.usage
        extension = chunk.get("modelnet") or {}
        if "stages" in extension:
            self.extension = extension
        for choice in chunk.get("choices", ()):
            delta = choice.get("delta") or {}
            if text := delta.get("content") or delta.get("refusal"):
                self.first = time.perf_counter() - self.began if self.first is None else self.first
                self.content.append(text)
            elif text := delta.get("reasoning_content"):
                self._stage(int(extension.get("stage", 0)), text)
            self.finish = choice.get("finish_reason") or self.finish

    def _stage(self, stage: int, text: str) -> None:
        if self.shown_last not in (None, stage):
            text = text.removeprefix(STAGE_BREAK)
        self.shown_last = stage
        self.shown.setdefault(stage, []).append(text)

    def reply(self) -> Reply:
        return Reply(
            "".join(self.content), self.finish, time.perf_counter() - self.began, self.first,
            int(self.usage.get("prompt_tokens", 0)), int(self.usage.get("completion_tokens", 0)),
            self._stages(), self.extension.get("wiring"),
        )  # fmt: skip

    def _stages(self) -> tuple[StageRecord, ...]:
        told = [stage for stage in self.extension.get("stages", ()) if stage.get("choice", 0) == 0]
        last = max((stage["stage"] for stage in told), default=-1)
        return tuple(self._record(stage, stage["stage"] == last) for stage in told)

    def _record(self, stage: Mapping[str, Any], last: bool) -> StageRecord:
        tokens: dict[str, tuple[int, int]] = {}
        for member in stage["models"]:  # a model may be there twice
            read, wrote = tokens.get(member["model"], (0, 0))
            usage = member["usage"]
            tokens[member["model"]] = read + usage["prompt_tokens"], wrote + usage["completion_tokens"]
        return StageRecord(
            stage["stage"],
            tuple(member["model"] for member in stage["models"]),
            tuple(member["role"] for member in stage["models"]),
            "".join(self.content if last else self.shown.get(stage["stage"], [])),
            stage["seconds"],
            stage["first_token_seconds"],
            stage["finish_reason"],
            tokens,
            stage.get("fusion"),
            disagreements=self._disagreements(stage) if last else (),
        )

    def _disagreements(self, stage: Mapping[str, Any]) -> tuple[tuple[int, str, str, str], ...]:
        """Where a member of the last stage's group would have written something else than the group did."""
        return tuple(
            (entry["piece"], entry["text"], stage["models"][other["branch"]]["model"], other["text"])
            for entry in self.extension.get("record") or ()
            if entry.get("choice", 0) == 0
            for other in entry["others"]
        )


class Client:
    """A gateway as a client sees it. Use `open_client`."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session = session
        self._base = base

    async def ask(self, wiring: str, question: str, settings: Settings, record: bool = False) -> Reply:
        """record: the answer is written by a group, and where its members disagreed is wanted. Raises Refused, Unreachable."""
        body: dict[str, Any] = {
            "model": wiring,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "seed": settings.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        extension = {"stages": True, "prompts": settings.prompts, "stage_max_tokens": settings.stage_max_tokens}
        body["modelnet"] = {key: value for key, value in extension.items() if value is not None}
        if record:
            body["modelnet"]["record"] = True
        reading = _Reading(time.perf_counter())
        try:
            async with self._session.post(f"{self._base}/chat/completions", json=body) as response:
                if response.status != 200:
                    raise await _refusal(response)
                await self._read(response, reading)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unreachable(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from error
        return reading.reply()

    async def _read(self, response: aiohttp.ClientResponse, reading: _Reading) -> None:
        async for line in _lines(response):
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            try:
                chunk = json.loads(data)
            except ValueError as error:
                raise Refused(f"the stream holds what is no JSON: {error}", None) from error
            if "error" in chunk:
                raise Refused(str(chunk["error"].get("message", "the answer broke off")), None)
            reading.take(chunk)
        raise Unreachable("the stream ended without its last event")

    async def wiring(self, name: str) -> Mapping[str, Any]:
        """What a model name means to the gateway. Raises Refused, Unreachable."""
        return await self._get(f"/models/{quote(name, safe='')}")

    async def models(self) -> list[str]:
        """Names of its single models. Raises Refused, Unreachable."""
        listed = (await self._get("/models"))["data"]
        return [entry["id"] for entry in listed if entry.get("modelnet", {}).get("kind", "model") == "model"]

    async def _get(self, path: str) -> Mapping[str, Any]:
        try:
            async with self._session.get(f"{self._base}{path}") as response:
                if response.status != 200:
                    raise await _refusal(response)
                found: Mapping[str, Any] = await response.json(content_type=None)
                return found
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unreachable(f"{type(error).__name__}: {error}") from error
        except ValueError as error:
            raise Refused(f"{path}: the answer is no JSON", None) from error


@asynccontextmanager
async def open_client(base_url: str, key: str | None, seconds: float | None = None) -> AsyncIterator[Client]:
    """base_url: with or without the version. seconds: longest time of one request; None: as long as the gateway lives.

    Raises SpecError for a URL that is none.
    """
    base = base_url.rstrip("/")
    if not base.startswith(("http://", "https://")):
        raise SpecError(f"{base_url!r} is no URL: it begins with http:// or https://")
    if not base.endswith("/v1"):
        base += "/v1"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=10, sock_read=SILENCE_SECONDS)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        headers=headers, timeout=timeout, connector=connector, read_bufsize=1 << 18, trust_env=False
    ) as session:
        yield Client(session, base)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of any length (a last chunk lists every stage)."""
    rest = b""
    async for block in response.content.iter_any():
        *lines, rest = (rest + block).split(b"\n")
        if len(rest) > LINE_BYTES:
            raise Refused("a line of the stream has no end", None)
        for line in lines:
            yield line


async def _refusal(response: aiohttp.ClientResponse) -> Refused:
    text = await response.text(errors="replace")
    try:
        error = json.loads(text)["error"]
        message, code = str(error["message"]), error.get("code")
    except (ValueError, KeyError, TypeError):
        message, code = text[:300] or response.reason or "", None
    if response.status == 401:
        raise GatewayGone(f"the gateway refuses the key: {message}")
    after = response.headers.get("Retry-After", "")
    again = response.status in (408, 409, 429) or (response.status == 503 and code != "model_not_ready") or bool(after)
    return Refused(f"{response.status}: {message}", response.status, again, float(after) if after.isdecimal() else None)
