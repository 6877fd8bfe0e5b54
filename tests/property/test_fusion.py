"""The fusers against oracles: enumeration of all token sequences, copies of one model, one-hot weights, any order, certificates."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.types import Vocabulary
from strategies.fusion import Greedy, LinearPool, Node, Sampler, UnionTopK
from strategies.fusion.testing import ALPHABET, Driver, mass, model, vocabulary
from strategies.vocabulary import inventory_of


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**9), members=st.integers(2, 3))
def test_equals_enumeration_of_all_token_sequences(seed: int, members: int) -> None:
    """With all probabilities listed and no reading dropped, every pooled probability is the enumerated one."""
    rng = random.Random(seed)
    vocabularies = [vocabulary(rng, rng.randint(2, 6)) for _ in range(members)]
    models = [model(seed + m, len(v)) for m, v in enumerate(vocabularies)]
    raw = [rng.random() + 0.05 for _ in range(members)]
    weights = [w / sum(raw) for w in raw]
    inventory = inventory_of(tuple(vocabularies))
    fuser = LinearPool(vocabularies, weights, Greedy(), beam=10**6, share=0.0)
    driver = Driver(fuser, models)
    said: tuple[int, ...] = ()
    pieces = [0, *(i for i, text in enumerate(inventory.pieces) if text and set(text) <= set(ALPHABET))]
    for _ in range(4):
        driver.ready()
        expected = dict.fromkeys(pieces, 0.0)
        for weight, probs, speller in zip(weights, models, inventory.spellers, strict=True):
            masses = {v: mass(probs, speller, (), (*said, v)) for v in pieces}
            whole = sum(masses.values())
            for piece, value in masses.items():
                expected[piece] += weight * value / whole
        got = fuser.pooled()
        assert all(abs(expected[v] - got.get(v, 0.0)) < 1e-9 for v in pieces)
        assert abs(sum(got.values()) - 1.0) < 1e-9
        winner = min(pieces, key=lambda v: (-expected[v], v))
        commit = fuser.commit()
        assert commit.end == (winner == 0)
        if commit.end:
            break
        assert commit.text == inventory.pieces[winner]
        said = (*said, winner)
    assert fuser.meters.lost_mass == 0.0
    assert fuser.meters.drift == 0


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**9), copies=st.integers(2, 4), k=st.integers(2, 8))
def test_copies_of_one_model_are_that_model(seed: int, copies: int, k: int) -> None:
    """K copies, any weights, any k: token for token the greedy text of the model alone."""
    rng = random.Random(seed)
    table = vocabulary(rng, 6)
    probs = model(seed, len(table))
    raw = [rng.random() + 1e-6 for _ in range(copies)]
    fuser = LinearPool([table] * copies, [w / sum(raw) for w in raw], Greedy())
    said, ended = Driver(fuser, [probs] * copies, k).text(30)
    history: tuple[int, ...] = ()
    alone = []
    for _ in range(30):
        token = int(np.argmax(probs(history)))
        if token in table.end_ids:
            assert ended
            break
        history = (*history, token)
        alone.append(table.tokens[token])
    assert said == alone
    assert fuser.meters.drift == 0


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**9), k=st.integers(2, 30))
def test_one_tokenizer_is_the_average_over_the_full_vocabulary(seed: int, k: int) -> None:
    """Same tokenizer: eq. 7 by brute force, even where every member lists only a few tokens and the rest is looked up."""
    rng = random.Random(seed)
    table = vocabulary(rng, 20)
    models = [model(seed + m, len(table), 1.5) for m in range(3)]
    weights = [0.5, 0.3, 0.2]
    driver = Driver(fuser := LinearPool([table] * 3, weights, Greedy()), models, k)
    history: tuple[int, ...] = ()
    for _ in range(12):
        driver.ready()
        pooled = sum(w * m(history) for w, m in zip(weights, models, strict=True))
        before = fuser.meters.uncertified
        winner, commit = int(np.argmax(pooled)), fuser.commit()
        if fuser.meters.uncertified == before:
            assert commit.end == (winner in table.end_ids)
            assert commit.end or commit.text == table.tokens[winner]
            assert commit.probability < pooled[winner] + 1e-9  # less where a list lacks a winner that is certain anyway
        if commit.end or driver.fuser.due()[0][0].token != winner:
            break
        history = (*history, winner)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**9), k=st.integers(3, 8))
def test_no_certificate_is_ever_wrong(seed: int, k: int) -> None:
    """Short lists: a step that is certified or settled by look-ups has the winner of the kept readings with full lists."""
    rng = random.Random(seed)
    vocabularies = [vocabulary(rng, 12) for _ in range(3)]
    models = [model(seed + m, len(v)) for m, v in enumerate(vocabularies)]
    weights = [0.2, 0.5, 0.3]
    inventory = inventory_of(tuple(vocabularies))
    fuser = LinearPool(vocabularies, weights, Greedy())
    driver = Driver(fuser, models, k)
    for _ in range(10):
        driver.ready()
        truth: dict[int, float] = {}
        for weight, member, probs, speller in zip(weights, fuser.members, models, inventory.spellers, strict=True):
            masses: dict[int, float] = {}
            for node in member._nodes:
                for token, p in enumerate(probs(path(node))):
                    spelling = speller[token]
                    if spelling[: node.at] == node.spoken and len(spelling) > node.at:
                        masses[spelling[node.at]] = masses.get(spelling[node.at], 0.0) + node.weight * p
            for piece, value in masses.items():
                truth[piece] = truth.get(piece, 0.0) + weight * value / sum(masses.values())
        before = fuser.meters.uncertified
        commit = fuser.commit()
        if fuser.meters.uncertified == before:
            winner = max(truth, key=lambda v: truth[v])
            assert (commit.text, commit.end) == (inventory.pieces[winner], winner == 0)
        if commit.end:
            break


def path(node: Node) -> tuple[int, ...]:
    """The node's tokens behind the prompt."""
    tokens = []
    while node.parent is not None:
        tokens.append(node.token)
        node = node.parent
    return tuple(reversed(tokens))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_one_hot_weight_follows_that_member(seed: int) -> None:
    """A weight of one to a millionth of a millionth: piece for piece the heavy member's own choice, by enumeration."""
    rng = random.Random(seed)
    vocabularies = [vocabulary(rng, 6), vocabulary(rng, 6)]
    models = [model(seed + m, len(v)) for m, v in enumerate(vocabularies)]
    inventory = inventory_of(tuple(vocabularies))
    fuser = LinearPool(vocabularies, [1 - 1e-12, 1e-12], Greedy(), beam=10**6, share=0.0)
    driver = Driver(fuser, models)
    pieces = [0, *(i for i, text in enumerate(inventory.pieces) if text and set(text) <= set(ALPHABET))]
    said: tuple[int, ...] = ()
    for _ in range(4):
        driver.ready()
        commit = fuser.commit()
        winner = max(pieces, key=lambda v: mass(models[0], inventory.spellers[0], (), (*said, v)))
        assert (commit.text, commit.end) == (inventory.pieces[winner], winner == 0)
        if commit.end:
            break
        said = (*said, winner)


