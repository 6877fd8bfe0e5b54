"""What the documentation shows is what the program does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from gateway.cli.commands import app
from gateway.settings import Settings
from gateway.weights import catalogue
from strategies.engine.guiding import CALL_BEGIN
from strategies.prompting import PromptSet

TREE = Path(__file__).resolve().parents[2]
PAGES = sorted([*TREE.glob("*.md"), *TREE.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")


def blocks(page: str, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall((TREE / page).read_text("utf-8")) if found == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TREE)))
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text("utf-8")):
        target = page.parent / path if path else page
        assert target.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_plans_in_the_documentation_are_what_plan_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TREE)
    monkeypatch.setenv("COLUMNS", "200")
    shown = [text for text in blocks("docs/wiring.md", "console") if text.startswith('$ modelnet plan "')]
    assert len(shown) >= 4
    for text in shown:
        command, _, expected = text.partition("\n")
        found = re.fullmatch(r'\$ modelnet plan "([^"]*)"(?: --config (\S+))?', command)
        assert found is not None, command
        arguments = ["plan", found[1], *(["--config", found[2]] if found[2] else [])]
        assert CliRunner().invoke(app, arguments).output.rstrip() == expected.rstrip()


def test_configurations_in_the_documentation_are_valid() -> None:
    whole: dict[str, object] = {}
    for text in blocks("docs/configuration.md", "yaml"):
        whole |= yaml.safe_load(text)
    assert set(whole) >= {"models", "aliases", "limits", "server", "keys"}
    Settings.model_validate(whole)
    for text in blocks("README.md", "yaml"):
        Settings.model_validate(yaml.safe_load(text))


def test_the_catalogue_in_the_documentation_is_complete() -> None:
    page = (TREE / "docs/models.md").read_text("utf-8")
    for weights in catalogue().values():
        assert f"| `{weights.name}` |" in page and f"| {weights.bytes / 1e6:,.0f} MB |" in page


def test_the_wording_and_the_scripted_model_of_the_page_on_tools_are_valid() -> None:
    wording, models = (yaml.safe_load(text) for text in blocks("docs/tools.md", "yaml"))
    assert PromptSet.from_mapping("page", wording).tool_text("auto", "en") == "Call a function only if you must."
    settings = Settings.model_validate(models)
    assert [rule.answer[:11] for rule in settings.models["scripted"].rules] == ["It is sunny", CALL_BEGIN]  # type: ignore[union-attr]
