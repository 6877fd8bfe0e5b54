"""The extension's parts, in vLLM's environment and against its own classes; no engine is started."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import vllm_engines

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


@pytest.mark.parametrize(
    "check", ["imports_no_torch", "distributions", "keeping", "v1", "v2", "gathering", "silence", "vocabulary"]
)
def test_inside(check: str) -> None:
    run("inside.py", check)


def test_inside_the_scheduler() -> None:
    run("inside_scheduler.py")


def run(script: str, *checks: str) -> None:
    if reason := vllm_engines.why_not():
        pytest.skip(reason)
    path = Path(__file__).with_name(script)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        [str(vllm_engines.PYTHON), str(path), *checks], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("checked\n")
