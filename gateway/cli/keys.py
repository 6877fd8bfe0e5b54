"""`modelnet keys`: make keys, list them, change them, revoke them. A running gateway notices within a second or so."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from gateway.keys.key import Budget, Key, Rights
    from gateway.keys.store import KeyStore, Spent

# What they use is imported inside the commands: `modelnet --help` stays quick.
keys_app = typer.Typer(
    name="keys",
    help="Keys of clients: make them, list them, change what they may, end them.",
    no_args_is_help=True,
)

Config = Annotated[Path | None, typer.Option("--config", "-c", help="Configuration file, for where keys are kept.")]
Id = Annotated[str, typer.Argument(help="The key's id, as `modelnet keys list` shows it.")]
Expires = Annotated[
    str | None, typer.Option(help="When it ends: 12h, 30d, 2026-12-31, 2026-12-31T08:00:00Z, or never.")
]
Models = Annotated[
    list[str] | None, typer.Option("--model", help="Pattern of models it may use (repeatable); default: all.")
]
Wirings = Annotated[
    list[str] | None,
    typer.Option("--wiring", help="Pattern of names or wirings it may ask for (repeatable); default: all."),
]
Limit = Annotated[int | None, typer.Option(min=0, help="0 takes the limit away.")]
BudgetOption = Annotated[
    str | None,
    typer.Option("--budget", help="What it may spend: 5 (money), 100000tokens, with /day or /month; none: no limit."),
]

_SPANS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@keys_app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who it is for.")],
    models: Models = None,
    wirings: Wirings = None,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    concurrency: Limit = None,
    budget: BudgetOption = None,
    expires: Expires = None,
    config: Config = None,
) -> None:
    """Make a key and print it, this once: only a digest of it is kept."""
    from gateway.keys.key import named

    try:
        name = named(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    with _store(config) as store:
        rights = _rights(None, models, wirings, requests_per_minute, tokens_per_minute, concurrency, budget)
        key, text = store.create(name, rights, _moment(expires))
    typer.echo(f"key {key.id} for {name}; it is shown only now:", err=True)
    typer.echo(text)


@keys_app.command(name="list")
def list_keys(
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List the keys, what they may, and what was spent on each."""
    from gateway.keys.keyring import PERIODS, periods

    with _store(config) as store:
        keys, spending = store.all(), store.spending()
    total, day, month = periods(time.time())
    if as_json:
        import orjson

        named, shown = dict(zip(PERIODS, (total, day, month), strict=True)), []
        for key in keys:
            spent = {name: _spent(spending, key, period).value() for name, period in named.items()}
            shown.append({**key.value(), "tokens_spent": spent["total"]["tokens"], "spent": spent})
        typer.echo(orjson.dumps(shown, option=orjson.OPT_INDENT_2).decode())
        return
    from rich.console import Console

    from gateway.cli.tables import tabbed

    console, rows = Console(highlight=False), []
    for key in keys:
        spent_in = [_spent(spending, key, period) for period in (day, month, total)]
        if console.is_terminal:
            _draw(console, key, spent_in)
        what = (_when(key.expires), _may(key.rights), _limits(key.rights))
        numbers = [str(each.tokens) for each in spent_in] + [_money(each.nano) for each in spent_in]
        rows.append((key.id, key.name, key.state(), *what, *numbers))
    if not console.is_terminal:
        tokens, money = ("tokens today", "this month", "in all"), ("money today", "money this month", "money in all")
        tabbed(("id", "name", "state", "ends", "may", "limits", *tokens, *money), *rows)
    elif not keys:
        typer.echo("no keys yet: modelnet keys create NAME")


@keys_app.command()
def change(
    id: Id,
    models: Models = None,
    wirings: Wirings = None,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    concurrency: Limit = None,
    budget: BudgetOption = None,
    config: Config = None,
) -> None:
    """Change what a key may. What is not named stays."""
    with _store(config) as store:
        before = _known(store, id).rights
        rights = _rights(before, models, wirings, requests_per_minute, tokens_per_minute, concurrency, budget)
        store.change(id, rights)
    typer.echo(f"{id}: may {_may(rights)}; {_limits(rights) or 'no limits'}")


@keys_app.command()
def expire(
    id: Id, when: Annotated[str, typer.Argument(help="12h, 30d, a date, now or never.")], config: Config = None
) -> None:
    """Let a key end at another moment."""
    with _store(config) as store:
        _known(store, id)
        key = store.expire(id, _moment(when))
    typer.echo(f"{id}: {key.state()}, ends {_when(key.expires)}")


@keys_app.command()
def revoke(id: Id, config: Config = None) -> None:
    """End a key for good."""
    with _store(config) as store:
        _known(store, id)
        store.revoke(id)
    typer.echo(f"{id}: revoked")


