"""The composition root: a configuration becomes started backends, aliases, prompt sets and limits.

    async with open_runtime(loaded) as runtime:
        await runtime.wait_loaded()          # raises NothingLoaded if no model could be started
        prepared = runtime.prepare("s2p:qwen>smol|gemma", sampling, extra)

Models load side by side while the server already answers probes. One that fails is contained: it is shown as failed, and
wirings that use it are refused with the reason. Leaving the block stops what is loading and frees every model.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import anyio
import structlog

from backends.catalog import Catalog, Entry
from backends.errors import BackendError
from backends.types import Sampling
from backends.wrappers import guarded
from gateway.abilities import NOTHING, Asked, CantHonour, fit
from gateway.operations import Operations
from gateway.resilience import Guards
from gateway.settings import Loaded, Settings
from gateway.settings.check import routes, wiring_limits
from gateway.settings.prompts import load_prompts
from gateway.weights import WeightsError, caches
from strategies.engine import Options
from strategies.engine.warming import warm
from strategies.planning import Plan, plan
from strategies.prompting import PromptSet
from strategies.routing import Alias, Route, resolve
from strategies.topology import Limits, TopologyError, models
from strategies.topology import format as write
from strategies.vocabulary import keep_in

State = Literal["loading", "ready", "failed", "stopping"]

PROBE_SECONDS = 2.0
"""How long a readiness probe waits for one model."""

WARM_SECONDS = 10.0
"""For asking models for their vocabularies again, which they have by then: more than that only where a server is away."""

log = structlog.get_logger("modelnet.runtime")


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """Where a model stands. reason: why it can't serve, for clients to read; None when ready. seconds: what loading took."""

    state: State
    reason: str | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that running a request takes.

    wiring: canonical, aliases expanded.
    """

    plan: Plan
    wiring: str
    options: Options


def failed(error: Exception) -> ModelStatus:
    """Of a model that could not be built. What a library says of its failure may hold paths and hosts: that is for the log."""
    known = isinstance(error, BackendError | WeightsError)
    return ModelStatus("failed", str(error) if known else "an unexpected error; the log says more")


class ModelNotReady(Exception):
    """A model of the wiring can't serve. `status` says why."""

    def __init__(self, model: str, status: ModelStatus) -> None:
        how = {"failed": f"could not be started: {status.reason}"}.get(status.state, f"is {status.state}.")
        super().__init__(f"Model {model!r} {how}")
        self.model = model
        self.status = status


