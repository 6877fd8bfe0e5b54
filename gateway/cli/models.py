"""`modelnet models`: the weights on this machine, and bringing more of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gateway.weights import State, Weights, WeightsError

# What they use is imported inside the commands: `modelnet --help` stays quick.
models_app = typer.Typer(
    name="models",
    help="The weights on this machine: list them, download them, say where they are.",
    no_args_is_help=False,
)

_WORDS: dict[State, str] = {
    "present": "yes",
    "unchecked": "not checked yet",
    "partial": "in part",
    "absent": "no",
}


@models_app.callback(invoke_without_command=True)
def table(context: typer.Context) -> None:
    """List the catalogue: name, size, licence, and what is here."""
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console
    from rich.table import Table

    from gateway.cli.tables import tabbed
    from gateway.weights import catalogue, location, state

    console = Console()
    headings = ["name", "size", "here", "licence"]
    folder = location(next(iter(catalogue()))).parent
    if not console.is_terminal:
        known = [(each.name, _size(each), _WORDS[state(each.name)], each.licence) for each in catalogue().values()]
        tabbed(headings, *known)
        typer.echo(f"in {folder}", err=True)
        return
    if console.width >= 120:
        headings.append("what")
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        rows.add_column(heading, justify="right" if heading == "size" else "left", no_wrap=heading != "what")
    for weights in catalogue().values():
        here = state(weights.name)
        shown = f"[green]{_WORDS[here]}[/]" if here == "present" else _WORDS[here]
        row = (weights.name, _size(weights), shown, weights.licence, weights.description)
        rows.add_row(*row[: len(headings)])
    console.print(rows)
    console.print(f"\nin {folder}", style="dim", highlight=False, soft_wrap=True)


@models_app.command()
def pull(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Weights to download.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Download what the models of this configuration need.")
    ] = None,
) -> None:
    """Download weights; nothing is done for those that are here."""
    from gateway.weights import WeightsError, ensure

    wanted = list(dict.fromkeys([*(names or ()), *(_of_config(config) if config else ())]))
    if not wanted and config is None:
        raise typer.BadParameter("name some weights, or a configuration with --config")
    try:
        for name in wanted:
            typer.echo(ensure(name))
    except WeightsError as error:
        raise _told(error) from error


@models_app.command()
def path(name: Annotated[str, typer.Argument(help="Weights in the catalogue.")]) -> None:
    """Print where the file is. Exit code 1 if it is not here (yet)."""
    from gateway.weights import WeightsError, location, state

    try:
        typer.echo(location(name))
        here = state(name) in ("present", "unchecked")
    except WeightsError as error:
        raise _told(error) from error
    if not here:
        typer.echo(f"{name} is not here yet: modelnet models pull {name}", err=True)
        raise typer.Exit(1)


def _size(weights: Weights) -> str:
    return f"{weights.bytes / 1e6:,.0f} MB"


def _of_config(config: Path) -> list[str]:
    """Names of the weights that a configuration's embedded models use."""
    from gateway.settings import SettingsError, load
    from gateway.settings.models import LlamaCppModel

    try:
        models = load(config).settings.models.values()
    except SettingsError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
    return [model.weights for model in models if isinstance(model, LlamaCppModel) and model.weights]


def _told(error: WeightsError) -> typer.Exit:
    """Say what went wrong. 2 for a name that does not exist, 1 for a download that failed."""
    from gateway.weights import UnknownWeights

    typer.echo(f"error: {error}", err=True)
    return typer.Exit(2 if isinstance(error, UnknownWeights) else 1)
