"""Writes a wiring as text, the inverse of `parse`."""

from __future__ import annotations

from decimal import Decimal

from strategies.topology.ast import Kind, Member, Model, Serial, Topology


def format(topology: Topology, kind: Kind | None = None) -> str:
    """The canonical text: no white space, no needless parentheses, weights with the digits they were written with, 1 left out.

    `parse(format(t)).topology == t` for every wiring within the limits. The kind is written as given; `parse` checks it.
    """
    text = _write(topology)
    return text if kind is None else f"{kind}:{text}"


def _write(topology: Topology) -> str:
    if isinstance(topology, Model):
        return topology.name
    if isinstance(topology, Serial):
        return ">".join(_write(stage) for stage in topology.stages)
    return "|".join(_member(member) for member in topology.members)


def _member(member: Member) -> str:
    text = _write(member.topology)
    if not isinstance(member.topology, Model):
        text = f"({text})"
    return text if member.weight == Decimal(1) else f"{text}*{member.weight:f}"
