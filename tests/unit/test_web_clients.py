"""Clients that leave, that do not read, and a gateway that shuts down."""

from __future__ import annotations

import json
import time
from typing import Any

import anyio
import pytest
import structlog
from edge import CHAT, Exchange, edge, fake, question

from backends.fake import Fault
from gateway.web.asgi import GONE
from gateway.web.protocol import Leaving as ConnectionLost

pytestmark = pytest.mark.anyio

WIRINGS = ["a", "a>b", "b>a", "a|b", "b>a|c", "(a>b)|c"]
AT_ONCE = 1.0
"""Seconds in which everything of a request must be cancelled, on a machine that does other things too: less than any of these answers
takes. The 100 ms of drop-in 30 are measured where the best of a few attempts counts (tests/e2e/drop_in)."""


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("wiring", WIRINGS)
async def test_a_client_that_leaves_before_the_first_token_stops_everything(wiring: str, n: int, stream: bool) -> None:
    """drop-in 30: at once, streaming or not; places and gauges are given back."""
    hang = (Fault(on="token", action="hang"),)
    async with edge(fake("a", faults=hang), fake("b"), fake("c")) as e, anyio.create_task_group() as tasks:
        exchange = e.exchange("POST", CHAT, question(wiring, stream=stream, n=n))
        tasks.start_soon(exchange.run)
        counters = e.backends["a"].counters
        with anyio.fail_after(5):
            while counters.streams + counters.sessions == 0:
                await anyio.sleep(0.005)
        assert not e.idle()
        left = time.monotonic()
        exchange.leave()
        await exchange.finished.wait()
        assert time.monotonic() - left < AT_ONCE
        assert e.idle()
        assert exchange.reply.sent == []
        assert 'status="499"' in e.app.metrics.text().decode()


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("wiring", WIRINGS)
async def test_a_client_that_leaves_in_the_middle_stops_everything(wiring: str, n: int) -> None:
    """drop-in 30: nothing more is written, every call is cancelled at once."""
    long = "one two three four five six seven eight nine ten " * 20
    async with edge(*(fake(name, long, delay=0.01) for name in "abc")) as e, anyio.create_task_group() as tasks:
        body = question(wiring, stream=True, n=n, modelnet={"stages": True})
        exchange = e.exchange("POST", CHAT, body)
        tasks.start_soon(exchange.run)
        await exchange.until(lambda reply: len(reply.sent) > 4)
        left = time.monotonic()
        exchange.leave()
        await exchange.finished.wait()
        assert time.monotonic() - left < AT_ONCE
        assert e.idle()
        assert not exchange.reply.complete
        assert b"[DONE]" not in exchange.reply.body


async def test_an_answer_that_is_complete_was_not_left() -> None:
    """drop-in 30: servers report a disconnect after every answer; that is not one."""
    async with edge(fake("a")) as e:
        await e.chat()
        await e.chat(stream=True)
        assert 'status="499"' not in e.app.metrics.text().decode()


async def test_a_client_that_leaves_while_it_sends() -> None:
    """drop-in 30: a body that never ends."""
    async with edge(fake("a")) as e:
        exchange = e.exchange("POST", CHAT, question())
        exchange._messages[0]["more_body"] = True
        exchange.leave()
        with anyio.fail_after(5):
            reply = await exchange.run()
        assert reply.status == 0
        assert e.backends["a"].counters.opened == 0


async def test_a_slow_reader_holds_up_nobody_and_nothing_piles_up() -> None:
    """drop-in 31: its own model waits after a bounded number of events; others are served."""
    long = "one two three four five six seven eight nine ten " * 50
    async with edge(fake("a", long), fake("b")) as e, anyio.create_task_group() as tasks:
        stalled = e.exchange("POST", CHAT, question("a", stream=True, max_tokens=900))
        stalled.stall()
        tasks.start_soon(stalled.run)
        await anyio.sleep(0.1)
        assert 0 < e.backends["a"].counters.deltas < 64
        assert (await e.chat("b")).status == 200
        assert (await e.chat("b", stream=True)).events()[-1] == "[DONE]"
        stalled.may_send.set()
        await stalled.finished.wait()
        assert stalled.reply.events()[-1] == "[DONE]"


async def test_a_reader_that_never_reads_is_ended_by_the_deadline() -> None:
    """drop-in 27, 31: it holds its places no longer than any other request."""
    long = "one two three four five six seven eight nine ten " * 50
    async with edge(fake("a", long), limits={"request_seconds": 0.2}) as e, anyio.create_task_group() as tasks:
        stalled = e.exchange("POST", CHAT, question("a", stream=True))
        stalled.stall()
        tasks.start_soon(stalled.run)
        with anyio.fail_after(3):
            await stalled.finished.wait()
        assert e.idle()


