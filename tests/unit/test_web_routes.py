"""Routes at the edge: arms, overrides, fallbacks, shadows; what clients see, and what the ledger knows."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest
from edge import CHAT, Reply, fake, question
from operated import operated

from backends.fake import Fault

pytestmark = pytest.mark.anyio

SPLIT = {"arms": {"plain": {"model": "a", "weight": 50}, "pair": {"model": "a|b", "weight": 50}}}


def broken(name: str, **fields: Any) -> Any:
    return fake(name, faults=(Fault(**({"on": "enter"} | fields)),))


async def test_users_stay_on_their_arm_over_restarts(tmp_path: Path) -> None:
    async def arms() -> dict[str, str]:
        async with operated(tmp_path, fake("a"), fake("b"), routes={"split": SPLIT | {"override": True}}) as house:
            found = {}
            for number in range(24):
                for _ in range(2):
                    reply = await house.chat("split", user=f"user-{number}", max_tokens=3)
                    assert reply.status == 200
                    assert reply.json()["model"] == "split"
                    arm = str(reply.header("x-modelnet-arm"))
                    assert found.setdefault(f"user-{number}", arm) == arm
                    assert reply.json()["modelnet"]["wiring"] == {"plain": "a", "pair": "a|b"}[arm]
            return found

    first = await arms()
    assert set(first.values()) == {"plain", "pair"}
    assert await arms() == first


async def test_who_has_no_subject_can_not_choose_by_naming_the_request(tmp_path: Path) -> None:
    """Nor which requests are copied: a client's x-request-id is its own."""
    route = SPLIT | {"sticky": ["header:x-team"], "shadow": {"model": "b", "share": 0.5}}
    async with operated(tmp_path, fake("a"), fake("b"), routes={"split": route}) as house:
        for _ in range(40):
            body = question("split", max_tokens=1)
            assert (await house.call("POST", CHAT, body, {"x-request-id": "always-this"})).status == 200
        with anyio.fail_after(5):
            while house.operations.shadows.running:
                await anyio.sleep(0.02)
        rows = await house.rows(40 + house.operations.shadows.finished)
        asked = [row for row in rows if row["shadow_of"] is None]
        assert {row["arm"] for row in asked} == {"plain", "pair"}
        assert len({row["subject"] for row in asked}) == 40
        assert 0 < len(rows) - 40 < 40


async def test_the_ledger_knows_arm_subject_and_shares(tmp_path: Path) -> None:
    async with operated(tmp_path, fake("a"), fake("b"), routes={"split": SPLIT}) as house:
        for number in range(10):
            reply = await house.chat("split", user=f"user-{number}", max_tokens=3)
            assert reply.header("x-modelnet-arm") is None  # nothing tells a user of an experiment
        await house.chat("a")
        rows = await house.rows(11)
        split, plain = rows[:10], rows[10]
        assert {row["route"] for row in split} == {"split"}
        assert {row["arm_by"] for row in split} == {"user"}
        assert len({row["subject"] for row in split}) == 10
        assert json.loads(split[0]["shares"]) == {"plain": 0.5, "pair": 0.5}
        assert {(row["arm"], row["wiring"]) for row in split} == {("plain", "a"), ("pair", "a|b")}
        assert (plain["route"], plain["arm"]) == (None, None)
        assert b"user-1" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


async def test_overrides_where_allowed(tmp_path: Path) -> None:
    routes = {"split": SPLIT | {"override": True}, "shut": SPLIT}
    async with operated(tmp_path, fake("a"), fake("b"), routes=routes) as house:
        for arm, wiring in (("plain", "a"), ("pair", "a|b")):
            by_body = await house.chat("split", user="u", modelnet={"arm": arm})
            by_header = await house.call("POST", CHAT, question("split", user="u"), {"x-modelnet-arm": arm})
            assert by_body.json()["modelnet"]["wiring"] == by_header.json()["modelnet"]["wiring"] == wiring
        assert (await house.chat("split", modelnet={"arm": "third"})).error["param"] == "modelnet.arm"
        assert (await house.chat("shut", modelnet={"arm": "plain"})).status == 400
        rows = await house.rows(6)
        assert [row["arm_by"] for row in rows] == ["override"] * 4 + [None] * 2
        assert (await house.chat("a", modelnet={"arm": "plain"})).error["param"] == "modelnet.arm"


