"""A server of the OpenAI API that can do all a large model can: text, log-probabilities, tool calls, formats, and breaking off."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, Self

from aiohttp import web

TEXT = ["Far", " away: ", "是的", " 😀", "."]
WEATHER = {"name": "weather", "arguments": ['{"city"', ': "Köln', ' 是"}']}
CLOCK = {"name": "clock", "arguments": ["{}"]}


class ScriptedServer:
    """`async with ScriptedServer() as server`. requests: bodies so far. headers: of each. running: requests under way."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.running = 0
        self.left: float | None = None  # when the last request was cancelled

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.base_url = f"http://{host}:{port}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.running += 1
        try:
            return await self._answer(request)
        except asyncio.CancelledError:
            self.left = time.monotonic()
            raise
        finally:
            self.running -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.headers.append({key.lower(): value for key, value in request.headers.items()})
        said = str(body["messages"][-1].get("content"))
        if "hang" in said:
            await asyncio.sleep(60)
        if "refuse" in said:
            error = {"message": "temperature is wrong, see http://10.0.0.7:8000", "param": "temperature", "code": 400}
            return web.json_response({"error": error}, status=400)
        if "fall" in said:
            return web.json_response({"error": "Traceback in /srv/app.py"}, status=500)
        if body.get("stream"):
            return await self._streamed(request, body, said)
        return web.json_response(_whole(body, said))

    async def _streamed(self, request: web.Request, body: dict[str, Any], said: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        deltas, reason = _deltas(body, said)
        for number, choice in enumerate(deltas):
            if "break" in said and number == 3:
                assert request.transport is not None
                request.transport.abort()
                return response
            if "slowly" in said:
                await asyncio.sleep(0.05)
            await response.write(_sse(body, [{"index": 0, "finish_reason": None, **choice}]))
        await response.write(_sse(body, [{"index": 0, "delta": {}, "finish_reason": reason}]))
        if (body.get("stream_options") or {}).get("include_usage"):
            await response.write(_sse(body, [], usage=_usage()))
        await response.write(b"data: [DONE]\n\n")
        return response


def _deltas(body: dict[str, Any], said: str) -> tuple[list[dict[str, Any]], str]:
    """The choices of the chunks, and the finish reason."""
    head = {"delta": {"role": "assistant", "content": ""}}
    calls = _calls(body, said)
    if calls:
        chunks: list[dict[str, Any]] = [head]
        for index, call in enumerate(calls):
            entry = {"index": index, "id": f"call_far_{index}", "type": "function"}
            function = {"name": call["name"], "arguments": ""}
            chunks.append({"delta": {"tool_calls": [{**entry, "function": function}]}})
            chunks += [
                {"delta": {"tool_calls": [{"index": index, "function": {"arguments": part}}]}}
                for part in call["arguments"]
            ]
        return chunks, "tool_calls"
    return [head, *({"delta": {"content": part}, **_told(body, part)} for part in _parts(body, said))], "stop"


def _whole(body: dict[str, Any], said: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    calls = _calls(body, said)
    choice: dict[str, Any] = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    if calls:
        message["tool_calls"] = [
            {
                "id": f"call_far_{index}",
                "type": "function",
                "function": {**call, "arguments": "".join(call["arguments"])},
            }
            for index, call in enumerate(calls)
        ]
        choice["finish_reason"] = "tool_calls"
    else:
        parts = _parts(body, said)
        message["content"] = "".join(parts)
        told = [_told(body, part) for part in parts]
        if any(told):
            content = [entry for each in told for entry in each["logprobs"]["content"]]
            choice["logprobs"] = {"content": content, "refusal": None}
    return {**_head(body), "object": "chat.completion", "choices": [choice], "usage": _usage()}


def _calls(body: dict[str, Any], said: str) -> list[dict[str, Any]]:
    choice = body.get("tool_choice", "auto")
    if not body.get("tools") or choice == "none" or "21 degrees" in said:
        return []
    wanted = [call for call in (WEATHER, CLOCK) if str(call["name"]) in said]
    if isinstance(choice, dict):
        wanted = [call for call in (WEATHER, CLOCK) if call["name"] == choice["function"]["name"]]
    if choice == "required":
        wanted = wanted or [WEATHER]
    return wanted  # `parallel_tool_calls` it does not know, like many servers


def _parts(body: dict[str, Any], said: str) -> list[str]:
    if "21 degrees" in said:
        return ["It is ", "21 degrees."]
    if (body.get("response_format") or {}).get("type", "text") != "text":
        return ['{"x"', ": 5", ', "name": "是"}']
    return TEXT * 4 if "slowly" in said else TEXT


def _told(body: dict[str, Any], text: str) -> dict[str, Any]:
    if not body.get("logprobs"):
        return {}
    entry: dict[str, Any] = {"token": text, "bytes": list(text.encode()), "logprob": -0.25}
    other = {"token": "x", "bytes": [120], "logprob": -1.5}
    top = [{key: entry[key] for key in ("token", "bytes", "logprob")}, other]
    entry["top_logprobs"] = top[: body.get("top_logprobs") or 0]
    return {"logprobs": {"content": [entry], "refusal": None}}


def _head(body: dict[str, Any]) -> dict[str, Any]:
    return {"id": "chatcmpl-far", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}


def _usage() -> dict[str, int]:
    return {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def _sse(body: dict[str, Any], choices: list[Any], **more: Any) -> bytes:
    return b"data: " + json.dumps({**_head(body), "choices": choices, **more}).encode() + b"\n\n"
