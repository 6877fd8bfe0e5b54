"""Keys: how they are made and kept, who is let in, what was spent on each."""

from __future__ import annotations

import re
import sqlite3
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.keys import Budget, Key, Keyring, Rights
from gateway.keys.keeper import Keeper
from gateway.keys.keyring import KeyRefused, SpendBook, periods
from gateway.keys.patterns import matches
from gateway.keys.secrets import digest, id_of, make_key
from gateway.keys.store import KeyStore, Spent, UnknownKey
from gateway.storage import StorageError


@pytest.fixture
def target(tmp_path: Path) -> str:
    return str(tmp_path / "keys.db")


def static(text: str, name: str = "team", **fields: object) -> Key:
    return replace(Key(name, name, digest(text), stored=False), **fields)  # type: ignore[arg-type]


def refused(keyring: Keyring, text: str) -> str:
    with pytest.raises(KeyRefused) as caught:
        keyring.authenticate(text)
    return caught.value.why


def test_a_key_is_an_id_and_256_random_bits() -> None:
    made = {make_key().text for _ in range(200)}
    assert len(made) == 200
    for text in made:
        assert re.fullmatch(r"mnk_[a-z0-9]{12}_[A-Za-z0-9_-]{43}", text)
        assert id_of(text) == text.split("_")[1]
    assert id_of("mnk_short_x") is None
    assert id_of("sk-something-else") is None


def test_the_store_holds_no_key(target: str) -> None:
    store = KeyStore(target)
    key, text = store.create("team", Rights(), None)
    store.close()
    content = b"".join(file.read_bytes() for file in Path(target).parent.iterdir())
    assert text.encode() not in content
    assert text.split("_", 2)[2].encode() not in content
    assert key.digest.hex().encode() in content
    assert stat.S_IMODE(Path(target).stat().st_mode) == 0o600
    assert text not in repr(key)
    assert key.digest.hex() not in repr(key)


def test_what_is_written_is_read_again(target: str) -> None:
    rights = Rights(("q*",), ("careful",), 10, 1000, 3, Budget(5_000_000_000, "money", "month"))
    store = KeyStore(target)
    key, text = store.create("team", rights, 2e9)
    assert store.get(key.id) == key == store.all()[0]
    assert KeyStore(target).get(key.id).rights == rights
    keyring = Keyring()
    keyring.set_stored(store.all())
    assert keyring.authenticate(text) == key
    with pytest.raises(UnknownKey):
        store.revoke("nobody")
    store.close()


def test_expired_and_revoked_keys_open_nothing(target: str) -> None:
    store = KeyStore(target)
    (a, a_text), (b, b_text) = store.create("a", Rights()), store.create("b", Rights(), time.time() - 1)
    keyring = Keyring()
    keyring.set_stored(store.all())
    assert keyring.authenticate(a_text).id == a.id
    assert refused(keyring, b_text) == "expired"
    revoked = store.revoke(a.id)
    assert store.revoke(a.id).revoked == revoked.revoked
    keyring.set_stored(store.all())
    assert refused(keyring, a_text) == "revoked"
    store.expire(b.id, time.time() + 60)
    keyring.set_stored(store.all())
    assert keyring.authenticate(b_text).id == b.id
    store.close()


def test_who_has_the_id_but_not_the_secret_learns_nothing(target: str) -> None:
    """Not even that the key has expired."""
    store = KeyStore(target)
    key, text = store.create("a", Rights(), time.time() - 1)
    keyring = Keyring([static("a-plain-key")])
    keyring.set_stored(store.all())
    other = make_key().text
    assert refused(keyring, text[:-1] + ("a" if text[-1] != "a" else "b")) == "wrong"
    assert refused(keyring, f"mnk_{key.id}_" + other.rsplit("_", 1)[-1].rjust(43, "x")[:43]) == "wrong"
    assert refused(keyring, other) == "wrong"
    assert refused(keyring, "") == "missing"
    assert refused(keyring, "\udcff") == "wrong"
    assert keyring.authenticate("a-plain-key").id == "team"
    store.close()


