"""One sitting of `modelnet eval`: read, check, estimate, ask, report."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import anyio
from rich.console import Console

import gateway
from gateway.bench import machine
from gateway.evaluation import runner
from gateway.evaluation.checker import Checker, available
from gateway.evaluation.client import Client, open_client
from gateway.evaluation.cost import estimate
from gateway.evaluation.errors import SpecError
from gateway.evaluation.own_gateway import own_gateway
from gateway.evaluation.progress import Progress, plan_table
from gateway.evaluation.runner import Budget, Sitting
from gateway.evaluation.sources import Task, read_task
from gateway.evaluation.spec import Settings, Spec, make_paths
from gateway.evaluation.store import open_store, read_answers, write_run
from gateway.settings import Loaded
from gateway.settings.prompts import load_prompts
from strategies.evaluation.paths import Path as WiringPath
from strategies.evaluation.paths import path_of
from strategies.evaluation.records import Answers
from strategies.evaluation.summary import Price


@dataclass(frozen=True, slots=True)
class Order:
    """What the command line asks for. base_url: a running gateway; else one is started from `loaded`."""

    tasks: Sequence[str]
    models: Sequence[str]
    structures: Sequence[str]
    wirings: Sequence[str]
    settings: Settings
    out: Path | None
    loaded: Loaded | None = None
    base_url: str | None = None
    key: str | None = None
    count: int | None = None
    sample: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    concurrency: int = 1
    budget: Budget = field(default_factory=Budget)
    prices: Mapping[str, Price] = field(default_factory=dict)
    check_symmetry: int = 0
    plan_only: bool = False
    probe: bool = False
    corresponds: Mapping[str, str] = field(default_factory=dict)
    command: str = ""


def spec_of(order: Order) -> Spec:
    """Everything that can be read and checked without a gateway. Raises SpecError, TopologyError."""
    seed = order.settings.seed
    tasks = tuple(read_task(text, order.count, seed, order.columns, order.sample) for text in order.tasks)
    if len({task.name for task in tasks}) != len(tasks):
        raise SpecError("two tasks have the same name; give one of them another: Name=source")
    kinds = {q.kind for task in tasks for q in task.questions}
    if "expression" in kinds and not available():
        raise SpecError(
            "some answers are expressions, which are compared up to algebra: pip install 'modelnet-gateway[eval]'"
        )
    if "judge" in kinds and order.settings.judge is None:
        raise SpecError("some answers need a judging model: name one with --judge")
    paths = make_paths(order.models, order.structures, order.wirings)
    notes: dict[str, object] = {"version": gateway.__version__, "command": order.command}
    if order.corresponds:
        notes["corresponds"] = dict(order.corresponds)
    if order.prices:
        notes["prices"] = {m: [p.prompt, p.completion] for m, p in order.prices.items()}
    return Spec(tasks, paths, order.settings, tuple(order.models), order.check_symmetry, notes)


def directory_of(order: Order, spec: Spec) -> Path:
    """Where the run is kept: the same for the same tasks, wirings and settings."""
    return order.out or Path(".eval") / f"{spec.tasks[0].name.lower()}-{spec.digest()}"


async def sit(order: Order, console: Console) -> tuple[Path, Sitting | None]:
    """Raises EvaluationError's kinds, TopologyError. The directory, and how far this sitting came; None of a plan."""
    spec = spec_of(order)
    directory = directory_of(order, spec)
    if order.plan_only and not order.probe:
        held = directory / "answers.jsonl"
        answers = read_answers(held) if held.exists() else Answers()
        console.print(plan_table(spec, *estimate(spec, answers, order.concurrency, order.prices), order.concurrency))
        return directory, None
    async with _client(order) as client:
        wanted = [*spec.wirings, *(spec.mirrors if spec.mirrored else ()), *_judge(spec)]
        meanings = await runner.preflight(client, wanted)
        spec = replace(spec, paths=tuple(_meant(path, meanings) for path in spec.paths))
        _check_prices(order, meanings)
        here = _machine()
        this = {
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "concurrency": order.concurrency,
            "machine": here,
        }
        notes = {**spec.notes, "machine": here, "means": _means(order, meanings), "sittings": [this]}
        with open_store(directory) as store, Checker() as checker:
            write_run(directory, replace(spec, notes=notes), store.answers)
            if store.cut:
                console.print(
                    f"[dim]{store.cut} bytes of an answer that was being written when the last sitting ended: cut off[/]"
                )
            if order.plan_only:
                probe = _probe(spec)
                await runner.run(client, probe, store, equal=checker.equal, prices=dict(order.prices))
                console.print(
                    plan_table(spec, *estimate(spec, store.answers, order.concurrency, order.prices), order.concurrency)
                )
                return directory, None
            state = Sitting(0, 0)
            with Progress(console, spec, store, state) as progress:
                await runner.run(
                    client, spec, store,
                    concurrency=order.concurrency, budget=order.budget, prices=dict(order.prices),
                    equal=checker.equal, tell=progress.tell, sitting=state, meanings=meanings,
                )  # fmt: skip
            return directory, state


