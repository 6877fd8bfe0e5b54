"""Taking over a changed configuration while requests run.

A *generation* is a runtime and the application over it; neither changes once it serves. A reload reads and checks the whole new
configuration, builds the models that are new or changed, and then puts the next generation in place of the current one, in one
assignment. If anything of that fails, everything stays as it was.

    requests                keep the generation that they began on, to their end
    models                  unchanged ones are handed on as they are; old ones are freed when the last request that may use them ends
    keys, prices, routes    hold at once
    metrics, places, ledger are the process's, and go on
    what needs a restart    is named (`RESTART`) for as long as the file says other than what the process began with; that goes on

While a changed model is built, its old self is still loaded.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskGroup

from backends.catalog import Entry
from backends.errors import BackendError
from backends.protocol import TextBackend
from backends.wrappers import inner
from gateway.app import Application
from gateway.runtime import ModelStatus, Runtime, failed
from gateway.settings import Loaded, Settings, SettingsError, host_problem, load
from gateway.settings.check_operations import equal_keys
from gateway.settings.prompts import load_prompts
from gateway.settings.source import dotted
from gateway.web.asgi import Receive, Scope, Send
from gateway.weights import WeightsError

RESTART = ("key_store", "shared_limits", "ledger", "shadows", "threads", "tracing", "admin")
"""Sections whose changes hold after a restart only; of `server`, the log, the times of connections and of shutting down, and watching."""
_RESTART_OF_SERVER = ("log", "idle_seconds", "shutdown_seconds", "drain_seconds", "watch_seconds")

_FILES = ("path", "chat_template", "vocabulary")
"""Settings of models that name a file: another content is another model."""

_AROUND = {"hedge_after": None, "description": None}
"""Settings of a model that concern only what is around it: they change without building it anew."""

log = structlog.get_logger("modelnet.reload")


class Builder(Protocol):
    """Builds models, and makes builders for other configurations that share with it what the process has once."""

    async def __call__(self, name: str) -> Entry:
        """See `gateway.runtime.Build`."""
        ...

    def following(self, loaded: Loaded) -> Builder:
        """For the next configuration."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a reload.

    result: "done", "unchanged" or "failed". reason: why it failed. built, kept, dropped: models. restart: changes that need one.
    """

    result: str
    reason: str | None = None
    built: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the configuration in the file is now the one that is served."""
        return self.result != "failed"


@dataclass(frozen=True, slots=True)
class Generation:
    """loaded: with the sections that need a restart as the process began with them, whatever the file says. stamps: file → size and
    time, of all files that the configuration was read from or names."""

    loaded: Loaded
    runtime: Runtime
    app: Application
    build: Builder
    stamps: Mapping[Path, tuple[int, int] | None]


class Switch:
    """The application that servers call: always the current generation's."""

    def __init__(self, first: Generation) -> None:
        self.current = first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        generation = self.current
        with generation.runtime.in_use():
            await generation.app(scope, receive, send)

    def begin_drain(self) -> None:
        """See `Application.begin_drain`."""
        self.current.app.begin_drain()

    def end_requests(self) -> None:
        """See `Application.end_requests`."""
        self.current.app.end_requests()


