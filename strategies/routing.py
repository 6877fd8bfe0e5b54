"""From the model name of a request to a wiring of real models: aliases are looked up everywhere inside it.

    Route = resolve("s2p:draft>pair", {"pair": Alias("qwen|yi"), "draft": Alias("smol")}, known_models={"qwen", "yi", "smol"})

An alias stands for its expression as if that stood in parentheses. Aliases may use aliases, but not in a circle. Kinds are
claims about what will run, so they are checked after expansion. Names are case-sensitive.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from strategies.topology import (
    Limits,
    Member,
    Model,
    Parsed,
    Serial,
    Size,
    Topology,
    TopologyError,
    check_kind,
    measure,
    parallel,
    parse,
    serial,
)
from strategies.topology.ast import NAME
from strategies.topology.limits import DEFAULT_LIMITS

_COMPARED = 80
"""Characters of an unknown name that are compared with the known ones: comparing is quadratic."""


@dataclass(frozen=True, slots=True)
class Alias:
    """A name for a wiring, with settings of its own; None leaves a setting to the gateway's.

    expression: the wiring, in the grammar of model names. prompts: name of a prompt set. fuser: name of a fuser.
    stage_max_tokens: budget of every stage but the last, tokens. max_tokens: budget of the last stage, tokens.
    on_member_failure, member_seconds: whether a group goes on without a member that fails, and when one is late (`engine.Options`).
    drafts: whether groups may read ahead; early_prefill: whether models read what earlier stages still write; quorum: whether groups
    may go on without members that change nothing (`engine.Options`).
    The settings hold where the whole model name is this alias; inside a larger wiring (or another alias) only the expression counts.
    """

    expression: str
    prompts: str | None = None
    fuser: str | None = None
    stage_max_tokens: int | None = None
    max_tokens: int | None = None
    on_member_failure: Literal["fail", "drop"] | None = None
    member_seconds: float | None = None
    drafts: Literal["off", "auto", "on", "always"] | None = None
    early_prefill: Literal["off", "auto"] | None = None
    quorum: Literal["off", "auto"] | None = None
    description: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """What a model name means.

    topology: the wiring, of models only. parsed: the name as it was written. alias: the alias whose settings hold, if the whole
    name is one. columns: for each of `models(topology)`, the 0-based column in `parsed.text` of the name that brought it in.
    """

    topology: Topology
    parsed: Parsed
    alias: Alias | None
    columns: tuple[int, ...]


class UnknownModel(TopologyError):
    """A name that is neither a model nor an alias. `nearest`: known names like it, the likest first."""

    def __init__(self, text: str, column: int, name: str, nearest: tuple[str, ...], message: str | None = None) -> None:
        shown = name if len(name) <= _COMPARED else name[: _COMPARED - 1] + "…"
        hint = f"; did you mean {' or '.join(repr(near) for near in nearest)}?" if nearest else ""
        super().__init__(text, column, message or f"found '{shown}', expected a model or alias{hint}")
        self.args = (text, column, name, nearest, self.message)
        self.name = name
        self.nearest = nearest


class AliasError(TopologyError):
    """A fault in the configuration of an alias. `alias` is its name; `text` its expression, or its name if that is the fault."""

    def __init__(self, alias: str, text: str, column: int, message: str) -> None:
        super().__init__(text, column, message)
        self.args = (alias, text, column, message)
        self.alias = alias

    def __str__(self) -> str:
        return f"alias '{self.alias}', {super().__str__()}"


def resolve(
    model_name: str,
    aliases: Mapping[str, Alias],
    known_models: Collection[str],
    limits: Limits = DEFAULT_LIMITS,
) -> Route:
    """Read a model name and expand its aliases.

    Raises TopologyError (no wiring, too large even when expanded, wrong kind), UnknownModel, and AliasError where an alias that it
    uses is faulty, which `check_aliases` rules out beforehand.
    """
    parsed = parse(model_name, limits, claims=False)
    expander = _Expander(aliases, known_models, limits)
    topology = expander.expand(parsed)
    check_kind(parsed, topology)
    columns = tuple(column for name, column in parsed.names for _ in range(expander.size(name).members))
    whole = parsed.topology.name if isinstance(parsed.topology, Model) else None
    return Route(topology, parsed, aliases.get(whole) if whole is not None else None, columns)


def check_aliases(aliases: Mapping[str, Alias], known_models: Collection[str], limits: Limits = DEFAULT_LIMITS) -> None:
    """Expand every alias once. Raises AliasError for the first that is faulty: its name is none or is a model's, its expression
    does not parse, names something unknown, uses itself, grows beyond the limits, or claims a wrong kind.
    """
    expander = _Expander(aliases, known_models, limits)
    for name in aliases:
        expander.alias(name)


def nearest(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """Up to three known names like this one, the likest first; upper and lower case are the same here."""
    by_folded: dict[str, str] = {}
    for candidate in known:
        by_folded.setdefault(candidate.casefold(), candidate)
    found = difflib.get_close_matches(name[:_COMPARED].casefold(), by_folded, n=3, cutoff=0.5)
    return tuple(by_folded[folded] for folded in found)


@dataclass(frozen=True, slots=True)
class _Expanded:
    """What an alias stands for. level: 1, or one more than that of the highest alias in its expression."""

    topology: Topology
    size: Size
    level: int


class _Expander:
    """Expands aliases, each once, and measures what comes out."""

    def __init__(self, aliases: Mapping[str, Alias], known: Collection[str], limits: Limits) -> None:
        self.aliases = aliases
        self.known = known
        self.limits = limits
        self.done: dict[str, _Expanded] = {}
        self.open: list[str] = []

    def expand(self, parsed: Parsed) -> Topology:
        """The parsed wiring with its aliases expanded, within the limits."""
        for name, column in parsed.names:
            if name in self.aliases:
                self.check_circle(parsed, name, column)
                self.alias(name)
            elif name not in self.known:
                raise UnknownModel(parsed.text, column, name, nearest(name, [*self.known, *self.aliases]))
        # The names are within the limits, and so is what each stands for: what is built here is at most the limits squared.
        topology = self.replace(parsed.topology)
        self.check_size(parsed, measure(topology))
        return topology

    def alias(self, name: str) -> None:
        """Expand one alias into `done`."""
        if name in self.done:
            return
        text = self.aliases[name].expression
        if not NAME.fullmatch(name):
            raise AliasError(name, name, 0, "a name is made of ASCII letters, digits and . _ - /")
        if name in self.known:
            raise AliasError(name, name, 0, "this is a model's name already")
        self.open.append(name)
        try:
            parsed = parse(text, self.limits, claims=False)
            topology = self.expand(parsed)
            check_kind(parsed, topology)
            level = self.level(parsed)
        except AliasError:
            raise
        except TopologyError as error:
            raise AliasError(name, error.text, error.column, error.message) from error
        self.open.pop()
        self.done[name] = _Expanded(topology, measure(topology), level)

    def level(self, parsed: Parsed) -> int:
        """The level of an alias with this expression, whose own aliases are done."""
        below, column = max((self.done[n].level if n in self.done else 0, -column) for n, column in parsed.names)
        if below >= self.limits.depth:
            raise self.too_deep(parsed, -column)
        return below + 1

    def size(self, name: str) -> Size:
        """The size of what a name stands for."""
        return self.done[name].size if name in self.done else Size(depth=0, stages=1, members=1)

    def replace(self, topology: Topology) -> Topology:
        if isinstance(topology, Model):
            return self.done[topology.name].topology if topology.name in self.done else topology
        if isinstance(topology, Serial):
            return serial(self.replace(stage) for stage in topology.stages)
        return parallel(Member(self.replace(member.topology), member.weight) for member in topology.members)

    def check_circle(self, parsed: Parsed, name: str, column: int) -> None:
        if name in self.open:
            circle = " -> ".join([*self.open[self.open.index(name) :], name])
            raise TopologyError(parsed.text, column, f"'{name}' stands for itself: {circle}")
        if len(self.open) >= self.limits.depth and name not in self.done:
            raise self.too_deep(parsed, column)

    def too_deep(self, parsed: Parsed, column: int) -> TopologyError:
        message = f"found aliases within aliases deeper than the {self.limits.depth} levels allowed"
        return TopologyError(parsed.text, column, message)

    def check_size(self, parsed: Parsed, size: Size) -> None:
        """Point at the alias that contributes most where the expanded wiring exceeds a limit."""
        for unit, words in (("members", "models"), ("stages", "stages"), ("depth", "levels of parentheses")):
            found, allowed = getattr(size, unit), getattr(self.limits, unit)
            if found > allowed:
                name, column = max(parsed.names, key=lambda occurrence: int(getattr(self.size(occurrence[0]), unit)))
                message = f"with '{name}' expanded this has {found} {words}, expected at most {allowed}"
                raise TopologyError(parsed.text, column, message)
