"""`modelnet models` as a person types it."""

from __future__ import annotations

from pathlib import Path

import pytest
from file_server import weights
from typer.testing import CliRunner

from gateway.cli.models import models_app
from gateway.weights import store

CONTENT = b"GGUF and more"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue of one tiny file, which is in place; nothing can be downloaded."""
    entry = weights(CONTENT)
    monkeypatch.setattr("gateway.weights.catalogue", lambda: {"tiny": entry})
    monkeypatch.setattr(store, "catalogue", lambda: {"tiny": entry})
    monkeypatch.setenv("MODELNET_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.gguf").write_bytes(CONTENT)
    return tmp_path


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(models_app, arguments)
    return result.exit_code, result.output


def test_the_table_tells_what_is_here(home: Path) -> None:
    code, output = run()
    assert code == 0 and "not checked yet" in output and str(home / "models") in output
    run("pull", "tiny")
    assert "yes" in run()[1] and "not checked" not in run()[1]
    (home / "models" / "tiny.gguf").unlink()
    assert run()[1].startswith("name\tsize\there\tlicence\ntiny\t0 MB\tno\t")


def test_the_table_fits_into_80_columns_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    code, output = run()
    lines = output.splitlines()
    assert code == 0 and max(map(len, lines[:2])) <= 80 and "tiny" in lines[1] and "\t" not in output


def test_path(home: Path) -> None:
    assert run("path", "tiny") == (0, f"{home / 'models' / 'tiny.gguf'}\n")
    (home / "models" / "tiny.gguf").unlink()
    code, output = run("path", "tiny")
    assert code == 1 and "modelnet models pull tiny" in output


def test_pull_by_name(home: Path) -> None:
    code, output = run("pull", "tiny")
    assert code == 0 and str(home / "models" / "tiny.gguf") in output
    code, output = run("pull", "tinny")
    assert code == 2 and "did you mean tiny?" in output
    assert run("pull")[0] == 2


def test_a_failed_pull_is_told_without_a_traceback(home: Path) -> None:
    (home / "models" / "tiny.gguf").unlink()
    code, output = run("pull", "tiny")
    assert code == 1 and output.startswith("error: tiny can't be had") and "Traceback" not in output


def test_pull_what_a_configuration_needs(home: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "models:\n"
        "  a: {backend: llama_cpp, weights: tiny}\n"
        "  b: {backend: llama_cpp, weights: tiny}\n"
        "  c: {backend: fake}\n"
    )
    code, output = run("pull", "--config", str(config))
    assert code == 0 and output.count("tiny.gguf") == 1
    config.write_text("models: {c: {backend: fake}}\n")
    assert run("pull", "--config", str(config)) == (0, "")
    config.write_text("models: {c: {backend: fake, colour: red}}\n")
    code, output = run("pull", "--config", str(config))
    assert code == 2 and "colour" in output
