"""What a fuser must keep, as tests to inherit; and small random models to test fusers on. Needs no test framework, only plain asserts:

    from strategies.fusion.testing import FuserContract

    class TestMine(FuserContract):
        factory = staticmethod(Mine)
        copies = False      # promises that it does not make are switched off

Models here are functions from a token history to a distribution, drawn from a hash: nothing about them is smooth or kind. Everything is
made from seeds, so what fails once fails again.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from backends.types import TopK, Vocabulary
from strategies.fusion.base import Commit, Fuser, Node, Tell, root, route
from strategies.fusion.chooser import Greedy, Sampler
from strategies.fusion.registry import FuserFactory
from strategies.vocabulary import Inventory, Speller, inventory_of

ALPHABET = b"abc"

Model = Callable[[tuple[int, ...]], NDArray[np.float64]]
"""Token history → probabilities, float64 [vocabulary size], all positive, adding up to one."""


def vocabulary(rng: random.Random, extra: int, alphabet: bytes = ALPHABET) -> Vocabulary:
    """Single letters, `extra` longer words over the same letters, two ends, one control id, in shuffled order."""
    words = {bytes([c]) for c in alphabet}
    while len(words) < len(alphabet) + extra:
        words.add(bytes(rng.choice(alphabet) for _ in range(rng.randint(2, 4))))
    tokens = [*sorted(words), b"", b"", b""]
    order = list(range(len(tokens)))
    rng.shuffle(order)
    shuffled = [tokens[i] for i in order]
    empty = [i for i, text in enumerate(shuffled) if not text]
    digest = hashlib.sha256(repr((shuffled, empty)).encode()).hexdigest()
    return Vocabulary(tuple(shuffled), frozenset(empty[:2]), digest)


def model(seed: int, size: int, sharpness: float = 2.0) -> Model:
    """A distribution for every history."""

    def probs(history: tuple[int, ...]) -> NDArray[np.float64]:
        digest = hashlib.sha256(repr((seed, history)).encode()).digest()
        draw = np.random.default_rng(int.from_bytes(digest[:8], "big")).normal(size=size) * sharpness
        weights = np.exp(draw - draw.max())
        return np.asarray(weights / weights.sum(), np.float64)

    return probs


def talkative(probs: Model, table: Vocabulary) -> Model:
    """The same, but control tokens are as unlikely as those of a trained model."""
    factor = np.array([1.0 if text or id in table.end_ids else 1e-9 for id, text in enumerate(table.tokens)])

    def softened(history: tuple[int, ...]) -> NDArray[np.float64]:
        weights = probs(history) * factor
        return np.asarray(weights / weights.sum(), np.float64)

    return softened


def top(probs: NDArray[np.float64], k: int) -> TopK:
    """The distribution cut to its k likeliest."""
    order = np.lexsort((np.arange(len(probs)), -probs))[:k]
    outside = 0.0 if k >= len(probs) else float(max(0.0, 1.0 - probs[order].sum()))
    return TopK(order.astype(np.int32), np.log(probs[order]), outside)


def weights_of(rng: random.Random, members: int) -> list[float]:
    """Positive, adding up to one."""
    raw = [rng.random() + 0.05 for _ in range(members)]
    return [value / sum(raw) for value in raw]


def mass(probs: Model, speller: Speller, history: tuple[int, ...], rest: tuple[int, ...]) -> float:
    """Probability that a model's text, spelled in pieces, begins with `rest` after `history`: over all token sequences."""
    if not rest:
        return 1.0
    total = 0.0
    for token, p in enumerate(probs(history).tolist()):
        spelling = speller[token]
        if not spelling:
            continue
        n = len(spelling)
        if n <= len(rest) and spelling == rest[:n]:
            total += p * mass(probs, speller, (*history, token), rest[n:])
        elif spelling[: len(rest)] == rest:
            total += p
    return total


