"""drop-in 36: real clients, each in an environment of its own, over every kind of wiring.

What a client does is its `program.py` or `program.mjs`; each line that it prints is a check. The models are scripted, but for those
marked `models`, which need only answer at all.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from environments import CORE, HERE, Environment
from scripts import KEY, WIRINGS, gateway

pytestmark = pytest.mark.clients

CLIENTS = (*CORE, "agents", "pydantic_ai", "instructor", "llama_index", "autogen", "llm", "vercel")
REAL = """
models:
  qwen: {backend: llama_cpp, weights: qwen2.5-coder-0.5b-instruct}
  smol: {backend: llama_cpp, weights: smollm2-135m-instruct}
"""
REAL_WIRINGS = {"single": "smol", "chain": "si:smol>smol", "fused": "pi:smol|qwen"}


def program(environment: Environment, folder: Path, url: str, wiring: str, **more: str) -> list[dict[str, Any]]:
    """Run a client's program; its outcomes. more: for its environment variables."""
    variables = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": KEY, "WIRING": wiring, "NO_COLOR": "1", **more}
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    if environment.node:
        # Modules are found beside a program: it is put beside them, in a place of its own.
        place = environment.folder / f"run-{os.getpid()}"
        place.mkdir(exist_ok=True)
        for file in (HERE / environment.name / "program.mjs", HERE / "common" / "checks.mjs"):
            shutil.copy(file, place)
        command = ["node", str(place / "program.mjs")]
    else:
        variables["PYTHONPATH"] = str(HERE / "common")
        source = Path(shutil.copy(_source(environment.name), folder / "client.py"))
        command = [str(environment.python), str(source)]
    done = subprocess.run(
        command, cwd=folder, env={**keep, **variables}, capture_output=True, text=True, timeout=280, check=False
    )
    if environment.node:
        shutil.rmtree(place)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
    assert done.returncode == 0, done.stderr[-3000:]
    assert lines, f"it checked nothing: {done.stdout}\n{done.stderr}"
    return lines


def _source(name: str) -> Path:
    """Two versions of a client may have one program."""
    own = HERE / name / "program.py"
    return own if own.exists() else HERE / name.rstrip("0123456789") / "program.py"


def told(counted: Callable[[dict[str, list[str]]], None], lines: list[dict[str, Any]]) -> None:
    """Counts them, and fails with all that failed."""
    outcomes: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for line in lines:
        outcomes[line["outcome"]].append(f"{line['check']}: {line['why']}" if line["why"] else line["check"])
    counted(outcomes)
    assert not outcomes["failed"], "\n".join(outcomes["failed"])


@pytest.mark.timeout(900)  # the first one may install
@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("client", CLIENTS)
def test_scripted(
    client: str,
    wiring: str,
    gateway_url: str,
    environment: Callable[[str], Environment],
    tmp_path: Path,
    counted: Callable[[dict[str, list[str]]], None],
) -> None:
    told(counted, program(environment(client), tmp_path, gateway_url, WIRINGS[wiring]))


@pytest.fixture(scope="module")
def real_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway over small real models."""
    with gateway(tmp_path_factory.mktemp("real"), REAL) as client:
        yield str(client.base_url).rstrip("/")


@pytest.mark.models
@pytest.mark.timeout(900)
@pytest.mark.parametrize("wiring", REAL_WIRINGS)
@pytest.mark.parametrize("client", CLIENTS)
def test_real_models(
    client: str,
    wiring: str,
    real_url: str,
    environment: Callable[[str], Environment],
    tmp_path: Path,
    counted: Callable[[dict[str, list[str]]], None],
) -> None:
    """What needs no sense works with models that have little. One client always; with all of them it takes most of an hour."""
    if client != "openai3" and os.environ.get("MODELNET_CLIENTS") != "all":
        pytest.skip("one client with real models is enough here (make test-clients runs all)")
    told(counted, program(environment(client), tmp_path, real_url, REAL_WIRINGS[wiring], SCRIPTED="0"))
