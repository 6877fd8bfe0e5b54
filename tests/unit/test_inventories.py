"""What groups have in common is worked out once, whoever asks and in whatever order."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

from backends.types import Vocabulary
from strategies.fusion.testing import vocabulary as random_vocabulary
from strategies.vocabulary import Inventory, Table, forget_inventories, inventory_of
from strategies.vocabulary import inventory as module


def vocabulary(name: str, *words: bytes) -> Vocabulary:
    return Vocabulary((*words, b""), frozenset({len(words)}), f"inventories-{name}")


A = vocabulary("a", b"the", b"th", b"e", b"t", b"h")
B = vocabulary("b", b"e", b"the", b"x")
AGAIN = vocabulary("a", b"the", b"th", b"e", b"t", b"h")


def test_order_and_repetition_share_one_set_of_pieces() -> None:
    one, other = inventory_of((A, B)), inventory_of([B, AGAIN, B, A])
    assert one.pieces is other.pieces
    assert one.most is other.most
    assert one.spellers == (other.spellers[1], other.spellers[0])
    assert other.spellers[1] is other.spellers[3]
    assert one.pieces[0] == b""
    assert set(one.pieces[1:]) == {b"the", *(bytes([value]) for value in range(256))}
    assert [one.pieces[piece] for piece in one.spellers[0][1]] == [b"t", b"h"]
    alone = inventory_of((AGAIN, A))
    assert alone.same
    assert alone.pieces is inventory_of((A,)).pieces


def test_sets_are_remembered_up_to_a_number_and_built_once_by_many() -> None:
    forget_inventories()
    others = [vocabulary(str(n), b"the", bytes([65 + n])) for n in range(module.KEPT + 2)]
    first = inventory_of((A, others[0]))
    for other in others:
        inventory_of((A, other))
    assert len(module._kept) == module.KEPT
    assert inventory_of((A, others[0])).pieces is not first.pieces
    forget_inventories()
    with ThreadPoolExecutor(8) as pool:
        found: list[Inventory] = list(pool.map(lambda _: inventory_of((A, B)), range(32)))
    assert len({id(inventory.pieces) for inventory in found}) == 1


def test_first_pieces_and_how_many_tokens_begin_with_each() -> None:
    """What is worked out for all tokens at once is what spelling each one gives."""
    for seed in range(20):
        rng = random.Random(seed)
        inventory = inventory_of(tuple(random_vocabulary(rng, rng.randint(4, 20)) for _ in range(3)))
        for speller in inventory.spellers:
            spelled = [speller[token] for token in range(len(speller.table.vocabulary))]
            assert speller.first.tolist() == [pieces[0] if pieces else -1 for pieces in spelled]
            rows = speller.rows.reshape(-1, module.ROW).tolist()
            assert [row[: min(row[0], module.ROW)] for row in rows] == [
                [len(pieces), *pieces[1:]][: min(len(pieces), module.ROW)] for pieces in spelled
            ]
            for piece, text in enumerate(inventory.pieces):
                found = speller.continuing(b"", (), piece, text)
                assert speller.beginning[piece] == len(found.ids) == sum(p[:1] == (piece,) for p in spelled)
                assert [spelled[token] for token in found.ids[: found.complete]] == [(piece,)] * found.complete
                assert all(len(spelled[token]) > 1 for token in found.beyond)
    alone = inventory_of((A,))
    assert alone.spellers[0].rows is None
    assert alone.spellers[0].first.tolist() == list(range(len(A)))
    assert [alone.spellers[0].beginning[piece] for piece in range(len(A))] == [1] * len(A)


def test_a_table_is_in_byte_order_and_gives_every_id() -> None:
    table = Table(Vocabulary((b"b", b"a", b"", b"ab", b"a"), frozenset({2}), "inventories-table"))
    assert table.keys == [b"a", b"a", b"ab", b"b"]
    assert table.ids.tolist() == [1, 4, 3, 0]
    assert table.ids_of(b"a") == (1, 4)
    assert table.ids_of(b"") == table.ids_of(b"c") == ()
    assert table.count_starting_with(b"a") == 3
