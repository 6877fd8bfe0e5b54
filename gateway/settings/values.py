"""Sections of the configuration as the rooms that use them take them."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.experiments.route import Arm, Fallback, Ramp, Route, Shadow
from gateway.keys.key import NANO, Budget, Key, Rights
from gateway.keys.secrets import digest
from gateway.ledger.prices import Price, Prices
from gateway.settings import operations
from gateway.settings.schema import Settings


def static_keys(settings: Settings) -> list[Key]:
    """The keys of the configuration. Plain ones are named by their place: a name made from the key would tell something of it."""
    found = []
    for index, written in enumerate(settings.keys):
        if isinstance(written, operations.StaticKey):
            secret, name, allowed = written.key.get_secret_value(), written.name, rights(written)
        else:
            secret, name, allowed = written.get_secret_value(), f"static-{index + 1}", Rights()
        found.append(Key(name, name, digest(secret), allowed, stored=False))
    return found


def rights(written: operations.StaticKey) -> Rights:
    """What a key of the configuration may."""
    return Rights(
        models=tuple(written.models),
        wirings=tuple(written.wirings),
        requests_per_minute=written.requests_per_minute,
        tokens_per_minute=written.tokens_per_minute,
        concurrency=written.concurrency,
        budget=budget(written.budget),
    )


def budget(written: operations.Budget | None) -> Budget | None:
    """Exactly one of its two amounts is set (`gateway.settings.check`)."""
    if written is None:
        return None
    if written.money is not None:
        return Budget(round(written.money * NANO), "money", written.per)
    return Budget(written.tokens or 0, "tokens", written.per)


def prices(settings: Settings) -> Prices:
    """What tokens cost."""
    models = {name: Price(price.prompt, price.completion) for name, price in settings.prices.models.items()}
    return Prices(settings.prices.currency, models)


def experiment_routes(settings: Settings) -> Mapping[str, Route]:
    """The routes, by name."""
    return {name: _route(name, written) for name, written in settings.routes.items()}


def _route(name: str, written: operations.RouteSettings) -> Route:
    shadow = written.shadow
    return Route(
        name=name,
        arms={arm: _arm(value) for arm, value in written.arms.items()},
        sticky=tuple(written.sticky),
        salt=written.salt or name,
        override=written.override,
        shadow=None if shadow is None else Shadow(shadow.model, shadow.share, shadow.texts),
        fallbacks=tuple(Fallback(frozenset(value.on), value.model) for value in written.fallbacks),
        patience=written.patience,
        description=written.description or "",
    )


def _arm(written: operations.Arm) -> Arm:
    ramp = None
    if written.ramp:
        moments = tuple(operations.unix_seconds(step.at) for step in written.ramp)
        ramp = Ramp(moments, tuple(step.weight for step in written.ramp), written.smooth)
    return Arm(written.model, written.weight, ramp)
