"""The compiled core against its reference in Python: the same state after every call, and the same answers."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.types import TopK, Vocabulary
from strategies.fusion import FUSERS, Greedy, Node, NothingToSay, Sampler, Shaping, Tell, native, readings
from strategies.fusion.testing import Driver, HashGuide, model, vocabulary, weights_of
from strategies.vocabulary import Inventory, inventory_of

if native.core is None:
    pytest.skip("the core is not compiled here, or switched off", allow_module_level=True)
from strategies.fusion import _core, compiled


def plain_sum(values: Sequence[float], start: float = 0.0) -> float:
    """As Python 3.11 adds; later ones compensate what is rounded."""
    for value in values:
        start += value
    return start


@pytest.fixture(autouse=True, scope="module")
def _same_numbers() -> Iterator[None]:
    """Exponentials and sums as the core has them: then everything is equal to the last bit, and nothing can hide behind a tolerance."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readings, "exp", lambda values: np.array(_core.exponentials(values)))
        patch.setattr(readings, "sum", lambda values, start=0: plain_sum(list(values), start), raising=False)
        yield


class Pair:
    """One member twice. `same` fails where they differ."""

    def __init__(self, inventory: Inventory, number: int, beam: int, share: float) -> None:
        speller = inventory.spellers[number]
        self.plain = readings.Readings(speller, inventory.pieces, beam=beam, share=share)
        self.core = compiled.Readings(speller, inventory.pieces, beam=beam, share=share)
        self.inventory = inventory

    def same(self) -> None:
        plain, core = self.plain, self.core
        assert (core.lost, core.repaired, core.narrowed) == (plain.lost, plain.repaired, plain.narrowed)
        assert [place(node) for node in core.due] == [place(node) for node in plain.due]
        assert [lists(node) for node in core._nodes] == [lists(node) for node in plain._nodes]
        assert place(core.position) == place(plain.position)
        assert shown(core.view()) == shown(plain.view())

    def both(self, name: str, *args: Any) -> Any:
        """Call a method of both, which must give the same."""
        expected, got = getattr(self.plain, name)(*args), getattr(self.core, name)(*args)
        if isinstance(expected, np.ndarray):
            assert got.dtype == np.int32
            assert got.tolist() == expected.tolist()
        else:
            assert got == expected
        self.same()
        return expected


def place(node: Node) -> tuple[Any, ...]:
    way = []
    there: Node | None = node
    while there is not None:
        way.append((there.token, there.depth))
        there = there.parent
    return (tuple(way), node.weight, node.at, node.said, node.spoken)


def lists(node: Node) -> tuple[Any, ...]:
    found = {piece: (tokens, list(values)) for piece, (tokens, values) in node.found.items()}
    numbers = (node.ids, node.probs, node.nexts, list(node.masses.items()), node.seen, node.outside, node.pmin)
    return (*place(node), numbers, set(node.resolved), found)


def shown(view: readings.View) -> tuple[Any, ...]:
    return (list(view.masses.items()), view.seen, view.fresh, view.unseen, view.each)


def group(rng: random.Random, *, same: bool) -> Inventory:
    """Words over few letters: most begin like others. Some tokenizers lack some of the words of others, one has a letter in two tokens."""
    if same:
        return inventory_of((vocabulary(rng, rng.randint(4, 16)),))
    tables = [vocabulary(rng, rng.randint(2, 16)) for _ in range(rng.randint(2, 3))]
    words = (*(bytes([value]) for value in range(256)), *(b"ab" * n for n in range(1, 5)), b"a", b"aaa", b"")
    odd = Vocabulary(words, frozenset({len(words) - 1}), f"odd {rng.random()}")
    return inventory_of((*tables, odd) if rng.random() < 0.3 else tuple(tables))