def test_every_static_key_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first match ends nothing: time must not tell which key was near."""
    import hmac

    calls = []
    real = hmac.compare_digest
    monkeypatch.setattr("gateway.keys.keyring.hmac.compare_digest", lambda a, b: calls.append(b) or real(a, b))
    keyring = Keyring([static("first-key", "1"), static("second-key", "2"), static("third-key", "3")])
    assert keyring.authenticate("first-key").id == "1"
    assert len(calls) == 4  # one for the store, found or not
    calls.clear()
    refused(keyring, "no-such-key")
    assert len(calls) == 4


def test_once_asked_for_keys_stay_asked_for(target: str) -> None:
    """The end of the last key must not open the door to everyone."""
    assert not Keyring().required
    assert Keyring(required=True).required
    keyring = Keyring()
    store = KeyStore(target)
    key, _ = store.create("a", Rights())
    keyring.set_stored(store.all())
    store.revoke(key.id)
    keyring.set_stored(store.all())
    assert keyring.required
    keyring.set_stored([])
    assert keyring.required
    store.close()


@pytest.mark.parametrize(
    "value",
    [
        {"requests_per_minute": 0},
        {"requests_per_minute": True},
        {"tokens_per_minute": 10**9},
        {"concurrency": 1.5},
        {"budget": {"amount": 0, "unit": "money", "per": "day"}},
        {"budget": {"amount": 5, "unit": "apples", "per": "day"}},
        {"budget": {"amount": 5}},
        {"budget": 5},
    ],
)
def test_rights_that_are_none(value: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"limit|budget|rights"):
        Rights.of(value)


@given(st.text("ab*", max_size=8), st.text("ab", max_size=8))
def test_patterns_are_what_they_say(pattern: str, name: str) -> None:
    def simple(p: str, n: str) -> bool:
        if not p:
            return not n
        if p[0] == "*":
            return simple(p[1:], n) or (bool(n) and simple(p, n[1:]))
        return bool(n) and p[0] == n[0] and simple(p[1:], n[1:])

    assert matches([pattern], name) == simple(pattern, name)


def test_patterns_take_everything_but_stars_literally() -> None:
    assert matches(["a.c"], "a.c")
    assert not matches(["a.c"], "abc")
    assert matches(["s2p:qwen>*|gemma"], "s2p:qwen>smol|gemma")
    assert matches(["a|b*2"], "a|b*2")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("pattern", ["*" * 40 + "x" + "*a" * 20, "*a" * 100 + "b", "a*" * 100 + "*b*"])
def test_no_pattern_takes_long(pattern: str) -> None:
    """As a regular expression each star would be tried at every place: for ever."""
    assert not matches([pattern], "a" * 4000)


def test_periods_are_days_and_months_of_utc() -> None:
    moment = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC).timestamp()
    day = "2026-11-30"
    assert periods(moment + 1) == ("", "2026-12-01", "2026-12")
    assert periods(moment) == ("", day, day[:7])
    assert Budget(1, per="day").period(moment) == day
    assert Budget(1, per="month").period(moment) == day[:7]
    assert Budget(1).period(moment) == ""


def test_what_was_spent_survives_and_adds_up_over_processes(target: str) -> None:
    one, two = Keyring([static("a-plain-key")]), Keyring([static("a-plain-key")])
    first, second = Keeper(target, one, 60), Keeper(target, two, 60)
    first.start()
    second.start()
    one.spending.add("team", Spent(10, 100))
    two.spending.add("team", Spent(1, 2))
    assert one.spending.known("team", "") == Spent(10, 100)
    first.refresh()
    second.refresh()
    first.refresh()
    assert one.spending.known("team", "") == two.spending.known("team", "") == Spent(11, 102)
    assert one.spending.known("team", periods(time.time())[1]) == Spent(11, 102)
    one.spending.add("team", Spent(5, 5))
    first.close()
    second.close()
    store = KeyStore(target)
    assert store.spending()["team", ""] == Spent(16, 107)
    store.close()


def test_spending_that_can_not_be_told_is_kept() -> None:
    book = SpendBook()
    book.add("k", Spent(3, 4))

    def fails(_: object) -> None:
        raise StorageError("away")

    with pytest.raises(StorageError):
        book.exchange(fails, lambda periods: {})
    book.add("k", Spent(1, 1))
    assert book.known("k", "") == Spent(4, 5)
    told: dict[tuple[str, str], Spent] = {}
    book.exchange(told.update, lambda periods: dict(told))
    assert told["k", ""] == Spent(4, 5)
    assert book.known("k", "") == Spent(4, 5)


def test_a_change_by_another_process_is_noticed(target: str) -> None:
    keyring = Keyring()
    keeper = Keeper(target, keyring, 0.05)
    keeper.start()
    assert not Path(target).exists()  # nobody made a key: nothing is written
    assert not keyring.required
    other = KeyStore(target)
    key, text = other.create("late", Rights())
    _until(lambda: keyring.required)
    assert keyring.authenticate(text).id == key.id
    other.revoke(key.id)
    _until(lambda: keyring.all()[0].revoked is not None)
    other.close()
    keeper.close()


def test_a_lost_database_leaves_the_keys_as_they_were(target: str, tmp_path: Path) -> None:
    keyring = Keyring()
    store = KeyStore(target)
    _, text = store.create("a", Rights())
    store.close()
    keeper = Keeper(target, keyring, 0.05)
    keeper.start()
    broken = sqlite3.connect(target)
    broken.execute("ALTER TABLE keys RENAME TO gone")
    broken.commit()
    _until(lambda: keeper.failing)
    assert keyring.authenticate(text)
    broken.execute("ALTER TABLE gone RENAME TO keys")
    broken.commit()
    broken.close()
    _until(lambda: not keeper.failing)
    keeper.close()


def test_a_database_that_was_replaced_is_read(target: str, tmp_path: Path) -> None:
    """As by who restores it: keys that were revoked there must not go on here."""
    store = KeyStore(target)
    key, text = store.create("a", Rights())
    store.close()
    other = tmp_path / "other.db"
    other.write_bytes(Path(target).read_bytes())
    restored = KeyStore(str(other))
    restored.revoke(key.id)
    restored.close()
    keyring = Keyring()
    keeper = Keeper(target, keyring, 0.05)
    keeper.start()
    assert keyring.authenticate(text)
    other.replace(target)
    _until(lambda: keyring.all()[0].revoked is not None)
    keeper.close()


def test_what_can_not_be_told_stops_no_change_of_keys(target: str) -> None:
    keyring = Keyring()
    store = KeyStore(target)
    key, _ = store.create("a", Rights())
    keeper = Keeper(target, keyring, 0.05)
    keeper.start()
    keyring.spending.add(key.id, Spent(2**63, 0))
    _until(lambda: keeper.failing)
    store.revoke(key.id)
    _until(lambda: keyring.all()[0].revoked is not None)
    store.close()
    keeper.close()


def test_a_new_database_may_be_opened_by_many_at_once(tmp_path: Path) -> None:
    """SQLite itself does not wait while another connection makes the file one with a write-ahead log."""

    def create(target: str, barrier: Barrier) -> None:
        barrier.wait(10)
        store = KeyStore(target)
        store.create("a", Rights())
        store.close()

    with ThreadPoolExecutor(8) as pool:
        for number in range(100):
            target, barrier = str(tmp_path / f"{number}.db"), Barrier(8)
            for done in [pool.submit(create, target, barrier) for _ in range(8)]:
                done.result(30)
            store = KeyStore(target)
            assert len(store.all()) == 8
            store.close()


def test_a_database_of_a_later_version_is_refused(target: str) -> None:
    KeyStore(target).close()
    other = sqlite3.connect(target)
    other.execute("UPDATE schema_version SET version = 99")
    other.commit()
    other.close()
    with pytest.raises(StorageError, match="later version"):
        KeyStore(target)


def _until(condition: object, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)
