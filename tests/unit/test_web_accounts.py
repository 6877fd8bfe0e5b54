"""Keys, limits and the ledger at the edge: what a client sees, and what is written down of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from edge import CHAT, fake, question
from operated import operated

from backends.fake import Fault
from gateway.keys import Budget

pytestmark = pytest.mark.anyio

PRICES = {"currency": "EUR", "models": {"a": {"prompt": 1.0, "completion": 2.0}, "b": {"completion": 10.0}}}


async def test_without_keys_everyone_on_this_machine_may_call(tmp_path: Path) -> None:
    async with operated(tmp_path, fake("a")) as house:
        assert (await house.chat()).status == 200
        (row,) = await house.rows(1)
        assert row["key"] is None
        _, header = house.make_key()
        assert (await house.chat()).error["code"] == "invalid_api_key"
        assert (await house.call("POST", CHAT, question(), header)).status == 200


async def test_plain_and_stored_keys_side_by_side(tmp_path: Path) -> None:
    async with operated(tmp_path, fake("a"), keys=["a-plain-key", {"key": "another-key", "name": "team"}]) as house:
        id, header = house.make_key()
        for key in ("a-plain-key", "another-key"):
            assert (await house.call("POST", CHAT, question(), {"authorization": f"Bearer {key}"})).status == 200
        assert (await house.call("POST", CHAT, question(), header)).status == 200
        assert [row["key"] for row in await house.rows(3)] == ["static-1", "team", id]


async def test_every_end_has_its_row(tmp_path: Path) -> None:
    """Good ones, client errors, failures before and in the middle of an answer, and clients that leave."""
    cut = Fault(on="token", after=3, error="BackendUnavailable")
    backends = (fake("a"), fake("b", delay=0.05), fake("cut", faults=(cut,)))
    async with operated(tmp_path, *backends, prices=PRICES) as house:
        id, header = house.make_key()

        async def ask(body: Any) -> Any:
            return await house.call("POST", CHAT, body, {**header, "x-request-id": "mine"})

        good = await ask(question("a>b"))
        stream = await ask(question("a", stream=True))
        await ask(question("nobody"))
        await ask(b"{")
        failed = await ask(question("cut"))
        broken = await ask(question("cut", stream=True))
        leaving = house.exchange("POST", CHAT, question("b", stream=True), header)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leaving.run)
            await leaving.until(lambda reply: len(reply.sent) > 2)
            leaving.leave()
        assert (failed.status, broken.status) == (502, 200)
        rows = await house.rows(7)
        assert [row["outcome"] for row in rows] == ["ok", "ok", "refused", "refused", "error", "error", "abandoned"]
        assert [row["status"] for row in rows] == [200, 200, 404, 400, 502, 200, 499]
        assert {row["key"] for row in rows} == {id}
        assert [row["request_id"] for row in rows[:6]] == ["mine"] * 6
        whole, streamed = rows[0], rows[1]
        assert whole["completion"] == good.json()["id"]
        assert streamed["completion"] == stream.chunks()[0]["id"]
        usage = good.json()["usage"]
        assert (whole["prompt_tokens"], whole["completion_tokens"]) == (
            usage["prompt_tokens"],
            usage["completion_tokens"],
        )
        stages = json.loads(whole["stages"])
        assert [[model[0] for model in stage["models"]] for stage in stages] == [["a"], ["b"]]
        (_, _, read, written), (_, _, _, last) = stages[0]["models"][0], stages[1]["models"][0]
        assert whole["nano"] == 1000 * read + 2000 * written + 10_000 * last
        assert (whole["wiring"], whole["shape"], whole["kind"]) == ("a>b", "si", "json")
        assert rows[4]["error"] == "backend_unavailable"
        assert rows[5]["completion_tokens"] > 0  # what was seen of a cut answer is charged
        assert rows[6]["completion_tokens"] > 0
        assert whole["seconds"] > 0
        assert all(row["texts"] is None for row in rows)
        assert b"Why?" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


async def test_strangers_fill_no_disk(tmp_path: Path) -> None:
    async with operated(tmp_path, fake("a"), keys=["a-plain-key"]) as house:
        for _ in range(5):
            assert (await house.chat()).status == 401
        await house.call("POST", "/v1/nothing", question(), {"authorization": "Bearer a-plain-key"})
        await house.call("POST", CHAT, question(), {"authorization": "Bearer a-plain-key"})
        assert len(await house.rows(1)) == 1


async def test_texts_are_kept_where_asked_for(tmp_path: Path) -> None:
    async with operated(tmp_path, fake("a"), fake("b"), ledger={"texts": True}) as house:
        reply = await house.chat("a>b", n=2)
        (row,) = await house.rows(1)
        kept = json.loads(row["texts"])
        assert kept["messages"] == [{"role": "user", "content": "Why?"}]
        assert kept["answers"] == [choice["message"]["content"] for choice in reply.json()["choices"]]


async def test_requests_per_minute(tmp_path: Path) -> None:
    async with operated(tmp_path, fake("a")) as house:
        _, header = house.make_key(requests_per_minute=3, tokens_per_minute=100_000)
        replies = [await house.call("POST", CHAT, question(max_tokens=8, stream=i == 1), header) for i in range(4)]
        assert [reply.status for reply in replies] == [200, 200, 200, 429]
        assert [reply.header("x-ratelimit-remaining-requests") for reply in replies] == ["2", "1", "0", "0"]
        for reply in replies:
            assert reply.header("x-ratelimit-limit-requests") == "3"
            assert reply.header("x-ratelimit-limit-tokens") == "100000"
            assert str(reply.header("x-ratelimit-reset-tokens")).endswith("s")
        refused = replies[3]
        assert refused.error["code"] == "rate_limit_exceeded"
        assert 1 <= int(str(refused.header("retry-after"))) <= 20
        assert 1 <= int(str(refused.header("retry-after-ms"))) <= 20_000
        assert refused.header("x-should-retry") is None
        assert 'modelnet_refused_total{reason="requests"} 1.0' in house.app.metrics.text().decode()


async def test_tokens_are_held_then_charged_for_what_was_spent(tmp_path: Path) -> None:
    """All stages and members: a wiring of two takes twice the room."""
    async with operated(tmp_path, fake("a"), fake("b")) as house:
        _, header = house.make_key(tokens_per_minute=2000)
        before = await house.call("POST", CHAT, question("a>b", max_tokens=100), header)
        held = 2000 - int(str(before.header("x-ratelimit-remaining-tokens")))
        assert held > 600  # stage_max_tokens is 512
        spent = before.json()["usage"]["total_tokens"]
        after = await house.call("POST", CHAT, question("a", max_tokens=1), header)
        remaining = int(str(after.header("x-ratelimit-remaining-tokens")))
        assert 2000 - spent - 60 < remaining <= 2000
        large = await house.call("POST", CHAT, question("a|b", max_tokens=1500), header)
        assert large.status == 429
        assert large.header("x-should-retry") == "false"
        assert "too large" in large.error["message"]


async def test_concurrency_is_held_until_the_end_however_it_comes(tmp_path: Path) -> None:
    async with operated(tmp_path, fake("a", delay=0.05), fake("bad", faults=(Fault(on="enter"),))) as house:
        _, header = house.make_key(concurrency=1)
        running = house.exchange("POST", CHAT, question(stream=True), header)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(running.run)
            await running.until(lambda reply: reply.sent)
            refused = await house.call("POST", CHAT, question(), header)
            assert refused.status == 429
            assert "at once" in refused.error["message"]
            running.leave()
        for _ in range(3):
            assert (await house.call("POST", CHAT, question("bad"), header)).status == 502
            assert (await house.call("POST", CHAT, question("none"), header)).status == 404
        assert (await house.call("POST", CHAT, question(), header)).status == 200


async def test_an_exhausted_budget_is_told_for_good(tmp_path: Path) -> None:
    async with operated(tmp_path, fake("a"), fake("b"), prices=PRICES) as house:
        id, header = house.make_key(budget=Budget(50, "tokens"))
        assert (await house.call("POST", CHAT, question(max_tokens=40), header)).status == 200
        refused = await house.call("POST", CHAT, question(), header)
        while refused.status == 200:
            refused = await house.call("POST", CHAT, question(), header)
        assert refused.status == 429
        assert refused.error["code"] == refused.error["type"] == "insufficient_quota"
        assert refused.header("x-should-retry") == "false"
        assert refused.header("retry-after") is None
        assert house.operations.keyring.spending.known(id, "").tokens >= 50
        assert house.operations.keyring.spending.known(id, "").nano > 0


async def test_a_budget_outlives_the_process(tmp_path: Path) -> None:
    async with operated(tmp_path, fake("a")) as house:
        _, header = house.make_key(budget=Budget(5, "tokens", "month"))
        assert (await house.call("POST", CHAT, question(), header)).status == 200
    async with operated(tmp_path, fake("a")) as house:
        assert (await house.call("POST", CHAT, question(), header)).error["code"] == "insufficient_quota"


async def test_keys_may_what_they_may(tmp_path: Path) -> None:
    sections = {"aliases": {"pair": {"expression": "a|b"}}}
    async with operated(tmp_path, fake("a"), fake("b"), **sections) as house:
        _, only_a = house.make_key(models=("a",))
        _, only_pair = house.make_key(wirings=("pair",))

        async def status(model: str, header: dict[str, str]) -> int:
            return (await house.call("POST", CHAT, question(model), header)).status

        assert [await status(model, only_a) for model in ("a", "b", "a>b", "pair")] == [200, 403, 403, 403]
        assert [await status(model, only_pair) for model in ("a", "pair", "a|b")] == [403, 200, 403]
        refused = await house.call("POST", CHAT, question("b"), only_a)
        assert refused.error["param"] == "model"
        assert refused.header("x-should-retry") is None  # SDKs do not repeat a 403
        for header, names in ((only_a, ["a"]), (only_pair, ["pair"])):
            listed = await house.call("GET", "/v1/models", headers=header)
            assert [model["id"] for model in listed.json()["data"]] == names
            for name in ("a", "b", "a>b", "pair"):
                shown = await house.call("GET", f"/v1/models/{name}", headers=header)
                assert shown.status == (200 if name in names else 403)


async def test_a_lost_ledger_slows_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    away = {"database": str(tmp_path / "file" / "ledger.db")}
    async with operated(tmp_path, fake("a"), ledger=away) as house:
        began = time.perf_counter()
        for _ in range(20):
            assert (await house.chat()).status == 200
        assert time.perf_counter() - began < 5
        assert house.operations.ledger is not None
        assert house.operations.ledger.waiting == 20
        with anyio.fail_after(5):  # its thread tries only now and then
            while "modelnet_ledger_failing 1.0" not in house.app.metrics.text().decode():
                await anyio.sleep(0.01)
        (tmp_path / "file").unlink()
    from gateway.ledger.tables import Tables

    assert Tables(away["database"]).count() == 20


async def test_limits_hold_for_many_at_once(tmp_path: Path) -> None:
    """64 clients, one key: exactly as many as allowed."""
    async with operated(tmp_path, fake("a")) as house:
        _, header = house.make_key(requests_per_minute=50)
        statuses: list[int] = []

        async def client() -> None:
            for _ in range(4):
                statuses.append((await house.call("POST", CHAT, question(), header)).status)

        began = time.monotonic()
        async with anyio.create_task_group() as tasks:
            for _ in range(64):
                tasks.start_soon(client)
        refilled = 50 * (time.monotonic() - began) / 60
        assert 50 <= statuses.count(200) <= 50 + refilled
        assert set(statuses) == {200, 429}
        assert len(await house.rows(256)) == 256


ASKED: tuple[tuple[str, dict[str, Any]], ...] = (
    (CHAT, question("a")),
    (CHAT, question("a>b")),
    (CHAT, question("a|b", n=2)),
    (CHAT, question("a", stream=True)),
    (CHAT, question("a|b", stream=True, n=2)),
    (CHAT, question("bad")),
    (CHAT, question("cut", stream=True)),
    ("/v1/completions", {"model": "a", "prompt": "Why?"}),
    ("/v1/completions", {"model": "a>b", "prompt": ["Why?", "How?"], "stream": True}),
    ("/v1/responses", {"model": "a", "input": "Why?"}),
    ("/v1/responses", {"model": "a|b", "input": "Why?", "stream": True}),
    ("/tokenize", {"model": "a", "prompt": "Why?"}),
)


@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_who_has_the_last_byte_holds_nothing(path: str, body: dict[str, Any], tmp_path: Path) -> None:
    """A client that asks for one thing after the other is never in its own way."""
    cut = Fault(on="token", after=3, error="BackendUnavailable")
    backends = (fake("a"), fake("b"), fake("bad", faults=(Fault(on="enter"),)), fake("cut", faults=(cut,)))
    async with operated(tmp_path, *backends, limits={"concurrent_requests": 1}) as house:
        id, header = house.make_key(concurrency=1, budget=Budget(5000, "tokens", "day"))
        exchange = house.exchange("POST", path, body, header)
        send, held = exchange._send, []

        async def watched(message: Any) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                held.append((house.app._admission.taken, house.operations.limiter._local.running(id)))
            await send(message)

        exchange._send = watched  # type: ignore[method-assign]
        with anyio.fail_after(10):
            reply = await exchange.run()
        assert held == [(0, 0)]
        assert reply.status == (502 if body["model"] == "bad" else 200)
        (row,) = await house.rows(1)
        spent = house.operations.keyring.spending.known(id, Budget(1, "tokens", "day").period(time.time()))
        assert spent.tokens == row["prompt_tokens"] + row["completion_tokens"]


async def test_a_model_that_was_not_asked_costs_nothing(tmp_path: Path) -> None:
    """It keeps failing and is left alone, or its queue is full; what its chain spent before is charged all the same."""
    full = fake("full", faults=(Fault(on="enter", error="BackendOverloaded"),))
    async with operated(tmp_path, fake("a"), full, fake("bad", faults=(Fault(on="enter"),))) as house:
        _, header = house.make_key(tokens_per_minute=100_000)
        asked = {"full": 1, "full>a": 6, "full|a": 1, "a>full": 1, "bad": 1}
        for model, n in asked.items():
            assert (await house.call("POST", CHAT, question(model, n=n, max_tokens=8), header)).status >= 500
        rows = await house.rows(len(asked))
        spent = {row["model"]: row["prompt_tokens"] + row["completion_tokens"] for row in rows}
        assert [model for model in asked if spent[model]] == ["a>full", "bad"]


async def test_a_client_that_does_not_read_keeps_what_it_holds(tmp_path: Path) -> None:
    """Until its last words fit on their way to it."""
    async with operated(tmp_path, fake("a"), limits={"concurrent_requests": 1}) as house:
        id, header = house.make_key(concurrency=1)
        exchange = house.exchange("POST", CHAT, question(stream=True), header)
        send, waiting = exchange._send, anyio.Event()

        async def full(message: Any) -> None:
            if message["type"] == "http.response.body" and not message["body"]:
                waiting.set()
                await anyio.sleep_forever()  # as servers do before they take anything more from us
            await send(message)

        exchange._send = full  # type: ignore[method-assign]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run)
            with anyio.fail_after(10):
                await waiting.wait()
            assert (house.app._admission.taken, house.operations.limiter._local.running(id)) == (1, 1)
            assert (await house.call("POST", CHAT, question(), header)).status >= 429
            exchange.leave()
        assert not exchange.reply.complete
        assert (await house.call("POST", CHAT, question(), header)).status == 200


async def test_what_is_held_counts_in_both_headers(tmp_path: Path) -> None:
    async with operated(tmp_path, fake("a")) as house:
        _, header = house.make_key(tokens_per_minute=6000)
        reply = await house.call("POST", CHAT, question(max_tokens=600), header)
        remaining = int(str(reply.header("x-ratelimit-remaining-tokens")))
        assert 5000 < remaining < 5400
        reset = float(str(reply.header("x-ratelimit-reset-tokens")).removesuffix("s"))
        assert reset == pytest.approx((6000 - remaining) / 100, abs=0.1)


async def test_strangers_are_counted(tmp_path: Path) -> None:
    async with operated(tmp_path, fake("a"), limits={"body_bytes": 500}) as house:
        _, header = house.make_key()
        for _ in range(3):
            assert (await house.chat()).status == 401
        assert (await house.call("POST", CHAT, question(user="x" * 600), header)).status == 413
        text = house.app.metrics.text().decode()
        assert 'modelnet_request_errors_total{cause="invalid_api_key"} 3.0' in text
        assert 'modelnet_request_errors_total{cause="request_too_large"} 1.0' in text
