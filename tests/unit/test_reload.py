"""A changed configuration is taken over while requests run, or not at all."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from edge import Edge, Reply
from reloading import Builder, Counting, World, config, world
from structlog.testing import capture_logs

from backends.errors import BackendUnavailable
from backends.types import Vocabulary
from backends.wrappers import guard_of
from gateway.app import Application
from gateway.ledger.tables import Tables
from gateway.operations import open_operations
from gateway.reload import first_generation, open_reloader
from gateway.runtime import open_runtime
from gateway.settings import load
from gateway.web.admin import admin_app

pytestmark = pytest.mark.anyio


def said(reply: Reply) -> str:
    return str(reply.json()["choices"][0]["message"]["content"])


async def test_what_changed_is_built_and_the_rest_is_kept(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        assert said(await w.chat()) == "one"
        w.file.write_text(config("two", "aliases: {c: {expression: a>b}}"))
        outcome = await w.reloader.reload()
        assert (outcome.result, outcome.built, outcome.kept) == ("done", ("b",), ("a",))
        assert said(await w.chat()) == "two"
        assert (await w.chat("c")).status == 200
        await anyio.lowlevel.checkpoint()
        assert [len(w.open(name)) for name in "ab"] == [1, 1]


async def test_reloading_does_not_wait_for_a_vocabulary_that_does_not_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What first answers would need is worked out beside everything else; a server that hangs holds up neither a reload nor /readyz. It
    is not freed while it is asked."""
    asked, go = anyio.Event(), anyio.Event()

    async def hangs(self: Counting) -> Vocabulary:
        asked.set()
        await go.wait()
        raise BackendUnavailable(self.name, "It is gone.")

    monkeypatch.setattr(Counting, "vocabulary", hangs)
    file = tmp_path / "gateway.yaml"
    file.write_text(config())
    loaded = load(file)
    build = Builder(loaded, [], set())
    async with open_runtime(loaded, build) as runtime:
        with anyio.fail_after(5):
            await asked.wait()
        first = first_generation(loaded, runtime, Application(runtime), build)
        async with open_reloader(first, "127.0.0.1") as reloader:
            with anyio.fail_after(5):
                assert (await Edge(first.app, runtime, {}).call("GET", "/readyz")).status == 200
                file.write_text(config("two"))
                assert (await reloader.reload()).result == "done"
                await anyio.sleep(0.05)
                assert not any(backend.closed for backend in build.built)
                go.set()
                while not any(backend.closed for backend in build.built):
                    await anyio.sleep(0.01)


async def test_a_model_that_is_gone_is_freed_and_not_known_any_more(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.file.write_text('models: {a: {backend: fake, answer: "a says so"}}')
        assert (await w.reloader.reload()).dropped == ("b",)
        assert (await w.chat()).status == 404
        await anyio.sleep(0.01)
        assert not w.open("b") and w.open("a")


async def test_nothing_happens_where_nothing_changed(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        before = w.reloader.switch.current
        assert (await w.reloader.reload()).result == "unchanged"
        assert w.reloader.switch.current is before


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("models: [", "not valid YAML"),
        ("models: {b: {backend: fake, anwser: x}}", "unknown key"),
        (config(more="aliases: {c: {expression: a>nobody}}"), "nobody"),
        (config(more="prompts: {mine: gone.yaml}"), "no such file"),
        (config("two").replace("a says so", "${NOT_SET_ANYWHERE}"), "NOT_SET_ANYWHERE"),
    ],
)
async def test_a_wrong_file_changes_nothing(tmp_path: Path, text: str, why: str) -> None:
    async with world(tmp_path) as w:
        before = w.reloader.switch.current
        w.file.write_text(text)
        outcome = await w.reloader.reload()
        assert outcome.result == "failed" and why in (outcome.reason or "")
        assert w.reloader.switch.current is before
        assert said(await w.chat()) == "one"
        metrics = before.app.metrics.text().decode()
        assert 'modelnet_reloads_total{result="failed"} 1.0' in metrics and "modelnet_config_good 0.0" in metrics


async def test_a_model_that_does_not_start_changes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.broken.add("d")
        w.file.write_text(config("two", "  d: {backend: fake}"))
        outcome = await w.reloader.reload()
        assert outcome.result == "failed" and "does not start" in (outcome.reason or "")
        assert said(await w.chat()) == "one"
        assert len(w.open("b")) == 1, "the new one was freed again"
        w.broken.clear()
        assert (await w.reloader.reload()).result == "done"
        assert said(await w.chat()) == "two"


async def test_one_that_never_worked_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async with world(tmp_path, config(more="  d: {backend: fake}"), broken={"d"}) as w:
        w.file.write_text(config("two", "  d: {backend: fake}"))
        assert (await w.reloader.reload()).result == "done"
        assert said(await w.chat()) == "two" and (await w.chat("d")).status == 503
        w.broken.clear()
        w.file.write_text(config("three", "  d: {backend: fake}"))
        assert set((await w.reloader.reload()).built) == {"b", "d"}
        assert (await w.chat("d")).status == 200