class Driver:
    """Makes the calls that the engine makes, on models that are functions. k: how many tokens they list; lookups: whether they can
    give single values; histories: what each has read; passes: how often any was asked."""

    def __init__(self, fuser: Fuser, models: Sequence[Model], k: int = 10**6, *, lookups: bool = True) -> None:
        self.fuser, self.models, self.k, self.lookups = fuser, models, k, lookups
        self.places: list[Node | None] = [None] * len(models)
        self.histories: list[tuple[int, ...]] = [() for _ in models]
        self.passes = 0

    def ready(self) -> None:
        """Everything that the fuser needs for its next piece."""
        while True:
            for m, nodes in enumerate(self.fuser.due()):
                for node in nodes:
                    self.visit(m, node)
            while wanted := self.fuser.wants():
                for lookup in wanted if self.lookups else ():
                    probs = self.models[lookup.member](self.histories[lookup.member])
                    self.fuser.supply(lookup, np.log(probs[list(lookup.ids)]))
            if not any(self.fuser.due()):
                return

    def visit(self, m: int, node: Node) -> None:
        """Take a member to a node."""
        drop, append = route(self.places[m] or root(node), node)
        self.histories[m] = (*self.histories[m][: len(self.histories[m]) - drop], *append)
        self.places[m] = node
        self.passes += 1
        self.fuser.feed(m, node, top(self.models[m](self.histories[m]), self.k))

    def commit(self) -> Commit:
        """The next piece, ready or not."""
        self.ready()
        return self.fuser.commit()

    def text(self, pieces: int) -> tuple[list[bytes], bool]:
        """At most so many pieces, and whether the text has ended."""
        said: list[bytes] = []
        for _ in range(pieces):
            commit = self.commit()
            if commit.end:
                return said, True
            said.append(commit.text)
        return said, False


class HashGuide:
    """Allows, after every text, a part of the pieces that depends on nothing but the text; never none. share: how large a part."""

    def __init__(self, inventory: Inventory, seed: int, share: float = 0.5, alphabet: bytes = ALPHABET) -> None:
        self._ids = [i for i, text in enumerate(inventory.pieces) if text and set(text) <= set(alphabet)]
        self._ends = sorted(inventory.ends)
        self._size = len(inventory.pieces)
        self._seed, self._share = seed, share
        self.spoken: list[int] = []

    def allowed(self) -> bytes:
        """See `Guide`."""
        rng = random.Random(repr((self._seed, self.spoken)))
        mask = bytearray(self._size)
        for piece in (*self._ids, *self._ends):
            mask[piece] = rng.random() < self._share
        mask[rng.choice(self._ids)] = 1
        return bytes(mask)

    def said(self, piece: int) -> None:
        """See `Guide`."""
        if not self.allowed()[piece]:
            raise ValueError("this piece is not allowed")
        self.spoken.append(piece)