def cut(pieces: int, k: int, seed: int, order: Sequence[int]) -> tuple[list[bytes], bool]:
    rng = random.Random(seed)
    vocabularies = [vocabulary(rng, 8) for _ in range(3)]
    models = [model(seed + m, len(v), 1.0) for m, v in enumerate(vocabularies)]
    fuser = LinearPool([vocabularies[m] for m in order], [1 / 3] * 3, Greedy())
    return Driver(fuser, [models[m] for m in order], k).text(pieces)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**9), order=st.permutations([0, 1, 2]))
def test_order_of_members_does_not_matter(seed: int, order: list[int]) -> None:
    """Up to the last bit of a sum, which planning settles by putting members in canonical order."""
    assert cut(10, 6, seed, order) == cut(10, 6, seed, [0, 1, 2])


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**9), k=st.integers(2, 5), beam=st.integers(1, 2))
def test_every_member_has_read_what_was_said(seed: int, k: int, beam: int) -> None:
    """With tiny lists and one reading members must be set right again and again; what they read is always what was said."""
    rng = random.Random(seed)
    vocabularies = [vocabulary(rng, 10) for _ in range(2)]
    models = [model(seed + m, len(v), 1.0) for m, v in enumerate(vocabularies)]
    fuser = LinearPool(vocabularies, [0.5, 0.5], Greedy(), beam=beam)
    driver = Driver(fuser, models, k)
    said = b""
    for _ in range(20):
        driver.ready()
        for member, history, table in zip(fuser.members, driver.histories, vocabularies, strict=True):
            read = b"".join(table.tokens[t] for t in history)
            assert (read + member.position.said).startswith(said) or said.startswith(read)
            for node in member._nodes:
                assert b"".join(table.tokens[t] for t in path(node)) + node.said == said
        commit = fuser.commit()
        if commit.end:
            break
        said += commit.text
    meters = fuser.meters
    assert meters.pieces == meters.certified + meters.looked_up + meters.uncertified


