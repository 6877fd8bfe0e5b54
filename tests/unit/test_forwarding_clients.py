"""Requests that are handed on: clients that leave, that read slowly, and many of them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from aiohttp import web
from edge import CHAT, question
from forwarding_house import ANSWER, DONE, ROLE, STOP, Behaviour, Upstream, chunk, halting, house, silent
from upstream import stream

from gateway.web.protocol import GONE, Leaving

pytestmark = pytest.mark.anyio


# The client leaves


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(
    ("streaming", "behaviour"), [(False, silent), (True, silent), (True, halting)], ids=["whole", "before", "between"]
)
async def test_the_client_leaves(
    streaming: bool, behaviour: Behaviour, told: bool, logged: list[dict[str, Any]]
) -> None:
    """drop-in 30: the server is told within 100 ms, whether ours says that a connection is lost (told) or has to be watched."""
    async with house() as h:
        h.upstream.behaviour = behaviour
        exchange = h.exchange("POST", CHAT, question(stream=streaming))
        leaving = Leaving()
        if told:
            exchange._scope[GONE] = leaving
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run)
            await h.upstream.began.wait()
            if behaviour is halting:
                await exchange.until(lambda reply: b'"a"}' in reply.body)
            began = time.monotonic()
            leaving.lost() if told else exchange.leave()
            with anyio.fail_after(1):
                await h.upstream.noticed.wait()
            took = time.monotonic() - began
        assert took < 0.1
        assert h.settled()
        (line,) = [line for line in logged if line["event"] == "request"]
        assert line["status"] == 499


async def test_a_client_that_left_before() -> None:
    async with house() as h:
        exchange = h.exchange("POST", CHAT, question())
        exchange._scope[GONE] = gone = Leaving()
        gone.lost()
        with anyio.fail_after(1):
            await exchange.run()
        assert not h.upstream.bodies
        assert h.settled()


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_client_that_leaves_with_the_last_word(streaming: bool) -> None:
    """It has its answer; and the cancellation that was on its way does not hit what comes next."""
    async with house() as h:
        exchange = h.exchange("POST", CHAT, question(stream=streaming))
        exchange._scope[GONE] = leaving = Leaving()
        send = exchange._send

        async def last_send(message: Any) -> None:
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                leaving.lost()

        exchange._send = last_send  # type: ignore[method-assign]
        reply = await exchange.run()
        await asyncio.sleep(0)
        assert (reply.status, reply.complete) == (200, True)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert h.settled()


@pytest.mark.parametrize("streaming", [True, False])
async def test_whoever_waits_for_a_place_may_leave(streaming: bool) -> None:
    """drop-in 27, 30: a queue of one; the next is turned away."""
    async with house({"seats": 1, "queue": 1}) as h:
        h.upstream.behaviour = silent
        first, second = (h.exchange("POST", CHAT, question(stream=streaming)) for _ in range(2))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first.run)
            await h.upstream.began.wait()
            tasks.start_soon(second.run)
            while not h.backend._seats.waiting:
                await anyio.sleep(0.001)
            assert (await h.chat(stream=streaming)).status == 503
            second.leave()
            with anyio.fail_after(1):
                await second.finished.wait()
            assert h.backend._seats.waiting == 0
            first.leave()
        assert len(h.upstream.bodies) == 1
        assert h.settled()


async def test_a_cancellation_from_outside_is_no_leaving() -> None:
    """Whoever cancels the request's task gets it cancelled."""
    async with house() as h:
        h.upstream.behaviour = silent
        task = asyncio.create_task(h.exchange("POST", CHAT, question()).run())
        await h.upstream.began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await h.upstream.noticed.wait()
        assert h.settled()


@pytest.mark.parametrize("behaviour", [silent, halting])
async def test_the_gateway_ends(behaviour: Behaviour) -> None:
    """drop-in 31: what runs is ended with an error, what comes is refused."""
    async with house() as h:
        h.upstream.behaviour = behaviour
        exchange = h.exchange("POST", CHAT, question(stream=True))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run)
            await h.upstream.began.wait()
            if behaviour is halting:
                await exchange.until(lambda reply: b'"a"}' in reply.body)
            h.app.end_requests()
            with anyio.fail_after(1):
                await exchange.finished.wait()
        reply = exchange.reply
        if behaviour is silent:
            assert (reply.status, reply.error["code"]) == (503, "overloaded")
        else:
            assert json.loads(reply.events()[-1])["error"]["code"] == "overloaded"
        assert (await h.chat()).status == 503


# Slow readers


async def test_a_slow_reader_stops_the_server() -> None:
    """drop-in 31: what a client does not read is not read from the server either, and nobody else waits for it."""
    wrote = 0

    async def endless(upstream: Upstream, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        nonlocal wrote
        if not body.get("stream"):
            return web.json_response(ANSWER)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(ROLE)
        while True:
            await response.write(chunk({"content": "x" * 10_000}))
            wrote += 10_000

    async with house() as h:
        h.upstream.behaviour = endless
        exchange = h.exchange("POST", CHAT, question(stream=True))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run)
            await exchange.until(lambda reply: len(reply.body) > 50_000)
            exchange.stall()
            await _steady(lambda: wrote)
            stalled, passed = wrote, len(exchange.reply.body)
            for _ in range(5):
                assert (await h.chat()).status == 200
            assert wrote == stalled
            assert stalled - passed < 16 * 2**20  # what the kernel holds of two sockets, and little of ours
            pool = h.backend._upstream._pool  # type: ignore[union-attr]
            assert pool is not None
            assert sum(connection._size for connection in pool._all) < 2**20
            exchange.may_send.set()
            exchange.leave()
        assert h.settled()


async def _steady(value: Callable[[], int]) -> None:
    with anyio.fail_after(10):
        before = -1
        while before != value():
            before = value()
            await anyio.sleep(0.2)


async def test_many_at_once() -> None:
    """Answers do not mix, connections are used again, nothing is left."""

    async def echo(upstream: Upstream, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        said = body["messages"][0]["content"]
        await asyncio.sleep(0.001 * (len(said) % 7))
        if body.get("stream"):
            return await stream(request, ROLE, *(chunk({"content": c}) for c in said), STOP, DONE, pause=0.0001)
        return web.json_response({**ANSWER, "choices": [{**ANSWER["choices"][0], "message": {"content": said}}]})  # type: ignore[index]

    async with house() as h:
        h.upstream.behaviour = echo
        wrong: list[str] = []

        async def one(number: int) -> None:
            said = f"{number:x}" * (number % 20 + 1)
            streaming = number % 2 == 0
            reply = await h.chat(messages=[{"role": "user", "content": said}], stream=streaming)
            heard = reply.content() if streaming else reply.json()["choices"][0]["message"]["content"]
            if heard != said:
                wrong.append(said)

        for batch in range(4):
            async with anyio.create_task_group() as tasks:
                for number in range(50):
                    tasks.start_soon(one, batch * 50 + number)
        assert not wrong
        assert h.settled()
        pool = h.backend._upstream._pool  # type: ignore[union-attr]
        assert pool is not None
        assert pool.open <= 100  # 50 at once, and as many whose last byte is still awaited
