"""`modelnet check --drafts`: whether what a configuration says of scored drafts is true of its engines."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
from rich.console import Console

from backends.errors import BackendError
from backends.protocol import TokenBackend
from gateway.builders import Builders
from gateway.cli.check import complain, read_config, say
from gateway.observability.logs import setup_logs
from gateway.settings import Loaded, SettingsError
from gateway.settings.models import VLLMModel
from gateway.weights import WeightsError
from strategies.engine.drafting.ahead import NEGLIGIBLE
from strategies.engine.drafting.noise import Difference, Noise, measure


def check_drafts(config: Path | None) -> int:
    """Start the models one after another, measure, show. Returns the exit code: 1 if a model's `draft_noise` promises more than is true,
    or one could not be asked."""
    setup_logs("warning", "console")
    try:
        loaded = read_config(config)
    except SettingsError as error:
        return complain(error)
    return anyio.run(partial(_check, loaded), backend_options={"use_uvloop": sys.platform != "win32"})


async def _check(loaded: Loaded) -> int:
    failed, console = False, Console(highlight=False)
    for name, shown, alone in _servers(loaded):
        say(f"measuring {shown} …")
        try:
            entry = await Builders(alone)(name)
            try:
                backend = entry.backend
                can = entry.why_not_fused is None and isinstance(backend, TokenBackend)
                noise = await measure(backend) if can and isinstance(backend, TokenBackend) else None
            finally:
                await entry.backend.aclose()
        except (BackendError, WeightsError) as error:
            say(f"{shown}: {error}")
            failed = True
            continue
        if noise is None:
            console.print(f"{shown}\n  is sent no drafts", markup=False)
            continue
        held, advice = verdict(noise, getattr(loaded.settings.models[name], "draft_noise", None))
        failed = failed or not held
        passes = ", ".join(f"{seconds * 1000:.1f} over {tokens}" for tokens, seconds in sorted(noise.seconds.items()))
        lines = {
            "scored drafts": _told(noise.scored),
            "steps behind them": _told(noise.behind),
            "steps beside others": _told(noise.beside),
            "ms of a pass": f"{passes} tokens",
            "so": advice,
        }
        console.print(
            shown, *(f"  {what:<21}{told}" for what, told in lines.items()), sep="\n", markup=False, soft_wrap=True
        )
    return 1 if failed else 0


def _servers(loaded: Loaded) -> Iterator[tuple[str, str, Loaded]]:
    """Every model, its name to show, and the configuration to build it from: one server at a time, since each may round in its own way."""
    for name, model in loaded.settings.models.items():
        urls = model.urls if isinstance(model, VLLMModel) else []
        if len(urls) < 2:
            yield name, name, loaded
            continue
        for url in urls:
            models = {**loaded.settings.models, name: model.model_copy(update={"urls": [url]})}
            yield (
                name,
                f"{name} at {url}",
                replace(loaded, settings=loaded.settings.model_copy(update={"models": models})),
            )


def verdict(noise: Noise, said: float | None) -> tuple[bool, str]:
    """Whether `draft_noise` as it is set is true of what was measured, and what to set. said: None where it can't be set."""
    if said is None:
        return True, "exact" if noise.exact else "not exact"
    if noise.exact:
        return True, f"draft_noise: {said} is true of all this" + (", and so is 0.0" if said else "")
    margin = 1.5 * noise.nats
    negligible = margin <= NEGLIGIBLE
    wanted = f"{NEGLIGIBLE}" if negligible else f"{max(0.05, math.ceil(20 * margin) / 20):.2f}"
    if said > 0 and noise.nats <= said:
        more = f", and so is {wanted}, with which `auto` reads ahead" if negligible and said > NEGLIGIBLE else ""
        return True, f"draft_noise: {said} is true of all this{more}"
    return False, f"draft_noise: {wanted}; {said} is not true"


def _told(difference: Difference) -> str:
    if difference.equal:
        return f"{difference.places} places equal to the last bit"
    turned = f", another likeliest token in {difference.turned}" if difference.turned else ""
    return f"{difference.places} places, up to {difference.nats:.3g} nats off{turned}"
