"""What is worked out about vocabularies is kept in a folder, and trusted only if it is what was kept."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.types import Vocabulary
from strategies.vocabulary import Inventory, Speller, forget_inventories, inventory_of, keep_in
from strategies.vocabulary import inventory as inventories
from strategies.vocabulary import table as tables
from strategies.vocabulary.shelf import ABANDONED, Shelf


def vocabulary(name: str, *words: bytes) -> Vocabulary:
    return Vocabulary((*words, b""), frozenset({len(words)}), f"shelf-{name}")


A = vocabulary("a", b"the", b"then", b"th", b"e", b"t", b"h", b"n")
B = vocabulary("b", b"e", b"the", b"x", b"theory", b"o")
ONE: dict[str, Any] = {"numbers": np.arange(40, dtype=np.int32)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which small vocabularies are kept too, and nothing is remembered."""
    monkeypatch.setattr(tables, "WORTH_KEEPING", 1)
    monkeypatch.setattr(inventories, "WORTH_KEEPING", 1)
    folder = tmp_path / "deep" / "pieces"
    keep_in(folder)
    forget_inventories()
    yield folder
    keep_in(None)
    forget_inventories()


@pytest.fixture
def worked_out(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What had to be worked out, as it happens."""
    done: list[str] = []

    def watch(module: Any, name: str) -> None:
        real = getattr(module, name)

        def watched(given: Any) -> Any:
            done.append(name)
            return real(given)

        monkeypatch.setattr(module, name, watched)

    watch(tables, "text_ids")
    watch(inventories, "_work_out")
    return done


def told(inventory: Inventory) -> list[Any]:
    """All that an inventory says of its first pieces and tokens."""
    return [inventory.pieces, inventory.ends, *(_told(speller, inventory) for speller in inventory.spellers)]


def _told(speller: Speller, inventory: Inventory) -> list[Any]:
    count = len(speller.table.vocabulary)
    going_on = [speller.continuing(b"", (), piece, text) for piece, text in enumerate(inventory.pieces)]
    return [
        speller.table.keys,
        speller.table.ids.tolist(),
        [speller[token] for token in range(count)],
        [(found.ids.tolist(), found.complete, found.beyond.tolist()) for found in going_on],
    ]


def test_what_was_kept_is_read_and_is_the_same(folder: Path, worked_out: list[str]) -> None:
    """Built without a folder, built and kept, read by the next process: one and the same. Groups in another order read it too."""
    keep_in(None)
    without = told(inventory_of((A, B)))
    keep_in(folder)
    forget_inventories()
    assert told(inventory_of((A, B))) == without
    assert len(list(folder.iterdir())) == 3, "two tables and what they have in common"
    assert worked_out == ["text_ids", "text_ids", "_work_out"] * 2
    for group in ((A, B), (B, A, A)):
        forget_inventories()
        again = inventory_of(group)
        assert again.pieces == without[0]
    assert told(inventory_of((A, B))) == without
    assert len(worked_out) == 6, "nothing was worked out again"


def test_another_vocabulary_of_the_same_fingerprint_reads_nothing(folder: Path, worked_out: list[str]) -> None:
    """A fingerprint may come from a server: what is kept depends on the tokens and the ends themselves."""
    inventory_of((A, B))
    other = Vocabulary((*A.tokens[:-2], b"m", b""), A.end_ids, A.fingerprint)
    ends = Vocabulary(A.tokens, frozenset({*A.end_ids, 0}), A.fingerprint)
    shifted = Vocabulary((b"t", b"hethen", *A.tokens[2:]), A.end_ids, A.fingerprint)
    for each in (other, ends, shifted):
        del worked_out[:]
        forget_inventories()
        found = inventory_of((each, B))
        assert worked_out == ["text_ids", "_work_out"]
        assert [found.spellers[0].table.keys] == [sorted(t for n, t in enumerate(each.tokens) if n not in each.end_ids)]


def test_files_that_are_not_what_was_kept_are_replaced(folder: Path, worked_out: list[str]) -> None:
    """Cut, empty, foreign, exchanged, with other arrays: all are worked out anew, and right the next time."""
    without = told(inventory_of((A, B)))
    files = sorted(folder.iterdir())
    good = {file: file.read_bytes() for file in files}
    shelf = Shelf(folder)

    def spoil(kind: str) -> None:
        for number, (file, data) in enumerate(good.items()):
            other = {
                "cut": data[: len(data) // 2],
                "empty": b"",
                "foreign": b"\x80\x04K\x01.",
                "exchanged": good[files[(number + 1) % len(files)]],
            }.get(kind)
            if other is not None:
                file.write_bytes(other)
            elif kind == "arrays":
                shelf.put(file.stem, ONE)
            else:
                kept = dict(shelf.get(file.stem) or {})
                shelf.put(file.stem, {key: values + values.dtype.type(100) for key, values in kept.items()})

    for kind in ("cut", "empty", "foreign", "exchanged", "arrays", "numbers"):
        spoil(kind)
        del worked_out[:]
        forget_inventories()
        assert told(inventory_of((A, B))) == without, kind
        assert worked_out == ["text_ids", "text_ids", "_work_out"], kind
        assert {file: file.read_bytes() for file in files}.keys() == good.keys()
        forget_inventories()
        assert told(inventory_of((A, B))) == without
        assert len(worked_out) == 3, f"{kind}: it was kept anew"


def test_no_flipped_byte_is_believed(tmp_path: Path) -> None:
    """Whatever single byte of a file changes, it gives what was put or nothing."""
    shelf = Shelf(tmp_path)
    shelf.put("one", ONE)
    file = tmp_path / "one.npz"
    good = file.read_bytes()
    refused = 0
    for at in range(len(good)):
        file.write_bytes(good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :])
        found = shelf.get("one")
        refused += found is None
        assert found is None or (found.keys() == ONE.keys() and np.array_equal(found["numbers"], ONE["numbers"]))
    assert refused > len(good) // 3
    file.write_bytes(good)
    assert np.array_equal((shelf.get("one") or {})["numbers"], ONE["numbers"])


def test_the_folder_stays_within_its_bound_and_loses_what_was_not_used(tmp_path: Path) -> None:
    Shelf(tmp_path).put("0", ONE)
    size = (tmp_path / "0.npz").stat().st_size
    shelf = Shelf(tmp_path, 3 * size)
    for number in range(1, 6):
        for file in tmp_path.iterdir():  # as if a minute had passed
            os.utime(file, (file.stat().st_mtime - 60, file.stat().st_mtime - 60))
        assert shelf.get("0") is not None, "used again and again, so it stays"
        shelf.put(str(number), ONE)
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 3 * size
    assert sorted(file.stem for file in tmp_path.iterdir()) == ["0", "4", "5"]
    assert Shelf(tmp_path, size - 1).get("0") is None, "larger than all may be"


def test_half_written_files_are_nobodys_and_go_in_the_end(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    fresh, old = tmp_path / "one.1-aa.part", tmp_path / "one.1-bb.part"
    for half in (fresh, old):
        half.write_bytes(b"PK")
    os.utime(old, (time.time() - 2 * ABANDONED,) * 2)
    assert shelf.get("one") is None
    shelf.put("one", ONE)
    assert fresh.exists(), "somebody may be at it"
    assert not old.exists()


def test_a_folder_that_can_not_be_written_changes_nothing(folder: Path, tmp_path: Path, worked_out: list[str]) -> None:
    (tmp_path / "file").write_bytes(b"")
    keep_in(tmp_path / "file")
    without = told(inventory_of((A, B)))
    forget_inventories()
    assert told(inventory_of((A, B))) == without
    assert len(worked_out) == 6


def test_many_at_once_read_and_write_one_entry(tmp_path: Path) -> None:
    """Nobody ever sees half of one."""

    def work(number: int) -> None:
        shelf = Shelf(tmp_path)
        for _ in range(20):
            if number % 2:
                shelf.put("one", ONE)
            elif (found := shelf.get("one")) is not None:
                assert np.array_equal(found["numbers"], ONE["numbers"])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert [file.name for file in tmp_path.iterdir()] == ["one.npz"]
