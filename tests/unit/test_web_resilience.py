"""Bad days as clients see them: deadlines, priorities, breakers, repetitions, reruns, draining."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from edge import CHAT, Edge, Recorder, edge, fake, question

from backends.errors import BackendError, BackendUnavailable
from backends.fake import FakeSettings, Fault
from backends.types import TextRequest

pytestmark = pytest.mark.anyio
HANGS = (Fault(on="token", action="hang"),)


class Unreachable(Recorder):
    """Can't be reached the first few times."""

    def __init__(self, name: str, times: int) -> None:
        super().__init__(name, FakeSettings(answer="at last"))
        self.times = times

    @asynccontextmanager
    async def stream(self, request: TextRequest) -> AsyncIterator[Any]:
        self.times -= 1
        if self.times >= 0:
            error: BackendError = BackendUnavailable(self.name, "It can't be reached.")
            error.repeatable = True
            raise error
        async with super().stream(request) as events:
            yield events


def value(e: Edge, name: str) -> float:
    """Of a metric, with its labels; 0 where there is none."""
    lines = [line for line in e.app.metrics.text().decode().splitlines() if line.startswith(name + " ")]
    return float(lines[0].rpartition(" ")[2]) if lines else 0.0


# Deadlines


@pytest.mark.parametrize("wiring", ["a", "b>a", "a|b", "b>a|b"])
@pytest.mark.parametrize("how", ["header", "field", "both"])
async def test_a_client_may_shorten_the_time_of_all_stages_together(wiring: str, how: str) -> None:
    async with edge(fake("a", faults=HANGS), fake("b"), limits={"request_seconds": 30}) as e:
        headers = {"x-modelnet-timeout": "0.2" if how == "header" else "7"} if how != "field" else {}
        fields = {"modelnet": {"timeout": 0.2}} if how != "header" else {}
        began = anyio.current_time()
        reply = await e.call("POST", CHAT, question(wiring, **fields), headers)
        assert (reply.status, reply.error["code"]) == (504, "timeout")
        assert "0.2 seconds" in reply.error["message"] and anyio.current_time() - began < 2
        assert e.idle()


async def test_and_never_lengthen_it() -> None:
    async with edge(fake("a", faults=HANGS), limits={"request_seconds": 0.2}) as e:
        reply = await e.call("POST", CHAT, question(modelnet={"timeout": 60}), {"x-modelnet-timeout": "60"})
        assert reply.status == 504 and "0.2 seconds" in reply.error["message"]


@pytest.mark.parametrize("timeout", ["soon", "0", "-1", "nan", "inf", ""])
async def test_a_timeout_that_is_none_is_refused(timeout: str) -> None:
    async with edge(fake("a")) as e:
        reply = await e.call("POST", CHAT, question(), {"x-modelnet-timeout": timeout})
        assert (reply.status, reply.error["param"]) == (400, "x-modelnet-timeout")


async def test_the_same_in_the_body() -> None:
    async with edge(fake("a")) as e:
        for timeout in (0, -1, "soon", 1e9):
            reply = await e.chat(modelnet={"timeout": timeout})
            assert (reply.status, reply.error["param"]) == (400, "modelnet.timeout")


# Priorities


async def full(e: Edge, count: int, tasks: Any, **headers: str) -> None:
    """Fill places, up to that many, with requests that hang."""
    for _ in range(count - int(value(e, "modelnet_places_taken"))):
        tasks.start_soon(e.exchange("POST", CHAT, question("a"), headers).run)
    while value(e, "modelnet_places_taken") < count:
        await anyio.sleep(0.001)


