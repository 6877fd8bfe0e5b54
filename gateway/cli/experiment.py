"""`modelnet experiment`: what the ledger says of a route's arms, and which arm somebody gets."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from gateway.experiments.report import ArmReport, Estimate, Report
    from gateway.experiments.statistics import Quantile
    from gateway.settings import Loaded

# What they use is imported inside the commands: `modelnet --help` stays quick.
experiment_app = typer.Typer(
    name="experiment",
    help="Routes that split their requests over several wirings: compare the arms, see who gets which.",
    no_args_is_help=True,
)

Config = Annotated[Path | None, typer.Option("--config", "-c", help="Configuration file, with `routes`.")]
RouteName = Annotated[str, typer.Argument(help="Name of the route.")]


@experiment_app.command(name="report")
def show(
    route: RouteName,
    config: Config = None,
    days: Annotated[float, typer.Option(min=0.001, help="Look back so many days.")] = 30.0,
    metric: Annotated[
        str, typer.Option(help="What decides: feedback, errors, seconds, first_token, tokens or cost.")
    ] = "feedback",
    level: Annotated[
        float, typer.Option(min=0.5, max=0.9999, help="How sure: equal arms show a winner in at most 1 - level.")
    ] = 0.95,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots there.")] = None,
) -> None:
    """Compare the arms: requests, errors, latencies, tokens, cost, feedback, and which is the best, if the data says."""
    from gateway.experiments.report import METRICS, report
    from gateway.ledger.tables import Tables
    from gateway.ledger.writer import DAY
    from gateway.operations import ledger_target
    from gateway.settings.values import experiment_routes, prices
    from gateway.storage import StorageError, is_there

    loaded = _read(config)
    known = experiment_routes(loaded.settings)
    _known_route(route, known)
    chosen = next((name for name in METRICS if name == metric), None)
    if chosen is None:
        raise typer.BadParameter(f"one of {', '.join(METRICS)}", param_hint="--metric")
    place, until = ledger_target(loaded), time.time()
    since = until - days * DAY
    if not is_there(place):
        typer.echo("error: there is no ledger yet", err=True)
        raise typer.Exit(1)
    try:
        tables = Tables(place)
        try:
            made = report(
                route,
                tables.observations(route, since, until),
                since,
                until,
                arms=known[route].arms,
                metric=chosen,
                currency=prices(loaded.settings).currency,
                level=level,
            )
        finally:
            tables.close()
    except StorageError as error:
        typer.echo(f"error: the ledger can't be read: {error}", err=True)
        raise typer.Exit(1) from error
    if html is not None:
        from gateway.experiments.page import page

        html.write_text(page(made), encoding="utf-8")
    if as_json:
        import orjson

        typer.echo(orjson.dumps(made.value(), option=orjson.OPT_INDENT_2).decode())
        return
    from rich.console import Console

    _print(Console(highlight=False), made)


@experiment_app.command()
def assign(
    route: RouteName,
    subject: Annotated[str, typer.Argument(help="The user, or the key's id, or the header's value.")],
    by: Annotated[str, typer.Option(help="What that is: user, key or header:NAME.")] = "user",
    config: Config = None,
) -> None:
    """Show which arm somebody gets now."""
    from gateway.experiments.choose import Facts, choose
    from gateway.settings.values import experiment_routes

    known = experiment_routes(_read(config).settings)
    _known_route(route, known)
    if by not in known[route].sticky or by == "conversation":
        raise typer.BadParameter(f"this route goes by {', '.join(known[route].sticky)}", param_hint="--by")
    headers = {by.removeprefix("header:"): subject} if by.startswith("header:") else {}
    facts = Facts(subject if by == "user" else None, subject if by == "key" else None, headers, (), None, "")
    choice = choose(known[route], facts, time.time())
    shares = ", ".join(f"{arm} {share * 100:.1f} %" for arm, share in choice.shares.items())
    typer.echo(f"{choice.arm}: {choice.model}  (shares now: {shares})")


def _read(config: Path | None) -> Loaded:
    from gateway.cli.check import complain, read_config
    from gateway.settings import SettingsError

    try:
        return read_config(config)
    except SettingsError as error:
        raise typer.Exit(complain(error)) from error


def _known_route(route: str, known: object) -> None:
    names = list(known) if isinstance(known, dict) else []
    if route not in names:
        listed = f"there are {', '.join(names)}" if names else "the configuration has none"
        typer.echo(f"error: no route {route!r}; {listed}", err=True)
        raise typer.Exit(2)


def _print(console: Console, made: Report) -> None:
    from rich.table import Table

    counts = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("arm", "requests", "subjects", "errors", "refused", "left", "fell back", "scored"):
        counts.add_column(heading, justify="left" if heading == "arm" else "right")
    numbers = Table(box=None, pad_edge=False, header_style="bold")
    cost = f"{made.currency} a request"
    for heading in (
        "arm",
        "feedback",
        "error share",
        "p50 s",
        "p90 s",
        "p99 s",
        "first p50 s",
        "tokens a request",
        cost,
    ):
        numbers.add_column(heading, justify="left" if heading == "arm" else "right")
    for arm in [*made.arms, *made.shadows]:
        name = arm.arm if arm in made.arms else f"{arm.arm} (nobody sees it)"
        seen = (arm.requests, arm.subjects, arm.errors, arm.refused, arm.abandoned, arm.fell_back, arm.scored)
        counts.add_row(name, *(f"{count:,}" for count in seen))
        numbers.add_row(name, *_numbers(arm))
    chances = Table(box=None, pad_edge=False, header_style="bold")
    metrics = [m for m, e in made.arms[0].estimates.items() if e.best is not None] if made.arms else []
    for heading in ("best by", *metrics):
        chances.add_column(heading, justify="left" if heading == "best by" else "right")
    for arm in made.arms:
        chances.add_row(arm.arm, *(f"{arm.estimates[metric].best or 0.0:.3f}" for metric in metrics))
    for table in (counts, numbers, *([chances] if metrics else [])):
        console.print(table)
        console.print()
    console.print(f"winner: {made.winner}" if made.winner else "no winner", style="bold", end=": ", markup=False)
    console.print(made.why, markup=False, soft_wrap=True)


def _numbers(arm: ArmReport) -> list[str]:
    found = [_interval(arm.estimates.get("feedback"), "{:.3f}"), _interval(arm.estimates.get("errors"), "{:.3f}")]
    found += [_quantile(arm.seconds, at) for at in (0.5, 0.9, 0.99)]
    found.append(_quantile(arm.first_token, 0.5))
    found.append(f"{arm.tokens / arm.requests:.1f}" if arm.requests else "")
    found.append(f"{arm.cost / arm.requests:.6f}" if arm.requests else "")
    return found


def _interval(estimate: Estimate | None, form: str) -> str:
    if estimate is None or estimate.mean is None or estimate.interval is None:
        return ""
    low, high = (form.format(bound) for bound in estimate.interval)
    return f"{form.format(estimate.mean)} ({low}-{high})"


def _quantile(found: list[Quantile], at: float) -> str:
    return next((f"{q.value:.3f} ({q.low:.3f}-{q.high:.3f})" for q in found if q.at == at), "")
