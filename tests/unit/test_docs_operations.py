"""The pages about bad days, about seeing what happens, and about threats say what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from edge import edge, fake

from gateway.settings import Settings

TREE = Path(__file__).parents[2]
DOCS = TREE / "docs"
TESTS = {file.name: file.read_text("utf-8") for file in (TREE / "tests").rglob("test_*.py")}


def test_tests_that_the_threat_model_names_are_there() -> None:
    page = (DOCS / "threat-model.md").read_text("utf-8")
    named = re.findall(r"`(test_[\w*]+\.py)(?:::(\w+))?`", page)
    assert len(named) > 25
    for file, function in named:
        matching = [name for name in TESTS if re.fullmatch(file.replace("*", r"\w+").replace(".py", r"\.py"), name)]
        assert matching, file
        assert not function or any(f"def {function}(" in TESTS[name] for name in matching), function
    for path in re.findall(r"`(tests/[\w/.]+)`", page):
        assert (TREE / path).exists(), path


@pytest.mark.parametrize("page", ["resilience.md", "observability.md"])
def test_configurations_on_these_pages_are_valid(page: str) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", (DOCS / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    for text in blocks:
        Settings.model_validate({"models": {"a": {"backend": "fake"}}} | yaml.safe_load(text))


@pytest.mark.anyio
async def test_metrics_on_the_page_are_those_that_there_are() -> None:
    page = (DOCS / "observability.md").read_text("utf-8")
    table = page.split("| question |")[1].split("\n\n")[0]
    named = set(re.findall(r"`([a-z_]+\*?)`", table)) - {"modelnet_…"}
    async with edge(fake("a")) as e:
        there = {
            family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
            for family in e.app.metrics.registry.collect()
            if family.name.startswith("modelnet")
        }
    shown = {name.removeprefix("modelnet_") for name in there}
    optional = {"ledger_*", "limits_*", "keys_failing"}  # where they are configured
    assert named - optional - {"shadows_*"} <= shown, named - shown
    assert {name for name in shown if not name.startswith("shadows_")} <= named


def test_defaults_on_the_page_are_the_defaults() -> None:
    settings = Settings.model_validate({"models": {"a": {"backend": "fake"}}})
    text = re.findall(r"^```yaml\n(.*?)^```", (DOCS / "resilience.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)[0]
    shown = Settings.model_validate({"models": {"a": {"backend": "fake"}}} | yaml.safe_load(text))
    assert shown.resilience == settings.resilience
    assert (shown.shedding.low, shown.shedding.normal) == (settings.shedding.low, settings.shedding.normal)
