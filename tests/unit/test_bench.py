"""`modelnet bench`: what is recorded is what is replayed, and the report holds what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from rich.console import Console
from typer.testing import CliRunner

from backends.catalog import Catalog, Entry
from backends.errors import CapabilityMissing
from backends.fake import FakeBackend, FakeSettings
from backends.types import Message, Sampling
from gateway.bench import machine, memory, own, speed
from gateway.bench.machine import Commit, Machine
from gateway.bench.report import Number, Report, comparison, read, tables
from gateway.bench.speed import Sample
from gateway.bench.tape import Call, ReplayDiffers, Tape, playing, record
from gateway.cli.bench import default_groups
from gateway.cli.commands import app
from strategies.engine import Options
from strategies.fusion import Meters
from strategies.planning import plan
from strategies.prompting import PromptSet
from strategies.topology import parse

SAID = "the river is the the rivers are in 河流"
WORDS = {
    "a": ("the", " the", " river", " rivers", " is", "河流"),
    "b": ("th", "the ", "river", " r", " i", "河"),
    "c": ("the", " th", " river", " are", " in"),
    "a-twin": ("the", " the", " river", " rivers", " is", "河流"),
}


def catalog(*, lookup: bool = True) -> Catalog:
    """Models of three tokenizers that are not quite of one mind, and a twin of the first."""
    entries = {}
    for seed, (name, words) in enumerate(WORDS.items()):
        settings = FakeSettings(answer=SAID, words=words, seed=seed, confidence=0.5, lookup=lookup)
        entries[name] = Entry(FakeBackend(name, settings))
    return Catalog(entries)


async def recorded(
    wiring: str, *, k: int = 5, tokens: int = 30, lookup: bool = True, stop: tuple[str, ...] = ()
) -> Tape:
    models = catalog(lookup=lookup)
    sampling = Sampling(max_tokens=tokens, temperature=0.0, stop=stop)
    return await record(plan(parse(wiring).topology, models), Options(PromptSet({}), sampling, top_k=k), models)


@pytest.mark.anyio
@pytest.mark.parametrize("wiring", ["a|b|c", "a|a-twin", "a*3|b"])
@pytest.mark.parametrize(("tokens", "stop"), [(30, ()), (4, ()), (30, (" is",))])
async def test_a_replay_says_what_was_recorded(wiring: str, tokens: int, stop: tuple[str, ...]) -> None:
    """Ended by the models, by the budget, by a stop string; the replays themselves compare text and meters."""
    tape = await recorded(wiring, tokens=tokens, stop=stop)
    assert tape.text
    assert tape.meters.pieces <= tokens
    vocabularies = await own.vocabularies_of(tape)
    for _ in range(2):
        assert own.through_fuser(tape, vocabularies).wall > 0
        assert (await own.through_engine(tape)).wall > 0


@pytest.mark.anyio
async def test_the_recording_is_what_the_models_alone_would_have_given() -> None:
    """Without a recorder the engine writes the same text, and look-ups were among what was recorded."""
    tape = await recorded("a|b|c")
    text, finished = await speed.answer(tape.plan, tape.options, catalog())
    assert (text, finished.stages[-1].meters) == (tape.text, tape.meters)
    assert {call.kind for track in tape.tracks for call in track.calls} >= {"step", "lookup"}
    assert all(track.prompt_tokens > 0 for track in tape.tracks)


@pytest.mark.anyio
async def test_models_that_look_nothing_up_can_be_recorded() -> None:
    tape = await recorded("a|b|c", lookup=False)
    refused = [call for track in tape.tracks for call in track.calls if call.kind == "lookup"]
    assert refused
    assert all(isinstance(call.result, CapabilityMissing) for call in refused)
    own.through_fuser(tape, await own.vocabularies_of(tape))
    await own.through_engine(tape)


@pytest.mark.anyio
async def test_a_replay_that_differs_is_found_out() -> None:
    tape = await recorded("a|b|c")
    vocabularies = await own.vocabularies_of(tape)
    other = replace(tape, text=tape.text + "!")
    with pytest.raises(ReplayDiffers, match="the replay says"):
        own.through_fuser(other, vocabularies)
    with pytest.raises(ReplayDiffers, match="the replay says"):
        await own.through_engine(other)
    shorter = replace(tape, tracks=tuple(replace(t, calls=t.calls[:-4]) for t in tape.tracks))
    with pytest.raises(ReplayDiffers, match="more than was recorded"):
        own.through_fuser(shorter, vocabularies)
    with pytest.raises(ReplayDiffers, match="was not recorded here"):
        await own.through_engine(shorter)


@pytest.mark.anyio
async def test_a_played_session_answers_only_what_the_real_one_was_asked() -> None:
    tape = await recorded("a|b")
    backend = playing(tape)["a"].token_backend()
    assert backend is not None
    async with backend.open((Message("user", "?"),), k=5) as session:
        first = tape.tracks[0].calls[0]
        assert first == Call("step", (), first.result)
        assert await session.step(()) is first.result
        with pytest.raises(ReplayDiffers, match="a is asked for rewind"):
            await session.rewind(7)


@pytest.mark.anyio
async def test_only_a_single_group_can_be_recorded() -> None:
    with pytest.raises(ValueError, match="single group"):
        await recorded("a>b|c")


@pytest.mark.anyio
async def test_default_groups_are_a_pair_twins_and_three() -> None:
    models = catalog()
    assert await default_groups(models, list(models)) == ["a|b", "a|a-twin", "a|b|c"]
    assert await default_groups(models, ["a-twin", "a"]) == ["a-twin|a"]
    assert await default_groups(models, ["b"]) == []


def sample(wiring: str, members: str, each: float, meters: Meters | None = None) -> Sample:
    return Sample(wiring, tuple(members), 11, 0.5 + 10 * each, 0.5, meters)


def test_ratios_are_taken_inside_a_round() -> None:
    """The machine is three times as slow in the second round; the ratios do not show it."""
    meters = Meters(pieces=11, certified=8, looked_up=2, uncertified=1, drift=1, lost_mass=0.22, passes=22)
    rounds = [
        [sample("a", "a", 0.01), sample("b", "b", 0.02), sample("a|b", "ab", 0.025, meters)],
        [sample("a|b", "ab", 0.075, meters), sample("b", "b", 0.06), sample("a", "a", 0.03)],
    ]
    found = {(n.measure, n.of): n for n in speed.numbers(rounds)}
    assert found["to slowest", "a|b"].samples == pytest.approx((1.25, 1.25))
    assert found["to sum", "a|b"].samples == pytest.approx((2.5 / 3, 2.5 / 3))
    assert found["time", "b"].samples == pytest.approx((20, 60))
    assert found["speed", "a"].unit == "tokens/s"
    assert found["speed", "a|b"].unit == "pieces/s"
    assert found["certified", "a|b"].value == pytest.approx(8 / 11)
    assert found["lost", "a|b"].value == pytest.approx(0.02)
    assert ("certified", "a") not in found


def test_an_answer_of_one_token_has_no_speed() -> None:
    found = speed.numbers([[Sample("a", ("a",), 1, 0.5, 0.4, None)], [Sample("a", ("a",), 0, 0.5, None, None)]])
    assert {n.measure for n in found} == {"first", "written"}


def report(load: float = 0.1, ms: float = 2.0) -> Report:
    here = Machine("A Processor", 4, 2**34, (load, 0.0, 0.0), "System", "3.11.1", "0.3.30")
    numbers = (
        Number("written", "a|b", "pieces", (64.0,)),
        Number("speed", "a|b", "pieces/s", (1e3 / ms,)),
        Number("certified", "a|b", "share", (0.5,)),
        Number("fuser", "a|b", "ms/piece", (0.3, 0.1, 0.2), 20),
        Number("resident", "peak", "MiB", (512.0,)),
    )
    settings = {"tokens": 64, "rounds": 3, "top_k": 64}
    return Report("1", "2025-01-02T03:04:05+00:00", Commit("0" * 40, True), here, settings, numbers, {})


def shown(what: object) -> str:
    console = Console(width=80, no_color=True)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def test_the_file_holds_every_number_with_unit_and_samples(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "report.json"
    report().write(file)
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["machine"]["cpu"] == "A Processor"
    assert found["machine"]["load"] == [0.1, 0.0, 0.0]
    assert found["machine"]["busy"] is False
    assert found["commit"] == {"id": "0" * 40, "dirty": True}
    fuser = {"measure": "fuser", "of": "a|b", "unit": "ms/piece", "samples": [0.3, 0.1, 0.2], "k": 20, "value": 0.2}
    assert fuser in found["numbers"]
    assert read(file)["date"] == report().date


def test_a_busy_machine_is_told_of() -> None:
    assert "busy" not in shown(tables(report(load=1.9)))
    assert "busy" in shown(tables(report(load=2.1)))


def test_tables_fit_a_narrow_terminal() -> None:
    lines = shown(tables(report())).splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line.split() for line in lines if line.startswith("a|b") and "pieces" in line)
    assert row == ["a|b", "500.0", "-", "-", "64", "pieces", "-", "-"]


def test_comparison_shows_ratios_and_what_makes_it_unfair() -> None:
    text = shown(comparison(report(ms=4.0), report(ms=2.0).as_json()))
    row = next(line.split() for line in text.splitlines() if "pieces/s" in line)
    assert row == ["a|b", "speed", "pieces/s", "500", "250", "0.50"]
    assert "fuser, k 20" in text
    assert "differ" not in text
    earlier = report(load=9.0).as_json()
    earlier["machine"]["cpu"] = "another"
    earlier["settings"]["tokens"] = 8
    text = " ".join(shown(comparison(report(), earlier)).split())
    assert "another machine or environment: cpu differ" in text
    assert "busy during the earlier run" in text
    assert "other settings: tokens" in text


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "numbers": [{}]}', '{"format": 0}']
)
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.json"):
        read(file)


def test_machine_and_memory_are_told() -> None:
    here, now = machine.look(), memory.look()
    assert here.cpu
    assert here.cores >= 1
    assert now.resident is None or 2**20 < now.resident <= (now.peak or now.resident)


CONFIG = """\
models:
  a: {backend: fake, answer: "the river and the people and the fish", seed: 1, confidence: 0.6}
  b: {backend: fake, answer: "the river and the fish", seed: 2, confidence: 0.6}
  c: {backend: fake, answer: "the river", seed: 3, confidence: 0.6}
  text: {backend: fake, sessions: false}