async def test_routes_are_models_for_clients(tmp_path: Path) -> None:
    async with operated(tmp_path, fake("a"), fake("b"), routes={"split": SPLIT | {"description": "answers"}}) as house:
        listed = (await house.call("GET", "/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == ["a", "b", "split"]
        one = (await house.call("GET", "/v1/models/split")).json()
        assert one == listed[2]
        assert one["modelnet"] == {"kind": "route", "description": "answers"}
        assert isinstance(one["created"], int)
        responses = await house.call("POST", "/v1/responses", {"model": "split", "input": "Why?"})
        assert responses.status == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ({"error": "BackendUnavailable"}, "error"),
        ({"error": "BackendOverloaded"}, "overload"),
        ({"error": "BackendTimeout"}, "timeout"),
        ({"error": "ContextTooLong"}, "context"),
    ],
)
async def test_fallbacks_by_cause(tmp_path: Path, fault: dict[str, str], cause: str, stream: bool) -> None:
    routes = {
        "safe": {
            "arms": {"only": {"model": "bad"}},
            "fallbacks": [
                {"on": [other], "model": "wrong"}
                for other in ("error", "overload", "timeout", "context")
                if other != cause
            ]
            + [{"on": [cause], "model": "good"}],
        }
    }
    async with operated(tmp_path, broken("bad", **fault), fake("good"), fake("wrong"), routes=routes) as house:
        reply = await house.chat("safe", stream=stream)
        assert reply.status == 200
        text = reply.content() if stream else reply.json()["choices"][0]["message"]["content"]
        assert text.startswith("good")
        assert text.count("good") == 1
        (row,) = await house.rows(1)
        assert (row["outcome"], row["wiring"], row["arm"]) == ("ok", "good", "only")
        ((model, why),) = json.loads(row["attempts"])
        assert model == "bad"
        assert why.startswith(f"{cause}: ")


async def test_no_fallback_after_the_first_text_of_a_stream(tmp_path: Path) -> None:
    """Half of one model's answer and then another's would be nobody's. A whole answer has shown nothing yet."""
    routes = {"safe": {"arms": {"only": {"model": "bad"}}, "fallbacks": [{"model": "good"}]}}
    async with operated(tmp_path, broken("bad", on="token", after=3), fake("good"), routes=routes) as house:
        reply = await house.chat("safe", stream=True)
        assert b"good" not in reply.body
        assert b'"content":"b"' in reply.body
        assert "[DONE]" not in reply.events()
        whole = await house.chat("safe")
        assert whole.json()["choices"][0]["message"]["content"].startswith("good")
        first, second = await house.rows(2)
        assert (first["outcome"], second["outcome"]) == ("error", "ok")
        assert second["completion_tokens"] > whole.json()["usage"]["completion_tokens"]  # the lost part was spent too


async def test_a_clients_own_mistake_is_no_cause(tmp_path: Path) -> None:
    routes = {"safe": {"arms": {"only": {"model": "bad"}}, "fallbacks": [{"model": "good"}]}}
    async with operated(tmp_path, broken("bad", error="RequestRejected"), fake("good"), routes=routes) as house:
        assert (await house.chat("safe")).status == 400


async def test_when_all_fail_the_last_failure_is_told(tmp_path: Path) -> None:
    routes = {
        "safe": {
            "arms": {"only": {"model": "one"}},
            "fallbacks": [
                {"model": "two"},
                {"on": ["overload"], "model": "two"},
                {"on": ["overload"], "model": "three"},
            ],
        }
    }
    backends = (broken("one"), broken("two", error="BackendOverloaded"), broken("three", error="BackendTimeout"))
    async with operated(tmp_path, *backends, routes=routes) as house:
        assert (await house.chat("safe")).status == 504
        (row,) = await house.rows(1)
        assert [model for model, _ in json.loads(row["attempts"])] == ["one", "two"]
        assert row["outcome"] == "error"


