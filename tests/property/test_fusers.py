"""Every fuser against its own formula, worked out by enumeration of all token sequences."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.types import Sampling, Vocabulary
from strategies.fusion import FUSERS, Greedy, LinearPool, Sampler, Tell, UnionTopK, chooser_for
from strategies.fusion.entropy import EntropyPool
from strategies.fusion.gated import GatedPool
from strategies.fusion.geometric import GeometricPool
from strategies.fusion.pool import Pool
from strategies.fusion.testing import ALPHABET, Driver, Model, mass, model, talkative, vocabulary, weights_of
from strategies.vocabulary import inventory_of

Columns = Sequence[Mapping[int, float]]
"""Per member: piece → its probability."""


def linear(weights: Sequence[float], columns: Columns) -> dict[int, float]:
    return {v: sum(w * c[v] for w, c in zip(weights, columns, strict=True)) for v in columns[0]}


def geometric(weights: Sequence[float], columns: Columns) -> dict[int, float]:
    raw = {v: math.prod(c[v] ** w for w, c in zip(weights, columns, strict=True)) for v in columns[0]}
    return {v: p / sum(raw.values()) for v, p in raw.items()}


def entropy_weighted(weights: Sequence[float], columns: Columns) -> dict[int, float]:
    raw = [w * math.exp(sum(p * math.log(p) for p in c.values() if p)) for w, c in zip(weights, columns, strict=True)]
    return linear([w / sum(raw) for w in raw], columns)


@pytest.mark.parametrize(
    ("kind", "formula"), [(LinearPool, linear), (GeometricPool, geometric), (EntropyPool, entropy_weighted)]
)
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**9), members=st.integers(2, 3))
def test_equals_its_formula_over_all_token_sequences(
    kind: type[Pool], formula: object, seed: int, members: int
) -> None:
    """With all probabilities listed and no reading dropped; also the probability that a commit tells."""
    rng = random.Random(seed)
    tables = [vocabulary(rng, rng.randint(2, 6)) for _ in range(members)]
    models = [model(seed + m, len(table)) for m, table in enumerate(tables)]
    weights = weights_of(rng, members)
    inventory = inventory_of(tuple(tables))
    fuser = kind(tables, weights, Greedy(), beam=10**6, share=0.0)
    driver = Driver(fuser, models)
    pieces = [0, *(i for i, text in enumerate(inventory.pieces) if text and set(text) <= set(ALPHABET))]
    said: tuple[int, ...] = ()
    for _ in range(3):
        driver.ready()
        columns = []
        for probs, speller in zip(models, inventory.spellers, strict=True):
            masses = {v: mass(probs, speller, (), (*said, v)) for v in pieces}
            columns.append({v: p / sum(masses.values()) for v, p in masses.items()})
        expected = formula(weights, columns)  # type: ignore[operator]
        winner = min(pieces, key=lambda v: (-expected[v], v))
        commit = fuser.commit()
        assert abs(commit.probability - expected[winner]) < 1e-9
        assert (commit.text, commit.end) == (inventory.pieces[winner], winner == 0)
        if commit.end:
            break
        said = (*said, winner)
    assert fuser.meters.certified == fuser.meters.pieces


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**9), k=st.integers(2, 10), temperature=st.sampled_from((0.0, 1.0)))
def test_a_gate_that_is_never_open_alone_is_the_linear_pool(seed: int, k: int, temperature: float) -> None:
    """Threshold 1: piece for piece, and count for count."""
    texts, meters = [], []
    for kind in (LinearPool, GatedPool):
        rng = random.Random(seed)
        tables = [vocabulary(rng, rng.randint(4, 10)) for _ in range(3)]
        models = [model(seed + m, len(table), 1.5) for m, table in enumerate(tables)]
        settings_ = {"threshold": 1.0} if kind is GatedPool else {}
        chooser = chooser_for(Sampling(temperature=temperature, seed=seed))
        fuser = kind(tables, weights_of(rng, 3), chooser, **settings_)
        texts.append(Driver(fuser, models, k).text(12))
        meters.append(fuser.meters)
    assert texts[0] == texts[1]
    assert meters[0] == meters[1]
    assert meters[1].saved == 0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9), k=st.integers(3, 30))
def test_a_gate_that_is_always_open_is_the_first_member_alone(seed: int, k: int) -> None:
    """Threshold 0: the heaviest member's text, and the others are never asked."""
    rng = random.Random(seed)
    table = vocabulary(rng, 8)
    models = [model(seed + m, len(table)) for m in range(3)]
    gated = Driver(GatedPool([table] * 3, [0.3, 0.4, 0.3], Greedy(), threshold=0.0), models, k)
    said, ended = gated.text(12)
    assert (said, ended) == Driver(LinearPool([table], [1.0], Greedy()), models[1:2], k).text(12)
    assert gated.histories[0] == gated.histories[2] == ()
    assert gated.passes == len(said) + ended
    assert gated.fuser.meters.saved == 2 * gated.passes


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_members_that_join_have_read_all_that_was_said(seed: int) -> None:
    """And every pass is either made or saved, where all have one tokenizer."""
    rng = random.Random(seed)
    table = vocabulary(rng, 8)
    models = [talkative(model(seed + m, len(table), 2.5), table) for m in range(3)]
    driver = Driver(GatedPool([table] * 3, [0.2, 0.5, 0.3], Greedy(), threshold=0.5), models)
    said: list[bytes] = []
    for _ in range(15):
        driver.ready()
        texts = [[table.tokens[t] for t in history] for history in driver.histories]
        assert texts[1] == said
        assert all(text == said for text in texts) or len(driver.fuser.numbers) == 1  # type: ignore[attr-defined]
        commit = driver.fuser.commit()
        if commit.end:
            break
        said.append(commit.text)
    meters = driver.fuser.meters
    assert driver.passes + meters.saved == 3 * meters.pieces


