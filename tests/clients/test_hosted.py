"""Hosted models by litellm, in its own environment: the contract of every text stream, tools, usage and errors."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from environments import Environment

pytestmark = pytest.mark.clients
TREE = Path(__file__).resolve().parents[2]
WITHIN = Path(__file__).parent / "litellm" / "within.py"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("suite", ["contract", "within"])
def test_hosted(suite: str, environment: Callable[[str], Environment]) -> None:
    client = environment("litellm")
    what = ["tests/contract/test_streams.py", "-k", "hosted"] if suite == "contract" else [str(WITHIN)]
    done = subprocess.run(
        [
            *(str(client.python), "-m", "pytest", "-c", os.devnull, "--rootdir", str(TREE)),
            *("-p", "no:cacheprovider", "-q", "--timeout=60", *what),
        ],
        cwd=TREE, env={**os.environ, "PYTHONPATH": str(TREE)}, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout
