"""`modelnet top`: reading metrics, and the view of a gateway that was used."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import StringIO

import anyio
import pytest
from aiohttp import web
from edge import Edge, edge, fake
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest
from rich.console import Console
from typer.testing import CliRunner

from backends.fake import Fault
from gateway.cli import top as cli
from gateway.cli.commands import app
from gateway.observability.scrape import NOTHING, Between, Snapshot

BUCKETS = (0.1, 0.2, 0.5, 1.0, 5.0)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def snapshot(registry: CollectorRegistry, at: float = 0.0) -> Snapshot:
    return Snapshot.of(generate_latest(registry).decode(), at)


def test_counts_and_rates_between_two_looks(registry: CollectorRegistry) -> None:
    counter = Counter("things", "", ["kind", "who"], registry=registry)
    counter.labels("a", "x").inc(3)
    counter.labels("b", "x").inc(10)
    before = snapshot(registry, 100.0)
    counter.labels("a", "x").inc(4)
    counter.labels("a", "y").inc(2)
    between = Between(before, snapshot(registry, 104.0), 4.0)
    assert between.count("things_total") == 6
    assert between.count("things_total", kind="a") == 6
    assert between.rate("things_total", who="y") == 0.5
    assert between.share("things_total", {"who": "y"}) == pytest.approx(1 / 3)
    assert between.share("things_total", {"who": "y"}, kind="b") is None
    assert between.now.label("things_total", "who") == ["x", "y"]
    assert between.count("nothing_total") == 0 and between.rate("nothing_total") == 0


def test_a_gateway_that_was_started_anew_counts_from_zero(registry: CollectorRegistry) -> None:
    Counter("things", "", registry=registry).inc(100)
    later = CollectorRegistry()
    Counter("things", "", registry=later).inc(7)
    assert Between(snapshot(registry), snapshot(later), 1.0).count("things_total") == 7


def test_quantiles_are_within_a_bucket_of_the_truth(registry: CollectorRegistry) -> None:
    chance = random.Random(1)
    histogram = Histogram("seconds", "", ["model"], buckets=BUCKETS, registry=registry)
    for _ in range(500):
        histogram.labels("a").observe(4.9)  # before: must not count
    before = snapshot(registry)
    values = sorted(chance.uniform(0, 1) for _ in range(2000))
    for value in values:
        histogram.labels("a").observe(value)
    between = Between(before, snapshot(registry), 1.0)
    for q in (0.05, 0.5, 0.9, 0.99):
        truth = values[int(q * len(values))]
        bucket = next(bound for bound in BUCKETS if truth <= bound)
        found = between.quantile("seconds", q, model="a")
        assert found is not None and abs(found - truth) < bucket / 2
    assert between.quantile("seconds", 0.5, model="b") is None
    histogram.labels("b").observe(99.0)
    assert Between(NOTHING, snapshot(registry), 1.0).quantile("seconds", 0.5, model="b") == 5.0, "all that is known"


# The view


async def used(e: Edge) -> None:
    for wiring in ("a", "a>b", "a|b", "broken", "broken"):
        await e.chat(wiring, stream=True)


def shown(e: Edge, before: Snapshot = NOTHING, width: int = 160) -> str:
    now = Snapshot.of(e.app.metrics.text().decode(), 10.0)
    console = Console(width=width, record=True, file=StringIO())
    console.print(cli.view("http://[::1]:8000", Between(before, now, 10.0), "since it began"))
    return console.export_text()


@pytest.mark.anyio
async def test_models_can_be_told_apart_on_a_narrow_terminal() -> None:
    names = [f"qwen-{number}" for number in range(3)]
    async with edge(*map(fake, names), fake("broken", faults=(Fault(on="enter"),))) as e:
        for name in (*names, "broken"):
            await e.chat(name)
        text = shown(e, width=80)
        assert all(re.search(rf"^{name} +ready +closed ", text, re.MULTILINE) for name in names), text
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= 80


@pytest.mark.anyio
async def test_it_shows_what_happened() -> None:
    broken = fake("broken", faults=(Fault(on="enter"),))
    async with edge(fake("a"), fake("b"), broken, resilience={"breaker": {"least": 2}}) as e:
        await used(e)
        lines: dict[str, list[str]] = {}
        for line in shown(e).splitlines():
            if words := line.split():
                lines.setdefault(words[0], words)  # models come first
        text = shown(e)
        assert "0.5 requests/s" in text and "40.0 % failed" in text and "0 under way of 256" in text
        assert lines["a"][1:3] == ["ready", "closed"] and lines["broken"][1:3] == ["ready", "open"]
        assert lines["a|b"][1:4] == ["0.10", "0.0", "%"]
        assert "slowest member" in text and "certified" in text
        assert "draining" not in text
        e.app.begin_drain()
        assert "it is draining" in shown(e)


@pytest.mark.anyio
async def test_a_gateway_that_did_nothing_yet_is_shown_too() -> None:
    async with edge(fake("a")) as e:
        assert "0.0 requests/s" in shown(e) and "http://[::1]:8000" in shown(e)


# The command


@asynccontextmanager
async def metrics_of(answers: list[tuple[int, str]], heard: list[str | None] | None = None) -> AsyncIterator[str]:
    """A server with these answers at /metrics, the last one for ever."""

    async def handler(request: web.Request) -> web.Response:
        if heard is not None:
            heard.append(request.headers.get("authorization"))
        status, text = answers.pop(0) if len(answers) > 1 else answers[0]
        return web.Response(status=status, text=text)

    site = web.Application()
    site.router.add_get("/metrics", handler)
    runner = web.AppRunner(site, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def run(*arguments: str) -> tuple[int, str, str]:
    result = await anyio.to_thread.run_sync(lambda: CliRunner().invoke(app, ["top", *arguments]))
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.anyio
async def test_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELNET_API_KEY", "a-key-from-the-environment")
    monkeypatch.setenv("COLUMNS", "150")
    async with edge(fake("a")) as e:
        await e.chat("a")
        text, heard = e.app.metrics.text().decode(), []
        async with metrics_of([(200, text)], heard) as url:
            code, out, _ = await run(url, "--once")
    assert code == 0 and "requests/s" in out and "since it began" in out
    assert heard == ["Bearer a-key-from-the-environment"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "text", "said"),
    [(401, "", "wants a key"), (200, "hello", "is not of a ModelNet gateway"), (404, "", "status 404")],
)
async def test_what_can_not_be_shown_is_said(status: int, text: str, said: str) -> None:
    async with metrics_of([(status, text)]) as url:
        code, _, err = await run(url)
    assert code == 1 and said in err and "Traceback" not in err
    code, _, err = await run("http://127.0.0.1:9", "--once")
    assert code == 1 and "can't be reached" in err


@pytest.mark.anyio
async def test_live_it_survives_a_gateway_that_is_away_for_a_moment() -> None:
    async with edge(fake("a")) as e:
        text = e.app.metrics.text().decode()
    console = Console(width=150, record=True, force_terminal=False, file=StringIO())
    async with metrics_of([(200, text), (200, text), (503, ""), (200, text)]) as url:
        with anyio.move_on_after(1.0):
            await cli._live(console, url, 0.1, None)
    assert "requests/s" in console.export_text()
