"""`modelnet eval` over fake models: what it asks, keeps, shows and says when something is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.cli.commands import app

pytestmark = pytest.mark.usefixtures("logs_as_before")

CONFIG = """\
models:
  right: {backend: fake, answer: "It is #### 4"}
  wrong: {backend: fake, answer: "It is #### 5", seed: 2}
  third: {backend: fake, answer: "I can not say", seed: 3}
  dying: {backend: fake, faults: [{on: token, after: 2}]}
  absent: {backend: fake, faults: [{on: start}]}
  judge: {backend: fake, answer: "WRONG", rules: [{contains: "It is #### 4", answer: "This is RIGHT."}]}
aliases:
  both: {expression: right>wrong}
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.chdir(tmp_path)
    config, data = tmp_path / "c.yaml", tmp_path / "q.jsonl"
    config.write_text(CONFIG, encoding="utf-8")
    data.write_text(
        "\n".join(json.dumps({"id": f"q{n}", "question": f"{n} + 2?", "answer": "#### 4"}) for n in (2, 1, 3))
    )
    return config, data


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["eval", *(str(arg) for arg in args)], env={"COLUMNS": "160"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def answers(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "answers.jsonl").read_text("utf-8").splitlines()]


def test_paths_are_asked_kept_and_reported(files: tuple[Path, Path], tmp_path: Path) -> None:
    config, data = files
    out = tmp_path / "run"
    code, shown, said = run(
        data, "--models", "right,wrong,third", "-c", config, "--out", out, "-n", 2, "--concurrency", 3
    )
    assert code == 0, said
    found = answers(out)
    assert len(found) == 16 * 2
    assert len({(a["wiring"], a["question"]) for a in found}) == 32
    rows = {line.split()[0]: line.split()[1] for line in shown.splitlines() if re.match(r"\S+ +\d/\d", line)}
    assert len(rows) == 16
    assert (rows["right"], rows["wrong"], rows["third"]) == ("2/2", "0/2", "0/2")
    chain = next(a for a in found if a["wiring"] == "wrong>third>right")
    assert [s["text"] for s in chain["stages"]] == ["It is #### 5", "I can not say", "It is #### 4"]
    assert [s["right"] for s in chain["stages"]] == [False, False, True]
    assert [s["roles"] for s in chain["stages"]] == [["solver"], ["reviewer"], ["verifier"]]
    group = next(a for a in found if a["wiring"] == "right|third|wrong")
    assert group["stages"][0]["disagreements"]
    assert group["stages"][0]["fusion"]["waiting_seconds"] > 0
    for name in ("report.html", "report.md", "report.json", "report.tex", "plots/spread.svg"):
        assert (out / name).stat().st_size > 500
    report = json.loads((out / "report.json").read_text())
    assert report["advice"]["wiring"] == "right"
    assert report["missing"] == report["failed"] == 0


def test_a_second_sitting_asks_only_what_is_new(files: tuple[Path, Path], tmp_path: Path) -> None:
    config, data = files
    out = tmp_path / "run"
    assert run(data, "-w", "right", "-c", config, "--out", out, "-n", 2)[0] == 0
    first = answers(out)
    assert run(data, "-w", "right", "-w", "both", "-c", config, "--out", out)[0] == 0
    both = answers(out)
    assert both[:2] == first
    assert len(both) == 2 + 1 + 3
    assert run(data, "-w", "right", "-c", config, "--out", out)[0] == 0
    assert len(answers(out)) == 6
    report = json.loads((out / "report.json").read_text())
    assert {cell["wiring"]: cell["structure"] for cell in report["cells"]} == {"right": "single", "both": "si"}
    code, _, said = run(data, "-w", "right", "-c", config, "--out", out, "--max-tokens", 7)
    assert code == 2
    assert "other settings: max_tokens 400, now 7" in said


def test_a_budget_ends_a_sitting_and_the_next_goes_on(files: tuple[Path, Path], tmp_path: Path) -> None:
    config, data = files
    out = tmp_path / "run"
    command = (data, "-w", "right", "-w", "wrong", "-c", config, "--out", out, "--budget-tokens", "1")
    code, _, said = run(*command)
    assert code == 3
    assert "5 questions are left" in said
    for expected in (3, 3, 3, 3, 0):
        assert run(*command)[0] == expected
    assert len(answers(out)) == 6
    assert run(data, "-w", "right", "-c", config, "--budget-money", "1")[0] == 2
    code, shown, _ = run(
        data,
        "-w",
        "right",
        "-c",
        config,
        "--out",
        tmp_path / "m",
        "--budget-money",
        "0.0000001",
        "--price",
        "right=1/2",
    )
    assert code == 3
    assert len(answers(tmp_path / "m")) == 1
    assert "1/1" in shown