def in_letters(probs: Model, table: Vocabulary) -> tuple[Model, Vocabulary]:
    """The same distribution over texts, written letter by letter: another vocabulary of one and the same model."""
    letters = Vocabulary((*(bytes([c]) for c in ALPHABET), b""), frozenset({len(ALPHABET)}), "letters")
    speller = inventory_of((table, letters)).spellers[0]
    pieces = [speller[table.tokens.index(bytes([c]))][0] for c in ALPHABET]

    def spelled(history: tuple[int, ...]) -> np.ndarray:
        said = tuple(pieces[token] for token in history)
        masses = np.array([mass(probs, speller, (), (*said, piece)) for piece in (*pieces, 0)])
        return masses / masses.sum()

    return spelled, letters


def test_one_model_in_two_vocabularies_is_that_model_for_the_pools_and_not_for_the_union() -> None:
    """The negative control. Linear, geometric and entropy-weighted give every next letter the one probability that both members give it;
    the union of top k chooses other letters, since it adds what merely begins alike."""
    wrong: Counter[str] = Counter()
    for seed in range(40):
        rng = random.Random(seed)
        table = vocabulary(rng, 3)
        probs = talkative(model(seed, len(table), 0.5), table)
        spelled, letters = in_letters(probs, table)
        pools = {name: FUSERS[name] for name in ("linear", "geometric", "entropy-weighted", "union-top-k")}
        for name, kind in pools.items():
            keywords = {} if kind is UnionTopK else {"beam": 10**6, "share": 0.0}
            fuser = kind([table, letters], [0.5, 0.5], Greedy(), **keywords)  # type: ignore[arg-type]
            driver = Driver(fuser, [probs, spelled])
            text: tuple[int, ...] = ()
            for _ in range(3):
                commit = driver.commit()
                expected = int(np.argmax(spelled(text)))
                if name != "union-top-k":
                    assert abs(commit.probability - spelled(text)[expected]) < 1e-9
                if commit.text[:1] != letters.tokens[expected]:
                    wrong[name] += 1
                    break
                if commit.end or len(commit.text) != 1:
                    break
                text = (*text, expected)
    assert wrong["linear"] == wrong["geometric"] == wrong["entropy-weighted"] == 0
    assert wrong["union-top-k"] > 40 / 5


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9), k=st.integers(3, 12), members=st.integers(2, 3))
def test_over_one_tokenizer_the_union_is_the_linear_pool(seed: int, k: int, members: int) -> None:
    """Every candidate is a token of everybody, and values that lists lack are looked up: nothing is left of what the two differ in, as
    long as the linear pool is certain and there is one end."""
    rng = random.Random(seed)
    words = [text for text in vocabulary(rng, 8).tokens if text]
    table = Vocabulary((*words, b""), frozenset({len(words)}), f"union-{seed}")
    models = [model(seed + m, len(table), 1.5) for m in range(members)]
    weights = weights_of(rng, members)
    linear_ = Driver(LinearPool([table] * members, weights, Greedy()), models, k)
    union = Driver(UnionTopK([table] * members, weights, Greedy()), models, k)
    for _ in range(12):
        said, other = linear_.commit(), union.commit()
        if linear_.fuser.meters.uncertified:
            return
        assert (said.text, said.end) == (other.text, other.end)
        if said.end:
            return


