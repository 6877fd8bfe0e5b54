"""`modelnet eval` over fake models: what it shows, writes and says when something is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli.commands import app

CONFIG = """\
models:
  right: {backend: fake, answer: "It is #### 4"}
  wrong: {backend: fake, answer: "It is #### 5"}
  dying: {backend: fake, faults: [{on: token, after: 2}]}
  absent: {backend: fake, faults: [{on: start}]}
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    config, data = tmp_path / "c.yaml", tmp_path / "q.jsonl"
    config.write_text(CONFIG, encoding="utf-8")
    data.write_text("\n".join(json.dumps({"question": f"{n} + 2?", "answer": "#### 4"}) for n in (2, 2, 2)))
    return config, data


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["eval", *(str(arg) for arg in args)], env={"COLUMNS": "140"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_wirings_are_compared_and_every_answer_is_written(files: tuple[Path, Path], tmp_path: Path) -> None:
    config, data = files
    out = tmp_path / "answers.json"
    code, shown, _ = run("right", "wrong", "-c", config, "-d", data, "--out", out, "--limit", 2)
    assert code == 0
    rows = {line.split()[0]: line.split()[1] for line in shown.splitlines()[1:]}
    assert rows == {"right": "2/2", "wrong": "0/2"}
    assert [answer["right"] for answer in json.loads(out.read_text())] == [True, True, False, False]


def test_a_failing_backend_is_told_and_what_was_answered_before_is_kept(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    """Neither a trace nor a share of right answers that hides it."""
    config, data = files
    out = tmp_path / "answers.json"
    code, shown, said = run("right", "dying", "-c", config, "-d", data, "--out", out, "--concurrency", 3)
    assert (code, shown) == (1, "")
    assert "Model 'dying' fails as scripted" in said
    assert len(json.loads(out.read_text())) == 3


@pytest.mark.parametrize(
    ("wiring", "more", "code", "message"),
    [
        ("right>other", (), 2, "column 7: found 'other'"),
        ("right|absent", (), 1, "Model 'absent' could not be started"),
        ("right", ("--out", "/no/such/place/x.json"), 2, "/no/such/place/x.json"),
    ],
)
def test_what_cant_work_is_told_before_anything_is_asked(
    files: tuple[Path, Path], wiring: str, more: tuple[str, ...], code: int, message: str
) -> None:
    config, data = files
    found, shown, said = run(wiring, "-c", config, "-d", data, *more)
    assert (found, shown) == (code, "")
    assert message in said


@pytest.mark.parametrize("text", ["", "{}", "no json", "[1]", "7", '{"question": "x"}'])
def test_a_bad_question_file_is_named(files: tuple[Path, Path], text: str) -> None:
    config, data = files
    data.write_text(text)
    code, _, said = run("right", "-c", config, "-d", data)
    assert code == 2
    assert str(data) in said
