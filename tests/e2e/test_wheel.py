"""The built wheel, installed in an environment of its own outside the source tree, without the embedded backend."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

pytestmark = [pytest.mark.wheel, pytest.mark.slow, pytest.mark.timeout(900)]

TREE = Path(__file__).resolve().parents[2]
CONFIG = """\
models:
  a: {backend: fake, answer: "Forty-two."}
  b: {backend: fake, answer: "Forty-two."}
  c: {backend: fake, answer: "Forty-two."}
aliases:
  all: {expression: "s2p:a>b|c"}
"""


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment with the wheel in it, and an empty directory to run in."""

    python: Path
    cwd: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.python.parent / "modelnet"), *arguments]
        environ = self.environ()
        return subprocess.run(
            command, cwd=self.cwd, env=environ, capture_output=True, text=True, timeout=60, check=False
        )

    def environ(self) -> dict[str, str]:
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MODELNET_"))}
        # Never the user's keys.
        own = {"MODELNET_HOME": str(self.cwd / "home"), "MODELNET_STATE": str(self.cwd / "state")}
        return keep | own | {"COLUMNS": "120", "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built from its sdist as a release is."""
    out = tmp_path_factory.mktemp("dist")
    build(sys.executable, "-m", "build", "--outdir", str(out), str(TREE))
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    home = tmp_path_factory.mktemp("installed")
    python = home / "venv" / "bin" / "python"
    build(sys.executable, "-m", "venv", str(home / "venv"))
    build(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel))
    (home / "work").mkdir()
    (home / "work" / "gateway.yaml").write_text(CONFIG)
    return Installed(python, home / "work")


def build(*command: str, **more: str) -> None:
    """Run a step; its output is worth reading only when it fails. more: variables of its environment."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | more
    done = subprocess.run(command, cwd="/", env=environ, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


@contextmanager
def serving(installed: Installed) -> Iterator[str]:
    """`modelnet serve` on a free port; yields the URL it announces, then stops it and expects a clean end."""
    command = [str(installed.python.parent / "modelnet"), "serve", "--config", "gateway.yaml", "--port", "0"]
    with subprocess.Popen(
        command, cwd=installed.cwd, env=installed.environ(), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said: list[str] = []
        try:
            for line in process.stderr:
                said.append(line)
                if found := re.search(r"serving on (http://\S+)", line):
                    yield found[1]
                    break
            else:
                pytest.fail("never served: " + "".join(said))
        finally:
            process.terminate()
            said.extend(process.stderr)
            code = process.wait(20)
    assert code == 0, "".join(said)


def test_the_wheel_holds_the_product_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"gateway", "strategies", "backends"}
    assert {"gateway/_config/demo.yaml", "gateway/_config/weights.yaml", "gateway/cli/__init__.py"} <= set(names)
    assert any(name.startswith("gateway/_config/prompts/") for name in names)
    mixin = "strategies/fusion/testing.py"  # what makers of fusers inherit their tests from
    assert [name for name in names if ("test" in name.split("/")[-1] and name != mixin) or "vllm_plugin" in name] == []
    assert [name for name in names if name.endswith((".pyc", ".gguf", ".c", ".h")) or "fusion/core/" in name] == []


COMPILES = any(map(shutil.which, ("cc", "gcc", "clang")))


def test_the_compiled_core_is_in_it_where_there_is_a_compiler(wheel: Path, installed: Installed) -> None:
    with zipfile.ZipFile(wheel) as archive:
        compiled = [name for name in archive.namelist() if name.endswith(".so")]
    assert len(compiled) == COMPILES
    assert all(name.startswith("strategies/fusion/_core.") for name in compiled)
    assert wheel.name.endswith("-none-any.whl") != COMPILES
    code = "from strategies.fusion import native; print(native.name())"
    done = subprocess.run([installed.python, "-c", code], cwd=installed.cwd, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["native" if COMPILES else "python"]


def test_without_a_compiler_it_is_pure_python(tmp_path: Path) -> None:
    build(sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(TREE), CC="no-such-compiler")
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "strategies/fusion/readings.py" in names
    assert [name for name in names if name.endswith(".so")] == []


def test_it_is_installed_without_the_embedded_backend(installed: Installed) -> None:
    code = "import importlib.util as i, gateway; print(i.find_spec('llama_cpp'), gateway.__file__)"
    done = subprocess.run([installed.python, "-c", code], cwd=installed.cwd, capture_output=True, text=True, check=True)
    spec, path = done.stdout.split()
    assert spec == "None" and Path(path).is_relative_to(installed.python.parents[1])


def test_help_and_version(installed: Installed, wheel: Path) -> None:
    done = installed.run("--help")
    assert done.returncode == 0 and all(command in done.stdout for command in ("serve", "check", "plan", "models"))
    assert installed.run("--version").stdout.split()[1] == wheel.name.split("-")[1]


def test_check_accepts_the_example_and_the_shipped_configuration(installed: Installed) -> None:
    for arguments in ((), ("gateway.yaml",)):
        done = installed.run("check", *arguments)
        assert done.returncode == 0 and "valid" in done.stdout, done.stderr
    (installed.cwd / "wrong.yaml").write_text(CONFIG + "colour: red\n")
    done = installed.run("check", "wrong.yaml")
    assert done.returncode == 2 and "wrong.yaml:7" in done.stderr and "colour" in done.stderr


def test_plan_draws_a_wiring(installed: Installed) -> None:
    done = installed.run("plan", "a>b|c")
    assert done.returncode == 0 and "s2p" in done.stdout and "stage 2" in done.stdout, done.stderr
    assert installed.run("plan", "a>").returncode == 2


def test_models_lists_the_catalogue(installed: Installed) -> None:
    done = installed.run("models")
    assert done.returncode == 0 and "qwen2.5-coder-0.5b-instruct" in done.stdout, done.stderr


def test_serve_answers(installed: Installed) -> None:
    """One answer of each kind through a fused wiring, then a signal ends it cleanly."""
    body = {"model": "s2p:a>b|c", "messages": [{"role": "user", "content": "How many?"}]}
    with serving(installed) as url, httpx.Client(timeout=30, trust_env=False) as client:
        answer = client.post(f"{url}/chat/completions", json=body).raise_for_status().json()
        assert answer["choices"][0]["message"]["content"] == "Forty-two."
        stream = client.post(f"{url}/chat/completions", json=body | {"model": "all", "stream": True}).raise_for_status()
    events = stream.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    deltas = [json.loads(event[6:])["choices"] for event in events[:-2] if event.startswith("data: ")]
    assert "".join(choice["delta"].get("content", "") for choices in deltas for choice in choices) == "Forty-two."
