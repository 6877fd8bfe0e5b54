"""Rules between fields of `gateway.settings.operations`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise

from gateway.settings.operations import RouteSettings, StaticKey, unix_seconds
from gateway.settings.schema import Settings
from gateway.settings.source import KeyPath, dotted
from strategies.routing import Alias, resolve
from strategies.topology import Limits, TopologyError

Finding = tuple[KeyPath, str]
SHARED_SCHEMES = ("redis://", "rediss://", "valkey://", "valkeys://", "unix://")


def findings(settings: Settings, aliases: Mapping[str, Alias], limits: Limits) -> Iterator[Finding]:
    """All of them. aliases: valid ones."""
    yield from _keys(settings)
    yield from equal_keys(settings)
    yield from _prices(settings)
    if settings.shared_limits and not settings.shared_limits.url.get_secret_value().startswith(SHARED_SCHEMES):
        yield ("shared_limits", "url"), f"must begin with {', '.join(SHARED_SCHEMES[:-1])} or {SHARED_SCHEMES[-1]}"
    for name, route in settings.routes.items():
        at = ("routes", name)
        taken = "a model" if name in settings.models else "an alias" if name in aliases else None
        if taken is not None:
            yield at, f"is {taken}'s name already"
        yield from _weights(at, route)
        for path, model in _models(at, route):
            try:
                resolve(model, aliases, list(settings.models), limits)
            except TopologyError as error:
                where, pointer = error.caret().split("\n")
                yield path, f"column {error.column + 1}: {error.message}\n    {where}\n    {pointer}"


def _keys(settings: Settings) -> Iterator[Finding]:
    written = [(index, key) for index, key in enumerate(settings.keys) if isinstance(key, StaticKey)]
    names = Counter(key.name for _, key in written)
    for index, key in written:
        at = ("keys", index)
        if names[key.name] > 1 or key.name.startswith("static-"):
            yield (
                (*at, "name"),
                "is another key's name" if names[key.name] > 1 else "names with static- are for plain keys",
            )
        if key.budget is not None and (key.budget.money is None) == (key.budget.tokens is None):
            yield (*at, "budget"), "name exactly one of `money` and `tokens`"
        if key.budget is not None and key.budget.money is not None and not settings.prices.models:
            yield (*at, "budget", "money"), "nothing has a price: see `prices`"


def equal_keys(settings: Settings) -> Iterator[Finding]:
    """A key that is two keys would be known by one name only, and one that is the admin API's too would open both doors."""
    first: dict[str, str] = {}
    if settings.admin is not None:
        first[settings.admin.key.get_secret_value()] = "admin.key"
    for index, key in enumerate(settings.keys):
        at: KeyPath = ("keys", index, "key") if isinstance(key, StaticKey) else ("keys", index)
        secret = (key.key if isinstance(key, StaticKey) else key).get_secret_value()
        if secret in first:
            yield at, f"is the same key as {first[secret]}"
        else:
            first[secret] = dotted(at)


def _prices(settings: Settings) -> Iterator[Finding]:
    for model in settings.prices.models:
        if model not in settings.models:
            yield ("prices", "models", model), f"no model of that name; there are {', '.join(settings.models)}"


def _weights(at: KeyPath, route: RouteSettings) -> Iterator[Finding]:
    if not any(arm.weight for arm in route.arms.values()):
        yield (*at, "arms"), "at least one weight must be more than 0"
    for name, arm in route.arms.items():
        moments = [unix_seconds(step.at) for step in arm.ramp]
        if any(later <= earlier for earlier, later in pairwise(moments)):
            yield (*at, "arms", name, "ramp"), "every step must be later than the one before"


def _models(at: KeyPath, route: RouteSettings) -> Iterator[tuple[KeyPath, str]]:
    for name, arm in route.arms.items():
        yield (*at, "arms", name, "model"), arm.model
    for index, fallback in enumerate(route.fallbacks):
        yield (*at, "fallbacks", index, "model"), fallback.model
    if route.shadow is not None:
        yield (*at, "shadow", "model"), route.shadow.model