def listed(rng: random.Random, size: int) -> tuple[TopK, np.ndarray]:
    """What a model says, and all it could have said (nats, float64 [size]): ties, zeros and certainties among it."""
    weights = np.array([rng.choice((rng.random() ** rng.choice((1, 6, 30)), 1.0, 0.25)) for _ in range(size)])
    if rng.random() < 0.2:
        weights[[rng.randrange(size) for _ in range(rng.randint(1, size))]] = 0.0
    if rng.random() < 0.2:
        weights[rng.randrange(size)] = 10.0**6
    weights[rng.randrange(size)] += 1e-9
    with np.errstate(divide="ignore"):
        nats = np.log(weights / weights.sum())
    order = np.lexsort((np.arange(size), -nats))[: rng.choice((1, 2, 4, 8, size))]
    outside = 0.0 if len(order) == size else float(max(0.0, 1.0 - np.exp(nats[order]).sum()))
    return TopK(order.astype(np.int32), nats[order], outside), nats


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 10**9),
    same=st.booleans(),
    beam=st.integers(1, 4),
    share=st.sampled_from((0.0, 0.005, 0.3)),
)
def test_one_member_is_in_the_same_state_after_every_call(seed: int, same: bool, beam: int, share: float) -> None:
    rng = random.Random(seed)
    inventory = group(rng, same=same)
    pair = Pair(inventory, rng.randrange(len(inventory.spellers)), beam, share)
    size = len(pair.plain.speller.first)
    known = [piece for piece, text in enumerate(inventory.pieces) if len(text) > 1 or text in {b"a", b"b", b"c", b""}]
    for _ in range(12):
        nats = np.zeros(size)
        for plain, core in zip(tuple(pair.plain.due), tuple(pair.core.due), strict=True):
            top, nats = listed(rng, size)
            pair.plain.feed(plain, top)
            pair.core.feed(core, top)
            pair.same()
        for _ in range(rng.randint(0, 3)):
            pair.both("bounds", known)
            wanted = [rng.choice(known) for _ in range(rng.choice((1, 2, 4, 20)))]
            ids = pair.both("missing", list(dict.fromkeys(wanted)), rng.choice((0, 2, 1000)))
            if len(ids) and rng.random() < 0.9:
                pair.both(rng.choice(("supply", "supply", "weigh")), nats[ids])
        masses = pair.plain.view().masses
        choices = [piece for piece in masses if piece not in inventory.ends]
        piece = rng.choice(choices if choices and rng.random() < 0.9 else [k for k in known if k not in inventory.ends])
        missed = [rng.choice(known[1:]) for _ in range(rng.randint(0, 3))]
        assert pair.both("passes_behind", missed) >= 0
        if rng.random() < 0.05:
            pair.both("restart")
        elif missed and rng.random() < 0.1:
            pair.both("catch_up", missed)
        else:
            pair.both("advance", piece)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**9), tokens=st.integers(60, 3000))
def test_of_many_tokens_looked_up_the_same_are_kept(seed: int, tokens: int) -> None:
    """More of them than stay listed, many of them equally likely."""
    rng = random.Random(seed)
    words = (*(bytes([value]) for value in range(256)), *(b"a" + str(n).encode() for n in range(tokens)), b"")
    long = Vocabulary(words, frozenset({len(words) - 1}), f"long {tokens}")
    short = Vocabulary((*words[:256], b""), frozenset({256}), "letters")
    inventory = inventory_of((long, short))
    pair = Pair(inventory, 0, 2, 0.005)
    weights = np.array([rng.choice((0.01, rng.random())) for _ in words])
    nats = np.log(weights / weights.sum())
    order = np.argsort(-nats, kind="stable")[:20]
    top = TopK(order.astype(np.int32), nats[order], float(1.0 - np.exp(nats[order]).sum()))
    pair.plain.feed(pair.plain.due[0], top)
    pair.core.feed(pair.core.due[0], top)
    letters = [inventory.pieces.index(letter) for letter in (b"a", b"b")]
    for asked in (letters[:1], letters) if rng.random() < 0.5 else (letters,):
        if len(ids := pair.both("missing", asked, 10**6)):
            pair.both("supply", nats[ids])
    pair.both("advance", letters[0])
    for _ in range(3):
        pair.both("advance", max(pair.plain.view().masses, key=pair.plain.view().masses.__getitem__))
        if not pair.plain._nodes:
            break


def run(core: ModuleType | None, name: str, seed: int, k: int, same: bool) -> list[Any]:
    """Everything that a fuser tells of one answer."""
    rng = random.Random(seed)
    members = rng.randint(1, 4)
    first = vocabulary(rng, rng.randint(3, 14))
    tables = [first if same or rng.random() < 0.3 else vocabulary(rng, rng.randint(3, 14)) for _ in range(members)]
    models = [model(seed + m, len(table), rng.choice((1.0, 2.0, 3.0))) for m, table in enumerate(tables)]
    inventory = inventory_of(tuple(tables))
    guide = HashGuide(inventory, seed, rng.choice((0.05, 0.5))) if rng.random() < 0.3 else None
    known = [piece for piece, text in enumerate(inventory.pieces) if len(text) > 1 or text in {b"a", b"b"}]
    biases = {rng.choice(known): rng.choice((-100.0, 2.0)) for _ in range(rng.randint(0, 3))}
    shaping = Shaping(0.3, 0.2, biases) if rng.random() < 0.3 else None
    chooser = Sampler(1.0, 0.9, seed, 0.0, shaping) if rng.random() < 0.2 else Greedy(shaping)
    tell = Tell(top=3, members=True) if rng.random() < 0.3 else None
    told: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "core", core)
        fuser = FUSERS[name](tables, weights_of(rng, members), chooser, guide=guide, tell=tell)
    driver = Driver(fuser, models, k, lookups=rng.random() < 0.9)
    for _ in range(12):
        if rng.random() < 0.05 and len(fuser._left) > 1:
            fuser.drop(rng.choice(sorted(fuser._left)))
        try:
            said = driver.commit()
        except NothingToSay:
            told.append(fuser.meters)
            break
        told.append((said, fuser._gap, fuser.meters, driver.histories.copy(), driver.passes))
        if said.end:
            break
    return told


