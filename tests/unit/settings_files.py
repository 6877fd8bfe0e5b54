"""Configuration files of a few lines, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.settings import SettingsError, load

MODEL = "models:\n  a: {backend: fake}\n"


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "c.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def problems(tmp_path: Path, text: str, **environ: str) -> list[str]:
    """Every problem as `line: key: message`."""
    with pytest.raises(SettingsError) as caught:
        load(write(tmp_path, text), environ)
    prefix = f"{tmp_path / 'c.yaml'}:"
    lines = str(caught.value).split("\n" + prefix)
    return [line.removeprefix(prefix) for line in lines]
