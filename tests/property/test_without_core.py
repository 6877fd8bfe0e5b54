"""The oracles of fusion once more over the readings in Python: what an install without a compiler runs on."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
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

from backends.types import TopK
from strategies.fusion import Greedy, LinearPool, native, readings
from strategies.fusion.testing import vocabulary
from strategies.vocabulary import inventory_of


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
        assert native.find() is None


@pytest.mark.parametrize("stale", ["VERSION", "SOURCES"])
@pytest.mark.parametrize("lost", [True, False])
def test_a_core_that_does_not_fit_is_left_alone_and_told(
    stale: str, lost: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After an update without a new build: slower, but the same, and nothing fails to start."""
    built = pytest.importorskip("strategies.fusion._core")
    monkeypatch.delenv("MODELNET_NATIVE", raising=False)
    if lost:
        monkeypatch.delattr(built, stale)
    else:
        monkeypatch.setattr(built, stale, "other")
    assert native.find() is None
    assert "runs in Python" in caplog.text


def test_a_core_that_was_never_built_is_not_worth_a_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("MODELNET_NATIVE", raising=False)
    monkeypatch.setattr(native, "CORE", "strategies.fusion._none")
    assert native.find() is None
    assert caplog.text == ""


@pytest.mark.parametrize("nats", [[float("nan"), -1.0], [-1.0, float("inf")]])
def test_what_is_no_probability_is_refused(nats: list[float]) -> None:
    """It would decide what is said."""
    table = vocabulary(random.Random(1), 4)
    cores = [readings.Readings]
    if (built := native.find()) is not None:
        cores.append(built.Readings)
    inventory = inventory_of([table])
    for kind in cores:
        member = kind(inventory.spellers[0], inventory.pieces, beam=2, share=0.005)
        (node,) = member.due
        with pytest.raises(ValueError, match="not finite"):
            member.feed(node, TopK(np.array([0, 1], np.int32), np.array(nats), 0.0))
        with pytest.raises(ValueError, match="not finite"):
            member.feed(node, TopK(np.array([0, 1], np.int32), np.array([-1.0, -2.0]), float("nan")))
        member.feed(node, TopK(np.array([0, 1], np.int32), np.array([-1.0, -2.0]), 0.1))
        assert member.view().seen > 0