@pytest.mark.parametrize("name", ["linear", "gated", "entropy-weighted", "geometric"])
@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**9), k=st.integers(1, 12), same=st.booleans())
def test_groups_say_and_tell_the_same(name: str, seed: int, k: int, same: bool) -> None:
    """Guides, penalties, biases, draws, members that leave, lists that can't be looked up: texts, gaps, meters, certificates, passes."""
    assert run(compiled, name, seed, k, same) == run(None, name, seed, k, same)


def test_exponentials_are_those_of_the_library() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate((-rng.exponential(8.0, 20_000), np.linspace(-699.9, 699.9, 20_001), [0.0, -0.0]))
    assert np.allclose(_core.exponentials(values), np.exp(values), rtol=6e-16, atol=0.0)
    odd = np.array([-np.inf, -1e300, -745.0, -700.5, 0.0, -3.0, np.nan])
    with np.errstate(under="ignore"):
        assert np.allclose(_core.exponentials(odd), np.exp(odd), rtol=6e-16, atol=0.0, equal_nan=True)
    assert _core.exponentials(np.array([-np.inf])) == [0.0]
    assert _core.exponentials(np.array([1.0, 2.0], np.float32)) == _core.exponentials(np.array([1.0, 2.0]))


def test_arrays_that_are_not_aligned_are_read() -> None:
    table = vocabulary(random.Random(1), 4)
    inventory = inventory_of([table])
    ids, nats = np.array([0, 1], np.int32), np.array([-1.0, -2.0])
    views = []
    for odd in (False, True):
        member = compiled.Readings(inventory.spellers[0], inventory.pieces, beam=2, share=0.005)
        if odd:
            ids, nats = (np.frombuffer(b"x" + a.tobytes(), a.dtype, len(a), 1) for a in (ids, nats))
            assert not nats.flags.aligned
        member.feed(member.due[0], TopK(ids, nats, 0.1))
        views.append(member.view().masses)
    assert views[0] == views[1]


def test_what_is_wrong_is_an_error() -> None:
    """Nothing that is handed in can do more harm than an exception, and what was there before is still right."""
    inventory = inventory_of((vocabulary(random.Random(1), 6), vocabulary(random.Random(2), 6)))
    speller, pieces = inventory.spellers[0], inventory.pieces
    member = compiled.Readings(speller, pieces, beam=2, share=0.005)
    (node,) = member.due
    size, ids, nats = len(speller.first), np.arange(3, dtype=np.int32), np.log([0.5, 0.3, 0.1])
    wrong: list[tuple[type[Exception], Any]] = [
        (TypeError, [0, 1, 2]),
        (TypeError, ids.astype(np.float64)),
        (TypeError, ids.astype(">i4")),
        (ValueError, ids[:2]),
        (ValueError, ids.reshape(1, 3)),
        (ValueError, np.array([0, 1, 2**40])),
        (IndexError, np.array([0, 1, size], np.int32)),
        (IndexError, np.array([0, 1, -1], np.int32)),
    ]
    for kind, given_ids in wrong:
        with pytest.raises(kind):
            member.feed(node, TopK(given_ids, nats, 0.1))
    for given_nats in (nats.astype(np.int64), "abc", None, nats.astype(complex)):
        with pytest.raises(TypeError):
            member.feed(node, TopK(ids, given_nats, 0.1))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        member.feed(node, TopK(ids, nats, "much"))  # type: ignore[arg-type]
    for stranger in (Node(None, -1), None, 3):
        with pytest.raises(TypeError):
            member.feed(stranger, TopK(ids, nats, 0.1))
    with pytest.raises(ValueError, match="due"):
        member.feed(_core.Node(None, 1), TopK(ids, nats, 0.1))
    member.feed(node, TopK(np.arange(6, dtype=np.int64)[::2], np.repeat(nats, 2)[::2], 0.1))
    assert member._nodes[0].ids == [0, 2, 4]
    for piece in (-1, len(pieces), 10**30):
        with pytest.raises((IndexError, ValueError)):
            member.bound(piece)
        with pytest.raises((IndexError, ValueError)):
            member.advance(piece)
    with pytest.raises(TypeError):
        member.bounds(3)  # type: ignore[arg-type]
    wanted = member.missing(list(dict.fromkeys(speller.first[:4].tolist())), 1000)
    for values in (np.zeros(len(wanted) + 1), np.zeros(0), np.zeros(len(wanted), np.int32), None):
        with pytest.raises((TypeError, ValueError)):
            member.supply(values)
        with pytest.raises((TypeError, ValueError)):
            member.weigh(values)
    for due in ((), None, "nodes"):
        with pytest.raises(TypeError):
            member.due = due
    for arguments in (([], pieces), ({}, pieces), (speller, 3), (speller, (*pieces, b"more"))):
        with pytest.raises((TypeError, ValueError, AttributeError)):
            compiled.Readings(*arguments, beam=1, share=0.0)
    for call in (
        lambda: _core.due(3),
        lambda: _core.due([member, None]),
        lambda: _core.decide([3], [1.0], False, (), 0.1),
        lambda: _core.decide([member], [], False, (), 0.1),
        lambda: _core.decide([member], ["x"], False, (), 0.1),
        lambda: _core.decide([member], [1.0], False, 3, 0.1),
        lambda: _core.decide([member], [1.0], False, (), "x"),
        lambda: _core.decide([None], [1.0], False, (), 0.1),
        lambda: _core.pooled(3, [1.0], True),
        lambda: _core.losing([member], [member.view()], 10**30, 0.0),
        lambda: _core.losing([None], [member.view()], 1, 0.0),
        lambda: _core.losing([member], [member.view()], -5, 0.0),
        lambda: _core.View(),
        lambda: _core.Node(3, 1),
        lambda: _core.Node(None, 2**40),
    ):
        with pytest.raises((TypeError, ValueError, IndexError)):
            call()
    member._nodes.append("no node")  # type: ignore[arg-type]
    for call in (lambda: member.advance(1), lambda: member.bound(1)):
        with pytest.raises(TypeError):
            call()


