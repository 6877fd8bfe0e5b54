"""Where vLLM can't be installed its tests are skipped and say why; nowhere else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import vllm_engines


def test_a_reason_that_make_left_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engines, "SKIP", tmp_path / "skip")
    monkeypatch.setattr(vllm_engines, "READY", tmp_path / "ready")
    assert "make setup-vllm" in str(vllm_engines.why_not())
    (tmp_path / "skip").write_text("no build for this machine\n")
    assert vllm_engines.why_not() == "no build for this machine"
    (tmp_path / "ready").touch()
    assert vllm_engines.why_not() == "no build for this machine"  # switched off though it is there
    (tmp_path / "skip").unlink()
    assert vllm_engines.why_not() is None
    assert "make vllm-models" in str(vllm_engines.why_not("a model that nobody has"))


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["VLLM_PIP_ARGS=--no-index --no-cache-dir"], "No matching distribution"), (["VLLM=no"], "switched off")],
)
def test_make_goes_on_without_vllm_and_says_why(tmp_path: Path, arguments: list[str], reason: str) -> None:
    root = vllm_engines.ROOT
    if not (root / ".venv" / ".ready").exists():
        pytest.skip("needs the environment that make sets up")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PIP_FIND", "VLLM"))
    }
    environment["PIP_CONFIG_FILE"] = os.devnull
    done = subprocess.run(
        ["make", "vllm-where-possible", f"VLLM_VENV={tmp_path}/venv", *arguments],  # noqa: S607
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert reason in done.stdout
    assert reason in (tmp_path / "venv" / ".skip").read_text()