SHAPED = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.5),
    Sampling(temperature=2.0, top_p=0.8),
    Sampling(temperature=1.0, min_p=0.3),
    Sampling(temperature=1.5, min_p=0.4, top_p=0.9),
    Sampling(temperature=1.0, frequency_penalty=1.5),
    Sampling(temperature=1.0, presence_penalty=-1.0, frequency_penalty=0.5),
    Sampling(temperature=0.7, logit_bias={0: 1.0, 1: -2.0, 2: -100.0}),
]


def shaped_logits(pooled: np.ndarray, counts: Counter[int], sampling: Sampling) -> np.ndarray:
    """OpenAI's rules, written down once more: penalties and bias on log-probabilities."""
    logits = np.log(pooled)
    for token, count in counts.items():
        logits[token] -= (sampling.frequency_penalty or 0) * count + (sampling.presence_penalty or 0)
    for token, bias in sampling.logit_bias.items():
        logits[token] += -np.inf if bias == -100 else bias
    return logits


def drawn_from(pooled: np.ndarray, counts: Counter[int], sampling: Sampling) -> np.ndarray:
    """Then temperature, then the two cuts."""
    logits = shaped_logits(pooled, counts, sampling)
    p = np.exp(logits / (sampling.temperature or 1.0))
    p /= p.sum()
    p[p < (sampling.min_p or 0.0) * p.max()] = 0.0
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    kept = order[: int(np.searchsorted(np.cumsum(p[order]), (sampling.top_p or 1.0) - 1e-12)) + 1]
    cut = np.zeros_like(p)
    cut[kept] = p[kept]
    return cut / cut.sum()


