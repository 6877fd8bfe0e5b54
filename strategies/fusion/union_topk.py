"""The literature's baseline: the union of the members' top-k token strings (UniTE, ICLR 2025). For comparison, never the default.

Formula. Candidates are the byte strings of all members' listed tokens. A member that has the candidate as a token gives it that
token's probability; one that lacks it gives it the probability of the *first* token of its own tokenization of the candidate. The
weighted sum's largest candidate is appended to everybody's text, each in its own tokens.

It is not exact: a member lacking a token adds the mass of everything that merely begins like it, so long tokens of one
vocabulary are overrated (59.6 % on MATH500 where its members reach 74.8 and 72.4; SAFE, arXiv 2510.15346, table 2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from backends.types import LogProbs, TopK, Vocabulary
from strategies.fusion.base import Commit, Lookup, Node, NothingToSay
from strategies.fusion.chooser import Chooser
from strategies.fusion.meters import Meters
from strategies.vocabulary import table_of


class UnionTopK:
    """See the module. Every step counts as uncertified unless drawn at random: there is nothing to certify."""

    def __init__(self, vocabularies: Sequence[Vocabulary], weights: Sequence[float], chooser: Chooser) -> None:
        self._tables = [table_of(vocabulary) for vocabulary in vocabularies]
        self._weights = tuple(weights)
        self._chooser = chooser
        self._places = [Node(None, -1) for _ in self._tables]
        self._due = [True] * len(self._tables)
        self._listed: list[dict[int, float]] = [{} for _ in self._tables]
        self._firsts: list[dict[bytes, tuple[int, ...]]] = [{} for _ in self._tables]
        self._candidates: list[bytes] = []
        self._scores: dict[int, float] = {}
        self._pieces = self._looked_up = 0

    def due(self) -> Sequence[Sequence[Node]]:
        return [(node,) if due else () for node, due in zip(self._places, self._due, strict=True)]

    def feed(self, member: int, node: Node, top: TopK) -> None:
        self._listed[member] = dict(zip(top.ids.tolist(), np.exp(top.logprobs).tolist(), strict=True))
        self._due[member] = False
        self._candidates = []

    def wants(self) -> Sequence[Lookup]:
        if self._candidates:
            return ()
        union = {b""} if any(self._ends(m) for m in range(len(self._tables))) else set()
        for listed, table in zip(self._listed, self._tables, strict=True):
            union.update(
                text for t in listed if (text := table.vocabulary.tokens[t]) and t not in table.vocabulary.end_ids
            )
        if not union:
            raise NothingToSay
        self._candidates = sorted(union)
        wanted = []
        for member, listed in enumerate(self._listed):
            self._firsts[member] = {text: self._first(member, text) for text in self._candidates}
            ids = {t for tokens in self._firsts[member].values() for t in tokens if t not in listed}
            if ids:
                wanted.append(Lookup(member, tuple(sorted(ids))))
        return wanted

    def supply(self, lookup: Lookup, logprobs: LogProbs) -> None:
        self._listed[lookup.member].update(zip(lookup.ids, np.exp(logprobs).tolist(), strict=True))

    def commit(self) -> Commit:
        self._scores = {
            index: sum(
                weight * sum(listed.get(t, 0.0) for t in firsts[text])
                for weight, listed, firsts in zip(self._weights, self._listed, self._firsts, strict=True)
            )
            for index, text in enumerate(self._candidates)
        }
        winner = self._chooser.choose(self._scores)
        text, self._candidates = self._candidates[winner], []
        self._pieces += 1
        if text:
            for member, table in enumerate(self._tables):
                for token in table.by_bytes.get(text, ())[:1] or table.encode(text):
                    self._places[member] = Node(self._places[member], token)
            self._due = [True] * len(self._tables)
        return Commit(text, not text, self._scores[winner])

    @property
    def meters(self) -> Meters:
        sampled = 0 if self._chooser.certain else self._pieces
        return Meters(pieces=self._pieces, sampled=sampled, uncertified=self._pieces - sampled)

    def _ends(self, member: int) -> bool:
        return not self._tables[member].vocabulary.end_ids.isdisjoint(self._listed[member])

    def _first(self, member: int, text: bytes) -> tuple[int, ...]:
        """The tokens whose probability the member gives to a candidate."""
        table = self._tables[member]
        if not text:
            return tuple(sorted(table.vocabulary.end_ids))
        return table.by_bytes.get(text) or table.encode(text)[:1]
