"""One member's readings: all token sequences by which it may have said what the group said, with their masses.

Notation. A node lists tokens t with probability p (never renormalised) whose spelling begins with `node.spoken`. A member's listed mass
is `seen = Σ_nodes weight · node.seen`; after every commit the weights are scaled so that the kept readings add up to 1.

The lists of a node are parallel plain lists, not tuples or arrays: for some twenty entries that is what Python does fastest. What was
looked up may be thousands of tokens that begin alike, and stays in arrays until the group says their piece; then the likeliest of them
become the lists, and the others' sum is mass outside again. Once a piece was looked up, all its tokens are `node.found`, those on the
lists as well, and `node.masses` has their sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from math import inf

import numpy as np
from numpy import exp
from numpy.typing import NDArray

from backends.types import Ids, LogProbs, TopK
from strategies.fusion.base import NO_PIECES, NOTHING_FOUND, Node
from strategies.fusion.restarting import Restarting
from strategies.vocabulary import Continuing, Speller

MOST_LISTED = 64
"""Tokens of a looked-up piece that stay listed when the group says the piece."""

NO_IDS = np.array((), np.int32)

FEW = 16
"""So many pieces are quicker one by one than all at once."""

NOT_FINITE = "a member's probabilities are not finite numbers"

NEGLIGIBLE = 1e-7
"""Share of a member's mass below which a pending reading is dropped (and metered): it can't decide anything any more."""


class View:
    """What a member thinks of the next piece.

    masses: piece → listed mass, unnormalised; not to be changed. seen: their sum. fresh: mass known to lie outside the lists, of text
    or control tokens. unseen: upper bound of all unlisted mass that fits what was said (>= fresh). each: upper bound of one
    token's part of `fresh`.
    P(v) lies between masses[v] / (seen + unseen) and (masses[v] + b) / (seen + b) for every b >= the unlisted mass on v;
    the estimate is masses[v] / (seen + fresh).
    """

    __slots__ = ("each", "fresh", "masses", "seen", "unseen")

    def __init__(self, masses: dict[int, float], seen: float, fresh: float, unseen: float, each: float) -> None:
        self.masses = masses
        self.seen = seen
        self.fresh = fresh
        self.unseen = unseen
        self.each = each


class Readings(Restarting):
    """State of one member. `beam`: how many newly completed readings may be evaluated at once; `share`: the least share of the
    member's mass that is worth a forward pass."""

    __slots__ = (
        "_asked",
        "_beam",
        "_nodes",
        "_pieces",
        "_share",
        "_view",
        "due",
        "lost",
        "narrowed",
        "position",
        "repaired",
        "speller",
    )

    def __init__(self, speller: Speller, pieces: Sequence[bytes], *, beam: int, share: float) -> None:
        self.speller = speller
        self._pieces = pieces
        self._beam = beam
        self._share = share
        self.position = Node(None, -1)
        """The node fed last: where the member's session stands."""
        self._nodes: list[Node] = []
        self._asked: list[tuple[int, Continuing]] = []
        self._view: View | None = None
        self.due: list[Node] = [self.position]
        self.lost = 0.0
        """Share of the mass dropped by the last `advance`: readings not worth a forward pass, and tokens never listed (their bound)."""
        self.repaired = False
        """Whether the last `advance` had to tokenize anew."""
        self.narrowed = False
        """Whether the last `missing` found a piece whose every token is listed, so that bounds are closer than they were."""

    def feed(self, node: Node, top: TopK) -> None:
        """Take the distribution at a due node. Raises ValueError where probabilities are not finite numbers."""
        node.ids = top.ids.tolist()
        node.probs = probs = exp(top.logprobs).tolist()
        node.nexts = nexts = self.speller.first.take(top.ids).tolist()
        node.masses = masses = _added(nexts, probs)
        if -1 in masses:
            del masses[-1]
        node.seen = seen = sum(masses.values(), 0.0)
        if not seen + top.outside < inf:
            node.forget()
            raise ValueError(NOT_FINITE)
        node.outside = top.outside
        node.pmin = min(probs[-1], top.outside) if probs else top.outside
        self.due.remove(node)
        self._nodes.append(node)
        self._view = None
        self.position = node

    def view(self) -> View:
        """Masses of the next piece over all readings."""
        if self._view is None:
            self._view = self._look()
        return self._view

    def _look(self) -> View:
        if len(self._nodes) == 1:
            node = self._nodes[0]
            if node.weight == 1.0:
                fresh, each = (0.0, 0.0) if node.at else (node.outside, node.pmin)
                return View(node.masses, node.seen, fresh, node.outside, each)
        masses: dict[int, float] = {}
        seen = fresh = unseen = each = 0.0
        for node in self._nodes:
            weight = node.weight
            if masses:
                known = masses.get
                for piece, mass in node.masses.items():
                    masses[piece] = known(piece, 0.0) + weight * mass
            else:
                masses = {piece: weight * mass for piece, mass in node.masses.items()}
            seen += weight * node.seen
            unseen += weight * node.outside
            if node.at == 0:
                fresh += weight * node.outside
                each += weight * node.pmin
        return View(masses, seen, fresh, unseen, each)

    def bound(self, piece: int) -> float:
        """Upper bound of the unlisted mass on one next piece."""
        total = 0.0
        for node in self._nodes:
            outside = node.outside
            if outside > 0.0 and piece not in node.resolved:
                unlisted = self.speller.beginning[piece] if node.at == 0 else self._beginning(node, piece)
                if piece in node.masses:
                    unlisted -= node.nexts.count(piece)
                if unlisted > 0:
                    total += node.weight * min(outside, node.pmin * unlisted)
        return total

    def bounds(self, pieces: Sequence[int]) -> list[float]:
        """`bound` of each, sooner."""
        node = self._nodes[0] if self._nodes else self.position
        if len(self._nodes) != 1 or node.at or node.outside <= 0.0:
            return [self.bound(piece) for piece in pieces]
        beginning, listed, resolved = self.speller.beginning, Counter(node.nexts), node.resolved
        outside, pmin, weight = node.outside, node.pmin, node.weight
        return [
            0.0 if piece in resolved else weight * min(outside, pmin * max(0, beginning[piece] - listed[piece]))
            for piece in pieces
        ]

    def _beginning(self, node: Node, piece: int) -> int:
        """At most so many tokens go on with `piece` at a node."""
        if node.at == 0:
            return self.speller.beginning[piece]
        return self.speller.count_continuing(node.said, piece, self._pieces[piece])

    def missing(self, pieces: Sequence[int], most: int) -> Ids:
        """Ids whose exact values settle `pieces` at the place where the session stands; nothing can be asked of others.

        Of each piece all tokens that go on with it, the listed ones too, unless those are all. A piece that would bring the
        unlisted ones to more than `most` is left out.
        """
        node = self.position
        self._asked, self.narrowed = [], False
        if node.outside <= 0.0 or node not in self._nodes:
            return NO_IDS
        ids: list[Ids] = []
        resolved = set(node.resolved)
        counted = Counter(node.nexts).__getitem__ if len(pieces) > FEW else node.nexts.count
        for piece in pieces:
            if piece not in resolved:
                found = self.speller.continuing(node.said, node.spoken, piece, self._pieces[piece])
                unlisted = len(found.ids) - counted(piece)
                if unlisted == 0:
                    resolved.add(piece)
                    self.narrowed = True
                elif unlisted <= most:
                    most -= unlisted
                    ids.append(found.ids)
                    self._asked.append((piece, found))
        node.resolved = resolved
        return ids[0] if len(ids) == 1 else np.concatenate(ids) if ids else NO_IDS

    def supply(self, logprobs: LogProbs) -> None:
        """The values that `missing` asked for, at the session's place."""
        node, view = self.position, self._view
        if view is None or view.masses is node.masses:
            view = self._view = None
        probs = exp(logprobs)
        masses, all_found, start = node.masses, dict(node.found), 0
        for (piece, found), mass in zip(self._asked, self._sums(probs), strict=True):
            stop = start + len(found.ids)
            all_found[piece] = found, probs[start:stop]
            start = stop
            more = mass - masses.get(piece, 0.0)
            masses[piece] = mass
            node.seen += more
            node.outside -= more
            if view is not None:  # other nodes' masses may be thousands: they are not merged again
                view.masses[piece] = view.masses.get(piece, 0.0) + node.weight * more
                view.seen += node.weight * more
        node.found = all_found
        node.resolved = {*node.resolved, *[piece for piece, _ in self._asked]}
        node.outside = max(0.0, node.outside)
        if view is not None:
            view.unseen = sum([n.weight * n.outside for n in self._nodes], 0.0)
            view.fresh = sum([n.weight * n.outside for n in self._nodes if n.at == 0], 0.0)

    def weigh(self, logprobs: LogProbs) -> tuple[dict[int, float], bool]:
        """The values that `missing` asked for, only looked at: nothing here changes by them.

        Piece → mass on it beyond the view's; and whether these are parts of what the view takes to lie outside its lists.
        """
        node = self.position
        masses = zip(self._asked, self._sums(exp(logprobs)), strict=True)
        more = {piece: node.weight * (mass - node.masses.get(piece, 0.0)) for (piece, _), mass in masses}
        return more, node.at == 0

    def _sums(self, probs: NDArray[np.float64]) -> list[float]:
        """Of each piece that was asked for, the sum over its tokens; there are some for all of them."""
        if len(self._asked) == 1:
            return [float(probs.sum())]
        ends = accumulate([len(found.ids) for _, found in self._asked[:-1]])
        sums: list[float] = np.add.reduceat(probs, [0, *ends]).tolist()
        return sums

    def advance(self, piece: int) -> None:
        """The group said `piece` (not an end): keep what fits, tokenize anew if nothing does, note what is due next."""
        earlier = self._nodes
        self.repaired = False
        if len(earlier) == 1 and self._one_token(earlier[0], piece):
            return
        said = self._pieces[piece]
        last = earlier[0] if len(earlier) == 1 else max(earlier, key=lambda n: n.weight, default=self.position)
        before = last.said
        unlisted = self.bound(piece)
        done: list[Node] = []
        pending = [node for node in earlier if piece in node.masses and self._go_on(node, piece, said, done)]
        self._settle(pending, done, unlisted)
        if not self._nodes and not self.due:
            self.repaired = bool(before)  # a single unlisted token in its own right is no new tokenization
            self._retell(last, before + said, piece)
        for node in earlier:
            if node not in self._nodes:
                node.forget()

    def _one_token(self, node: Node, piece: int) -> bool:
        """Nearly always: the piece is one token, and nothing that is known goes on beyond it. The same as the general way, sooner."""
        if piece in node.found:
            tokens, probs = node.found[piece]
            if len(tokens.ids) != 1 or not tokens.complete:
                return False
            token, p, unlisted = int(tokens.ids[0]), float(probs[0]), 0.0
        else:
            if node.nexts.count(piece) != 1:
                return False
            index = node.nexts.index(piece)
            token, p = node.ids[index], node.probs[index]
            if len(self.speller[token]) != node.at + 1:
                return False
            unlisted = self.bound(piece) if node.outside > 0.0 else 0.0
        mass = node.weight * p
        if mass <= 0.0:
            return False
        self.lost = unlisted / (mass + unlisted) if unlisted else 0.0
        self._nodes, self.due, self._view = [], [Node(node, token)], None
        node.forget()
        return True

    def _go_on(self, node: Node, piece: int, said: bytes, done: list[Node]) -> bool:
        """Add the tokens that `piece` completes to `done`; the node goes on with those that reach beyond it, if there are any."""
        if piece in node.found:
            tokens, probs = node.found[piece]
            complete = tokens.complete
            whole = zip(tokens.ids[:complete].tolist(), probs[:complete].tolist(), strict=True)
            done += [Node(node, token, node.weight * p) for token, p in whole]
            if complete == len(tokens.ids):
                return False
            self._say(node, piece, said)
            self._list(node, tokens.beyond, probs[complete:])
            return True
        going = []
        after = node.at + 1
        for index, candidate in enumerate(node.nexts):
            if candidate == piece:
                if len(self.speller[node.ids[index]]) == after:
                    done.append(Node(node, node.ids[index], node.weight * node.probs[index]))
                else:
                    going.append(index)
        if going:
            self._say(node, piece, said)
            self._keep(node, going)
        return bool(going)

    def _say(self, node: Node, piece: int, said: bytes) -> None:
        """Nothing is listed beyond `piece` yet."""
        if piece in node.resolved:
            node.outside = 0.0
        elif node.outside > 0.0:
            unlisted = self._beginning(node, piece) - node.nexts.count(piece)
            node.outside = min(node.outside, node.pmin * max(unlisted, 0))
        node.at += 1
        node.said += said
        node.spoken = (*node.spoken, piece)
        node.resolved = NO_PIECES
        node.found = NOTHING_FOUND

    def _list(self, node: Node, ids: NDArray[np.int32], probs: NDArray[np.float64]) -> None:
        """The likeliest of tokens that were looked up, of equal ones the first; the others are outside."""
        node.outside = node.pmin = 0.0
        if len(ids) > MOST_LISTED:
            least = np.partition(probs, -MOST_LISTED)[-MOST_LISTED]
            above, ties = np.flatnonzero(probs > least), np.flatnonzero(probs == least)
            listed = np.sort(np.concatenate((above, ties[: MOST_LISTED - len(above)])))
            others = probs.copy()
            others[listed] = 0.0
            node.outside, node.pmin = float(others.sum()), float(others.max())
            ids, probs = ids[listed], probs[listed]
        node.ids, node.probs = ids.tolist(), probs.tolist()
        self._sum(node)

    def _keep(self, node: Node, going: Sequence[int]) -> None:
        """Of the lists only these places, each with its piece after those just said."""
        node.ids = [node.ids[index] for index in going]
        node.probs = [node.probs[index] for index in going]
        self._sum(node)

    def _sum(self, node: Node) -> None:
        spelled, at = self.speller, node.at
        node.nexts = [spelled[token][at] for token in node.ids]
        node.masses = _added(node.nexts, node.probs)
        node.seen = sum(node.probs, 0.0)

    def _forget_all(self) -> None:
        for node in self._nodes:
            node.forget()
        self._nodes, self._view = [], None

    def _settle(self, pending: list[Node], done: list[Node], unlisted: float) -> None:
        """Keep the readings that matter; scale what is kept to one."""
        self._nodes, self.due, self.lost, self._view = [], [], 0.0, None
        masses = [node.weight * node.seen for node in pending]
        total = sum(masses, 0.0) + sum([node.weight for node in done], 0.0)
        if total <= 0.0:
            return  # nothing listed fits, so nothing is dropped: the member is set anew
        done.sort(key=lambda n: (-n.weight, n.token))
        kept = [n for n in done[: self._beam] if n.weight >= self._share * total]
        alive = [(n, m) for n, m in zip(pending, masses, strict=True) if m >= min(NEGLIGIBLE, self._share) * total]
        if not kept and not alive:
            kept = done[:1]
        mass = sum([n.weight for n in kept], 0.0) + sum([m for _, m in alive], 0.0)
        dropped = total - mass if len(kept) < len(done) or len(alive) < len(pending) else 0.0
        self.lost = max(0.0, dropped + unlisted) / (total + unlisted)
        scale = 1.0 / mass
        self._nodes = [n for n, _ in alive]
        for node in (*kept, *self._nodes):
            node.weight *= scale
        kept.reverse()  # the likeliest last, so that the session stands where the text most likely goes on
        self.due = kept


def _added(pieces: Sequence[int], probs: Sequence[float]) -> dict[int, float]:
    """Piece → sum of its probabilities."""
    masses = dict(zip(pieces, probs, strict=True))
    if len(masses) < len(pieces):  # some tokens begin with the same piece
        masses = dict.fromkeys(masses, 0.0)
        for piece, p in zip(pieces, probs, strict=True):
            masses[piece] += p
    return masses