@pytest.mark.parametrize("sampling", SHAPED, ids=str)
def test_draws_follow_the_rules_of_sampling(sampling: Sampling) -> None:
    """Third piece of an answer, over many seeds: as often as the formula says, 4 standard deviations around."""
    table = Vocabulary((b"a", b"b", b"c", b"d", b""), frozenset({4}), "draws")
    left, right = np.array([0.4, 0.3, 0.1, 0.1, 0.1]), np.array([0.1, 0.2, 0.3, 0.3, 0.1])
    pooled = 0.5 * left + 0.5 * right
    drawn: Counter[tuple[int, ...]] = Counter()
    for seed in range(1500):
        chooser = chooser_for(replace(sampling, seed=seed))
        driver = Driver(LinearPool([table, table], [0.5, 0.5], chooser), [lambda _: left, lambda _: right])
        said: tuple[int, ...] = ()
        for _ in range(2):
            commit = driver.commit()
            said = (*said, table.tokens.index(commit.text))
            if commit.end:
                break
        drawn[said] += 1
    first = drawn_from(pooled, Counter(), sampling)
    for token in range(5):
        alone = {(token,)} if token == 4 else {(token, other) for other in range(5)}
        seen = sum(drawn[said] for said in alone)
        assert abs(seen / 1500 - first[token]) <= 4 * math.sqrt(first[token] * (1 - first[token]) / 1500)
        if token == 4:
            continue
        second = drawn_from(pooled, Counter({token: 1}), sampling)
        for other in range(5):
            deviation = math.sqrt(max(seen, 1) * second[other] * (1 - second[other]))
            assert abs(drawn[token, other] - seen * second[other]) <= 4 * deviation + 1e-9


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**9),
    frequency=st.floats(-2, 2),
    presence=st.floats(-2, 2),
    bias=st.dictionaries(st.integers(0, 20), st.sampled_from((-100.0, -3.0, 0.5, 5.0, 100.0)), max_size=5),
    k=st.integers(2, 10),
)
def test_greedy_with_penalties_is_the_full_vocabulary_with_penalties(
    seed: int, frequency: float, presence: float, bias: dict[int, float], k: int
) -> None:
    """One tokenizer, short lists: what is certain is the arg-max of the shaped average over the whole vocabulary."""
    rng = random.Random(seed)
    table = vocabulary(rng, 18)
    models = [model(seed + m, len(table), 1.5) for m in range(2)]
    sampling = Sampling(frequency_penalty=frequency, presence_penalty=presence, logit_bias=bias)
    fuser = LinearPool([table] * 2, [0.6, 0.4], chooser_for(sampling))
    driver = Driver(fuser, models, k)
    history: tuple[int, ...] = ()
    for _ in range(12):
        driver.ready()
        pooled = 0.6 * models[0](history) + 0.4 * models[1](history)
        before = fuser.meters.uncertified
        commit = fuser.commit()
        winner = int(np.argmax(shaped_logits(pooled, Counter(history), sampling)))
        if fuser.meters.uncertified > before:
            break
        assert (commit.text, commit.end) == (table.tokens[winner], winner in table.end_ids)
        if commit.end:
            break
        history = (*history, winner)


def test_the_same_seed_draws_the_same_with_min_p() -> None:
    scores = {n: 1.0 / (n + 1) for n in range(20)}
    draws = [[Sampler(1.0, 0.99, seed, 0.1).choose(scores) for seed in range(50)] for _ in range(2)]
    assert draws[0] == draws[1]
    assert max(draws[0]) < 10
    with pytest.raises(ValueError, match="min_p"):
        Sampler(1.0, 1.0, None, 1.5)


def critical(freedom: int, z: float = 4.0) -> float:
    """What a chi-squared statistic passes with the probability that a normal draw passes z (Wilson & Hilferty): 4 is one in 30,000."""
    part = 2.0 / (9.0 * freedom)
    return float(freedom * (1.0 - part + z * math.sqrt(part)) ** 3)


