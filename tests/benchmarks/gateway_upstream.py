"""The two ends that the gateway is measured between, as raw ASGI, so that they cost as little as can be.

`upstream` answers like a server of OpenAI's API: `n` tokens, `pause` seconds before each, both read from the last message ("16 0.3").
`floor` is what a proxy in bare Python does at least: it parses, renames the model, asks with aiohttp and writes; it authenticates,
checks, limits, counts and logs nothing, and leaves running what its client has left.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import aiohttp
import orjson

JSON = [(b"content-type", b"application/json")]
SSE = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]


async def _body(receive: Any) -> Any:
    data = b""
    while True:
        message = await receive()
        data += message.get("body", b"")
        if not message.get("more_body"):
            return orjson.loads(data)


async def _whole(send: Any, value: Any) -> None:
    data = orjson.dumps(value)
    headers = [*JSON, (b"content-length", b"%d" % len(data))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": data})


async def _lifespan(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def upstream(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        return await _lifespan(receive, send)
    asked = await _body(receive)
    count, pause = asked["messages"][-1]["content"].split()[:2]
    tokens, wait = int(count), float(pause)
    head = {"id": "chatcmpl-bench", "created": int(time.time()), "model": asked["model"], "system_fingerprint": "fp"}
    usage = {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": 9 + tokens}
    if not asked.get("stream"):
        await asyncio.sleep(wait * tokens)
        message = {"role": "assistant", "content": "token " * tokens}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        return await _whole(send, {**head, "object": "chat.completion", "choices": [choice], "usage": usage})

    def chunk(delta: Any, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return b"data: %b\n\n" % orjson.dumps({**head, "object": "chat.completion.chunk", "choices": [choice]})

    async def say(data: bytes, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": more})

    await send({"type": "http.response.start", "status": 200, "headers": SSE})
    await say(chunk({"role": "assistant", "content": ""}))
    for number in range(tokens):
        if wait:
            await asyncio.sleep(wait)
        await say(chunk({"content": f"token{number} "}))
    await say(chunk({}, "stop"))
    if (asked.get("stream_options") or {}).get("include_usage"):
        await say(
            b"data: %b\n\n" % orjson.dumps({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        )
    return await say(b"data: [DONE]\n\n", more=False)


_session: aiohttp.ClientSession | None = None


async def floor(scope: Any, receive: Any, send: Any) -> None:
    global _session  # noqa: PLW0603 - one per process, made in its event loop
    if scope["type"] == "lifespan":
        return await _lifespan(receive, send)
    if _session is None:
        _session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)
    asked = await _body(receive)
    shown = asked["model"]
    headers = {"content-type": "application/json", "authorization": "Bearer sk-upstream"}
    url = f"{os.environ['BENCH_UPSTREAM']}/chat/completions"
    async with _session.post(url, data=orjson.dumps({**asked, "model": "bench"}), headers=headers) as answer:
        if not asked.get("stream"):
            return await _whole(send, {**orjson.loads(await answer.read()), "model": shown})
        await send({"type": "http.response.start", "status": 200, "headers": SSE})
        async for data in answer.content.iter_any():
            await send({"type": "http.response.body", "body": data, "more_body": True})
        return await send({"type": "http.response.body", "body": b""})