@pytest.mark.parametrize("stream", [True, False])
async def test_the_end_of_a_shutdown_ends_what_runs(stream: bool) -> None:
    """drop-in 10, 31: streams end with an error event, others with a 503; new requests are refused."""
    async with edge(fake("a", "one two three", delay=0.2)) as e, anyio.create_task_group() as tasks:
        exchange = e.exchange("POST", CHAT, question(stream=stream))
        tasks.start_soon(exchange.run)
        await anyio.sleep(0.05)
        e.app.end_requests()
        await exchange.finished.wait()
        reply = exchange.reply
        assert reply.complete
        assert reply.status == (200 if stream else 503)
        last = json.loads(reply.events()[-1]) if stream else reply.json()
        assert last["error"]["code"] == "overloaded"
        assert e.idle()
        assert (await e.chat()).status == 503


async def test_many_at_once_over_mixed_wirings() -> None:
    """drop-in 30: half of them walk away; nothing is left behind, nobody waits for ever."""
    text = "one two three four five six"
    backends = [fake(name, text, delay=0.003, seats=3, queue=64) for name in "abc"]
    async with edge(*backends) as e:
        exchanges = [e.exchange("POST", CHAT, question(WIRINGS[i % len(WIRINGS)], stream=i % 3 > 0)) for i in range(24)]
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for exchange in exchanges:
                    tasks.start_soon(exchange.run)
                await anyio.sleep(0.05)
                for exchange in exchanges[::2]:
                    exchange.leave()
        assert all(exchange.reply.status == 200 for exchange in exchanges[1::2])
        assert e.idle()


ASKED: dict[str, dict[str, Any]] = {
    CHAT: question(),
    "/v1/completions": {"model": "a", "prompt": "Why?"},
    "/v1/responses": {"model": "a", "input": "Why?"},
    "/tokenize": {"model": "a", "prompt": "Why?"},
}


@pytest.mark.parametrize("path", ASKED)
async def test_a_deadline_before_the_head_is_taken_is_told(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server waits for a client that has not read earlier answers: nothing of this one has gone out."""
    monkeypatch.setattr("gateway.web.route.LAST_WORD_SECONDS", 60.0)
    async with edge(fake("a"), limits={"request_seconds": 0.2}) as e, anyio.create_task_group() as tasks:
        exchange = e.exchange("POST", path, ASKED[path])
        exchange.stall()
        tasks.start_soon(exchange.run)
        await anyio.sleep(0.5)
        exchange.may_send.set()
        await exchange.finished.wait()
        assert exchange.reply.status == 504
        assert exchange.reply.error["code"] == "timeout"
        assert exchange.reply.complete


class Deaf(Exchange):
    """Takes the head of an answer and nothing of its body."""

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.body":
            await anyio.sleep_forever()
        await super()._send(message)


@pytest.mark.parametrize("path", ASKED)
async def test_a_deadline_within_the_body_is_no_success(path: str) -> None:
    async with edge(fake("a"), limits={"request_seconds": 0.8}) as e:
        made = e.exchange("POST", path, ASKED[path])
        exchange = Deaf(e.app, made._scope, json.dumps(ASKED[path]).encode())
        with structlog.testing.capture_logs() as logs, anyio.fail_after(10):
            await exchange.run()
        assert exchange.reply.status == 200
        assert not exchange.reply.complete
        (line,) = (line for line in logs if line["event"] == "request")
        assert line["error"] == "timeout"
        assert e.idle()


class Leaving(Exchange):
    """Its client leaves while the server waits to take the last of the answer. how: what sending it then comes to."""

    how = "waits"

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start" or message.get("more_body"):
            await super()._send(message)
        elif self.how == "waits":
            self.leave()
            await anyio.sleep_forever()
        elif self.how == "raises":
            raise ConnectionResetError
        else:  # as uvicorn
            self._scope[GONE].lost()


@pytest.mark.parametrize("how", ["waits", "raises", "drops"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses"])
async def test_a_client_that_leaves_within_the_last_write_has_no_answer(path: str, stream: bool, how: str) -> None:
    """What the server has not taken was not told: no such request counts as answered."""
    async with edge(fake("a")) as e:
        body = {**ASKED[path], "stream": stream}
        exchange = Leaving(e.app, e.exchange("POST", path)._scope, json.dumps(body).encode())
        exchange.how = how
        exchange._scope[GONE] = ConnectionLost()
        with structlog.testing.capture_logs() as logs, anyio.fail_after(10):
            await exchange.run()
        assert not exchange.reply.complete
        (line,) = (line for line in logs if line["event"] == "request")
        assert line["status"] == 499
        assert 'status="499"' in e.app.metrics.text().decode()
        assert e.idle()


async def test_a_failure_does_not_fall_into_a_keep_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline comes while the server waits to take the head that a comment needs: one response is begun, not two."""
    monkeypatch.setattr("gateway.web.route.LAST_WORD_SECONDS", 60.0)
    hangs = fake("a", faults=(Fault(on="token", action="hang"),))
    async with edge(hangs, limits={"request_seconds": 0.3}, server={"keepalive_seconds": 0.1}) as e:
        exchange = e.exchange("POST", CHAT, question(stream=True))
        exchange.stall()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run)
            await anyio.sleep(0.6)
            exchange.may_send.set()
        assert exchange.reply.complete
        assert exchange.reply.status == 200
        first, last = exchange.reply.events()
        assert (first, json.loads(last)["error"]["code"]) == (": keep-alive", "timeout")
