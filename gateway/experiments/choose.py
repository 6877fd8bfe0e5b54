"""A request's facts → its arm."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backends.types import Message
from gateway.experiments.assign import assign, draw, pseudonym
from gateway.experiments.route import Route

OVERRIDE_HEADER = "x-modelnet-arm"
LONGEST = 512
"""Characters of a subject that count."""


class UnknownArm(Exception):
    """An override that names no arm."""

    def __init__(self, route: Route, arm: str) -> None:
        super().__init__(f"Route {route.name!r} has no arm of that name; there are {', '.join(route.arms)}.")


class OverrideForbidden(Exception):
    """An override where the configuration allows none."""

    def __init__(self, route: Route) -> None:
        super().__init__(f"Route {route.name!r} does not let requests choose their arm.")


@dataclass(frozen=True, slots=True)
class Facts:
    """What of a request may decide: the client's `user`, its key's id, headers by lower-case name, the conversation.

    arm: asked for in the body, if at all. chance: a text that no other request has, for those without a subject.
    """

    user: str | None
    key: str | None
    headers: Mapping[str, str]
    messages: Sequence[Message]
    arm: str | None
    chance: str


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a request goes. by: what decided: an entry of `sticky`, "chance", or "override". subject: its pseudonym.

    shares: each arm's part at that moment. model: of the arm.
    """

    route: Route
    arm: str
    by: str
    subject: str
    shares: Mapping[str, float]

    @property
    def model(self) -> str:
        return self.route.arms[self.arm].model


def choose(route: Route, facts: Facts, now: float) -> Choice:
    """The arm of a request at a moment (Unix seconds). Raises UnknownArm, OverrideForbidden."""
    by, subject = _subject(route, facts)
    weights = route.weights(now)
    asked = facts.arm or facts.headers.get(OVERRIDE_HEADER)
    if asked:
        if not route.override:
            raise OverrideForbidden(route)
        if asked not in route.arms:
            raise UnknownArm(route, asked[:64])
        arm, by = asked, "override"
    else:
        arm = assign(_salt(route), subject, weights)
    return Choice(route, arm, by, pseudonym(_salt(route), subject), route.shares(now))


def shadowed(choice: Choice, chance: str) -> bool:
    """Whether a request is among those that are copied."""
    shadow = choice.route.shadow
    return shadow is not None and draw("shadow", chance, choice.route.name) < shadow.share


def _salt(route: Route) -> str:
    return route.salt or route.name


def _subject(route: Route, facts: Facts) -> tuple[str, str]:
    for source in route.sticky:
        if source == "conversation":
            found: str | None = _conversation(facts.messages)
        elif source == "user":
            found = facts.user
        elif source == "key":
            found = facts.key
        else:
            found = facts.headers.get(source.removeprefix("header:"))
        if found:
            # The source is part of it: a user called like a key is somebody else.
            return source, f"{source}={found[:LONGEST]}"
    return "chance", f"chance={facts.chance}"


def _conversation(messages: Sequence[Message]) -> str | None:
    """What stays the same while a conversation grows: all up to its first user turn."""
    hashed = hashlib.blake2b(digest_size=16)
    for message in messages:
        for part in (message.role, message.content):
            data = part.encode("utf-8", "surrogatepass")
            hashed.update(len(data).to_bytes(8, "big") + data)
        if message.role == "user":
            return hashed.hexdigest()
    return None
