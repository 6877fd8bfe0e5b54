"""Makes plans. Pure: looks at the catalogue's entries and calls nothing.

Nesting is taken apart as `plan` says: a nested group joins the outer one with its weights multiplied by its own share, and
the earlier stages of a member chain become stages of the plan that the outer stage waits for:

    (x>a|b)*2|c     x writes; then a and b read x's text and c the question, 1/3 each
    x>(a>b)|c       x writes; a reads x; then b reads a, c reads x, 1/2 each

What is equal is done once: a model that reads the same thing twice in a group is one branch with the sum of the weights, and
stages that are equal are one stage (`(x>a)|(x>b)` runs x once). Members are taken in an order of their own, never in that of
the text, so `a|b` and `b|a` give equal stages whatever is nested in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from backends.catalog import Catalog
from strategies.planning.plan import Branch, FusedStage, Plan, Role, Stage, TextStage
from strategies.routing import Route, UnknownModel, nearest
from strategies.topology import Limits, Member, Model, Parallel, Serial, Topology, TopologyError, measure, parse, shape
from strategies.topology import format as write
from strategies.topology.limits import DEEPEST


class PlanError(TopologyError):
    """A wiring that can't run with this catalogue. `model` is the model that can't do its part."""

    def __init__(self, text: str, column: int, model: str, message: str) -> None:
        super().__init__(text, column, message)
        self.args = (text, column, model, message)
        self.model = model


def plan(wiring: Route | Topology, catalog: Catalog) -> Plan:
    """The plan of a wiring.

    Raises UnknownModel for a model that is not in the catalogue, and PlanError for one that opens no token sessions but would have
    to be fused; both point at the name in the text that brought it in (of a bare topology: in its canonical text).
    """
    if isinstance(wiring, Route):
        topology, text, columns = wiring.topology, wiring.parsed.text, wiring.columns
    else:
        topology, text = wiring, write(wiring)
        columns = _columns(topology, text)
    planner = _Planner(catalog, text, columns)
    planner.stage(topology, reads=None, leaf=0, last=True)
    if planner.errors:
        raise min(planner.errors, key=lambda error: error.column)
    return Plan(topology, shape(topology), tuple(planner.stages))


@dataclass(slots=True)
class _Voice:
    """A branch of a group while it is put together. leaf: where it is first written, counted in models of the text."""

    weight: Fraction
    leaf: int


class _Planner:
    """Walks a wiring and writes its stages down, each before those that read it."""

    def __init__(self, catalog: Catalog, text: str, columns: tuple[int, ...]) -> None:
        self.catalog = catalog
        self.text = text
        self.columns = columns
        self.stages: dict[Stage, int] = {}
        self.errors: list[TopologyError] = []

    def stage(self, topology: Topology, *, reads: int | None, leaf: int, last: bool) -> int:
        """Plan a wiring that reads the given stage's answer; `leaf` is the index of its first model. Returns its last stage."""
        if isinstance(topology, Serial):
            final, reads, leaf = self.chain(topology, reads, leaf)
            return self.stage(final, reads=reads, leaf=leaf, last=last)
        voices: dict[tuple[str, int | None], _Voice] = {}
        if isinstance(topology, Model):
            self.voice(voices, topology, reads, leaf, Fraction(1))
        else:
            self.group(voices, topology, reads, leaf, Fraction(1))
        return self.add(voices, last)

    def chain(self, topology: Serial, reads: int | None, leaf: int) -> tuple[Model | Parallel, int | None, int]:
        """Plan all stages of a chain but the last; return that, with what it reads and the index of its first model."""
        for earlier in topology.stages[:-1]:
            reads = self.stage(earlier, reads=reads, leaf=leaf, last=False)
            leaf += measure(earlier).members
        return topology.stages[-1], reads, leaf

    def group(
        self,
        voices: dict[tuple[str, int | None], _Voice],
        topology: Parallel,
        reads: int | None,
        leaf: int,
        share: Fraction,
    ) -> None:
        """Add a group's members to the voices of a stage, with their part of the share."""
        total = sum(Fraction(member.weight) for member in topology.members)
        for member, first in _in_canonical_order(topology, leaf):
            part = share * Fraction(member.weight) / total
            final: Topology = member.topology
            read, at = reads, first
            if isinstance(final, Serial):
                final, read, at = self.chain(final, reads, first)
            if isinstance(final, Parallel):
                self.group(voices, final, read, at, part)
            elif isinstance(final, Model):
                self.voice(voices, final, read, at, part)

    def voice(
        self,
        voices: dict[tuple[str, int | None], _Voice],
        model: Model,
        reads: int | None,
        leaf: int,
        weight: Fraction,
    ) -> None:
        if model.name not in self.catalog:
            self.errors.append(
                UnknownModel(self.text, self.columns[leaf], model.name, nearest(model.name, self.catalog))
            )
        known = voices.get((model.name, reads))
        if known is None:
            voices[model.name, reads] = _Voice(weight, leaf)
        else:
            known.weight += weight
            known.leaf = min(known.leaf, leaf)

    def add(self, voices: dict[tuple[str, int | None], _Voice], last: bool) -> int:
        """Write a stage down, unless there is an equal one; return its index."""
        order = sorted(voices, key=lambda branch: (branch[0], -1 if branch[1] is None else branch[1]))
        places = tuple(Branch(name, _role(reads, last), reads) for name, reads in order)
        stage: Stage
        if len(places) == 1:
            stage = TextStage(places[0])
        else:
            for branch in order:
                self.check_fused(branch[0], voices[branch].leaf)
                self.check_seats(branch[0], [voices[other].leaf for other in order if other[0] == branch[0]])
            stage = FusedStage(places, tuple(float(voices[branch].weight) for branch in order))
        return self.stages.setdefault(stage, len(self.stages))

    def check_fused(self, model: str, leaf: int) -> None:
        entry = self.catalog.get(model)
        if entry is None or entry.token_backend() is not None:
            return
        reason = entry.why_not_fused or "its backend opens no token sessions"
        message = f"'{model}' can't be a member of a group: {reason}"
        self.errors.append(PlanError(self.text, self.columns[leaf], model, message))

    def check_seats(self, model: str, leaves: list[int]) -> None:
        """A group that wants more sessions of one model than it ever has would wait for itself."""
        entry = self.catalog.get(model)
        if entry is not None and entry.seats is not None and len(leaves) > entry.seats:
            message = f"'{model}' is wanted {len(leaves)} times at once by one group, and holds {entry.seats} sessions at most"
            self.errors.append(PlanError(self.text, self.columns[max(leaves)], model, message))


def _role(reads: int | None, last: bool) -> Role:
    if reads is None:
        return "solver"
    return "verifier" if last else "reviewer"


def _in_canonical_order(group: Parallel, leaf: int) -> list[tuple[Member, int]]:
    """The members, each with the index of its first model in the text, in an order that does not depend on that of the text."""
    placed = []
    for member in group.members:
        placed.append((member, leaf))
        leaf += measure(member.topology).members
    return sorted(placed, key=lambda place: (_key(place[0].topology), place[0].weight))


def _key(topology: Topology) -> str:
    """The canonical text with the members of every group in order."""
    if isinstance(topology, Model):
        return topology.name
    if isinstance(topology, Serial):
        return ">".join(_key(stage) for stage in topology.stages)
    members = sorted((_key(m.topology), m.weight.normalize()) for m in topology.members)
    return "|".join(f"({key})*{weight:f}" if weight != Decimal(1) else f"({key})" for key, weight in members)


def _columns(topology: Topology, text: str) -> tuple[int, ...]:
    """Where each model stands in a canonical text."""
    size = measure(topology)
    limits = Limits(length=len(text), depth=min(DEEPEST, size.depth + 1), stages=size.stages, members=size.members)
    return tuple(column for _, column in parse(text, limits).names)
