"""`modelnet bench`: how fast the models are alone and together, and what our own code takes of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from rich.console import Console

from backends.catalog import Catalog
from backends.errors import BackendError
from gateway import __version__
from gateway.bench import machine, memory, own, speed
from gateway.bench.report import Number, Report, comparison, read, tables
from gateway.bench.tape import ReplayDiffers, Tape, record
from gateway.cli.check import complain, read_config, say
from gateway.observability.logs import setup_logs
from gateway.runtime import Build, ModelNotReady, NothingLoaded, Prepared, Runtime, open_runtime
from gateway.settings import Loaded, SettingsError
from strategies.planning.plan import FusedStage, branches
from strategies.topology import TopologyError

TARGET_K = 20
"""Own code is measured at this k, besides the configuration's."""


@dataclass(frozen=True, slots=True)
class Effort:
    """tokens: of every answer. rounds: of answers. replays: of each recorded answer."""

    tokens: int
    rounds: int
    replays: int


FULL, QUICK = Effort(64, 3, 40), Effort(24, 1, 10)


def bench(
    config: Path | None, wirings: Sequence[str], tokens: int | None, rounds: int | None, quick: bool, out: Path,
    against: Path | None,
) -> int:  # fmt: skip
    """Measure, show, write. Without wirings: see `default_groups`. Returns the exit code."""
    setup_logs("warning", "console")
    base = QUICK if quick else FULL
    effort = replace(base, tokens=tokens or base.tokens, rounds=rounds or base.rounds)
    try:
        loaded = read_config(config)
        earlier = None if against is None else read(against)
    except (SettingsError, OSError, ValueError) as error:
        return complain(error)
    try:
        report = anyio.run(
            partial(measure, loaded, wirings, effort), backend_options={"use_uvloop": sys.platform != "win32"}
        )
        report.write(out)
    except (NothingLoaded, ModelNotReady, BackendError, ReplayDiffers, OSError) as error:
        say(str(error))
        return 1
    except TopologyError as error:
        return complain(error)
    console = Console(highlight=False)
    console.print(tables(report))
    if earlier is not None:
        console.print()
        console.print(comparison(report, earlier))
    console.print(f"\nwritten to {out}", soft_wrap=True, markup=False)
    return 0


async def measure(loaded: Loaded, wirings: Sequence[str], effort: Effort, build: Build | None = None) -> Report:
    """A whole run. build: as in `open_runtime`. Raises what the runtime and the backends raise, and ReplayDiffers."""
    here, code, began = machine.look(), machine.commit(), datetime.now(UTC)
    before = memory.look()
    async with open_runtime(loaded, build) as runtime:
        say(f"loading {', '.join(loaded.settings.models)}")
        await runtime.wait_loaded()
        for name, status in runtime.statuses.items():
            if status.state != "ready":
                say(f"left out: {name} {status.reason}")
        after_loading = memory.look()
        alone, groups = await _wirings(runtime, wirings, effort.tokens)
        rounds = await speed.measure([*alone, *groups], runtime.catalog, effort.rounds, say)
        found = speed.numbers(rounds)
        texts = {}
        for prepared in groups:
            for tape in await _tapes(prepared, runtime.catalog):
                found += await own.measure(tape, prepared.wiring, effort.replays, say)
                texts[f"{prepared.wiring}, k {tape.options.top_k}"] = tape.text
        found += memory.numbers(before, after_loading, memory.look())
    settings = _settings(loaded, [p.wiring for p in (*alone, *groups)], effort)
    return Report(__version__, began.isoformat(timespec="seconds"), code, here, settings, _unique(found), texts)


def _settings(loaded: Loaded, wirings: Sequence[str], effort: Effort) -> dict[str, Any]:
    return {
        "config": loaded.file.name,
        "wirings": list(wirings),
        "question": speed.QUESTION,
        "tokens": effort.tokens,
        "rounds": effort.rounds,
        "replays": effort.replays,
        "top_k": loaded.settings.limits.top_k,
    }


def _unique(numbers: Sequence[Number]) -> tuple[Number, ...]:
    return tuple({(n.measure, n.of, n.k): n for n in numbers}.values())


async def _wirings(runtime: Runtime, asked: Sequence[str], tokens: int) -> tuple[list[Prepared], list[Prepared]]:
    """Every wiring once, prepared: single models that they end in, and the wirings themselves."""
    ready = [name for name in runtime.settings.models if name in runtime.catalog]
    names = list(asked) or await default_groups(runtime.catalog, ready)
    chosen = [speed.prepare(runtime, name, tokens) for name in names]
    ends = [branch.model for prepared in chosen for branch in branches(prepared.plan.stages[-1])]
    singles = [speed.prepare(runtime, name, tokens) for name in dict.fromkeys(ends or ready)]
    alone = {prepared.wiring: prepared for prepared in singles}
    groups = {prepared.wiring: prepared for prepared in chosen if prepared.wiring not in alone}
    return [*alone.values()], [*groups.values()]


async def default_groups(catalog: Catalog, names: Sequence[str]) -> list[str]:
    """Two models of different tokenizers, two of the same, and three (of different tokenizers, if there are so many).

    The first of `names` that open token sessions and fit; what there is not is left out.
    """
    kinds: dict[str, list[str]] = {}
    for name in names:
        if (backend := catalog[name].token_backend()) is not None:
            kinds.setdefault((await backend.vocabulary()).fingerprint, []).append(name)
    different = [alike[0] for alike in kinds.values()]
    same = next((alike[:2] for alike in kinds.values() if len(alike) > 1), [])
    three = different[:3] if len(different) > 2 else [name for alike in kinds.values() for name in alike][:3]
    groups = [different[:2], same, three]
    wanted = [2, 2, 3]
    return ["|".join(group) for group, size in zip(groups, wanted, strict=True) if len(group) == size]


async def _tapes(prepared: Prepared, catalog: Catalog) -> list[Tape]:
    """The wiring's answer recorded at each k of interest; nothing where it is more than one group."""
    plan, options = prepared.plan, prepared.options
    if len(plan.stages) > 1 or not isinstance(plan.stages[0], FusedStage):
        return []
    say(f"recording {prepared.wiring}")
    return [await record(plan, replace(options, top_k=k), catalog) for k in sorted({TARGET_K, options.top_k})]
