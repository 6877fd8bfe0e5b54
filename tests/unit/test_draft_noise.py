"""`modelnet check --drafts`: whether what is said of scored drafts is true."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from backends.fake import FakeBackend, FakeSettings
from backends.types import TopK
from gateway.cli.draft_check import _servers, check_drafts, verdict
from gateway.settings import load
from strategies.engine.drafting.noise import LENGTHS, QUESTIONS, Difference, Noise, measure

pytestmark = pytest.mark.usefixtures("logs_as_before")

SAYS = "rain and sun " * 30


@pytest.mark.anyio
async def test_an_exact_model_is_found_exact() -> None:
    noise = await measure(FakeBackend("a", FakeSettings(answer=SAYS)), tokens=40)
    assert noise is not None and noise.exact and noise.nats == 0.0
    assert noise.beside.equal and noise.beside.places == 41 * len(QUESTIONS)
    assert noise.scored.places > noise.behind.places > 20 * len(QUESTIONS)
    assert set(noise.seconds) == {1, *LENGTHS}


@pytest.mark.anyio
@pytest.mark.parametrize("said", [0.02, 0.3])
async def test_noise_in_drafts_is_found_and_not_taken_for_more(said: float) -> None:
    noise = await measure(FakeBackend("a", FakeSettings(answer=SAYS, draft_noise=said)), tokens=40)
    assert noise is not None and not noise.exact
    assert said / 2 < noise.scored.nats <= said * 1.01
    assert noise.behind.equal and noise.beside.equal


@pytest.mark.anyio
async def test_a_model_that_is_sent_no_drafts_is_not_measured() -> None:
    assert await measure(FakeBackend("a", FakeSettings(answer=SAYS, draft_noise=None))) is None


@pytest.mark.anyio
async def test_every_session_is_closed() -> None:
    backend = FakeBackend("a", FakeSettings(answer=SAYS, seats=len(QUESTIONS), queue=0))
    assert await measure(backend, tokens=20) is not None
    assert backend.seats.taken == 0


def top(*pairs: tuple[int, float], outside: float = 0.0) -> TopK:
    return TopK(np.array([id for id, _ in pairs], np.int32), np.log([p for _, p in pairs]), outside)


def test_differences() -> None:
    plain = top((1, 0.6), (2, 0.395), (3, 0.005))
    same = Difference()
    same.add(plain, top((1, 0.6), (2, 0.395), (3, 0.005)))
    assert (same.places, same.nats, same.equal, same.turned) == (1, 0.0, True, 0)
    unlikely = Difference()
    unlikely.add(plain, top((1, 0.6), (2, 0.395), (3, 0.0049), outside=0.0001))
    assert (unlikely.nats, unlikely.equal) == (0.0, False)
    turned = Difference()
    turned.add(plain, top((2, 0.5), (1, 0.495), (3, 0.005)))
    assert turned.turned == 1 and turned.nats == pytest.approx(math.log(0.5 / 0.395))
    missing = Difference()
    missing.add(plain, top((1, 0.6), (3, 0.4)))
    assert missing.nats == pytest.approx(
        max(math.log(0.395 / 0.4), 0.0)
    )  # at least: the last that is listed is likelier
    far = Difference()
    far.add(plain, top((1, 0.6), (3, 0.1)))
    assert far.nats == pytest.approx(math.log(0.395 / 0.1))


def test_what_is_said_of_it() -> None:
    assert not Noise().exact  # nothing was seen
    exact, off = Noise(Difference(9), Difference(3)), Noise()
    off.behind = Difference(3, 0.21, False, 0)
    assert verdict(exact, 0.4) == (True, "draft_noise: 0.4 is true of all this, and so is 0.0")
    assert verdict(off, 0.4) == (True, "draft_noise: 0.4 is true of all this")
    assert verdict(off, 0.2) == (False, "draft_noise: 0.35; 0.2 is not true")
    assert verdict(off, 0.0) == (False, "draft_noise: 0.35; 0.0 is not true")
    off.behind = Difference(3, 6e-5, False, 0)
    assert verdict(off, 0.4)[1].endswith("is true of all this, and so is 0.001, with which `auto` reads ahead")
    assert verdict(off, 0.001) == (True, "draft_noise: 0.001 is true of all this")
    assert verdict(off, 0.0) == (False, "draft_noise: 0.001; 0.0 is not true")
    assert verdict(off, None) == (True, "not exact")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "models:\n"
        f"  even: {{backend: fake, answer: {SAYS!r}}}\n"
        f"  off: {{backend: fake, answer: {SAYS!r}, draft_noise: 0.1}}\n"
        "  text: {backend: fake, sessions: false}\n"
    )
    assert check_drafts(config) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "equal to the last bit" in out and "0.0 is true of all this" in out and "is sent no drafts" in out
    assert check_drafts(tmp_path / "none.yaml") == 2


def test_every_server_of_a_model_is_measured_by_itself(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "models:\n"
        "  two: {backend: vllm, urls: ['http://127.0.0.1:1/v1', 'http://127.0.0.1:2/v1']}\n"
        "  one: {backend: fake}\n"
    )
    found = [(shown, alone.settings.models[name]) for name, shown, alone in _servers(load(config))]
    assert [shown for shown, _ in found] == ["two at http://127.0.0.1:1/v1", "two at http://127.0.0.1:2/v1", "one"]
    assert [model.urls for _, model in found[:2]] == [["http://127.0.0.1:1/v1"], ["http://127.0.0.1:2/v1"]]  # type: ignore[union-attr]


def test_a_model_that_cannot_be_asked_is_told_and_the_others_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "models:\n"
        "  gone: {backend: fake, faults: [{on: token, of: session}]}\n"
        f"  even: {{backend: fake, answer: {SAYS!r}}}\n"
    )
    assert check_drafts(config) == 1
    shown = capsys.readouterr()
    assert "gone:" in shown.err and "0.0 is true of all this" in " ".join(shown.out.split())
