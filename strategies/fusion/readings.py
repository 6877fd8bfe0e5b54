"""One member's readings: all token sequences by which it may have said what the group said, with their masses.

Notation. A node's live tokens are (p, s, t): probability p at that node (never renormalised), spelling s, id t, all with
`s[:node.at] == node.spoken`. A member's listed mass is `seen = Σ_nodes weight · Σ_live p`; after every commit the weights are scaled
so that it is 1 minus what is still unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backends.types import LogProbs, TopK
from strategies.fusion.base import Node
from strategies.vocabulary import Speller

NEGLIGIBLE = 1e-7
"""Share of a member's mass below which a pending reading is dropped (and metered): it can't decide anything any more."""


@dataclass(frozen=True, slots=True)
class View:
    """What a member thinks of the next piece.

    masses: piece → listed mass, unnormalised. seen: their sum. fresh: mass known to lie outside the lists, of text or
    control tokens. unseen: upper bound of all unlisted mass that fits what was said (>= fresh).
    P(v) lies between masses[v] / (seen + unseen) and (masses[v] + b) / (seen + b) for every b >= the unlisted mass on v;
    the estimate is masses[v] / (seen + fresh).
    """

    masses: dict[int, float]
    seen: float
    fresh: float
    unseen: float


class Readings:
    """State of one member. `beam`: how many newly completed readings may be evaluated at once; `share`: the least share of the
    member's mass that is worth a forward pass."""

    __slots__ = ("_beam", "_nodes", "_pieces", "_share", "due", "lost", "position", "repaired", "speller")

    def __init__(self, speller: Speller, pieces: Sequence[bytes], *, beam: int, share: float) -> None:
        self.speller = speller
        self._pieces = pieces
        self._beam = beam
        self._share = share
        self.position = Node(None, -1)
        """The node fed last: where the member's session stands."""
        self._nodes: list[Node] = []
        self.due: list[Node] = [self.position]
        self.lost = 0.0
        """Share of the mass dropped by the last `advance`: readings not worth a forward pass, and tokens never listed (their bound)."""
        self.repaired = False
        """Whether the last `advance` had to tokenize anew."""

    def feed(self, node: Node, top: TopK) -> None:
        """Take the distribution at a due node."""
        speller = self.speller
        probs = np.exp(top.logprobs).tolist()
        node.live = [(p, s, t) for p, t in zip(probs, top.ids.tolist(), strict=True) if (s := speller[t])]
        node.outside = top.outside
        node.pmin = min(probs[-1], top.outside) if probs else top.outside
        self.due.remove(node)
        self._nodes.append(node)
        self.position = node

    def view(self) -> View:
        """Masses of the next piece over all readings."""
        masses: dict[int, float] = {}
        fresh = unseen = 0.0
        for node in self._nodes:
            at, weight = node.at, node.weight
            for p, s, _ in node.live or ():
                piece = s[at]
                masses[piece] = masses.get(piece, 0.0) + weight * p
            unseen += weight * node.outside
            if at == 0:
                fresh += weight * node.outside
        return View(masses, sum(masses.values()), fresh, unseen)

    def bound(self, piece: int) -> float:
        """Upper bound of the unlisted mass on one next piece."""
        total = 0.0
        text = self._pieces[piece]
        for node in self._nodes:
            if node.outside > 0.0 and piece not in node.resolved:
                at = node.at
                unlisted = self.speller.count_continuing(node.said, piece, text)
                unlisted -= sum(1 for _, s, _ in node.live or () if s[at] == piece)
                total += node.weight * min(node.outside, node.pmin * max(unlisted, 0))
        return total

    def missing(self, piece: int) -> list[int]:
        """Unlisted ids that go on with `piece` at the place where the session stands; nothing can be asked of others."""
        node = self.position
        if node.outside <= 0.0 or piece in node.resolved or node.live is None or node not in self._nodes:
            return []
        listed = {t for _, _, t in node.live}
        found = self.speller.continuing(node.said, node.spoken, piece, self._pieces[piece])
        unlisted = [t for t in found if t not in listed]
        if not unlisted:
            node.resolved.add(piece)
        return unlisted

    def supply(self, ids: Sequence[int], logprobs: LogProbs, pieces: Sequence[int]) -> None:
        """Exact values of all `missing` ids of `pieces`, at the session's place."""
        node = self.position
        assert node.live is not None
        probs = np.exp(logprobs).tolist()
        speller = self.speller
        node.live.extend((p, speller[t], t) for p, t in zip(probs, ids, strict=True))
        node.outside = max(0.0, node.outside - sum(probs))
        node.resolved.update(pieces)

    def advance(self, piece: int) -> None:
        """The group said `piece` (not an end): keep what fits, tokenize anew if nothing does, note what is due next."""
        said, pending, done = self._pieces[piece], [], []
        unlisted = self.bound(piece)
        last = max(self._nodes, key=lambda n: n.weight, default=self.position)
        before = last.said
        for node in self._nodes:
            going = []
            after = node.at + 1
            for entry in node.live or ():
                p, s, t = entry
                if s[node.at] == piece:
                    if len(s) == after:
                        done.append(Node(node, t, node.weight * p))
                    else:
                        going.append(entry)
            if going:
                self._move_on(node, going, piece, said)
                pending.append(node)
        self._settle(pending, done, unlisted)
        self.repaired = False
        if not self._nodes and not self.due:
            self.repaired = bool(before)  # a single unlisted token in its own right is no new tokenization
            self._start_over(last, before + said, piece)

    def _move_on(self, node: Node, going: list[tuple[float, tuple[int, ...], int]], piece: int, said: bytes) -> None:
        """A node whose tokens reach beyond the piece just said."""
        if piece in node.resolved:
            node.outside = 0.0
        elif node.outside > 0.0:
            unlisted = self.speller.count_continuing(node.said, piece, said) - len(going)  # those done with are counted, too: safe
            node.outside = min(node.outside, node.pmin * max(unlisted, 0))
        node.live = going
        node.at += 1
        node.said += said
        node.spoken = (*node.spoken, piece)
        node.resolved = set()

    def _settle(self, pending: list[Node], done: list[Node], unlisted: float) -> None:
        """Keep the readings that matter; scale what is kept to one."""
        masses = [node.weight * sum(p for p, _, _ in node.live or ()) for node in pending]
        total = sum(masses) + sum(node.weight for node in done)
        if total <= 0.0:
            self.lost = 0.0  # nothing was listed, so nothing is dropped: the member is set anew
            self._nodes, self.due = [], []
            return
        done.sort(key=lambda n: (-n.weight, n.token))
        kept = [n for n in done[: self._beam] if n.weight >= self._share * total]
        alive = [(n, m) for n, m in zip(pending, masses, strict=True) if m >= min(NEGLIGIBLE, self._share) * total]
        if not kept and not alive:
            kept = done[:1]
        mass = sum(n.weight for n in kept) + sum(m for _, m in alive)
        dropped = total - mass if len(kept) < len(done) or len(alive) < len(pending) else 0.0
        self.lost = max(0.0, dropped + unlisted) / (total + unlisted)
        scale = 1.0 / mass
        self._nodes = [n for n, _ in alive]
        for node in (*kept, *self._nodes):
            node.weight *= scale
        kept.reverse()  # the likeliest last, so that the session stands where the text most likely goes on
        self.due = kept

    def _start_over(self, boundary: Node, tail: bytes, piece: int) -> None:
        """No reading fits: say the tail behind the last token boundary in tokens of the member's own, and go on from there."""
        node = boundary
        for token in self.speller.encode(tail, piece):
            node = Node(node, token)
        node.weight = 1.0
        self.due = [node]
