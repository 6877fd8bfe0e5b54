"""No certificate is ever wrong: every fuser, short lists, penalties, biases and guides, against full distributions."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.types import Vocabulary
from strategies.fusion import FUSERS, Greedy, Node, Shaping
from strategies.fusion.geometric import LEAST
from strategies.fusion.pool import Pool
from strategies.fusion.testing import ALPHABET, Driver, HashGuide, Model, model, vocabulary, weights_of
from strategies.vocabulary import Inventory, inventory_of

Join = Callable[[Sequence[float], Sequence[float]], float]


def linear(weights: Sequence[float], probabilities: Sequence[float]) -> float:
    return sum(w * p for w, p in zip(weights, probabilities, strict=True))


def geometric(weights: Sequence[float], probabilities: Sequence[float]) -> float:
    return math.prod(max(p, LEAST) ** w for w, p in zip(weights, probabilities, strict=True))


JOINS: dict[str, Join] = {"linear": linear, "gated": linear, "entropy-weighted": linear, "geometric": geometric}


def path(node: Node) -> tuple[int, ...]:
    """The node's tokens behind the prompt."""
    tokens = []
    while node.parent is not None:
        tokens.append(node.token)
        node = node.parent
    return tuple(reversed(tokens))


def truth(pool: Pool, join: Join, models: Sequence[Model], inventory: Inventory) -> dict[int, float]:
    """Piece → score, over the kept readings of those in play, nothing unlisted."""
    columns = []
    for number, member in zip(pool.numbers, pool.members, strict=True):
        masses: dict[int, float] = {}
        for node in member._nodes:
            for token, p in enumerate(models[number](path(node))):
                spelling = inventory.spellers[number][token]
                if spelling[: node.at] == node.spoken and len(spelling) > node.at:
                    masses[spelling[node.at]] = masses.get(spelling[node.at], 0.0) + node.weight * p
        whole = sum(masses.values())
        columns.append({piece: mass / whole for piece, mass in masses.items()})
    pieces = set().union(*columns)
    return {v: join(pool.weights, [column.get(v, 0.0) for column in columns]) for v in pieces}


def make(name: str, seed: int, *, same: bool, guided: bool, shaped: bool) -> tuple[Any, list[Model], Inventory]:
    rng = random.Random(seed)
    members = rng.randint(1, 3)
    tables = [vocabulary(rng, 12)] * members if same else [vocabulary(rng, rng.randint(6, 12)) for _ in range(members)]
    models = [model(seed + m, len(table), rng.choice((1.0, 2.0, 3.0))) for m, table in enumerate(tables)]
    inventory = inventory_of(tuple(tables))
    guide = HashGuide(inventory, seed, rng.choice((0.05, 0.5))) if guided else None
    chooser = Greedy(shaping(rng, inventory) if shaped else None)
    return FUSERS[name](tables, weights_of(rng, members), chooser, guide=guide), models, inventory


def shaping(rng: random.Random, inventory: Inventory) -> Shaping:
    known = [i for i, text in enumerate(inventory.pieces) if set(text) <= set(ALPHABET)]
    pieces = [rng.choice(known) for _ in range(4)]
    bias = {piece: rng.choice((-100.0, -2.0, 1.0, 4.0, 100.0)) for piece in pieces[: rng.randint(0, 4)]}
    return Shaping(rng.uniform(-2, 2), rng.uniform(-2, 2), bias)


@pytest.mark.parametrize("name", JOINS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9), k=st.integers(2, 8), same=st.booleans(), guided=st.booleans(), shaped=st.booleans())
def test_no_certificate_is_ever_wrong(name: str, seed: int, k: int, same: bool, guided: bool, shaped: bool) -> None:
    fuser, models, inventory = make(name, seed, same=same, guided=guided, shaped=shaped)
    driver = Driver(fuser, models, k)
    for _ in range(8):
        driver.ready()
        scores = truth(fuser, JOINS[name], models, inventory)
        if fuser._field is not None:
            scores = {piece: p * fuser._field.factor(piece) for piece, p in scores.items()}
        before = fuser.meters.uncertified
        commit = fuser.commit()
        if fuser.meters.uncertified == before:
            winner = max(scores, key=lambda v: scores[v])
            assert scores[winner] <= scores.get(fuser._winner, 0.0) * (1 + 1e-9)
            assert commit.end == (fuser._winner in inventory.ends)
        if commit.end:
            break


