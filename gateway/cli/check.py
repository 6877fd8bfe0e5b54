"""`modelnet check` and `modelnet plan`: what a configuration and a wiring would do, without starting a model."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from backends.catalog import Catalog, Entry
from backends.fake import FakeBackend
from gateway.cli.plan_view import error_text, plan_tree
from gateway.settings import Loaded, SettingsError, config_dir, load
from gateway.settings.check import routes, wiring_limits
from gateway.settings.models import FakeModel, LlamaCppModel, ModelSettings, OpenAIModel, ServerModel, VLLMModel
from gateway.settings.prompts import load_prompts
from strategies.planning import plan as make_plan
from strategies.routing import Alias, resolve
from strategies.topology import Limits, TopologyError, models, parse, shape
from strategies.topology import format as write


def read_config(config: Path | None) -> Loaded:
    """The configuration, the demo's by default, with its prompt sets read too. Raises SettingsError."""
    loaded = load(config if config is not None else config_dir() / "demo.yaml")
    load_prompts(loaded)
    return loaded


def say(text: str) -> None:
    """One line for the person at the terminal, on standard error: standard output is for what was asked for."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def complain(error: Exception) -> int:
    """Tell what is wrong, on standard error; the exit code for it."""
    say(str(error))
    return 2


def check(config: Path | None) -> int:
    """Show models and aliases, or every problem. Returns the exit code."""
    try:
        loaded = read_config(config)
    except SettingsError as error:
        return complain(error)
    console = Console()
    console.print(_models_table(loaded))
    if loaded.settings.aliases:
        console.print()
        console.print(_aliases_table(loaded))
    console.print(f"\n{loaded.file}: valid", highlight=False, soft_wrap=True)
    return 0


def plan(wiring: str, config: Path | None) -> int:
    """Draw a wiring, or show its error under the column. Returns the exit code."""
    aliases: Mapping[str, Alias] = {}
    limits, loaded = Limits(), None
    try:
        if config is not None:
            loaded = read_config(config)
            aliases, limits = routes(loaded.settings), wiring_limits(loaded.settings)
            known: Iterable[str] = list(loaded.settings.models)
        else:
            known = {model.name for model in models(parse(wiring, limits).topology)}
        route = resolve(wiring, aliases, list(known), limits)
        made = make_plan(route, supposed_catalog((model.name for model in models(route.topology)), loaded))
    except SettingsError as error:
        return complain(error)
    except TopologyError as error:
        Console(stderr=True).print(error_text(error), soft_wrap=True)
        return 2
    fuser = (route.alias.fuser if route.alias is not None else None) or "linear"
    Console().print(plan_tree(made, name=wiring, fuser=fuser))
    return 0


def supposed_catalog(names: Iterable[str], loaded: Loaded | None) -> Catalog:
    """A catalogue of models that are not started: planning looks at what they are said to be able to and calls nothing.

    What a model's server really can shows when it is started.
    """
    settings = loaded.settings.models if loaded is not None else {}
    return Catalog({name: Entry(FakeBackend(name), _why_not_fused(settings.get(name))) for name in names})


def _why_not_fused(model: ModelSettings | None) -> str | None:
    off = (isinstance(model, ServerModel) and model.sessions == "off") or (
        isinstance(model, FakeModel) and not model.sessions
    )
    return "it is configured to stream text only" if off else None


def _models_table(loaded: Loaded) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("model", "backend", "from", "context", "seats"):
        table.add_column(heading, no_wrap=heading != "from", overflow="fold")
    for name, model in loaded.settings.models.items():
        source = context = ""
        if isinstance(model, LlamaCppModel):
            source, context = model.weights or str(loaded.resolve(model.path or "")), str(model.context)
        elif isinstance(model, OpenAIModel):
            source = f"{model.model or name} at {model.base_url}"
        elif isinstance(model, VLLMModel):
            source = f"{model.model or name} at {', '.join(model.urls)}"
        elif isinstance(model, FakeModel):
            context = str(model.context)
        seats = "no limit" if model.seats is None else str(model.seats)
        table.add_row(name, model.backend, source, context, seats)
    return table


def _aliases_table(loaded: Loaded) -> Table:
    aliases, limits = routes(loaded.settings), wiring_limits(loaded.settings)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("alias", "shape", "wiring", "settings"):
        table.add_column(heading, no_wrap=heading in ("alias", "shape"), overflow="fold")
    for name, alias in loaded.settings.aliases.items():
        topology = resolve(name, aliases, list(loaded.settings.models), limits).topology
        own = alias.model_dump(exclude={"expression", "description"}, exclude_none=True)
        table.add_row(name, shape(topology), write(topology), ", ".join(f"{key} {value}" for key, value in own.items()))
    return table