def _draw(console: Console, key: Key, spent: Sequence[Spent]) -> None:
    """One key as a paragraph beside its id: so much does not go into columns. spent: today, this month and in all."""
    from rich.table import Table
    from rich.text import Text

    ends = "" if key.expires is None else f", ends {_when(key.expires)}"
    today, month, whole = (f"{each.tokens:,}" for each in spent)
    money = ""
    if any(each.nano for each in spent) or (key.rights.budget is not None and key.rights.budget.unit == "money"):
        money = "\nmoney: {} today, {} this month, {} in all".format(*(_money(each.nano) for each in spent))
    said = Text.assemble(
        (key.name, "bold"),
        f"  {key.state()}{ends}\n",
        "; ".join(filter(None, (f"may {_may(key.rights)}", _limits(key.rights)))),
        f"\ntokens: {today} today, {month} this month, {whole} in all{money}",
    )
    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_column(no_wrap=True)
    row.add_row(key.id, said)
    console.print(row)


@contextmanager
def _store(config: Path | None) -> Iterator[KeyStore]:
    from gateway.cli.check import complain, read_config
    from gateway.keys.store import KeyStore
    from gateway.operations import keys_target
    from gateway.settings import SettingsError
    from gateway.storage import StorageError

    try:
        store = KeyStore(keys_target(read_config(config)))
        try:
            yield store
        finally:
            store.close()
    except SettingsError as error:
        raise typer.Exit(complain(error)) from error
    except StorageError as error:
        typer.echo(f"error: the keys can't be used: {error}", err=True)
        raise typer.Exit(1) from error


def _known(store: KeyStore, id: str) -> Key:
    from gateway.keys.store import UnknownKey

    try:
        return store.get(id)
    except UnknownKey as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


def _rights(
    before: Rights | None,
    models: list[str] | None,
    wirings: list[str] | None,
    requests: int | None,
    tokens: int | None,
    concurrency: int | None,
    budget: str | None,
) -> Rights:
    from gateway.keys.key import Rights
    from gateway.settings.operations import LONGEST_PATTERN

    if any(not 1 <= len(pattern) <= LONGEST_PATTERN for pattern in (*(models or ()), *(wirings or ()))):
        raise typer.BadParameter(f"a pattern of models or wirings has 1 to {LONGEST_PATTERN} characters")
    value: dict[str, Any] = (before or Rights()).value()
    if models:
        value["models"] = models
    if wirings:
        value["wirings"] = wirings
    named = {"requests_per_minute": requests, "tokens_per_minute": tokens, "concurrency": concurrency}
    value |= {name: limit or None for name, limit in named.items() if limit is not None}
    if budget is not None:
        made = _budget(budget)
        value["budget"] = None if made is None else {"amount": made.amount, "unit": made.unit, "per": made.per}
    try:
        return Rights.of(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _budget(text: str) -> Budget | None:
    from gateway.keys.key import NANO, Budget

    if text == "none":
        return None
    found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)(tokens)?(?:/(total|day|month))?", text.replace(" ", ""))
    if found is None:
        raise typer.BadParameter("a budget is an amount like 5, 2.50/month, 100000tokens or 1000tokens/day")
    per: Any = found[3] or "total"
    return (
        Budget(int(float(found[1])), "tokens", per) if found[2] else Budget(round(float(found[1]) * NANO), "money", per)
    )


def _moment(text: str | None) -> float | None:
    if text is None or text == "never":
        return None
    if text == "now":
        return time.time()
    if found := re.fullmatch(r"(\d+)([mhdw])", text):
        try:
            moment = time.time() + int(found[1]) * _SPANS[found[2]]
            datetime.fromtimestamp(moment, UTC)
        except (ValueError, OverflowError, OSError) as error:
            raise typer.BadParameter("so long a time ends after the year 9999; never is written never") from error
        return moment
    from gateway.settings.operations import unix_seconds

    try:
        return unix_seconds(text)
    except ValueError as error:
        raise typer.BadParameter("a moment is 12h, 30d, 2026-12-31, 2026-12-31T08:00:00Z, now or never") from error


def _when(moment: float | None) -> str:
    if moment is None:
        return "never"
    try:
        return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):  # a store may hold what nobody can write any more
        return "after 9999" if moment > 0 else "before 1"


def _may(rights: Rights) -> str:
    parts = []
    if rights.wirings != ("*",):
        parts.append(", ".join(rights.wirings))
    if rights.models != ("*",):
        parts.append(f"models {', '.join(rights.models)}")
    return "; ".join(parts) or "everything"


def _limits(rights: Rights) -> str:
    parts = []
    if rights.requests_per_minute is not None:
        parts.append(f"{rights.requests_per_minute} requests/min")
    if rights.tokens_per_minute is not None:
        parts.append(f"{rights.tokens_per_minute} tokens/min")
    if rights.concurrency is not None:
        parts.append(f"{rights.concurrency} at once")
    if rights.budget is not None:
        shown = rights.budget.shown()
        amount = f"{shown['money']:g}" if "money" in shown else f"{shown['tokens']} tokens"
        parts.append(amount + ("" if rights.budget.per == "total" else f" a {rights.budget.per}"))
    return ", ".join(parts)


def _money(nano: int) -> str:
    """In the configuration's currency, to the last digit."""
    from gateway.keys.key import NANO

    return f"{nano // NANO}.{nano % NANO:09}".rstrip("0").rstrip(".")


def _spent(spending: Any, key: Key, period: str) -> Spent:
    from gateway.keys.store import Spent

    found: Spent = spending.get((key.id, period), Spent())
    return found