@pytest.mark.parametrize("name", JOINS)
def test_a_piece_that_nobody_lists_may_win_by_many_tokens(name: str) -> None:
    """Eleven unlisted tokens that begin with "a", each less likely than all that is listed, are more than the listed "b" together."""
    words = [b"a" + bytes(rest) for n in (1, 2) for rest in itertools.product(ALPHABET, repeat=n)][:11]
    table = Vocabulary((*words, b"a", b"b", b"c", b""), frozenset({14}), "many tokens")
    letters = Vocabulary((b"c", b"b", b"a", b""), frozenset({3}), "their letters")
    probs = np.array([0.049] * 11 + [0.0005, 0.405, 0.05, 0.0055])
    other = np.array([0.3, 0.34, 0.31, 0.05])
    fuser = FUSERS[name]([table, letters], [0.9, 0.1], Greedy())
    driver = Driver(fuser, [lambda _: probs / probs.sum(), lambda _: other], 2)
    assert driver.commit().text == b"a"
    assert fuser.meters.looked_up == 1


@pytest.mark.parametrize("name", JOINS)
def test_most_steps_are_certain(name: str) -> None:
    """A certificate that is never given could not be wrong."""
    pieces = certain = 0
    for seed in range(60):
        fuser, models, _ = make(name, seed, same=bool(seed % 2), guided=seed % 3 == 0, shaped=seed % 4 == 0)
        Driver(fuser, models, 8).text(8)
        pieces += fuser.meters.pieces
        certain += fuser.meters.certified + fuser.meters.looked_up
    assert certain > 0.9 * pieces


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**9), k=st.integers(1, 8), same=st.booleans())
def test_the_quick_ways_find_what_the_plain_ones_find(seed: int, k: int, same: bool) -> None:
    """Bounds and leads of many pieces at once are those of each."""
    pool, models, inventory = make("linear", seed, same=same, guided=False, shaped=False)
    pieces = [i for i, text in enumerate(inventory.pieces) if set(text) <= set(ALPHABET)]
    driver = Driver(pool, models, k)
    for _ in range(8):
        driver.ready()
        views = [member.view() for member in pool.members]
        for member in pool.members:
            assert member.bounds(pieces) == [member.bound(piece) for piece in pieces]
        pool.floor = pool.low(pool._winner, views)
        plain = [pool.ahead(1.0, pool._winner, 1.0, piece, views) for piece in pieces]
        assert pool._all_ahead(pieces, views) == pytest.approx(plain, rel=1e-12, abs=1e-15)
        if pool.commit().end:
            break


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9), k=st.integers(1, 6), share=st.sampled_from((0.02, 0.2, 0.9)))
def test_one_model_under_a_guide_is_its_likeliest_allowed_token(seed: int, k: int, share: float) -> None:
    """A group of one: constrained greedy decoding, as brute force over the whole vocabulary does it."""
    rng = random.Random(seed)
    table = vocabulary(rng, 25)
    probs = model(seed, len(table), 4.0)
    inventory = inventory_of((table,))
    guide, mirror = HashGuide(inventory, seed, share), HashGuide(inventory, seed, share)
    fuser = FUSERS["linear"]([table], [1.0], Greedy(), guide=guide)
    driver = Driver(fuser, [probs], k)
    history: tuple[int, ...] = ()
    for _ in range(10):
        token = int(np.argmax(probs(history) * np.frombuffer(mirror.allowed(), np.uint8)))
        commit = driver.commit()
        assert (commit.text, commit.end) == (table.tokens[token], token in table.end_ids)
        mirror.said(token)
        if commit.end:
            break
        history = (*history, token)
    assert fuser.meters.uncertified == 0