def test_a_plan_says_what_it_costs_and_asks_nothing(files: tuple[Path, Path], tmp_path: Path) -> None:
    config, data = files
    out = tmp_path / "run"
    code, shown, _ = run(data, "--models", "right,wrong,third", "--plan", "--out", out)
    assert code == 0
    assert "27 paths, 16 of them different" in shown
    assert re.search(r"48 requests are left, 0\s+finished", shown)
    assert "time unknown" in shown
    assert not out.exists()
    code, shown, _ = run(
        data, "--models", "right,wrong,third", "--plan", "--probe", "-c", config, "--out", out, "--price", "right=1/1"
    )
    assert code == 0
    assert len(answers(out)) == 3
    assert re.search(r"45 requests are left, 3\s+finished", shown)
    assert "unknown" not in shown


def test_failures_are_told_counted_and_asked_again(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Neither a trace nor a share of right answers that hides them."""
    config, data = files
    out = tmp_path / "run"
    code, shown, said = run(data, "-w", "right", "-w", "dying", "-c", config, "--out", out)
    assert code == 1
    assert "3 questions failed" in said
    assert re.search(r"dying +- .* 3\n", shown)
    assert {a["wiring"] for a in answers(out) if a["error"]} == {"dying"}
    config.write_text(CONFIG.replace("faults: [{on: token, after: 2}]", 'answer: "#### 4"'), encoding="utf-8")
    code, shown, _ = run(data, "-w", "right", "-w", "dying", "-c", config, "--out", out)
    assert code == 0
    assert re.search(r"dying +3/3", shown)


def test_another_model_under_the_same_name_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    config, data = files
    asked = (data, "-w", "right", "-w", "both", "-c", config, "--out", tmp_path / "run")
    assert run(*asked)[0] == 0
    before = (tmp_path / "run" / "run.json").read_bytes()
    for text in (
        CONFIG.replace('#### 4"}\n  wrong', '#### 6"}\n  wrong'),
        CONFIG.replace("right>wrong", "wrong>right"),
    ):
        config.write_text(text, encoding="utf-8")
        code, _, said = run(*asked)
        assert code == 2
        assert "has changed since. Choose another --out" in said
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    config.write_text(CONFIG.replace("  dying:", "  more: {backend: fake}\n  dying:"), encoding="utf-8")
    assert run(*asked, "--concurrency", 3)[0] == 0
    report = (tmp_path / "run" / "report.md").read_text("utf-8")
    assert "Up to 3 questions were asked at a time" in report
    assert "| sitting 2 |" in report


def test_a_budget_of_money_needs_every_price(files: tuple[Path, Path], tmp_path: Path) -> None:
    config, data = files
    asked = (data, "-w", "right>wrong", "-c", config, "--budget-money", "5", "--out", tmp_path / "run")
    code, _, said = run(*asked, "--price", "right=1/2")
    assert code == 2
    assert "there is none for wrong" in said
    assert run(*asked, "--price", "right=1/2", "--price", "wrong=1/2")[0] == 0


def test_a_wiring_that_only_fails_is_left_alone(files: tuple[Path, Path], tmp_path: Path) -> None:
    config, _ = files
    code, _, said = run("arithmetic", "-w", "dying", "-w", "right", "-c", config, "--out", tmp_path / "r", "-n", 12)
    assert code == 1
    assert "dying was left alone" in said
    failed = [a for a in answers(tmp_path / "r") if a["error"]]
    assert len(failed) == 5


def test_a_judge_is_asked_where_the_question_wants_one(files: tuple[Path, Path], tmp_path: Path) -> None:
    config, data = files
    data.write_text(json.dumps({"question": "What is it?", "answer": "a four", "kind": "judge"}))
    code, _, said = run(data, "-w", "right", "-c", config)
    assert code == 2
    assert "--judge" in said
    out = tmp_path / "run"
    code, shown, _ = run(data, "-w", "right", "-w", "wrong", "-c", config, "--judge", "judge", "--out", out)
    assert code == 0
    assert {a["wiring"]: (a["right"], a["judged"]) for a in answers(out)} == {
        "right": (True, "This is RIGHT."), "wrong": (False, "WRONG"),
    }  # fmt: skip
    assert re.search(r"right +1/1", shown)


def test_mirrors_are_checked_where_that_is_asked(files: tuple[Path, Path], tmp_path: Path) -> None:
    config, data = files
    out = tmp_path / "run"
    code, _, said = run(
        data,
        "--models",
        "right,wrong,third",
        "--structures",
        "pi,s2p",
        "-c",
        config,
        "--out",
        out,
        "--check-symmetry",
        1,
    )
    assert code == 0, said
    report = json.loads((out / "report.json").read_text())
    assert len(report["mirrors"]) == 5 + 3
    assert all(mirror["same"] == mirror["asked"] == 1 for mirror in report["mirrors"])
    assert {cell["wiring"] for cell in report["cells"]}.isdisjoint(mirror["wiring"] for mirror in report["mirrors"])
    assert "said the same to the letter" in (out / "report.md").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("-w", "right>other"), "column 7: found 'other'"),
        (("-w", "right|absent"), "Model 'absent' could not be started"),
        (("-w", "right", "--out", "/proc/none"), "/proc/none"),
        (("-w", "right", "--prompts", "nowhere"), None),
        (("--models", "right", "--structures", "ring"), "no structure 'ring'"),
        ((), "nothing to ask"),
        (("-w", "right", "--budget-time", "soon"), "not understood"),
        (("-w", "right", "--columns", "question"), "not of the form"),
        (("-w", "right", "--price", "right"), "not of the form"),
        (("-w", "right", "--base-url", "nonsense"), "no URL"),
        (("-w", "right", "--base-url", "http://127.0.0.1:9"), "does not answer"),
        (("-w", ">"), "column 1"),
    ],
)
def test_what_cant_work_is_told_before_anything_is_asked(
    files: tuple[Path, Path], args: tuple[str, ...], message: str | None
) -> None:
    config, data = files
    code, shown, said = run(data, "-c", config, *args)
    if message is None:  # the gateway's word, question by question
        assert code == 1
        assert "There is no prompt set 'nowhere'" in said
        return
    assert (code, shown) in ((2, ""), (1, ""))
    assert message in said


@pytest.mark.parametrize(
    "text", ["", "{}", "no json", "[1]", "7", '{"question": "x"}', '{"question": "x", "answer": "y", "kind": "z"}']
)
def test_a_bad_question_file_is_named(files: tuple[Path, Path], text: str) -> None:
    config, data = files
    data.write_text(text)
    code, _, said = run(data, "-w", "right", "-c", config)
    assert code == 2
    assert str(data) in said


def test_two_runs_are_compared(files: tuple[Path, Path], tmp_path: Path) -> None:
    config, data = files
    assert run(data, "-w", "right", "-w", "wrong", "-c", config, "--out", tmp_path / "a")[0] == 0
    config.write_text(CONFIG.replace("#### 5", "#### 4"), encoding="utf-8")
    assert run(data, "-w", "right", "-w", "wrong", "-c", config, "--out", tmp_path / "b")[0] == 0
    code, shown, _ = run("compare", tmp_path / "a", tmp_path / "b")
    assert code == 0
    assert re.search(r"q +wrong +0/3 +3/3 +\+100\.0", shown)
    assert "only B right q0, q1, q2" in shown.replace("q2, q1, q3", "q0, q1, q2")
    code, shown, _ = run("compare", tmp_path / "a", tmp_path / "b", "--json")
    assert {d["wiring"]: d["result"]["only_b"] for d in json.loads(shown)} == {"right": 0, "wrong": 3}
    assert run("compare", tmp_path / "a", tmp_path / "none")[0] == 2


def test_other_questions_of_the_same_names_are_not_compared(files: tuple[Path, Path], tmp_path: Path) -> None:
    """As where a file has changed between the runs; without ids of their own, questions are named by their place."""
    config, data = files
    lines = data.read_text().splitlines()
    assert run(data, "-w", "right", "-c", config, "--out", tmp_path / "a")[0] == 0
    data.write_text("\n".join([json.dumps({"id": "q2", "question": "Another?", "answer": "4"}), *lines[1:]]))
    assert run(data, "-w", "right", "-c", config, "--out", tmp_path / "b")[0] == 0
    code, shown, _ = run("compare", tmp_path / "a", tmp_path / "b")
    assert code == 0
    assert f"{len(lines) - 1}/{len(lines) - 1}" in shown
    assert "1 other questions of the same ids" in shown
    others = [json.dumps({"id": f"q{n}", "question": f"Another {n}?", "answer": "4"}) for n in range(4)]
    data.write_text("\n".join(others))
    assert run(data, "-w", "right", "-c", config, "--out", tmp_path / "c")[0] == 0
    code, _, said = run("compare", tmp_path / "a", tmp_path / "c")
    assert code == 2
    assert "none is the same question" in said


def test_a_report_is_written_again(files: tuple[Path, Path], tmp_path: Path) -> None:
    config, data = files
    assert run(data, "-w", "right", "-c", config, "--out", tmp_path / "a")[0] == 0
    code, _, _ = run("report", tmp_path / "a", "--out", tmp_path / "b", "--format", "html,json")
    assert code == 0
    assert {file.name for file in (tmp_path / "b").iterdir()} == {"report.html", "report.json"}
    assert run("report", tmp_path / "nowhere")[0] == 2
    assert run("report", tmp_path / "a", "--format", "docx")[0] == 2


def test_the_papers_numbers_are_shown() -> None:
    code, shown, _ = run("paper")
    assert code == 0
    assert len(re.findall("DIFFERS", shown)) == 3