class Reloader:
    """One per process. tasks: in which old generations wait for their last request."""

    def __init__(self, switch: Switch, host: str, tasks: TaskGroup) -> None:
        self.switch = switch
        self._host = host
        self._tasks = tasks
        self._lock = anyio.Lock()
        self._live: list[Runtime] = [switch.current.runtime]

    async def reload(self) -> Outcome:
        """Take over what the file says now. Never raises for what is wrong with it; one at a time."""
        async with self._lock:
            began = time.perf_counter()
            try:
                outcome = await self._reload(began)
            except (SettingsError, BackendError, WeightsError, Refused) as error:
                outcome = Outcome("failed", str(error), seconds=time.perf_counter() - began)
            except Exception:  # an error of ours or a library's: the old configuration goes on
                log.exception("reload_failed")
                outcome = Outcome("failed", "an internal error; the log says more", seconds=time.perf_counter() - began)
            self._tell(outcome)
            return outcome

    async def watch(self, seconds: float) -> None:
        """Reload whenever a file of the configuration has changed. Runs until cancelled."""
        seen = self.switch.current.stamps
        while True:
            await anyio.sleep(seconds)
            now = await anyio.to_thread.run_sync(_stamps, self.switch.current.loaded)
            if now != seen:
                seen = now  # also where it fails: it is tried again when the file changes again
                await self.reload()

    async def aclose(self) -> None:
        """Free every model of every generation but the first, which whoever opened it frees."""
        for runtime in tuple(self._live):  # one that is just retiring leaves the list meanwhile
            await runtime.stop()

    async def _reload(self, began: float) -> Outcome:
        old = self.switch.current
        await old.runtime.wait_settled()
        written = await anyio.to_thread.run_sync(load, old.loaded.file)
        restart = _needs_restart(old.loaded.settings, written.settings)
        loaded = replace(written, settings=_held(old.loaded.settings, written.settings))
        for path, what in equal_keys(loaded.settings):  # one that is the admin API's until the restart
            raise Refused(f"{dotted(path)}: {what}")
        prompts = await anyio.to_thread.run_sync(load_prompts, loaded)
        stamps = await anyio.to_thread.run_sync(_stamps, loaded)
        if loaded.settings == old.loaded.settings and stamps == old.stamps:
            return Outcome("unchanged", restart=restart, seconds=time.perf_counter() - began)
        problem = host_problem(loaded.settings, self._host, old.runtime.operations.keyring.has_stored)
        if problem is not None:
            raise Refused(problem)
        runtime = Runtime(loaded.settings, prompts, before=old.runtime)
        keep = _unchanged(old, loaded, stamps)
        build = old.build.following(loaded)
        built = await self._build(build, [name for name in loaded.settings.models if name not in keep], old)
        # From here on nothing waits and nothing fails.
        for name in loaded.settings.models:
            if name in keep:
                runtime.serve(name, keep[name], old.runtime.statuses[name])
            else:
                runtime.guards.renew(name)
                runtime.settle(name, built[name])
        runtime.all_settled()
        runtime.operations.renew(loaded.settings)
        self.switch.current = Generation(loaded, runtime, Application(runtime, before=old.app), build, stamps)
        self._live.append(runtime)
        self._tasks.start_soon(runtime.warm)
        self._tasks.start_soon(self._retire, old.runtime)
        return Outcome(
            "done",
            built=tuple(built),
            kept=tuple(keep),
            dropped=tuple(name for name in old.loaded.settings.models if name not in loaded.settings.models),
            restart=restart,
            seconds=time.perf_counter() - began,
        )

    async def _build(self, build: Builder, names: list[str], old: Generation) -> dict[str, Entry | ModelStatus]:
        """Entries of new and changed models, side by side; for one that could not be started before either, its status.

        Raises what the first of the others failed with, and then frees all that were built.
        """
        built: dict[str, Entry | ModelStatus] = {}
        failures: list[Exception] = []
        statuses = old.runtime.statuses

        async def one(name: str) -> None:
            try:
                built[name] = await build(name)
            except Exception as error:  # noqa: BLE001 - raised below, or contained as at the start
                if name in statuses and statuses[name].state == "failed":
                    built[name] = failed(error)
                else:
                    failures.append(error)
                    tasks.cancel_scope.cancel()

        whole = False
        try:
            async with anyio.create_task_group() as tasks:
                for name in names:
                    tasks.start_soon(one, name)
            whole = not failures
        finally:
            if not whole:
                with anyio.CancelScope(shield=True):
                    for entry in built.values():
                        if isinstance(entry, Entry):
                            await _close(entry.backend)
        if failures:
            raise failures[0]
        return built

    async def _retire(self, runtime: Runtime) -> None:
        """When nobody uses it any more, free what no other generation uses."""
        await runtime.unused()
        self._live.remove(runtime)
        in_use = {id(inner(entry.backend)) for other in self._live for entry in other.catalog.values()}
        gone = [entry for entry in runtime.catalog.values() if id(inner(entry.backend)) not in in_use]
        for entry in gone:
            await _close(entry.backend)
        log.info("generation_retired", freed=[entry.backend.name for entry in gone])

    def _tell(self, outcome: Outcome) -> None:
        self.switch.current.app.metrics.reloads.count(outcome.result)
        seconds = round(outcome.seconds, 3)
        if not outcome.ok:
            log.error("reload_failed", reason=outcome.reason, seconds=seconds)
            return
        log.info("reloaded", result=outcome.result, built=outcome.built, dropped=outcome.dropped, seconds=seconds)
        if outcome.restart:
            log.warning("restart_needed", sections=outcome.restart)


