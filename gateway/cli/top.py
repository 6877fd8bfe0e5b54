"""`modelnet top`: what a running gateway does, live in the terminal, from its /metrics."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping

import aiohttp
import anyio
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gateway.cli.check import say
from gateway.observability.scrape import NOTHING, Between, Snapshot

WINDOW = 15.0
"""Seconds that rates and quantiles are taken over."""
MOST_WIRINGS = 8
_BREAKERS = {0: ("closed", "green"), 1: ("half\u00a0open", "yellow"), 2: ("open", "red")}


class Unreadable(Exception):
    """The gateway can't be looked at; the text says why."""


def top(url: str, once: bool, interval: float, key: str | None) -> int:
    """Show it until interrupted, or once. Returns the exit code."""
    console = Console(highlight=False)
    try:
        return anyio.run(_once if once else _live, console, url.rstrip("/"), interval, key)
    except Unreadable as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 0


async def _once(console: Console, url: str, interval: float, key: str | None) -> int:
    """Since the gateway began."""
    async with _session(key) as http:
        now = await _read(http, url)
    started = now.total("process_start_time_seconds")
    seconds = time.time() - started if started else 0.0
    console.print(view(url, Between(NOTHING, now, seconds), "since it began"))
    return 0


async def _live(console: Console, url: str, interval: float, key: str | None) -> int:
    seen: deque[Snapshot] = deque()
    shown: RenderableType = Text(f"{url}: looking …")
    async with _session(key) as http:
        seen.append(await _read(http, url))  # what is wrong from the beginning is said, and that is all
        with Live(shown, console=console, screen=console.is_terminal, auto_refresh=False) as live:
            while True:
                await asyncio.sleep(interval)
                try:
                    seen.append(await _read(http, url))
                except Unreadable as error:
                    live.update(Group(Text(str(error), style="red"), shown), refresh=True)
                    continue
                while len(seen) > 2 and seen[-1].at - seen[0].at > WINDOW:
                    seen.popleft()
                between = Between(seen[0], seen[-1], seen[-1].at - seen[0].at)
                shown = view(url, between, f"the last {between.seconds:.0f} s")
                live.update(shown, refresh=True)


def _session(key: str | None) -> aiohttp.ClientSession:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=10), trust_env=False)


async def _read(http: aiohttp.ClientSession, url: str) -> Snapshot:
    """Raises Unreadable."""
    try:
        async with http.get(f"{url}/metrics", allow_redirects=False) as answer:
            text = await answer.text()
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise Unreadable(f"{url} can't be reached ({type(error).__name__})") from error
    if answer.status == 401:
        raise Unreadable(f"{url} wants a key: put one into the environment variable MODELNET_API_KEY")
    if answer.status != 200 or "modelnet_info" not in text:
        raise Unreadable(f"{url}/metrics is not of a ModelNet gateway (status {answer.status})")
    try:
        return Snapshot.of(text, time.monotonic())
    except ValueError as error:
        raise Unreadable(f"{url}/metrics can't be read") from error


def view(url: str, between: Between, over: str) -> RenderableType:
    """All of it."""
    parts: list[RenderableType] = [_head(url, between, over), _models(between)]
    if between.now.values.get("modelnet_wiring_requests_total"):
        parts.append(_wirings(between))
    if between.now.total("modelnet_fused_pieces_total"):
        parts.append(_fusion(between))
    return Group(*parts)


def _head(url: str, between: Between, over: str) -> Panel:
    now = between.now
    version = (now.label("modelnet_info", "version") or ["?"])[0]
    whole = between.count("modelnet_requests_total")
    failed = sum(
        between.count("modelnet_requests_total", status=status)
        for status in now.label("modelnet_requests_total", "status")
        if status.startswith("5")
    )
    grid = Table.grid(padding=(0, 3))
    grid.add_row(
        f"[bold]{between.rate('modelnet_requests_total'):.1f}[/] requests/s",
        f"{100 * failed / whole if whole else 0:.1f} % failed",
        f"{now.total('modelnet_active_requests'):.0f} under way of {now.total('modelnet_places'):.0f}",
        f"{now.total('modelnet_active_streams'):.0f} streams",
        f"{between.rate('modelnet_tokens_total', direction='completion'):.1f} tokens/s",
    )
    times = Table.grid(padding=(0, 3))
    for title, name in (
        ("first token", "modelnet_first_token_seconds"),
        ("between tokens", "modelnet_inter_token_seconds"),
        ("whole request", "modelnet_request_seconds"),
    ):
        times.add_row(title, *(f"p{q:.0%}"[:-1] + f" {_time(between.quantile(name, q))}" for q in (0.5, 0.95, 0.99)))
    notes = [text for text, is_so in _notes(between) if is_so]
    body = Group(grid, times, *(Text(note, style="red") for note in notes))
    return Panel(body, title=f"{escape(url)}  [dim]{version}, {over}[/]", title_align="left")


