"""Groups whose members come late, in whatever order a seed says: `QuorumPool` without an engine, beside plain lock-step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.types import Vocabulary
from strategies.fusion import Commit, Greedy, LinearPool, Lookup
from strategies.fusion.quorum import QuorumPool
from strategies.fusion.testing import Driver, Model, model, talkative, vocabulary, weights_of


class LateDriver(Driver):
    """Makes the calls that the engine makes. patience: how likely somebody is let act before it is looked whether a piece is certain;
    slow: how much less likely each member is to act than the others. most: how far a member may be behind."""

    fuser: QuorumPool

    def __init__(
        self, fuser: QuorumPool, models: Sequence[Model], k: int, *, lookups: bool, rng: random.Random, most: int = 16
    ) -> None:
        super().__init__(fuser, models, k, lookups=lookups)
        self.rng = rng
        self.most = most
        self.slow = [rng.choice((0.01, 0.2, 1.0, 1.0)) for _ in models]
        self.patience = rng.choice((0.0, 0.3, 0.9))
        self.owed: dict[int, Lookup | None] = {}

    def ready(self) -> None:
        fuser = self.fuser
        while True:
            missing = fuser.missing()
            near = all(fuser.behind(member) < self.most for member in missing)
            if not missing or (near and self.rng.random() >= self.patience and fuser.sure()):
                if not missing:
                    assert fuser.sure()
                wanted = fuser.wants()
                if not wanted:
                    return
                for lookup in wanted:
                    self.answer(lookup, fuser.supply)
            else:
                (member,) = self.rng.choices(missing, [self.slow[number] for number in missing])
                self.act(member)

    def act(self, member: int) -> None:
        """One step of a member that is late."""
        fuser = self.fuser
        if nodes := fuser.due()[member]:
            self.visit(member, nodes[0])
        elif fuser.behind(member):
            if lookup := fuser.owed(member):
                self.answer(lookup, fuser.repay)
            fuser.replay(member)

    def answer(self, lookup: Lookup, supply: Any) -> None:
        """Give the values, if this group's models can."""
        if self.lookups:
            supply(lookup, np.log(self.models[lookup.member](self.histories[lookup.member])[list(lookup.ids)]))

    def level(self) -> None:
        """Everybody says what was said."""
        for member in range(len(self.models)):
            while self.fuser.behind(member):
                self.act(member)


@dataclass(frozen=True)
class Case:
    """A random group. k: how many tokens its members list."""

    tables: list[Vocabulary]
    models: list[Model]
    weights: list[float]
    k: int
    lookups: bool


def case(seed: int) -> Case:
    """Two to five members of one, two or more tokenizers; sharp enough that they are often sure, and of one mind at times."""
    rng = random.Random(seed)
    members = rng.choice((2, 3, 3, 3, 4, 5))
    kinds = rng.choice((1, 2, members))
    known = [vocabulary(rng, rng.randint(4, 12)) for _ in range(kinds)]
    tables = [known[m % kinds] for m in range(members)]
    sharpness = rng.choice((1.5, 3.0, 5.0, 8.0))
    agreed = rng.random() < 0.6
    models = [
        talkative(model(seed if agreed and tables[m] is tables[0] else seed + m, len(table), sharpness), table)
        for m, table in enumerate(tables)
    ]
    if agreed:
        models = [leaning(models[0], tables[0], probs, table) for probs, table in zip(models, tables, strict=True)]
    weights = rng.choice(([1 / members] * members, weights_of(rng, members)))
    return Case(tables, models, weights, rng.choice((1, 2, 3, 5, 8, 10**6)), rng.random() < 0.8)


def leaning(first: Model, table: Vocabulary, own: Model, mine: Vocabulary) -> Model:
    """A member that mostly wants what the first one would say to the same text, in tokens of its own, as far as it has them."""
    ids = {text: id for id, text in enumerate(table.tokens) if text}
    mine_ids = {text: id for id, text in enumerate(mine.tokens) if text}
    size = max(map(len, table.tokens))

    def encode(text: bytes) -> tuple[int, ...]:
        found, at = [], 0
        while at < len(text):
            part = next(text[at : at + n] for n in range(size, 0, -1) if text[at : at + n] in ids)
            found.append(ids[part])
            at += len(part)
        return tuple(found)

    def probs(history: tuple[int, ...]) -> Any:
        theirs = first(encode(b"".join(mine.tokens[token] for token in history)))
        values = 0.15 * own(history)
        favourite = table.tokens[int(theirs.argmax())]
        there = mine_ids.get(favourite, mine_ids[favourite[:1]]) if favourite else min(mine.end_ids)
        values[there] += 0.85
        return values / values.sum()

    return probs


def pair(case: Case, rng: random.Random, most: int = 16) -> tuple[Driver, LateDriver]:
    """The same group, waiting for everybody and not."""
    plain = Driver(LinearPool(case.tables, case.weights, Greedy()), case.models, case.k, lookups=case.lookups)
    early = QuorumPool(case.tables, case.weights, Greedy())
    return plain, LateDriver(early, case.models, case.k, lookups=case.lookups, rng=rng, most=most)


def steps(plain: Driver, late: LateDriver, pieces: int) -> int | None:
    """Let both write. The first piece in which they differ; None: they do not."""
    for number in range(pieces):
        one: Commit = plain.commit()
        other = late.commit()
        if (one.text, one.end) != (other.text, other.end):
            return number
        if one.end:
            break
    return None
