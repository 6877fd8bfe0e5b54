"""`modelnet check`, `plan`, `serve`: what they show, and their exit codes."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli.commands import app

CONFIG = """\
models:
  a: {backend: fake}
  b: {backend: fake}
  text: {backend: fake, sessions: false}
aliases:
  duo: {expression: "s2p:a>a|b"}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "c.yaml"
    file.write_text(CONFIG, encoding="utf-8")
    return file


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    return result.exit_code, result.stdout, result.stderr


def served_until_it_ends(config: Path, port: int = 0) -> subprocess.CompletedProcess[str]:
    """A process of its own, and an error if it goes on serving."""
    command = [sys.executable, "-m", "gateway", "serve", "-c", str(config), "--port", str(port)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_check_shows_models_and_aliases_with_their_shapes(config: Path) -> None:
    code, out, _ = run("check", config)
    assert code == 0
    words = [line.split() for line in out.splitlines()]
    assert ["a", "fake", "4096", "no", "limit"] in words
    assert ["duo", "s2p", "a>a|b"] in words
    assert "valid" in out


def test_check_names_file_line_and_key(config: Path) -> None:
    config.write_text(CONFIG + "limits:\n  mesages: 3\n", encoding="utf-8")
    code, _, err = run("check", config)
    assert code == 2
    assert err == f"{config}:8: limits.mesages: unknown key; did you mean 'messages'?\n"


def test_check_of_the_shipped_configuration() -> None:
    code, out, _ = run("check")
    assert code == 0
    assert "demo" in out


def test_plan_draws_a_wiring_with_names_as_given() -> None:
    code, out, _ = run("plan", "s2p:qwen>ds|yi*3")
    assert code == 0
    assert out.splitlines()[1].startswith("├── stage 1")
    assert "75 %" in out


def test_plan_with_a_configuration_knows_models_aliases_and_what_they_can(config: Path) -> None:
    code, out, _ = run("plan", "duo", "--config", config)
    assert code == 0
    assert "= a>a|b" in out
    for wiring, column, message in (("a>c", 2, "'c'"), ("a|text", 2, "stream text only"), ("pi:a>b", 0, "not pi")):
        code, _, err = run("plan", wiring, "-c", config)
        assert code == 2
        lines = err.splitlines()
        assert lines[0] == wiring
        assert lines[1] == " " * column + "^"
        assert message in err


def test_plan_points_at_bad_grammar() -> None:
    code, _, err = run("plan", "a>|b")
    assert code == 2
    assert err.splitlines()[:2] == ["a>|b", "  ^"]


def test_serve_refuses_other_hosts_without_keys(config: Path) -> None:
    code, _, err = run("serve", "-c", config, "--host", "0.0.0.0")
    assert code == 2
    assert "no keys are configured" in err


def test_serve_tells_of_a_taken_port_before_anything_loads(config: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = run("serve", "-c", config, "--port", port)
    assert code == 1
    assert err == f"can't serve on 127.0.0.1:{port}: Address already in use\n"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_admin_api_needs_a_port_of_its_own(config: Path, host: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with config.open("a", encoding="utf-8") as more:
        more.write(f"admin: {{key: an-admin-key-of-the-tests, host: {host}, port: {port}}}\n")
    done = served_until_it_ends(config, port)
    assert done.returncode == 1
    assert done.stderr == f"can't serve on {host}:{port}: Address already in use\n"


def test_serve_tells_of_a_wrong_configuration(config: Path) -> None:
    config.write_text("models: {}\n", encoding="utf-8")
    code, _, err = run("serve", "-c", config)
    assert code == 2
    assert f"{config}:1: models: " in err


def test_serve_fails_when_no_model_can_be_started(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("models: {a: {backend: fake, faults: [{on: start}]}}\n", encoding="utf-8")
    done = served_until_it_ends(file)
    assert done.returncode == 1
    assert "no model could be started:\n  a: Model 'a' fails as scripted" in done.stderr


def test_help_imports_nothing_heavy() -> None:
    """`modelnet --help` stays quick: neither numpy nor the web nor pydantic is needed for it."""
    code = "import sys; import gateway.cli.commands; print([m for m in ('numpy', 'fastapi', 'aiohttp', 'uvicorn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"
