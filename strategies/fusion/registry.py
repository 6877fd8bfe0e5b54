"""Fusers by name: ours, and those that installed distributions offer.

A name may be followed by settings: `gated:threshold=0.9`, numbers separated by commas. A distribution offers fusers by entry points of
the group `modelnet.fusers`; each names a `FuserFactory`. They are loaded when first asked for, so a broken one harms nobody else, and none
can take a name of ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

from backends.types import Vocabulary
from strategies.fusion.base import Fuser, Guide, Tell
from strategies.fusion.chooser import Chooser
from strategies.fusion.entropy import EntropyPool
from strategies.fusion.gated import GatedPool
from strategies.fusion.geometric import GeometricPool
from strategies.fusion.linear import LinearPool
from strategies.fusion.union_topk import UnionTopK

GROUP = "modelnet.fusers"
"""Group of entry points."""


class FuserFactory(Protocol):
    """Makes a group's fuser: usually a class. One that takes settings says so in an attribute

        SETTINGS: Mapping[str, tuple[float, float]]      # name → least and largest value

    and gets them as keyword arguments.
    """

    def __call__(
        self,
        vocabularies: Sequence[Vocabulary],
        weights: Sequence[float],
        chooser: Chooser,
        *,
        guide: Guide | None = None,
        tell: Tell | None = None,
    ) -> Fuser:
        """One vocabulary and one weight per member; weights are positive and add up to one. tell: what `Commit.detail` is to say."""
        ...


FUSERS: Mapping[str, FuserFactory] = {
    "linear": LinearPool,
    "geometric": GeometricPool,
    "gated": GatedPool,
    "entropy-weighted": EntropyPool,
    "union-top-k": UnionTopK,
}
"""Our own."""


class FuserError(ValueError):
    """A fuser that can't be had as it was asked for; the message is for whoever asked."""


def fuser_names() -> tuple[str, ...]:
    """All that can be asked for, ours first."""
    return (*FUSERS, *sorted(_offered()))


def fuser_of(text: str) -> FuserFactory:
    """The fuser of a name, its settings filled in. Raises FuserError."""
    name, colon, given = text.partition(":")
    factory = FUSERS.get(name) or _load(name)
    ranges: Mapping[str, tuple[float, float]] = getattr(factory, "SETTINGS", {})
    if not colon:
        return factory
    settings: dict[str, Any] = dict(_setting(name, part, ranges) for part in given.split(","))
    return partial(factory, **settings)


def _setting(fuser: str, text: str, ranges: Mapping[str, tuple[float, float]]) -> tuple[str, float]:
    key, _, written = text.partition("=")
    if key not in ranges:
        known = f"its settings are {', '.join(ranges)}" if ranges else "it has none"
        raise FuserError(f"fuser {fuser!r} has no setting {key!r}; {known}")
    low, high = ranges[key]
    try:
        value = float(written)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise FuserError(f"{key} of fuser {fuser!r} must be a number from {low:g} to {high:g}, not {written!r}")
    return key, value


def _load(name: str) -> FuserFactory:
    offers = _offered().get(name)
    if not offers:
        raise FuserError(f"no fuser of the name {name!r}; there are {', '.join(fuser_names())}")
    owners = " and ".join(sorted({offer.dist.name if offer.dist else "?" for offer in offers}))
    if len(offers) > 1:
        raise FuserError(f"fuser {name!r} is offered more than once, by {owners}")
    try:
        factory: FuserFactory = offers[0].load()
    except Exception as error:  # a stranger's module may raise anything
        raise FuserError(f"fuser {name!r} of {owners} could not be loaded: {type(error).__name__}") from error
    if not callable(factory):
        raise FuserError(f"fuser {name!r} of {owners} is not callable")
    return factory


@lru_cache(maxsize=1)
def _offered() -> Mapping[str, tuple[EntryPoint, ...]]:
    """What is installed beside us. Looked up once: installing something takes a restart."""
    offered: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=GROUP):
        if point.name not in FUSERS:
            offered[point.name] = (*offered.get(point.name, ()), point)
    return offered
