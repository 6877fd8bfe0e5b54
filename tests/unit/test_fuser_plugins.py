"""A fuser from a distribution of somebody else: installed beside us, found by name, loaded when asked for, or refused with a reason."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backends.catalog import Catalog, Entry
from backends.fake import FakeBackend, FakeSettings
from backends.types import Message
from strategies.engine import Options, run
from strategies.engine.events import Delta
from strategies.fusion import FUSERS, FuserError, fuser_names, fuser_of, registry
from strategies.planning.planner import plan
from strategies.prompting import PromptSet
from strategies.topology import parse

pytestmark = pytest.mark.anyio

TEMPLATE = Path(__file__).parents[2] / "docs" / "fuser_template"

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution where Python finds those that are installed: its module and its metadata."""

    def installed(distribution: str, points: str, **modules: str) -> None:
        for name, source in modules.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        metadata = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[modelnet.fusers]\n{points}\n")
        registry._offered.cache_clear()

    monkeypatch.syspath_prepend(str(tmp_path))
    registry._offered.cache_clear()
    yield installed
    registry._offered.cache_clear()
    for name in [name for name, module in sys.modules.items() if str(tmp_path) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def template() -> str:
    return (TEMPLATE / "modelnet_loudest.py").read_text()


async def test_a_foreign_fuser_writes_an_answer(install: Install) -> None:
    install("modelnet-loudest", "loudest = modelnet_loudest:LoudestPool", modelnet_loudest=template())
    assert fuser_names() == (*FUSERS, "loudest")
    models = {"a": FakeSettings(answer="one two"), "b": FakeSettings(answer="one six", words=("one", " six"))}
    catalog = Catalog({name: Entry(FakeBackend(name, settings)) for name, settings in models.items()})
    prompts = PromptSet.from_mapping("t", {"default": {"solver": "", "reviewer": "{answer}", "verifier": "{answer}"}})
    for wiring, expected in (("a*2|b", "one two"), ("a|b*2", "one six")):
        made = plan(parse(wiring).topology, catalog)
        options = Options(prompts=prompts, fuser="loudest:floor=0.0001", logprobs=1)
        async with run(made, [Message("user", "Hi")], options, catalog) as events:
            assert "".join([event.text async for event in events if isinstance(event, Delta)]) == expected


def test_the_template_keeps_the_contract_it_inherits(tmp_path: Path) -> None:
    """As its author would run it: a directory of its own, plain pytest."""
    shutil.copytree(TEMPLATE, tmp_path / "mine")
    root = str(TEMPLATE.parents[1])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path / "mine"), "."]
    done = subprocess.run(
        command,
        cwd=tmp_path / "mine",
        env={"PYTHONPATH": root, "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    text = (TEMPLATE / "pyproject.toml").read_text()
    assert f'"{registry.GROUP}"' in text
    assert "modelnet_loudest:LoudestPool" in text


def test_nothing_is_loaded_before_it_is_asked_for(install: Install) -> None:
    install("broken", "broken = broken_module:Fuser\nabsent = no_such_module:Fuser", broken_module="1 / 0")
    assert set(fuser_names()) == {*FUSERS, "broken", "absent"}
    assert "broken_module" not in sys.modules
    assert fuser_of("linear") is FUSERS["linear"]
    with pytest.raises(FuserError, match="fuser 'broken' of broken could not be loaded: ZeroDivisionError") as caught:
        fuser_of("broken")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(FuserError, match="fuser 'absent' of broken could not be loaded: ModuleNotFoundError"):
        fuser_of("absent")


def test_what_can_not_be_had_is_said(install: Install) -> None:
    install(
        "one", "twice = one_module:value\nnumber = one_module:value\nlinear = one_module:value", one_module="value = 3"
    )
    install("two", "twice = one_module:value")
    with pytest.raises(FuserError, match="fuser 'twice' is offered more than once, by one and two"):
        fuser_of("twice")
    with pytest.raises(FuserError, match="fuser 'number' of one is not callable"):
        fuser_of("number")
    assert fuser_of("linear") is FUSERS["linear"]  # nobody takes a name of ours
    with pytest.raises(FuserError, match=r"no fuser of the name .mean.; there are linear, .*, number, twice"):
        fuser_of("mean")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gated:threshold=1.5", "threshold of fuser 'gated' must be a number from 0 to 1, not '1.5'"),
        ("gated:threshold=", "must be a number from 0 to 1, not ''"),
        ("gated:threshold=nan", "must be a number"),
        ("gated:gate=1", "fuser 'gated' has no setting 'gate'; its settings are threshold"),
        ("linear:beam=3", "fuser 'linear' has no setting 'beam'; it has none"),
        ("linear:", "fuser 'linear' has no setting ''; it has none"),
        ("", "no fuser of the name ''"),
        (":threshold=1", "no fuser of the name ''"),
    ],
)
def test_settings_stand_behind_a_colon(text: str, message: str) -> None:
    with pytest.raises(FuserError, match=message):
        fuser_of(text)
    assert fuser_of("gated:threshold=0.25") is not None
