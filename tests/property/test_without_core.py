"""The oracles of fusion once more over the readings in Python: what an install without a compiler runs on."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from test_certificates import (  # noqa: F401 - collected here again
    test_a_piece_that_nobody_lists_may_win_by_many_tokens,
    test_no_certificate_is_ever_wrong,
    test_the_quick_ways_find_what_the_plain_ones_find,
)
from test_fusion import (  # noqa: F401
    test_copies_of_one_model_are_that_model,
    test_equals_enumeration_of_all_token_sequences,
    test_every_member_has_read_what_was_said,
)

from strategies.fusion import Greedy, LinearPool, native, readings
from strategies.fusion.testing import vocabulary


@pytest.fixture(autouse=True, scope="module")
def _in_python() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "core", None)
        yield


def test_it_is_the_one_in_python() -> None:
    table = vocabulary(random.Random(1), 4)
    assert all(type(member) is readings.Readings for member in LinearPool([table], [1.0], Greedy()).everyone)
    assert native.name() == "python"


@pytest.mark.parametrize(("value", "used"), [("off", False), ("OFF", False), ("0", False), ("", True), ("on", True)])
def test_a_variable_switches_the_core_off(value: str, used: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELNET_NATIVE", value)
    built = pytest.importorskip("strategies.fusion._core") if used else None
    assert (native.find() is not None) == used
    if built is not None:
        monkeypatch.setattr(built, "VERSION", native.VERSION + 1)
        assert native.find() is None, "one that was built from other sources is left alone"