async def test_less_important_requests_are_refused_first() -> None:
    sections = {
        "limits": {"concurrent_requests": 10},
        "shedding": {"low": 0.5, "normal": 0.8, "keys": {"boss": "high"}},
    }
    keys = [{"key": "a-key-of-the-boss", "name": "boss"}, "a-key-of-anybody"]
    boss, anybody = ({"authorization": f"Bearer {key}"} for key in ("a-key-of-the-boss", "a-key-of-anybody"))
    low = {**anybody, "x-modelnet-priority": "low"}
    async with edge(fake("a", faults=HANGS), fake("b"), keys=keys, **sections) as e, anyio.create_task_group() as tasks:

        async def ask(headers: dict[str, str]) -> tuple[int, str | None, str | None]:
            reply = await e.call("POST", CHAT, question("b"), headers)
            return reply.status, (reply.status >= 400 and reply.error["code"]) or None, reply.header("retry-after")

        await full(e, 5, tasks, **boss)
        assert await ask(low) == (429, "shed", "1")
        assert await ask(anybody) == (200, None, None)
        await full(e, 8, tasks, **boss)
        assert await ask(anybody) == (429, "shed", "1")
        assert await ask({**anybody, "x-modelnet-priority": "high"}) == (429, "shed", "1"), "a header only lowers it"
        assert await ask(boss) == (200, None, None)
        await full(e, 10, tasks, **boss)
        assert await ask(boss) == (503, "overloaded", "1")
        assert value(e, 'modelnet_shed_total{priority="low"}') == 1
        assert value(e, 'modelnet_shed_total{priority="normal"}') == 2
        tasks.cancel_scope.cancel()


async def test_one_place_is_enough_for_everybody() -> None:
    """Parts of a place are rounded up."""
    async with edge(fake("a"), limits={"concurrent_requests": 1}) as e:
        for priority in ("low", "normal"):
            assert (await e.call("POST", CHAT, question(), {"x-modelnet-priority": priority})).status == 200


async def test_an_unknown_priority_is_refused() -> None:
    async with edge(fake("a")) as e:
        reply = await e.call("POST", CHAT, question(), {"x-modelnet-priority": "urgent"})
        assert (reply.status, reply.error["param"]) == (400, "x-modelnet-priority")


# Breakers and repetitions


async def test_a_model_that_keeps_failing_is_left_alone_and_that_is_seen() -> None:
    broken = fake("a", faults=(Fault(on="enter"),))
    breaker = {"breaker": {"least": 3, "pause": 0.2, "pause_most": 0.2}}
    async with edge(broken, fake("b"), resilience=breaker) as e:
        assert [(await e.chat()).status for _ in range(3)] == [502] * 3
        reply = await e.chat()
        assert (reply.status, reply.error["code"], reply.header("retry-after")) == (503, "backend_unavailable", "1")
        assert len(broken.requests) == 3
        assert (await e.chat("b>a")).status == 503 and (await e.chat("b")).status == 200
        ready = await e.call("GET", "/readyz")
        assert ready.status == 200 and ready.json()["breakers"] == {"a": "open"}
        assert "keeps failing" in ready.json()["not_ready"]["a"]
        assert value(e, 'modelnet_breaker_state{model="a"}') == 2
        assert value(e, 'modelnet_breaker_turns_total{model="a",state="open"}') == 1
        assert value(e, 'modelnet_backend_errors_total{cause="unavailable",model="a"}') == 3
        assert value(e, 'modelnet_backend_errors_total{cause="circuit_open",model="a"}') == 2
        await anyio.sleep(0.25)
        assert value(e, 'modelnet_breaker_state{model="a"}') == 1
        broken.faults = ()
        assert (await e.chat()).status == 200
        assert value(e, 'modelnet_breaker_state{model="a"}') == 0
        assert "breakers" not in (await e.call("GET", "/readyz")).json()


async def test_breakers_can_be_switched_off() -> None:
    async with edge(fake("a", faults=(Fault(on="enter"),)), resilience={"breaker": {"enabled": False}}) as e:
        assert {(await e.chat()).status for _ in range(20)} == {502}


async def test_a_model_that_could_not_be_reached_is_asked_again() -> None:
    backend = Unreachable("a", 2)
    async with edge(backend, fake("b"), resilience={"retries": {"pause": 0.001}}) as e:
        assert (await e.chat("b>a")).status == 200
        assert value(e, 'modelnet_retries_total{cause="unavailable",model="a"}') == 2