"""


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["bench", *map(str, args)], env={"COLUMNS": "80"})
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "c.yaml"
    file.write_text(CONFIG, encoding="utf-8")
    return file


def test_the_whole_command(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("-c", config, "--quick", "--rounds", "2")
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    found = json.loads((tmp_path / ".bench" / "latest.json").read_text(encoding="utf-8"))
    assert found["settings"]["wirings"] == ["a", "b", "c", "a|b", "a|b|c"]
    numbers = {(n["measure"], n["of"], n["k"]): n for n in found["numbers"]}
    assert len(numbers) == len(found["numbers"])
    for wiring in ("a|b", "a|b|c"):
        assert len(numbers["to slowest", wiring, None]["samples"]) == 2
        for k in (20, 64):
            assert len(numbers["fuser", wiring, k]["samples"]) == 10
            assert numbers["fuser", wiring, k]["value"] < numbers["engine", wiring, k]["value"]
        assert numbers["passes", wiring, None]["value"] >= 1
    assert found["texts"]["a|b, k 20"].startswith("the river")

    code, out, err = run("-c", config, "--quick", "-w", "text>a|b", "-w", "c", "--against", ".bench/latest.json")
    assert code == 0, err
    assert "Against" in out
    assert "other settings: wirings, rounds" in " ".join(out.split())
    found = json.loads((tmp_path / ".bench" / "latest.json").read_text(encoding="utf-8"))
    assert found["settings"]["wirings"] == ["a", "b", "c", "text>a|b"]
    assert not [n for n in found["numbers"] if n["measure"] == "fuser"]


def test_what_can_not_be_measured(config: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "o.json")
    assert run("-c", config, "-w", "a|nobody", *out)[0] == 2
    assert run("-c", config, "-w", "a|text", *out)[0] == 2
    assert run("-c", config, "--against", tmp_path / "none.json", *out)[0] == 2
    assert run("-c", tmp_path / "none.yaml", *out)[0] == 2
    assert run("-c", config, "--tokens", 5000, *out)[0] == 1  # more than the context
    assert not (tmp_path / "o.json").exists()


def test_models_that_do_not_start_are_left_out(config: Path, tmp_path: Path) -> None:
    config.write_text(CONFIG + "  broken: {backend: fake, faults: [{on: start}]}\n", encoding="utf-8")
    code, _, err = run("-c", config, "--quick", "--tokens", 3, "--out", tmp_path / "o.json")
    assert code == 0
    assert "left out: broken" in err


def test_measuring_changes_nothing_for_others() -> None:
    """A session that is recorded is closed like any other."""
    models = catalog()
    sampling = Sampling(max_tokens=5, temperature=0.0)
    anyio.run(record, plan(parse("a|b").topology, models), Options(PromptSet({}), sampling), models)
    for name in ("a", "b"):
        backend = models[name].backend
        assert isinstance(backend, FakeBackend)
        assert backend.counters.sessions == 0
        assert backend.counters.closed == 1