class Refused(Exception):
    """A configuration that is valid but must not be taken over as things are."""


@asynccontextmanager
async def open_reloader(first: Generation, host: str) -> AsyncIterator[Reloader]:
    """A reloader for as long as the block runs. Leaving it frees what later generations have built."""
    stopped: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        reloader = Reloader(Switch(first), host, tasks)
        try:
            yield reloader
        except BaseException as error:  # noqa: BLE001 - kept out of the task group, which would wrap it
            stopped = error
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await reloader.aclose()
    if stopped is not None:
        raise stopped


def first_generation(loaded: Loaded, runtime: Runtime, app: Application, build: Builder) -> Generation:
    """What is served before any reload."""
    return Generation(loaded, runtime, app, build, _stamps(loaded))


def _unchanged(old: Generation, loaded: Loaded, stamps: Mapping[Path, tuple[int, int] | None]) -> dict[str, Entry]:
    """Models that are served now and mean the same in the new configuration."""
    same: dict[str, Entry] = {}
    before = old.loaded.settings
    for name, settings in loaded.settings.models.items():
        entry = old.runtime.catalog.get(name)
        was = before.models.get(name)
        if entry is None or was is None or was.model_copy(update=_AROUND) != settings.model_copy(update=_AROUND):
            continue
        if all(stamps.get(file) == old.stamps.get(file) for file in _model_files(loaded, name)):
            same[name] = entry
    return same


def _model_files(loaded: Loaded, name: str) -> list[Path]:
    settings = loaded.settings.models[name]
    written = [getattr(settings, key, None) for key in _FILES]
    return [loaded.resolve(path) for path in written if path is not None]


def _stamps(loaded: Loaded) -> dict[Path, tuple[int, int] | None]:
    files = [loaded.file, *(loaded.resolve(path) for path in loaded.settings.prompts.values())]
    files += [file for name in loaded.settings.models for file in _model_files(loaded, name)]
    return {file: _stamp(file) for file in files}


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _needs_restart(running: Settings, new: Settings) -> tuple[str, ...]:
    """running: what a generation is served with, so in these sections what the process began with."""
    sections = [name for name in RESTART if getattr(running, name) != getattr(new, name)]
    keys = [f"server.{key}" for key in _RESTART_OF_SERVER if getattr(running.server, key) != getattr(new.server, key)]
    return (*sections, *keys)


def _held(running: Settings, new: Settings) -> Settings:
    """The new settings, but for what needs a restart: some of that is read with every request, and must not change under it."""
    server = new.server.model_copy(update={key: getattr(running.server, key) for key in _RESTART_OF_SERVER})
    return new.model_copy(update={name: getattr(running, name) for name in RESTART} | {"server": server})


async def _close(backend: TextBackend) -> None:
    try:
        await backend.aclose()
    except Exception:
        log.exception("model_close_failed", model=backend.name)


__all__ = ["Builder", "Generation", "Outcome", "Reloader", "Switch", "first_generation", "open_reloader"]