def test_byte_by_byte_is_not_token_by_token() -> None:
    """The known trap: p(the)=.4, p(a)=.35, p(an)=.25. Copies choose "the"; bytes alone would choose "a"."""
    words = (b"the", b"a", b"an", b"t", b"h", b"e", b"n", b"")
    table = Vocabulary(words, frozenset({7}), "trap")
    probs = np.array([0.4, 0.35, 0.25 - 4e-9, 1e-9, 1e-9, 1e-9, 1e-9, 1e-12])
    probs /= probs.sum()
    said, _ = Driver(LinearPool([table, table], [0.9, 0.1], Greedy()), [lambda _: probs] * 2, 4).text(1)
    assert said == [b"the"]


def test_union_of_top_k_is_not_exact() -> None:
    """The negative control: on two vocabularies of one model's text the baseline overrates the long token."""
    long = Vocabulary((b"abc", b"a", b"b", b"c", b""), frozenset({4}), "long")
    short = Vocabulary((b"a", b"b", b"c", b""), frozenset({3}), "short")
    first = np.array([0.30, 0.01, 0.68, 0.005, 0.005])  # says "b" far more often than "abc"
    other = np.array([0.48, 0.50, 0.01, 0.01])  # says "b" a little more often than anything with "a"
    union = UnionTopK([long, short], [0.5, 0.5], Greedy())
    linear = LinearPool([long, short], [0.5, 0.5], Greedy())
    heavy = np.array([0.60, 0.01, 0.38, 0.005, 0.005])
    for fuser in (union, linear):
        assert Driver(fuser, [lambda _: first, lambda _: other]).text(1)[0] == [b"b"]
    union, linear = UnionTopK([long, short], [0.5, 0.5], Greedy()), LinearPool([long, short], [0.5, 0.5], Greedy())
    assert Driver(union, [lambda _: heavy, lambda _: other]).text(1)[0] == [b"abc"]
    assert Driver(linear, [lambda _: heavy, lambda _: other]).text(1)[0] == [b"a"]


def test_sampling_is_seeded_and_follows_the_pool() -> None:
    """The same seed draws the same pieces; over many seeds the frequencies are the pooled probabilities."""
    table = Vocabulary((b"a", b"b", b"c", b""), frozenset({3}), "draw")
    left, right = np.array([0.5, 0.3, 0.1, 0.1]), np.array([0.1, 0.7, 0.1, 0.1])

    def first(seed: int, temperature: float = 1.0, top_p: float = 1.0) -> bytes:
        fuser = LinearPool([table, table], [0.5, 0.5], Sampler(temperature, top_p, seed))
        driver = Driver(fuser, [lambda _: left, lambda _: right])
        driver.ready()
        return fuser.commit().text

    draws = [first(seed) for seed in range(2000)]
    assert draws == [first(seed) for seed in range(2000)]
    for text, p in ((b"a", 0.3), (b"b", 0.5), (b"c", 0.1), (b"", 0.1)):
        assert abs(draws.count(text) / 2000 - p) < 4 * math.sqrt(p * (1 - p) / 2000)
    assert {first(seed, top_p=0.45) for seed in range(200)} == {b"b"}
    assert {first(seed, temperature=0.01) for seed in range(200)} == {b"b"}


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_sampler_refuses_a_temperature_that_is_none(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        Sampler(temperature, 1.0, None)