async def test_a_model_that_is_not_there_falls_back_before_anything_runs(tmp_path: Path) -> None:
    routes = {"safe": {"arms": {"only": {"model": "gone"}}, "fallbacks": [{"model": "good"}]}}
    gone = fake("gone", faults=(Fault(on="start"),))
    async with operated(tmp_path, gone, fake("good"), routes=routes) as house:
        assert (await house.chat("gone")).status == 503
        assert (await house.chat("safe")).status == 200


async def test_a_fallback_that_the_key_is_not_for_is_told_as_that(tmp_path: Path) -> None:
    route = {"arms": {"x": {"model": "a"}}, "fallbacks": [{"model": "b"}, {"model": "c"}]}
    async with operated(tmp_path, broken("a"), fake("b"), fake("c"), routes={"r": route}) as house:
        _, header = house.make_key(models=("a", "c"), wirings=("r",))
        assert (await house.call("POST", CHAT, question("r"), header)).status == 200
        (row,) = await house.rows(1)
        assert json.loads(row["attempts"]) == [["a", "error: BackendUnavailable"], ["b", "error: model_not_found"]]


@pytest.mark.parametrize("stream", [False, True])
async def test_patience_ends_what_has_not_begun(tmp_path: Path, stream: bool) -> None:
    routes = {
        "quick": {
            "arms": {"only": {"model": "slow"}},
            "patience": 0.2,
            "fallbacks": [{"on": ["timeout"], "model": "good"}],
        },
        "late": {"arms": {"only": {"model": "slow"}}, "patience": 0.2},
        "steady": {"arms": {"only": {"model": "long"}}, "patience": 0.3},
    }
    backends = (fake("slow", first_delay=5.0), fake("good"), fake("long", delay=0.06))
    async with operated(tmp_path, *backends, routes=routes) as house:
        began = time.monotonic()
        assert (await house.chat("quick", stream=stream)).status == 200
        late = await house.chat("late", stream=stream)
        assert (late.status, late.error["code"]) == (504, "timeout")
        assert time.monotonic() - began < 3
        steady = await house.chat("steady", stream=stream)  # takes longer than the patience, but has begun
        assert steady.status == 200


@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
async def test_what_was_made_and_never_sent_is_made_again(tmp_path: Path, path: str) -> None:
    """The patience ends while the server waits to take the beginning of an answer: the next one has a beginning of its own."""
    routes = {
        "quick": {
            "arms": {"only": {"model": "unheard"}},
            "patience": 0.6,
            "fallbacks": [{"on": ["timeout"], "model": "good"}],
        }
    }
    body = question("quick", stream=True) if path == CHAT else {"model": "quick", "input": "Why?", "stream": True}
    async with operated(tmp_path, fake("unheard"), fake("good"), routes=routes) as house:
        plain = await house.call("POST", path, {**body, "model": "good"})
        exchange = house.exchange("POST", path, body)
        exchange.stall()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run)
            await anyio.sleep(0.9)
            exchange.may_send.set()
        assert [_kinds(event) for event in _told(exchange.reply)] == [_kinds(event) for event in _told(plain)]
        assert b"unheard" not in exchange.reply.body
        assert exchange.reply.complete