def test_long_answers_and_cycles_are_freed() -> None:
    """A hundred thousand places, one behind the other, go without a deep recursion; a member in a cycle is collected."""
    node = _core.Node(None, -1)
    for _ in range(100_000):
        node = _core.Node(node, 1)
    assert node.depth == 100_000
    del node
    inventory = inventory_of((vocabulary(random.Random(3), 6),))
    member = compiled.Readings(inventory.spellers[0], inventory.pieces, beam=2, share=0.005)
    member.due.append(member)  # type: ignore[arg-type]
    kept = member.due
    del member
    gc.collect()
    assert sum(isinstance(each, compiled.Readings) for each in kept) == 1
    kept.clear()
    before = sum(isinstance(each, compiled.Readings) for each in gc.get_objects())
    gc.collect()
    assert sum(isinstance(each, compiled.Readings) for each in gc.get_objects()) <= before


def test_memory_that_is_not_to_be_had_is_an_error() -> None:
    """Every allocation fails once, in every call: an exception, and nothing worse."""
    failing = pytest.importorskip("_testcapi", reason="of CPython's own tests")
    inventory = inventory_of((vocabulary(random.Random(5), 12), vocabulary(random.Random(6), 12)))
    speller, pieces = inventory.spellers[0], inventory.pieces
    known = [piece for piece, text in enumerate(pieces) if len(text) > 1 or text in {b"a", b"b", b"c"}]
    failed = 0

    def answer(tried: int, allocation: int) -> int:
        """Calls made. tried: the one in which an allocation fails."""
        calls = 0

        def call(method: Any, *args: Any) -> Any:
            nonlocal calls, failed
            calls += 1
            if calls - 1 == tried:
                failing.set_nomemory(allocation, allocation + 1)
            try:
                return method(*args)
            except MemoryError:
                failed += 1
            except (IndexError, ValueError):
                pass  # what the failed call left behind
            finally:
                failing.remove_mem_hooks()

        member = compiled.Readings(speller, pieces, beam=2, share=0.005)
        for step in range(5):
            probs = np.random.default_rng(step).dirichlet(np.full(len(speller.first), 0.4)) + 1e-9
            order = np.argsort(-probs)[:6].astype(np.int32)
            top = TopK(order, np.log(probs[order]), float(1.0 - probs[order].sum()))
            for node in tuple(member.due):
                call(member.feed, node, top)
            call(member.bounds, known)
            if ids := call(member._missing, known[:4], 1000):
                call(member.supply, np.log(probs[np.concatenate(ids)]))
            view = call(member.view) or member.view()
            call(_core.due, [member])
            call(_core.pooled, [view], [1.0], True)
            for share in (-1.0, 0.0):
                call(_core.decide, [member], [1.0], False, (), share)
            call(_core.losing, [member], [view], known[0], 0.0)
            call(_core.say, [member], [1.0], next(iter(view.masses), known[0]), 0.0, 0.0)
        return calls

    for tried in range(answer(-1, 0)):
        for allocation in range(30):
            answer(tried, allocation)
    assert failed > 50