class NothingLoaded(Exception):
    """No model at all could be started. `reasons`: model → why."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__("no model could be started:" + "".join(f"\n  {name}: {why}" for name, why in reasons.items()))
        self.reasons = reasons


Build = Callable[[str], Awaitable[Entry]]
"""Model name → entry whose backend has been started. Raises BackendError, WeightsError, or anything else."""


class _Use:
    """A block that is counted. One object serves all of them: every request enters it."""

    __slots__ = ("_count",)

    def __init__(self, count: Callable[[int], None]) -> None:
        self._count = count

    def __enter__(self) -> None:
        self._count(1)

    def __exit__(self, *raised: object) -> None:
        self._count(-1)


class Runtime:
    """What the edge works with. Changes only through loading and stopping.

    before: the one whose place it is to take, after a reload; what the process has once is handed on.
    """

    def __init__(self, settings: Settings, prompts: Mapping[str, PromptSet], before: Runtime | None = None) -> None:
        self.settings = settings
        self.prompts = prompts
        self.aliases: Mapping[str, Alias] = routes(settings)
        self.limits: Limits = wiring_limits(settings)
        self.created = int(time.time())
        self.operations: Operations = Operations(settings) if before is None else before.operations
        self.guards: Guards = Guards() if before is None else before.guards
        self.catalog = Catalog({})
        self._status = {name: ModelStatus("loading", "is still loading") for name in settings.models}
        self._loaded = anyio.Event()
        self._warm = anyio.Event()
        self._users = 0
        self._left = anyio.Event()
        self._use = _Use(self._used)

    def in_use(self) -> AbstractContextManager[None]:
        """For as long as something may call its models."""
        return self._use

    def _used(self, change: int) -> None:
        self._users += change
        if not self._users:
            self._left.set()

    async def unused(self) -> None:
        """Until nothing uses it. For one that nobody begins to use any more."""
        while self._users:
            self._left = anyio.Event()
            await self._left.wait()

    @property
    def statuses(self) -> Mapping[str, ModelStatus]:
        """Model → where it stands, in the order of the configuration."""
        return self._status

    async def wait_settled(self) -> None:
        """Until no model is loading any more: requests are served from then on, and quickly from `wait_loaded` on."""
        await self._loaded.wait()

    async def wait_loaded(self) -> None:
        """Until no model is loading any more, and first answers wait for nothing that could be had before. Raises NothingLoaded."""
        await self._warm.wait()
        if all(status.state == "failed" for status in self._status.values()):
            raise NothingLoaded({name: status.reason or "" for name, status in self._status.items()})

    def route(self, model: str) -> Route:
        """What a model name means. Raises TopologyError and its kinds."""
        return resolve(model, self.aliases, self.settings.models, self.limits)

    def plan(self, route: Route) -> Plan:
        """The plan of a wiring whose models are all ready. Raises ModelNotReady, PlanError."""
        for name in (model.name for model in models(route.topology)):
            if (status := self._status[name]).state != "ready":
                raise ModelNotReady(name, status)
        return plan(route, self.catalog)

    def prepare(self, model: str, sampling: Sampling, extra: Mapping[str, Any], asked: Asked = NOTHING) -> Prepared:
        """Everything that can be refused before anything runs. extra: fields that we do not know, for a server that writes the
        answer. Raises TopologyError and its kinds, ModelNotReady, CantHonour."""
        route = self.route(model)
        made = self.plan(route)
        alias = route.alias or Alias(model)
        limits = self.settings.limits
        prompts = asked.prompts or alias.prompts or "default"
        if prompts not in self.prompts:
            known = ", ".join(sorted(self.prompts))
            raise CantHonour("modelnet.prompts", f"There is no prompt set {prompts!r}; there are {known}.")
        options = Options(
            prompts=self.prompts[prompts],
            sampling=sampling,
            extra=extra,
            stage_max_tokens=asked.stage_max_tokens or alias.stage_max_tokens or limits.stage_max_tokens,
            answer_max_tokens=alias.max_tokens or limits.answer_max_tokens,
            fuser=alias.fuser or "linear",
            on_member_failure=alias.on_member_failure or limits.on_member_failure,
            member_seconds=alias.member_seconds or limits.member_seconds,
            top_k=limits.top_k,
            drafts=asked.drafts or alias.drafts or limits.drafts,
            early_prefill=asked.early_prefill or alias.early_prefill or limits.early_prefill,
            quorum=asked.quorum or alias.quorum or limits.quorum,
            reruns=self.settings.resilience.retries.stages,
            may_rerun=self.guards.may_rerun,
        )
        return Prepared(made, write(made.topology), fit(options, asked, made, self.catalog))

    async def not_ready(self) -> dict[str, str]:
        """Model → why it can't serve now. Asks every started backend."""
        found = {
            name: status.reason or status.state for name, status in self._status.items() if status.state != "ready"
        }

        async def probe(name: str, entry: Entry) -> None:
            try:
                with anyio.fail_after(PROBE_SECONDS):
                    await entry.backend.ready()
            except BackendError as error:
                found[name] = error.message
            except TimeoutError:
                found[name] = "does not answer"

        async with anyio.create_task_group() as tasks:
            for name, entry in self.catalog.items():
                tasks.start_soon(probe, name, entry)
        return found

    @property
    def loading(self) -> bool:
        """Whether some model is still loading."""
        return any(status.state == "loading" for status in self._status.values())

    async def load(self, build: Build) -> None:
        """Start all models side by side. They serve meanwhile; what first answers would wait for is worked out last."""
        async with anyio.create_task_group() as tasks:
            for name in self.settings.models:
                tasks.start_soon(self._load, name, build)
        self._loaded.set()
        await self.warm()
        self._warm.set()

    async def warm(self) -> None:
        """Work out what the first answers of every alias and model would wait for. Other wirings wait when they are first asked for."""
        began = time.perf_counter()
        plans = []
        for name in (*self.settings.aliases, *self.settings.models):
            with suppress(TopologyError, ModelNotReady):
                plans.append(self.plan(self.route(name)))
        # Servers are asked for their vocabularies: who takes this one's place must not close them meanwhile.
        with self.in_use(), anyio.move_on_after(WARM_SECONDS):
            ready = await warm(plans, self.catalog)
            log.debug("vocabularies_ready", sets=ready, seconds=round(time.perf_counter() - began, 3))

    async def _load(self, name: str, build: Build) -> None:
        began = time.perf_counter()
        try:
            entry = await build(name)
        except Exception as error:
            self._status[name] = failed(error)
            known = isinstance(error, BackendError | WeightsError)
            log.error("model_failed", model=name, reason=str(error), exc_info=None if known else error)
            return
        seconds = time.perf_counter() - began
        self.serve(name, entry, ModelStatus("ready", seconds=seconds))
        log.info("model_ready", model=name, seconds=round(seconds, 3))

    def serve(self, name: str, entry: Entry, status: ModelStatus) -> None:
        """From now on this model can be used, under guard."""
        entry = replace(entry, backend=guarded(entry.backend, self.guards.of(self.settings, name)))
        self._status[name] = status
        self.catalog = Catalog({**self.catalog.entries, name: entry})

    def all_settled(self) -> None:
        """Every model was served or settled from outside: nothing is loading."""
        self._loaded.set()
        self._warm.set()

    def settle(self, name: str, found: Entry | ModelStatus) -> None:
        """A model that was built beside this runtime, or why it could not be."""
        if isinstance(found, Entry):
            self.serve(name, found, ModelStatus("ready"))
        else:
            self._status[name] = found

    async def stop(self) -> None:
        """Free every model, side by side. Nothing is started any more."""
        for name, status in self._status.items():
            if status.state != "failed":
                self._status[name] = ModelStatus("stopping", "is stopping")

        async def close(name: str, entry: Entry) -> None:
            try:
                await entry.backend.aclose()
            except Exception:
                log.exception("model_close_failed", model=name)

        async with anyio.create_task_group() as tasks:
            for name, entry in self.catalog.items():
                tasks.start_soon(close, name, entry)
        self.catalog = Catalog({})


@asynccontextmanager
async def open_runtime(loaded: Loaded, build: Build | None = None) -> AsyncIterator[Runtime]:
    """A runtime that is loading. build: instead of what the configuration says, for tests. Raises SettingsError."""
    if build is None:
        from gateway.builders import Builders

        build = Builders(loaded)
    keep_in(caches() / "pieces")
    runtime = Runtime(loaded.settings, load_prompts(loaded))
    stopped: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runtime.load, build)
        try:
            yield runtime
        except BaseException as error:  # noqa: BLE001 - kept out of the task group, which would wrap it
            stopped = error
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await runtime.stop()
    if stopped is not None:
        raise stopped


__all__ = [
    "CantHonour",
    "ModelNotReady",
    "ModelStatus",
    "NothingLoaded",
    "Prepared",
    "Runtime",
    "TopologyError",
    "open_runtime",
]