def chi_squared(seen: Mapping[tuple[int, ...], int], expected: Mapping[tuple[int, ...], float]) -> tuple[float, int]:
    """The statistic and its degrees of freedom. Cells where fewer than five are expected count as one."""
    rare = [cell for cell, mean in expected.items() if mean < 5.0]
    pairs = [(seen.get(cell, 0), mean) for cell, mean in expected.items() if mean >= 5.0]
    if (mean := sum(expected[cell] for cell in rare)) >= 1.0:
        pairs.append((sum(seen.get(cell, 0) for cell in rare), mean))
    return sum((count - mean) ** 2 / mean for count, mean in pairs), len(pairs) - 1


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.6),
        Sampling(temperature=1.6, top_p=0.85),
        Sampling(temperature=1.2, min_p=0.15),
        Sampling(temperature=1.0, frequency_penalty=1.0, presence_penalty=0.7),
    ],
    ids=str,
)
def test_texts_of_two_tokenizers_are_drawn_as_often_as_enumeration_says(sampling: Sampling) -> None:
    """The first two pieces of 2,000 answers, against the probability of every pair over all token sequences; and the same draws
    would not pass for those of another temperature. What is told of them is the logarithm of that same pool, unshaped."""
    rng = random.Random(11)
    tables = [vocabulary(rng, 3), vocabulary(rng, 5)]
    models = [cache(talkative(model(7 + m, len(table), 1.2), table)) for m, table in enumerate(tables)]
    inventory = inventory_of(tuple(tables))
    pieces = [0, *(i for i, text in enumerate(inventory.pieces) if text and set(text) <= set(ALPHABET))]
    of_text = {inventory.pieces[piece]: at for at, piece in enumerate(pieces)}
    assert not inventory.same

    def pool(said: tuple[int, ...]) -> np.ndarray:
        """Of the next piece, by its place in `pieces`, after places."""
        history = tuple(pieces[at] for at in said)
        total = np.zeros(len(pieces))
        for weight, probs, speller in zip((0.6, 0.4), models, inventory.spellers, strict=True):
            masses = np.array([mass(probs, speller, (), (*history, piece)) for piece in pieces])
            total += weight * masses / masses.sum()
        return total

    def law(sampling: Sampling) -> dict[tuple[int, ...], float]:
        first = drawn_from(pool(()), Counter(), sampling)
        cells = {(0,): first[0]}
        for at in range(1, len(pieces)):
            second = drawn_from(pool((at,)), Counter({at: 1}), sampling)
            cells |= {(at, other): first[at] * second[other] for other in range(len(pieces))}
        return {cell: 2000 * p for cell, p in cells.items() if p > 0}

    seen: Counter[tuple[int, ...]] = Counter()
    for seed in range(2000):
        chooser = chooser_for(replace(sampling, seed=seed))
        fuser = LinearPool(tables, [0.6, 0.4], chooser, tell=Tell(top=4), beam=10**6, share=0.0)
        driver, said = Driver(fuser, models), ()
        while len(said) < 2 and said != (0,):
            commit = driver.commit()
            if seed < 40:
                expected = pool(said)
                assert commit.detail is not None
                assert abs(commit.detail.logprob - math.log(expected[of_text[commit.text]])) < 1e-9
                ranked = sorted(range(1, len(pieces)), key=lambda at: (-expected[at], at))[:4]
                assert [of_text[text] for text, _ in commit.detail.top] == ranked
                assert np.allclose([nats for _, nats in commit.detail.top], np.log(expected[ranked]), atol=1e-9)
            said = (*said, of_text[commit.text])
        seen[said] += 1
    expected = law(sampling)
    assert seen.keys() <= expected.keys(), "what the cuts leave out was drawn"
    statistic, freedom = chi_squared(seen, expected)
    assert freedom > 5
    assert statistic < critical(freedom)
    warmer = law(replace(sampling, temperature=1.25 * (sampling.temperature or 1.0)))
    assert chi_squared(seen, warmer)[0] > critical(freedom), "a test that could not fail"


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p() -> None:
    """At the boundary itself nothing more is taken; ties go to the smaller id; one piece is always left; zero is greedy."""
    scores = {4: 0.2, 1: 0.3, 2: 0.5}
    tied = {7: 0.25, 3: 0.25, 5: 0.25, 9: 0.25}

    def drawn(scores: Mapping[int, float], top_p: float, temperature: float = 1.0) -> set[int]:
        choosers = [chooser_for(Sampling(temperature=temperature, top_p=top_p, seed=seed)) for seed in range(200)]
        return {chooser.choose(scores) for chooser in choosers}

    assert drawn(scores, 0.5) == {2}
    assert drawn(scores, 0.51) == {1, 2}
    assert drawn(scores, 0.8) == {1, 2}
    assert drawn(scores, 0.81) == drawn(scores, 1.0) == {1, 2, 4}
    assert drawn(scores, 0.0) == drawn(scores, 1e-12) == {2}
    assert drawn(tied, 0.5) == {3, 5}
    assert drawn(scores, 0.8, temperature=0.2) == {2}, "the temperature comes first"
    assert drawn(scores, 1.0, temperature=0.0) == {2}