def _told(reply: Reply) -> list[Any]:
    """The data of its events."""
    lines = [line for line in reply.body.decode().split("\n") if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def _kinds(event: Any) -> Any:
    return event.get("type") or sorted(event["choices"][0]["delta"])


async def test_shadows_answer_nobody(tmp_path: Path) -> None:
    routes = {
        "shown": {"arms": {"only": {"model": "a"}}, "shadow": {"model": "b>c", "texts": True}},
        "bad": {"arms": {"only": {"model": "a"}}, "shadow": {"model": "broken"}},
        "hung": {"arms": {"only": {"model": "a"}}, "shadow": {"model": "slow"}},
    }
    backends = (fake("a"), fake("b"), fake("c"), broken("broken"), fake("slow", first_delay=30.0))
    bounds = {"concurrency": 2, "seconds": 1.5}
    async with operated(tmp_path, *backends, routes=routes, shadows=bounds) as house:
        _, header = house.make_key(concurrency=1)

        async def ask(model: str) -> Any:
            return await house.call("POST", CHAT, question(model, user="u"), header)

        shown = await ask("shown")
        assert shown.json()["choices"][0]["message"]["content"].startswith("a")
        rows = {row["endpoint"]: row for row in await house.rows(2)}
        copy, original = rows["shadow"], rows[CHAT]
        assert copy["shadow_of"] == original["completion"] == shown.json()["id"]
        assert (copy["outcome"], copy["arm"], copy["wiring"], copy["key"]) == ("ok", "shadow", "b>c", None)
        assert copy["subject"] == original["subject"]
        assert copy["completion_tokens"] > 0
        assert json.loads(copy["texts"])["answers"][0].startswith("c")
        assert original["texts"] is None

        began = time.monotonic()
        assert [(await ask("bad")).status, (await ask("hung")).status] == [200, 200]
        assert time.monotonic() - began < 1.5
        assert [(await ask("hung")).status for _ in range(3)] == [200] * 3
        assert house.operations.shadows.skipped >= 2
        rows = await house.rows(2 + 2 + 4 + 2)
        copies = [row for row in rows if row["endpoint"] == "shadow"]
        assert Counter(row["error"] for row in copies) == {None: 1, "BackendUnavailable": 1, "timeout": 2}
        assert house.operations.shadows.running == 0


async def test_shadows_take_no_place_that_a_request_wants(tmp_path: Path) -> None:
    """Of a model that both use: two clients fit on its seat and into its queue, and their copies come when nobody waits."""
    routes = {"r": {"arms": {"only": {"model": "a"}}, "shadow": {"model": "a>a"}}}
    async with operated(tmp_path, fake("a", seats=1, queue=1, first_delay=0.02), routes=routes) as house:
        statuses: list[int] = []

        async def ask() -> None:
            for _ in range(6):
                statuses.append((await house.chat("r", max_tokens=1)).status)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            tasks.start_soon(ask)
        assert statuses == [200] * 12
        with anyio.fail_after(10):
            while house.operations.shadows.running:
                await anyio.sleep(0.02)
        assert house.operations.shadows.failed == 0
        assert house.operations.shadows.finished > 0


async def test_a_shutdown_ends_shadows(tmp_path: Path) -> None:
    routes = {"hung": {"arms": {"only": {"model": "a"}}, "shadow": {"model": "slow"}}}
    with anyio.fail_after(8):
        async with operated(tmp_path, fake("a"), fake("slow", first_delay=30.0), routes=routes) as house:
            assert (await house.chat("hung")).status == 200
    from gateway.ledger.tables import Tables

    outcomes = {str(row["endpoint"]): row["outcome"] for row in Tables(str(tmp_path / "ledger.db")).rows()}
    assert outcomes == {CHAT: "ok", "shadow": "abandoned"}


async def test_a_report_from_what_clients_did(tmp_path: Path) -> None:
    """Requests, feedback, report: the arm that users like better wins, once there is enough."""
    from gateway.experiments.report import report
    from gateway.ledger.tables import Tables

    async with operated(tmp_path, fake("a"), fake("b"), routes={"split": SPLIT | {"override": True}}) as house:
        for number in range(90):
            reply = await house.chat("split", user=f"user-{number}", max_tokens=2)
            good = reply.header("x-modelnet-arm") == "pair" or number % 4 == 0
            await house.call("POST", "/v1/feedback", {"id": reply.json()["id"], "score": good})
        await house.rows(90)
    tables = Tables(str(tmp_path / "ledger.db"))
    rows = list(tables.observations("split", 0, time.time() + 1))
    made = report("split", rows, 0, time.time(), arms=("plain", "pair"))
    assert made.winner == "pair"
    assert sum(arm.scored for arm in made.arms) == 90
    pair = next(arm for arm in made.arms if arm.arm == "pair")
    assert pair.tokens / pair.requests > 1.5 * made.arms[0].tokens / made.arms[0].requests
    tables.close()
