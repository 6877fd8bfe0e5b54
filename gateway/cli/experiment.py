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
    days: Annotated[float, typer.Option(min=0.001, max=36_600, help="Look back so many days.")] = 30.0,
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

        try:
            html.write_text(page(made), encoding="utf-8")
        except OSError as error:
            typer.echo(f"error: {html} can't be written: {error.strerror}", err=True)
            raise typer.Exit(1) from error
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
    """A row for each number, a column for each arm: there are many numbers, with intervals, and seldom more than three arms."""
    from rich.table import Table

    from gateway.cli.tables import tabbed

    arms = [*made.arms, *made.shadows]
    names = [arm.arm if arm in made.arms else f"{arm.arm} (nobody sees it)" for arm in arms]
    columns = [_numbers(arm, made.currency, "{:,}" if console.is_terminal else "{}") for arm in arms]
    measures = list(dict.fromkeys(measure for column in columns for measure in column))
    rows = [(measure, *(column.get(measure, "") for column in columns)) for measure in measures]
    result = f"winner: {made.winner}" if made.winner else "no winner"
    if not console.is_terminal:
        tabbed(("arm", *names), *rows, (f"{result}: {made.why}",))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("arm", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print()
    console.print(result, style="bold", end=": ", markup=False)
    console.print(made.why, markup=False, soft_wrap=True)


def _numbers(arm: ArmReport, currency: str, whole: str) -> dict[str, str]:
    """What is known of an arm, by name. whole: how counts are written."""
    counts = {
        "requests": arm.requests,
        "subjects": arm.subjects,
        "errors": arm.errors,
        "refused": arm.refused,
        "left": arm.abandoned,
        "fell back": arm.fell_back,
        "scored": arm.scored,
    }
    found = {name: whole.format(count) for name, count in counts.items()}
    found["feedback"] = _interval(arm.estimates.get("feedback"), "{:.3f}")
    found["error share"] = _interval(arm.estimates.get("errors"), "{:.3f}")
    found |= {f"p{at * 100:.0f} s": _quantile(arm.seconds, at) for at in (0.5, 0.9, 0.99)}
    found["first p50 s"] = _quantile(arm.first_token, 0.5)
    found["tokens a request"] = f"{arm.tokens / arm.requests:.1f}" if arm.requests else ""
    found[f"{currency} a request"] = f"{arm.cost / arm.requests:.6f}" if arm.requests else ""
    best = {name: estimate.best for name, estimate in arm.estimates.items()}
    return found | {f"best by {name}": f"{share:.3f}" for name, share in best.items() if share is not None}


def _interval(estimate: Estimate | None, form: str) -> str:
    if estimate is None or estimate.mean is None or estimate.interval is None:
        return ""
    low, high = (form.format(bound) for bound in estimate.interval)
    return f"{form.format(estimate.mean)} ({low}-{high})"


def _quantile(found: list[Quantile], at: float) -> str:
    return next((f"{q.value:.3f} ({q.low:.3f}-{q.high:.3f})" for q in found if q.at == at), "")