_OF_A_MODEL = (
    "backend", "weights", "path", "model", "chat_template", "temperature", "top_p", "repack", "batching", "answer", "rules", "seed",
)  # fmt: skip
"""What an embedded or scripted model's answers depend on, of its settings."""


def _means(order: Order, meanings: Mapping[str, str]) -> dict[str, str]:
    """What names stand for in this sitting: answers of the next one belong beside these only if they stand for the same. Of a gateway that
    runs elsewhere no more than its aliases is known."""
    found = {f"alias {name}": meaning for name, meaning in meanings.items() if meaning != name}
    if order.loaded is not None:
        models = {name for meaning in meanings.values() for name in path_of(meaning).order}
        for name in sorted(models & order.loaded.settings.models.keys()):
            settings = order.loaded.settings.models[name]
            found[f"model {name}"] = _digest({key: getattr(settings, key, None) for key in _OF_A_MODEL})
        if prompts := load_prompts(order.loaded).get(order.settings.prompts):
            found[f"prompt set {order.settings.prompts}"] = _digest(prompts)
    return found


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]


def _check_prices(order: Order, meanings: Mapping[str, str]) -> None:
    """A budget of money binds only if every model that answers or judges has a price. Raises SpecError."""
    if order.budget.money is None:
        return
    asked = {name for meaning in meanings.values() for name in path_of(meaning).order}
    if missing := sorted(asked - order.prices.keys()):
        raise SpecError(
            f"--budget-money needs a price for every model; there is none for {', '.join(missing)}: --price MODEL=READ/WRITTEN"
        )


def _meant(path: WiringPath, meanings: Mapping[str, str]) -> WiringPath:
    """An alias has the structure and the models of what it stands for."""
    meaning = path_of(meanings.get(path.wiring, path.wiring))
    return replace(path, structure=meaning.structure, order=meaning.order)


def _probe(spec: Spec) -> Spec:
    """The first question of the first task, to every model by itself; what it answers counts."""
    names = list(dict.fromkeys(name for path in spec.paths for name in path.order))
    task = Task(spec.tasks[0].name, spec.tasks[0].source, spec.tasks[0].questions[:1])
    return Spec((task,), make_paths((), (), names), spec.settings, spec.models)


def _judge(spec: Spec) -> list[str]:
    return [spec.settings.judge] if spec.settings.judge else []


def _machine() -> dict[str, object]:
    here = machine.look()
    code = machine.commit()
    return {
        "cpu": here.cpu, "cores": here.cores, "system": here.system, "load": here.load and here.load[0],
        "commit": None if code is None else code.id + (" and changes" if code.dirty else ""),
    }  # fmt: skip


@asynccontextmanager
async def _client(order: Order) -> AsyncIterator[Client]:
    if order.base_url is not None:
        async with open_client(order.base_url, order.key) as client:
            yield client
    else:
        assert order.loaded is not None
        async with own_gateway(order.loaded) as (base, key), open_client(base, key) as client:
            yield client


def run(order: Order, console: Console) -> tuple[Path, Sitting | None]:
    """`sit`, from the outside of an event loop."""

    async def main() -> tuple[Path, Sitting | None]:
        return await sit(order, console)

    return anyio.run(main, backend_options={"use_uvloop": sys.platform != "win32"})
