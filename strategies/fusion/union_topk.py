"""The literature's baseline: the union of the members' top-k token strings (UniTE, ICLR 2025). For comparison, never the default.

Formula. Candidates are the byte strings of all members' listed tokens. A member that has the candidate as a token gives it that
token's probability; one that lacks it gives it the probability of the *first* token of its own tokenization of the candidate. The
weighted sum's largest candidate is appended to everybody's text, each in its own tokens.

It is not exact: a member lacking a token adds the mass of everything that merely begins like it, so long tokens of one
vocabulary are overrated (59.6 % on MATH500 where its members reach 74.8 and 72.4; SAFE, arXiv 2510.15346, table 2).
When to use it: to compare with published results. Cost: one look-up per member and piece. Guarantee: none.
Under a guide the candidates are the allowed pieces with which they begin, and if no candidate begins with one, all that are allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from backends.types import LogProbs, TopK, Vocabulary
from strategies.fusion.base import Commit, Guide, Lookup, Node, NothingToSay, Tell
from strategies.fusion.chooser import Chooser
from strategies.fusion.meters import Certificate, Meters
from strategies.fusion.telling import detail
from strategies.vocabulary import Inventory, inventory_of, table_of

MOST_CANDIDATES = 1024
"""Allowed pieces that are tried where no candidate is allowed."""


class UnionTopK:
    """See the module. Every step counts as uncertified unless drawn at random: there is nothing to certify."""

    certifies: ClassVar[bool] = False

    def __init__(
        self,
        vocabularies: Sequence[Vocabulary],
        weights: Sequence[float],
        chooser: Chooser,
        *,
        guide: Guide | None = None,
        tell: Tell | None = None,
    ) -> None:
        self._tables = [table_of(vocabulary) for vocabulary in vocabularies]
        self._weights = list(weights)
        self._chooser = chooser
        self._names: dict[
            bytes, int
        ] = {}  # candidates of the whole answer, numbered as they come: what penalties count
        tokens = vocabularies[0].tokens  # biases are by token, and come only where all have one tokenizer
        shaping = chooser.shaping
        self._shaping = None if shaping is None else shaping.renamed(lambda token: self._number(tokens[token]))
        self._guide = None if guide is None else _Guided(guide, inventory_of(vocabularies))
        self._tell = tell
        self._places = [Node(None, -1) for _ in self._tables]
        self._due = [True] * len(self._tables)
        self._gone: set[int] = set()
        self._listed: list[dict[int, float]] = [{} for _ in self._tables]
        self._firsts: list[dict[bytes, tuple[int, ...]]] = [{} for _ in self._tables]
        self._candidates: list[bytes] = []
        self._pieces = 0

    def due(self) -> Sequence[Sequence[Node]]:
        return [(node,) if due else () for node, due in zip(self._places, self._due, strict=True)]

    def feed(self, member: int, node: Node, top: TopK) -> None:
        self._listed[member] = dict(zip(top.ids.tolist(), np.exp(top.logprobs).tolist(), strict=True))
        self._due[member] = False
        self._candidates = []

    def wants(self) -> Sequence[Lookup]:
        if self._candidates:
            return ()
        union = {b""} if any(self._ends(m) for m in self._live()) else set()
        for member in self._live():
            vocabulary = self._tables[member].vocabulary
            union.update(
                text for t in self._listed[member] if (text := vocabulary.tokens[t]) and t not in vocabulary.end_ids
            )
        if self._guide is not None:
            union = self._guide.candidates(union)
        if not union:
            raise NothingToSay
        self._candidates = sorted(union)
        wanted = []
        for member in self._live():
            listed = self._listed[member]
            self._firsts[member] = {text: self._first(member, text) for text in self._candidates}
            ids = {t for tokens in self._firsts[member].values() for t in tokens if t not in listed}
            if ids:
                wanted.append(Lookup(member, tuple(sorted(ids))))
        return wanted

    def supply(self, lookup: Lookup, logprobs: LogProbs) -> None:
        self._listed[lookup.member].update(zip(lookup.ids, np.exp(logprobs).tolist(), strict=True))

    def commit(self) -> Commit:
        shares = [self._shares(text) for text in self._candidates]
        plain = {index: sum(w * p for w, p in zip(self._weights, row, strict=True)) for index, row in enumerate(shares)}
        winner = self._chooser.choose(self._shaped(plain))
        text, candidates, self._candidates = self._candidates[winner], self._candidates, []
        self._pieces += 1
        whole = sum(plain.values()) or 1.0
        said = Commit(text, not text, plain[winner] / whole)
        if (tell := self._tell) is not None:
            certificate: Certificate = "uncertified" if self._chooser.certain else "sampled"
            told = {index: p / whole for index, p in plain.items()}
            members, others = self._members(shares, winner, candidates) if tell.members else ((), ())
            said.detail = detail(told, winner, tell.top, certificate, candidates.__getitem__, members, others)
        self._say(text)
        return said

    def drop(self, member: int) -> None:
        self._gone.add(member)
        self._due[member] = False
        self._weights[member] = 0.0
        whole = sum(self._weights)
        self._weights = [weight / whole for weight in self._weights]
        self._listed[member] = {}
        self._candidates = []

    @property
    def meters(self) -> Meters:
        sampled = 0 if self._chooser.certain else self._pieces
        return Meters(pieces=self._pieces, sampled=sampled, uncertified=self._pieces - sampled)

    def _live(self) -> list[int]:
        return [member for member in range(len(self._tables)) if member not in self._gone]

    def _shares(self, text: bytes) -> list[float]:
        """What each member gives to a candidate."""
        return [
            0.0 if member in self._gone else sum(listed.get(t, 0.0) for t in firsts[text])
            for member, (listed, firsts) in enumerate(zip(self._listed, self._firsts, strict=True))
        ]

    def _shaped(self, plain: Mapping[int, float]) -> Mapping[int, float]:
        if self._shaping is None:
            return plain
        scores = {self._number(text): plain[index] for index, text in enumerate(self._candidates)}
        shaped = self._shaping.apply(scores)
        left = {index: shaped[n] for index, text in enumerate(self._candidates) if (n := self._number(text)) in shaped}
        return left or plain  # all that is listed is banned

    def _say(self, text: bytes) -> None:
        if self._guide is not None:
            self._guide.said(text)
        if not text:
            return
        if self._shaping is not None:
            self._shaping.said(self._number(text))
        for member in self._live():
            table = self._tables[member]
            for token in table.ids_of(text)[:1] or table.encode(text):
                self._places[member] = Node(self._places[member], token)
            self._due[member] = True

    def _members(
        self, shares: Sequence[Sequence[float]], winner: int, candidates: Sequence[bytes]
    ) -> tuple[tuple[float | None, ...], tuple[tuple[int, bytes, float], ...]]:
        own = tuple(None if member in self._gone else p for member, p in enumerate(shares[winner]))
        others = []
        for member in self._live():
            best = max(range(len(shares)), key=lambda index: (shares[index][member], -index))
            if best != winner:
                others.append((member, candidates[best], shares[best][member]))
        return own, tuple(others)

    def _number(self, text: bytes) -> int:
        return self._names.setdefault(text, len(self._names))

    def _ends(self, member: int) -> bool:
        return not self._tables[member].vocabulary.end_ids.isdisjoint(self._listed[member])

    def _first(self, member: int, text: bytes) -> tuple[int, ...]:
        """The tokens whose probability the member gives to a candidate."""
        table = self._tables[member]
        if not text:
            return tuple(sorted(table.vocabulary.end_ids))
        return table.ids_of(text) or table.encode(text)[:1]


class _Guided:
    """A guide, which speaks of pieces, for candidates, which are bytes."""

    def __init__(self, guide: Guide, inventory: Inventory) -> None:
        self._guide = guide
        self._inventory = inventory
        self._ids: dict[bytes, int] = {}
        for piece, text in enumerate(inventory.pieces):
            if text or piece in inventory.ends:
                self._ids.setdefault(text, piece)
        self._longest = max(map(len, self._ids))
        self._now: dict[bytes, int] | None = None

    def candidates(self, union: set[bytes]) -> set[bytes]:
        """What may come next instead of these candidates."""
        mask = self._guide.allowed()
        if mask is None:
            found = {text: piece for text in union if (piece := self._begins(text)) is not None}
            self._now = {self._inventory.pieces[piece]: piece for piece in found.values()}
            return set(self._now)
        pieces = self._inventory.pieces
        began = [self._begins(text, mask) for text in union]
        allowed = [piece for piece in began if piece is not None]
        if not allowed:
            allowed = np.flatnonzero(np.frombuffer(mask, np.uint8))[:MOST_CANDIDATES].tolist()
        ends = self._inventory.ends
        self._now = {pieces[piece]: piece for piece in allowed if pieces[piece] or piece in ends}
        return set(self._now)

    def said(self, text: bytes) -> None:
        assert self._now is not None
        self._guide.said(self._now[text])

    def _begins(self, text: bytes, mask: bytes | None = None) -> int | None:
        """The longest piece that a candidate begins with and that may come next; of the end, any that may."""
        if not text:
            return next((piece for piece in sorted(self._inventory.ends) if mask is None or mask[piece]), None)
        for length in range(min(len(text), self._longest), 0, -1):
            piece = self._ids.get(text[:length])
            if piece is not None and (mask is None or mask[piece]):
                return piece
        return None