class FuserContract:
    """Inherit, and set `factory`. seeds: how many random groups each test runs over.

    copies: several copies of one model say what it says alone. follows: a weight of nearly one is that member alone, where all have
    one tokenizer.
    """

    factory: ClassVar[FuserFactory]
    seeds: ClassVar[int] = 20
    copies: ClassVar[bool] = True
    follows: ClassVar[bool] = True

    def group(self, seed: int, members: int = 3, **keywords: Any) -> tuple[Fuser, list[Model], list[Vocabulary]]:
        """A fuser over models with different tokenizers."""
        rng = random.Random(seed)
        tables = [vocabulary(rng, rng.randint(4, 10)) for _ in range(members)]
        models = [model(seed + m, len(table), 1.5) for m, table in enumerate(tables)]
        chooser = keywords.pop("chooser", None) or Greedy()
        return type(self).factory(tables, weights_of(rng, members), chooser, **keywords), models, tables

    def test_every_member_reads_what_was_said(self) -> None:
        """What a member was told is always the beginning of what was said, and all of it once it is asked."""
        for seed in range(self.seeds):
            fuser, models, tables = self.group(seed)
            driver, said = Driver(fuser, models, 4), b""
            for _ in range(15):
                driver.ready()
                for history, table in zip(driver.histories, tables, strict=True):
                    assert said.startswith(b"".join(table.tokens[t] for t in history))
                commit = fuser.commit()
                assert commit.end == (not commit.text)
                if commit.end:
                    break
                said += commit.text

    def test_the_same_again_is_the_same(self) -> None:
        for seed in range(self.seeds):
            texts = []
            for _ in range(2):
                fuser, models, _ = self.group(seed, chooser=Sampler(0.8, 0.9, seed))
                texts.append(Driver(fuser, models, 6).text(12))
            assert texts[0] == texts[1]

    def test_copies_of_one_model_are_that_model(self) -> None:
        for seed in range(self.seeds if self.copies else 0):
            rng = random.Random(seed)
            table = vocabulary(rng, 6)
            probs = talkative(model(seed, len(table)), table)
            members = rng.randint(2, 4)
            fuser = type(self).factory([table] * members, weights_of(rng, members), Greedy())
            said, ended = Driver(fuser, [probs] * members, rng.randint(2, 8)).text(20)
            history: tuple[int, ...] = ()
            for text in (*said, *([b""] if ended else [])):
                token = int(np.argmax(probs(history)))
                assert (table.tokens[token], token in table.end_ids) == (text, not text)
                history = (*history, token)

    def test_a_weight_of_nearly_one_is_that_member(self) -> None:
        for seed in range(self.seeds if self.follows else 0):
            rng = random.Random(seed)
            table = vocabulary(rng, 6)
            models = [talkative(model(seed + m, len(table)), table) for m in range(2)]
            fuser = type(self).factory([table] * 2, [1 - 1e-13, 1e-13], Greedy())
            alone = type(self).factory([table], [1.0], Greedy())
            assert Driver(fuser, models).text(12) == Driver(alone, models[:1]).text(12)

    def test_members_may_be_unable_to_look_anything_up(self) -> None:
        for seed in range(self.seeds):
            fuser, models, _ = self.group(seed)
            driver = Driver(fuser, models, 4, lookups=False)
            said, ended = driver.text(10)
            assert ended or len(said) == 10
            assert fuser.meters.looked_up == 0

    def test_meters_add_up(self) -> None:
        for seed in range(self.seeds):
            fuser, models, _ = self.group(seed)
            said, ended = Driver(fuser, models, 5).text(12)
            meters = fuser.meters
            assert meters.pieces == len(said) + ended
            assert meters.pieces == meters.certified + meters.looked_up + meters.uncertified + meters.sampled
            assert fuser.certifies or not meters.certified + meters.looked_up

    def test_it_goes_on_without_a_member_that_is_dropped(self) -> None:
        """At any moment; the one that is left is followed alone."""
        for seed in range(self.seeds):
            rng = random.Random(seed)
            fuser, models, tables = self.group(seed)
            driver, said = Driver(fuser, models, 6), b""
            leaving = dict(zip(rng.sample(range(3), 2), (rng.randrange(6), rng.randrange(6)), strict=True))
            gone: set[int] = set()
            for piece in range(10):
                if rng.random() < 0.5:
                    driver.ready()
                for member, moment in leaving.items():
                    if moment == piece:
                        fuser.drop(member)
                        gone.add(member)
                commit = driver.commit()
                if commit.end:
                    break
                said += commit.text
                assert not any(fuser.due()[member] for member in gone)
            for history, table in zip(driver.histories, tables, strict=True):
                assert said.startswith(b"".join(table.tokens[t] for t in history))

    def test_a_guide_is_kept(self) -> None:
        """Whatever the guide allows, be it one piece that no list has."""
        for seed in range(self.seeds):
            rng = random.Random(seed)
            tables = [vocabulary(rng, rng.randint(4, 10)) for _ in range(2)]
            guide = HashGuide(inventory := inventory_of(tuple(tables)), seed, share=rng.choice((0.02, 0.3, 0.9)))
            models = [model(seed + m, len(table), 2.5) for m, table in enumerate(tables)]
            chooser = Greedy() if seed % 2 else Sampler(1.0, 1.0, seed)
            fuser = type(self).factory(tables, [0.4, 0.6], chooser, guide=guide)
            said, ended = Driver(fuser, models, 3).text(10)  # the guide itself raises where a piece is not allowed
            assert [inventory.pieces[piece] for piece in guide.spoken] == [*said, *([b""] if ended else [])]

    def test_what_is_told_is_told_of_every_piece(self) -> None:
        """Telling changes nothing that is said."""
        for seed in range(self.seeds):
            quiet, models, _ = self.group(seed)
            fuser, _, _ = self.group(seed, tell=Tell(top=3, members=True))
            driver, silent = Driver(fuser, models, 5), Driver(quiet, models, 5)
            for _ in range(10):
                commit = driver.commit()
                assert (commit.text, commit.end) == ((other := silent.commit()).text, other.end)
                assert other.detail is None
                detail = commit.detail
                assert detail is not None
                assert detail.logprob <= 1e-9
                assert abs(commit.probability - math.exp(detail.logprob)) < 1e-9
                assert len(detail.top) <= 3
                assert all(text and nats <= 1e-9 for text, nats in detail.top)
                assert [nats for _, nats in detail.top] == sorted((nats for _, nats in detail.top), reverse=True)
                assert dict(detail.top).get(commit.text, detail.logprob) == detail.logprob
                assert len(detail.members) == 3
                assert all(p is None or 0.0 <= p <= 1.0 + 1e-9 for p in detail.members)
                assert all(text != commit.text and math.isfinite(p) for _, text, p in detail.others)
                if commit.end:
                    break