def _notes(between: Between) -> list[tuple[str, bool]]:
    now = between.now
    return [
        ("it is draining", now.total("modelnet_draining") > 0),
        ("the last reload failed: the configuration from before is served", now.total("modelnet_config_good") < 1),
        ("the ledger can't be written", now.total("modelnet_ledger_failing") > 0),
        ("rows of the ledger are lost", between.count("modelnet_ledger_dropped_total") > 0),
        ("the shared limits can't be asked", now.total("modelnet_limits_down") > 0),
        (
            f"refused for want of places: {between.rate('modelnet_shed_total'):.1f}/s",
            between.count("modelnet_shed_total") > 0,
        ),
    ]


def _models(between: Between) -> Table:
    table = _table(
        "model",
        "state",
        "breaker",
        "tokens /s",
        "first p95",
        "between p50",
        "errors /s",
        "again /s",
        "busy",
        "queue",
        "out",
    )
    now = between.now
    for model in now.label("modelnet_model_ready", "model"):
        ready = now.total("modelnet_model_ready", model=model) > 0
        breaker, colour = _BREAKERS[int(now.total("modelnet_breaker_state", model=model))]
        step = between.quantile("modelnet_member_step_seconds", 0.5, model=model)
        out, servers = (now.total(f"modelnet_replicas{end}", model=model) for end in ("_out", ""))
        table.add_row(
            model,
            "[green]ready[/]" if ready else "[red]not\u00a0ready[/]",
            f"[{colour}]{breaker}[/]" if ready else "",
            f"{between.rate('modelnet_tokens_total', model=model, direction='completion'):.1f}",
            _time(between.quantile("modelnet_model_first_token_seconds", 0.95, model=model)),
            _time(between.quantile("modelnet_model_inter_token_seconds", 0.5, model=model) or step),
            _rate(between.rate("modelnet_backend_errors_total", model=model)),
            _rate(between.rate("modelnet_retries_total", model=model)),
            f"{now.total('modelnet_seats_taken', model=model):.0f}",
            _rate(now.total("modelnet_queue", model=model)),
            f"{out:.0f}/{servers:.0f}" if servers else "",
        )
    return table


def _wirings(between: Between) -> Table:
    table = _table("wiring", "requests/s", "failed", "first p95", "whole p95")
    name = "modelnet_wiring_requests_total"
    counts: Mapping[str, float] = {
        wiring: between.count(name, wiring=wiring) for wiring in between.now.label(name, "wiring")
    }
    for wiring in sorted(counts, key=lambda wiring: (-counts[wiring], wiring))[:MOST_WIRINGS]:
        failed = between.share(name, {"outcome": "error"}, wiring=wiring)
        table.add_row(
            wiring,
            f"{between.rate(name, wiring=wiring):.2f}",
            "" if failed is None else f"{100 * failed:.1f} %",
            _time(between.quantile("modelnet_wiring_first_token_seconds", 0.95, wiring=wiring)),
            _time(between.quantile("modelnet_wiring_seconds", 0.95, wiring=wiring)),
        )
    return table


def _fusion(between: Between) -> Table:
    name = "modelnet_fused_pieces_total"
    table = _table("pieces/s", "certified", "looked up", "uncertified", "without a member", "slowest member")
    slowest = {
        model: between.count("modelnet_slowest_member_total", model=model)
        for model in between.now.label("modelnet_slowest_member_total", "model")
    }
    whole = between.count(name)
    degraded = between.count("modelnet_fused_degraded_pieces_total")
    shares = [between.share(name, {"verdict": verdict}) for verdict in ("certified", "looked_up", "uncertified")]
    table.add_row(
        f"{between.rate(name):.1f}",
        *("" if share is None else f"{100 * share:.1f} %" for share in shares),
        f"{100 * degraded / whole:.1f} %" if whole else "",
        max(slowest, key=lambda model: slowest[model]) if any(slowest.values()) else "",
    )
    return table


def _table(first: str, *others: str) -> Table:
    """On 80 columns names stay readable: titles go onto two lines, names of more than 12 characters are cut there."""
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first, overflow="ellipsis", min_width=12, max_width=48, no_wrap=True)
    for other in others:
        table.add_column(other, justify="right")
    return table


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{1000 * seconds:.0f}\u00a0ms" if seconds < 1 else f"{seconds:.1f}\u00a0s"


def _rate(value: float) -> str:
    return f"[red]{value:.2g}[/]" if value else "0"
