"""`modelnet keys` and `modelnet experiment`, as the terminal shows them."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gateway.cli.commands import app
from gateway.keys import Keyring, Rights
from gateway.keys.keyring import periods
from gateway.keys.store import KeyStore, Spent
from gateway.ledger import Row
from gateway.ledger.tables import Tables

CONFIG = """
models: {a: {backend: fake}, b: {backend: fake}}
key_store: {database: keys.db}
ledger: {database: ledger.db}
routes:
  split:
    arms:
      plain: {model: a, weight: 50}
      pair: {model: "a|b", weight: 50}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "c.yaml").write_text(CONFIG, encoding="utf-8")
    monkeypatch.setenv("MODELNET_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def run(folder: Path, *words: str, fails: bool = False) -> Result:
    result = CliRunner().invoke(app, [*words, "--config", str(folder / "c.yaml")])
    assert (result.exit_code != 0) == fails, result.output
    return result


def test_the_life_of_a_key(folder: Path) -> None:
    made = run(
        folder, "keys", "create", "team", "--wiring", "careful", "--wiring", "a*", "--tokens-per-minute", "500",
        "--budget", "2.50/month", "--expires", "30d",
    )  # fmt: skip
    text = made.stdout.strip()
    assert text.startswith("mnk_")
    assert text not in made.stderr
    store = KeyStore(str(folder / "keys.db"))
    (key,) = store.all()
    keyring = Keyring()
    keyring.set_stored([key])
    assert keyring.authenticate(text) == key
    assert key.rights.wirings == ("careful", "a*")
    assert key.expires == pytest.approx(time.time() + 30 * 86_400, abs=60)
    shown = run(folder, "keys", "list").stdout
    assert key.id in shown
    assert "2.5 a month" in shown
    assert text.rsplit("_", 1)[-1] not in shown
    run(folder, "keys", "change", key.id, "--tokens-per-minute", "0", "--concurrency", "3", "--budget", "none")
    rights = store.get(key.id).rights
    assert (rights.tokens_per_minute, rights.concurrency, rights.budget) == (None, 3, None)
    assert rights.wirings == ("careful", "a*")
    assert "expired" in run(folder, "keys", "expire", key.id, "now").stdout
    assert "never" in run(folder, "keys", "expire", key.id, "never").stdout
    run(folder, "keys", "revoke", key.id)
    assert json.loads(run(folder, "keys", "list", "--json").stdout)[0]["state"] == "revoked"
    store.close()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output goes to people, in 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")


RIGHTS = (
    "--model",
    "qwen*",
    "--wiring",
    "a>b",
    "--requests-per-minute",
    "60",
    "--budget",
    "5/month",
    "--expires",
    "30d",
)


def test_keys_in_a_terminal_of_80_columns(folder: Path, terminal: None) -> None:
    """No word is folded."""
    assert "no keys yet" in run(folder, "keys", "list").stdout
    run(folder, "keys", "create", "the team of research", "--tokens-per-minute", "100000", *RIGHTS)
    run(folder, "keys", "create", "x")
    shown = run(folder, "keys", "list").stdout
    assert len(shown.splitlines()) == 8 and max(map(len, shown.splitlines())) <= 80
    words = " ".join(shown.split())
    assert "the team of research active, ends 20" in words
    assert (
        "may a>b; models qwen*; 60 requests/min, 100000 tokens/min, 5 a month tokens: 0 today, 0 this month, 0 in"
        in words
    )
    assert "0 in all money: 0 today, 0 this month, 0 in all" in words
    assert "x active may everything tokens: 0 today" in words


def test_keys_for_other_programs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for each, and a cell for each thing, however wide the terminal is."""
    monkeypatch.setenv("COLUMNS", "20")
    run(folder, "keys", "create", "the team\tof research", *RIGHTS)
    run(folder, "keys", "create", "x")
    head, *rows = (line.split("\t") for line in run(folder, "keys", "list").stdout.splitlines())
    assert [row[1] for row in rows] == ["the team of research", "x"]
    assert dict(zip(head, rows[0], strict=True))["limits"] == "60 requests/min, 5 a month"
    assert rows[1][2:] == ["active", "never", "everything", "", *"000000"]


def test_money_spent_is_shown(folder: Path, request: pytest.FixtureRequest) -> None:
    """In every form; to the last digit, since a request may cost less than a cent."""
    run(folder, "keys", "create", "team", "--budget", "5/month")
    run(folder, "keys", "create", "other")
    store = KeyStore(str(folder / "keys.db"))
    team, _ = store.all()
    total, day, month = periods(time.time())
    store.spend(
        {
            (team.id, total): Spent(70, 12_000_000_000),
            (team.id, month): Spent(50, 1_250_000_000),
            (team.id, day): Spent(7, 30),
        }
    )
    store.close()
    head, row, _ = (line.split("\t") for line in run(folder, "keys", "list").stdout.splitlines())
    cells = dict(zip(head, row, strict=True))
    assert [cells[f"money {when}"] for when in ("today", "this month", "in all")] == ["0.00000003", "1.25", "12"]
    shown, other = json.loads(run(folder, "keys", "list", "--json").stdout)
    assert shown["spent"] == {
        "total": {"tokens": 70, "money": 12.0},
        "day": {"tokens": 7, "money": 3e-8},
        "month": {"tokens": 50, "money": 1.25},
    }
    assert other["spent"]["total"] == {"tokens": 0, "money": 0.0}
    request.getfixturevalue("terminal")
    first, second = " ".join(run(folder, "keys", "list").stdout.split()).split("other")
    assert "tokens: 7 today, 50 this month, 70 in all money: 0.00000003 today, 1.25 this month, 12 in all" in first
    assert "money" not in second


@pytest.mark.parametrize(("moment", "shown"), [(1e20, "after 9999"), (-1e20, "before 1")])
def test_a_stored_moment_that_no_calendar_has_hides_no_key(folder: Path, moment: float, shown: str) -> None:
    store = KeyStore(str(folder / "keys.db"))
    key, _ = store.create("old", Rights(), moment)
    store.create("other", Rights())
    store.close()
    _, *rows = (line.split("\t") for line in run(folder, "keys", "list").stdout.splitlines())
    assert [row[3] for row in rows] == [shown, "never"]
    assert "9999" in run(folder, "keys", "expire", key.id, "99999999d", fails=True).stderr
    run(folder, "keys", "expire", key.id, "30d")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["create", " "], 2),
        (["create", "x\x1b[2J"], 2),
        (["create", "x", "--budget", "lots"], 2),
        (["create", "x", "--budget", "0"], 2),
        (["create", "x", "--budget", "9" * 400], 2),
        (["create", "x", "--expires", "soon"], 2),
        (["create", "x", "--expires", "99999999d"], 2),
        (["create", "x", "--expires", "9" * 400 + "w"], 2),
        (["create", "x", "--expires", "9" * 5000 + "w"], 2),
        (["create", "x", "--expires", "9999-12-31T23:59:59-14:00"], 2),
        (["create", "x", "--expires", "0001-01-01T00:00:00+14:00"], 2),
        (["create", ""], 2),
        (["create", "x" * 129], 2),
        (["create", "x", "--tokens-per-minute", "999999999"], 2),
        (["revoke", "nobody"], 2),
        (["change", "nobody"], 2),
        (["expire", "nobody", "now"], 2),
    ],
)
def test_what_can_not_be_done_is_told(folder: Path, words: list[str], code: int) -> None:
    result = run(folder, "keys", *words, fails=True)
    assert result.exit_code == code
    assert "Traceback" not in result.output


def test_keys_without_a_configuration_have_a_place(folder: Path) -> None:
    result = CliRunner().invoke(app, ["keys", "create", "me"])
    assert result.exit_code == 0
    assert (folder / "state" / "keys.db").exists()


def compared(folder: Path) -> None:
    """Forty requests of each arm."""
    tables = Tables(str(folder / "ledger.db"))
    tables.write(
        [
            Row(
                uuid.uuid4().hex, time.time(), route="split", arm=("plain", "pair")[n % 2], arm_by="user",
                subject=f"s{n}", shares={"plain": 0.5, "pair": 0.5}, seconds=0.5, status=200, nano=1000,
            )
            for n in range(80)
        ]
    )  # fmt: skip
    tables.close()


def test_a_report_in_a_terminal_of_80_columns(folder: Path, terminal: None) -> None:
    compared(folder)
    lines = run(folder, "experiment", "report", "split").stdout.splitlines()
    assert max(len(line) for line in lines if not line.startswith("no winner")) <= 80
    assert lines[0].split() == ["arm", "plain", "pair"]
    assert next(line for line in lines if line.startswith("p50")).split() == [
        "p50",
        "s",
        *["0.500", "(0.500-0.500)"] * 2,
    ]


def test_a_report_for_other_programs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    compared(folder)
    *rows, last = (line.split("\t") for line in run(folder, "experiment", "report", "split").stdout.splitlines())
    assert {len(row) for row in rows} == {3}
    assert rows[:2] == [["arm", "plain", "pair"], ["requests", "40", "40"]]
    assert last[0].startswith("no winner: ")


def test_a_report_in_three_forms(folder: Path) -> None:
    compared(folder)
    shown = run(folder, "experiment", "report", "split", "--html", str(folder / "r.html")).stdout
    assert "no winner: too few subjects with feedback" in shown
    assert "40" in shown
    assert "<svg" in (folder / "r.html").read_text(encoding="utf-8")
    value = json.loads(run(folder, "experiment", "report", "split", "--json", "--metric", "cost").stdout)
    assert value["winner"] is None
    assert [arm["requests"] for arm in value["arms"]] == [40, 40]
    nowhere = run(folder, "experiment", "report", "split", "--html", str(folder / "none" / "report.html"), fails=True)
    assert (nowhere.exit_code, "can't be written" in nowhere.stderr) == (1, True)


def test_reports_that_can_not_be(folder: Path) -> None:
    assert "no ledger" in run(folder, "experiment", "report", "split", fails=True).stderr
    assert "there are split" in run(folder, "experiment", "report", "none", fails=True).stderr
    assert run(folder, "experiment", "report", "split", "--metric", "luck", fails=True).exit_code == 2
    assert run(folder, "experiment", "report", "split", "--days", "inf", fails=True).exit_code == 2


def test_who_gets_which_arm(folder: Path) -> None:
    found = {run(folder, "experiment", "assign", "split", f"user-{n}").stdout.split(":")[0] for n in range(12)}
    assert found == {"plain", "pair"}
    once, again = (run(folder, "experiment", "assign", "split", "anna").stdout for _ in range(2))
    assert once == again
    assert "plain 50.0 %" in once
    assert run(folder, "experiment", "assign", "split", "x", "--by", "header:x-team", fails=True).exit_code == 2


def test_serving_others_needs_a_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was made is enough; without, only this machine is served. Nothing is bound here."""

    def bind(host: str, port: int) -> None:
        raise OSError(f"would bind {host}")

    monkeypatch.setattr("gateway.cli.serve.bind", bind)
    refused = run(folder, "serve", "--host", "0.0.0.0", fails=True)
    assert refused.exit_code == 2
    assert "modelnet keys create" in refused.stderr
    assert "would bind 127.0.0.1" in run(folder, "serve", fails=True).stderr
    run(folder, "keys", "create", "team")
    assert "would bind 0.0.0.0" in run(folder, "serve", "--host", "0.0.0.0", fails=True).stderr


@pytest.mark.parametrize("option", ["--model", "--wiring"])
@pytest.mark.parametrize("pattern", ["", "a" * 257])
def test_patterns_of_keys_are_those_that_a_file_may_have(folder: Path, option: str, pattern: str) -> None:
    assert "1 to 256 characters" in run(folder, "keys", "create", "team", option, pattern, fails=True).stderr
    assert "team" not in run(folder, "keys", "list").stdout


def test_keys_that_can_not_be_read_stop_the_start(folder: Path) -> None:
    (folder / "keys.db").write_bytes(b"this is no database, but a longer text than its header would be" * 40)
    result = run(folder, "serve", fails=True)
    assert result.exit_code == 1
    assert "the keys can't be read" in result.stderr