async def test_no_more_than_the_budget_allows() -> None:
    backend = Unreachable("a", 10**6)
    retries = {"pause": 0.0, "share": 0.2, "reserve": 2}
    async with edge(backend, resilience={"retries": retries, "breaker": {"enabled": False}}) as e:
        for _ in range(50):
            assert (await e.chat()).status == 502
        asked = 10**6 - backend.times
        assert 50 + 8 <= asked <= 50 + 10 + 2
        assert value(e, 'modelnet_retries_denied_total{model="a"}') > 30


# Stages that nobody has seen


def broken_once(name: str, times: int = 1) -> Recorder:
    return fake(name, faults=(Fault(on="token", of="stream", after=2, times=times),))


@pytest.mark.parametrize("stream", [False, True])
async def test_an_unseen_stage_that_breaks_off_is_run_again(stream: bool) -> None:
    backend = broken_once("a")
    async with edge(backend, fake("b", answer="{last}")) as e:
        reply = await e.chat("a>b", stream=stream)
        assert reply.status == 200 and len(backend.requests) == 2
        text = reply.content() if stream else reply.json()["choices"][0]["message"]["content"]
        assert text.count("a says so. 是的 😀") == 1, "what it said the first time is gone"
        assert value(e, 'modelnet_stage_reruns_total{model="a"}') == 1
        assert e.idle()


async def test_not_where_the_client_has_seen_it() -> None:
    backend = broken_once("a")
    async with edge(backend, fake("b")) as e:
        reply = await e.chat("a>b", stream=True, modelnet={"stages": True})
        assert len(backend.requests) == 1 and "[DONE]" not in reply.events()


async def test_not_the_last_stage() -> None:
    backend = broken_once("a")
    async with edge(backend, fake("b")) as e:
        assert (await e.chat("b>a")).status == 502 and len(backend.requests) == 1


async def test_as_often_as_configured() -> None:
    for times, runs, status in ((1, 0, 502), (2, 1, 502), (2, 2, 200)):
        backend = broken_once("a", times)
        async with edge(backend, fake("b"), resilience={"retries": {"stages": runs}}) as e:
            assert (await e.chat("a>b")).status == status
            assert len(backend.requests) == 1 + runs


async def test_only_from_the_budget() -> None:
    backend = broken_once("a", 10**6)
    retries = {"share": 0.0, "reserve": 3, "stages": 5}
    async with edge(backend, fake("b"), resilience={"retries": retries, "breaker": {"enabled": False}}) as e:
        for _ in range(10):
            assert (await e.chat("a>b")).status == 502
        assert len(backend.requests) == 10 + 3


async def test_not_for_what_another_run_would_not_mend() -> None:
    for error in ("ContextTooLong", "RequestRejected", "BackendOverloaded"):
        backend = fake("a", faults=(Fault(on="enter", error=error),))
        async with edge(backend, fake("b")) as e:
            await e.chat("a>b")
            assert len(backend.requests) == 1


# Hedging


async def test_a_silent_stage_is_hedged_where_that_is_configured() -> None:
    backend = fake("a", faults=(Fault(on="token", of="stream", action="hang", times=1),))
    async with edge(backend, fake("b"), model_fields={"a": {"hedge_after": 0.05}}) as e:
        assert (await e.chat("a>b")).status == 200 and len(backend.requests) == 2
        assert value(e, 'modelnet_hedges_total{model="a"}') == value(e, 'modelnet_hedges_won_total{model="a"}') == 1
        assert e.idle()


# Draining


async def test_probes_are_told_first_and_requests_go_on() -> None:
    async with edge(fake("a", delay=0.01)) as e, anyio.create_task_group() as tasks:
        exchange = e.exchange("POST", CHAT, question(stream=True))
        tasks.start_soon(exchange.run)
        await exchange.until(lambda reply: reply.sent)
        e.app.begin_drain()
        ready = await e.call("GET", "/readyz")
        assert (ready.status, ready.json()["status"]) == (503, "draining")
        assert (await e.call("GET", "/healthz")).status == 200
        assert value(e, "modelnet_draining") == 1
        assert (await e.chat()).status == 200, "until the end is really there"
        await exchange.finished.wait()
        assert exchange.reply.events()[-1] == "[DONE]"
