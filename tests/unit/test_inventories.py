"""What groups have in common is worked out once, whoever asks and in whatever order."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from backends.types import Vocabulary
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


def test_a_table_is_in_byte_order_and_gives_every_id() -> None:
    table = Table(Vocabulary((b"b", b"a", b"", b"ab", b"a"), frozenset({2}), "inventories-table"))
    assert table.keys == [b"a", b"a", b"ab", b"b"]
    assert table.ids.tolist() == [1, 4, 3, 0]
    assert table.ids_of(b"a") == (1, 4)
    assert table.ids_of(b"") == table.ids_of(b"c") == ()
    assert table.count_starting_with(b"a") == 3