async def test_a_loopback_gateway_may_lose_its_keys_and_any_other_may_not(tmp_path: Path) -> None:
    text = config(more="keys: [a-long-enough-key]")
    async with world(tmp_path, text, host="0.0.0.0") as w:
        assert (await w.chat()).status == 401
        w.file.write_text(config())
        outcome = await w.reloader.reload()
        assert outcome.result == "failed" and "keys" in (outcome.reason or "")


async def test_the_admin_key_opens_nothing_else_until_the_restart(tmp_path: Path) -> None:
    async with world(tmp_path, config(more="admin: {key: the-first-admin-key}")) as w:
        w.file.write_text(config(more="admin: {key: another-admin-key}\nkeys: [the-first-admin-key]"))
        outcome = await w.reloader.reload()
        assert (outcome.result, outcome.reason) == ("failed", "keys[0]: is the same key as admin.key")


async def test_keys_and_limits_hold_at_once(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.file.write_text(config(more="keys: [a-long-enough-key]\nlimits: {concurrent_requests: 7}"))
        assert (await w.reloader.reload()).ok
        assert (await w.chat()).status == 401
        assert "modelnet_places 7.0" in w.reloader.switch.current.app.metrics.text().decode()


async def test_what_needs_a_restart_is_said(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.file.write_text(config(more="ledger: {enabled: false}\nserver: {shutdown_seconds: 3, cors: []}"))
        assert (await w.reloader.reload()).restart == ("ledger", "server.shutdown_seconds")


async def test_what_waits_for_a_restart_is_measured_against_what_the_process_runs_with(tmp_path: Path) -> None:
    """Not against the file before: it waits until the restart, or until it is taken back."""
    key = "a-key-of-the-admin-only"
    steps = [
        (f"admin: {{key: {key}, port: 9001}}", ("admin",)),
        (f"admin: {{key: {key}, port: 9001}}\nlimits: {{messages: 7}}", ("admin",)),
        (f"admin: {{key: {key}}}\nserver: {{idle_seconds: 5}}", ("server.idle_seconds",)),
        (f"admin: {{key: {key}}}", ()),
    ]
    async with world(tmp_path, config(more=f"admin: {{key: {key}}}")) as w:
        for more, restart in steps:
            w.file.write_text(config(more=more))
            outcome = await w.reloader.reload()
            assert (outcome.result, outcome.restart) == ("done", restart), more
            outcome = await w.reloader.reload()
            assert (outcome.result, outcome.restart) == ("unchanged", restart), more


@pytest.mark.parametrize("kept", [False, True])
async def test_what_needs_a_restart_does_not_begin_or_end_before(tmp_path: Path, kept: bool) -> None:
    """Here what is private: texts in the ledger, and messages in the log."""
    states = [
        f"key_store: {{database: k.db}}\nledger: {{database: l.db, texts: {texts}}}\nserver: {{log: {{prompts: {texts}}}}}"
        for texts in ("false", "true")
    ]
    file = tmp_path / "gateway.yaml"
    file.write_text(config(more=states[kept]))
    loaded = load(file)
    build = Builder(loaded, [], set())
    async with open_runtime(loaded, build) as runtime:
        await runtime.wait_loaded()
        async with open_operations(loaded) as operations:
            runtime.operations = operations
            first = first_generation(loaded, runtime, Application(runtime), build)
            async with open_reloader(first, "127.0.0.1") as reloader:
                w = World(file, reloader, build.built, set())
                file.write_text(config("two", more=states[not kept]))
                assert (await reloader.reload()).restart == ("ledger", "server.log")
                with capture_logs() as logs:
                    assert said(await w.chat()) == "two"
    tables = Tables(str(tmp_path / "l.db"))
    (row,) = tables.rows(10)
    tables.close()
    assert (row["texts"] is not None) == kept
    assert ("Why?" in str(logs)) == kept


async def test_another_file_behind_the_same_name_is_another_model(tmp_path: Path) -> None:
    """Here a prompt set: it is read anew, and no model is."""
    prompts = tmp_path / "mine.yaml"
    shipped = Path(__file__).parents[2] / "config" / "prompts" / "default.yaml"
    prompts.write_text(shipped.read_text())
    async with world(tmp_path, config(more="prompts: {mine: mine.yaml}")) as w:
        prompts.write_text(shipped.read_text() + "\n# changed\n")
        outcome = await w.reloader.reload()
        assert (outcome.result, outcome.built) == ("done", ())


async def test_a_running_answer_stays_on_its_generation(tmp_path: Path) -> None:
    long = "one " * 30
    async with world(tmp_path, config(long, delay=0.005)) as w, anyio.create_task_group() as tasks:
        exchange = w.exchange(stream=True)
        tasks.start_soon(exchange.run)
        await exchange.until(lambda reply: "one" in reply.body.decode())
        w.file.write_text(config("two"))
        assert (await w.reloader.reload()).result == "done"
        assert said(await w.chat()) == "two"
        assert len(w.open("b")) == 2, "the old one is still in use"
        await exchange.finished.wait()
        assert exchange.reply.content() == long and exchange.reply.events()[-1] == "[DONE]"
        await anyio.sleep(0.01)
        assert [backend.settings.answer for backend in w.open("b")] == ["two"]


async def test_a_breaker_stays_as_it_is_where_the_model_does(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        guards = w.reloader.switch.current.runtime.guards
        settings = w.reloader.switch.current.loaded.settings
        a, b = guards.of(settings, "a"), guards.of(settings, "b")
        w.file.write_text(config("two"))
        assert (await w.reloader.reload()).ok
        settings = w.reloader.switch.current.loaded.settings
        assert guards.of(settings, "a") is a and guards.of(settings, "b") is not b


async def test_what_is_around_a_model_changes_without_building_it(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.file.write_text(config().replace("delay: 0.0", 'delay: 0.0, hedge_after: 0.5, description: "new"'))
        outcome = await w.reloader.reload()
        assert (outcome.result, outcome.built, outcome.kept) == ("done", (), ("a", "b"))
        guard = guard_of(w.reloader.switch.current.runtime.catalog["b"].backend)
        assert guard is not None and guard.policy.hedge_after == 0.5


async def test_the_admin_api_reloads(tmp_path: Path) -> None:
    key = "a-key-of-the-admin-only"
    async with world(tmp_path, config(more=f"admin: {{key: {key}}}")) as w:
        first = w.reloader.switch.current
        app: Any = admin_app(first.loaded, first.runtime.operations, w.reloader.reload)

        async def post(**headers: str) -> Reply:
            return await Edge(app, first.runtime, {}).call("POST", "/admin/reload", headers=headers)

        assert (await post()).status == 401
        w.file.write_text(config("two", more=f"admin: {{key: {key}}}"))
        reply = await post(authorization=f"Bearer {key}")
        assert (reply.status, reply.json()["result"], reply.json()["built"]) == (200, "done", ["b"])
        assert said(await w.chat()) == "two"
        w.file.write_text("models: [")
        reply = await post(authorization=f"Bearer {key}")
        assert (reply.status, reply.json()["result"]) == (409, "failed") and "YAML" in reply.json()["reason"]


async def test_files_are_watched(tmp_path: Path) -> None:
    async with world(tmp_path) as w, anyio.create_task_group() as tasks:
        tasks.start_soon(w.reloader.watch, 0.02)
        for text in ("models: [", config("three")):
            await anyio.sleep(0.05)
            w.file.write_text(text)
        with anyio.fail_after(5):
            while said(await w.chat()) != "three":
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()


async def test_a_hundred_reloads_under_load_lose_no_request(tmp_path: Path) -> None:
    """A third of them broken. Every answer is whole, and of one configuration that was served."""
    chance = random.Random(6)
    served = {"0 zero"}
    async with world(tmp_path, config("0 zero", delay=0.002)) as w:
        done: list[str] = []
        going = True

        async def client(number: int) -> None:
            while going:
                stream = number % 2 == 0
                wiring = ("b", "a>b", "a|b", "b>a|b")[number // 2 % 4]
                reply = await w.chat(wiring, stream=stream)
                assert reply.status == 200, reply.body
                if stream:
                    assert reply.events()[-1] == "[DONE]"
                if wiring in ("b", "a>b"):
                    done.append(reply.content() if stream else said(reply))
                else:
                    done.append("")

        results = []
        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(client, number)
            for number in range(1, 101):
                answered = len(done)
                while len(done) == answered:  # however slow the machine is, there is something to lose
                    await anyio.sleep(0.001)
                kind = chance.choice(["good", "good", "broken", "unstartable", "good"])
                answer = f"{number} " + "word " * chance.randrange(9)
                if kind == "broken":
                    w.file.write_text(chance.choice(["models: [", "nonsense: 1", config("x", "aliases: {a: 3}")]))
                elif kind == "unstartable":
                    w.broken.add("d")
                    w.file.write_text(config(answer, "  d: {backend: fake}", delay=0.002))
                else:
                    served.add(answer)
                    w.file.write_text(config(answer, delay=0.002))
                results.append((await w.reloader.reload()).result)
                assert results[-1] == ("done" if kind == "good" else "failed")
            going = False
        assert results.count("done") > 40 and results.count("failed") > 20
        assert len(done) >= 100 and len(set(done)) > 10
        assert set(done) <= served | {""}
        await anyio.sleep(0.05)
        assert [len(w.open(name)) for name in "ab"] == [1, 1]
        assert len([backend for backend in w.built if backend.name == "a"]) == 1, "a never changed"
        assert len(w.reloader._live) == 1
