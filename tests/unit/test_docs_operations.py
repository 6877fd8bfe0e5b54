"""The pages about keys, ledger and routes: their configurations are valid, their commands and metrics exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli.commands import app
from gateway.ledger.row import COLUMNS
from gateway.settings import load

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = ("keys.md", "ledger.md", "ab.md")
SECRETS = {"GATEWAY_KEY": "0123456789abcdef", "BATCH_KEY": "fedcba9876543210", "ADMIN_KEY": "0123456789abcdef0"}


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_configurations_are_valid(page: str, tmp_path: Path) -> None:
    found = blocks(page, "yaml")
    assert found
    for text in found:
        file = tmp_path / "my.yaml"
        file.write_text(text, encoding="utf-8")
        load(file, SECRETS)


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_there(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `modelnet` command that is shown is understood; those about keys are run, one after the other."""
    monkeypatch.setenv("MODELNET_STATE", str(tmp_path))
    runner = CliRunner()
    lines = [line for text in blocks(page, "console") for line in text.splitlines()]
    id = ""
    for line in lines:
        if not line.startswith("$ modelnet"):
            continue
        words = [id if word == "ID" else word for word in shlex.split(line)[2:]]
        if words[0] != "keys":
            words = [*words[:2], "--help"]
        result = runner.invoke(app, words)
        assert result.exit_code == 0, (line, result.output)
        if words[1] == "create":
            id = result.stdout.split("_")[1]


def test_columns_are_those_of_the_table() -> None:
    page = (DOCS / "ledger.md").read_text("utf-8")
    told = {name for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert told - {"requests"} == set(COLUMNS) - {"id", "texts"}
