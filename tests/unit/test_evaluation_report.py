"""A run's report: what it concludes from answers that are known, and that every format is well formed."""

from __future__ import annotations

import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from evaluation_runs import made_up

from gateway.evaluation.errors import StoreError
from gateway.evaluation.frames import open_run
from gateway.evaluation.report import plots
from gateway.evaluation.report.blocks import Picture, Table
from gateway.evaluation.report.content import build
from gateway.evaluation.report.sections import sections
from gateway.evaluation.report.svg import Scale
from gateway.evaluation.report.write import write
from gateway.evaluation.sources import Task
from gateway.evaluation.spec import Settings, Spec, make_paths
from gateway.evaluation.store import open_store, read_run, write_run
from strategies.evaluation.advice import advise
from strategies.evaluation.questions import Question
from strategies.evaluation.records import Record, key_of
from strategies.evaluation.summary import ALL, Grid, grid_of

MEANS = {
    "corresponds": {"qwen": "Qwen", "ds": "Ds", "yi": "Yi"},
    "prices": {"qwen": [1, 2], "ds": [1, 1], "yi": [0.1, 0.1]},
}


def grid(shares: dict[str, str], seconds: dict[str, float] | None = None) -> Grid:
    """wiring → one character a question: 1 right, 0 wrong, ! failed, space not asked."""
    records = []
    for wiring, marks in shares.items():
        for index, mark in enumerate(marks):
            if mark != " ":
                took = (seconds or {}).get(wiring, 1.0)
                records.append(
                    Record(f"{wiring}{index}", "t", str(index), wiring, "number", "1", seconds=took, right=mark == "1",
                           given=mark, error="x" if mark == "!" else None)
                )  # fmt: skip
    count = max(map(len, shares.values()))
    return grid_of(records, make_paths((), (), list(shares)), {"t": [str(i) for i in range(count)]})


def test_a_real_gain_is_recommended() -> None:
    advice = advise(grid({"a": "1" * 10 + "0" * 30, "b": "0" * 40, "a>b": "1" * 30 + "0" * 10}))
    assert (advice.wiring, advice.baseline, advice.shown) == ("a>b", "a", True)
    assert "Use a>b" in advice.headline
    assert "30 of 40, a on 10 of 40" in " ".join(advice.reasons)


def test_a_small_gain_is_not_sold_as_one() -> None:
    """79 against 76 of 100, eleven questions apart."""
    advice = advise(grid({"a": "1" * 76 + "0" * 24, "a>b": "0" * 4 + "1" * 79 + "0" * 17}))
    assert (advice.wiring, advice.shown) == ("a", False)
    assert advice.headline.startswith("No difference shown")
    assert 0.05 < advice.visible < 0.25


def test_not_shown_to_be_worse_is_not_as_good() -> None:
    """Few questions, a large gap: no test holds, and still nobody should take the worse one for its speed."""
    found = grid({"good": "1111110", "fast": "1110000"}, {"fast": 0.1})
    assert advise(found).wiring == "good"
    same = grid({"good": "1" * 200 + "0" * 100, "fast": "1" * 199 + "0" * 101}, {"fast": 0.1})
    assert advise(same).wiring == "fast"


def test_a_handful_without_a_difference_has_a_wide_interval() -> None:
    (found,) = advise(grid({"a": "1100000", "a>b": "1100000"})).comparisons
    assert found.result.difference == 0.0
    assert found.result.low < -0.2 and found.result.high > 0.2


def test_failures_everywhere_do_not_end_the_report() -> None:
    """Every wiring failed on another question, so there is none that all have answered."""
    asked = {f"m{i}": "1" * i + "!" + "1" * (19 - i) for i in range(20)}
    advice = advise(grid(asked))
    assert advice.wiring == advice.baseline and advice.headline.startswith("No difference shown")


def test_numbers_of_one_sentence_are_of_the_same_questions() -> None:
    advice = advise(grid({"a": "1" * 10 + "0" * 10, "b": "!!" + "0" * 18, "a>b": "1" * 12 + "0" * 8}))
    assert "a>b was right on 12 of 20, a on 10 of 20: +10.0 points" in " ".join(advice.reasons)


def test_everybody_is_compared_once() -> None:
    """Twice the comparisons would be twice the correction."""
    found = advise(grid({"a": "1100", "b": "1000", "c": "0000", "a>b": "1100", "a|c": "0110"})).comparisons
    assert [c.wiring for c in found] == ["a>b", "a|c", "b", "c"]


def test_who_is_left_out_is_told() -> None:
    advice = advise(grid({"a": "1" * 17 + "   ", "b": "1000" * 5, "a>b": "1" * 18 + "00"}))
    assert advice.reasons[-1] == "Left out, having answered under 90 % of the questions that others did: a."


def test_what_questions_can_show() -> None:
    few = advise(grid({"a": "1111000", **{f"a>{name}": "0001111" for name in "bcdefghij"}}))
    assert few.visible == math.inf
    assert "7 questions can't show any difference between so many wirings" in " ".join(few.reasons)
    more = advise(grid({"a": "10" * 30, "a>b": "1001" * 15}))
    assert 0.2 < more.visible < 0.4
    assert "in four of five such runs" in " ".join(more.reasons)


def test_nothing_right_is_nothing_to_choose_by() -> None:
    for asked in ({"a": "000", "b": "000", "a>b": "000"}, {"a>b": "000", "b>a": "000"}):
        advice = advise(grid(asked))
        assert (advice.wiring, advice.baseline, advice.shown) == (None, None, False)
        assert advice.headline == "Nothing to choose by: no wiring was right on any of the 3 questions."


def test_what_loses_is_named() -> None:
    advice = advise(grid({"a": "1" * 30, "a>b": "0" * 20 + "1" * 10}))
    assert "Shown to be right less often than a: a>b." in advice.reasons


def test_unfinished_and_failed_answers_do_not_make_a_share() -> None:
    found = grid({"a": "11110000", "a>b": "1111    ", "b": "!!!!!!!!"})
    advice = advise(found)
    assert advice.baseline == "a"
    assert not advice.shown
    assert found.right(["a", "a>b"]).shape == (4, 2)
    assert advise(grid({"a": "!!"})).wiring is None
    assert "Only a was asked" not in advise(grid({"a": "10", "b": "01"})).headline


def test_without_single_models_nobody_is_called_worth_it() -> None:
    advice = advise(grid({"a>b": "1" * 30, "b>a": "0" * 30}))
    assert (advice.wiring, advice.baseline) == ("a>b", None)
    assert "whether working together pays is not known" in " ".join(advice.reasons)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    made_up(directory, ("arithmetic", "logic"), 20, notes=MEANS)
    write(build(read_run(directory)), directory)
    return directory


def test_the_numbers_are_those_of_the_answers(run: Path) -> None:
    content = build(read_run(run))
    lines = [json.loads(line) for line in (run / "answers.jsonl").read_text("utf-8").splitlines()]
    for cell in content.cells:
        mine = [a for a in lines if (a["task"], a["wiring"]) == (cell.task, cell.wiring)]
        assert (cell.right, cell.answered) == (sum(a["right"] for a in mine), len(mine))
        assert cell.seconds == pytest.approx(sum(a["seconds"] for a in mine) / len(mine))
        assert cell.none == sum(a["given"] is None for a in mine)
        read, wrote = (
            sum(s["tokens"][m][i] * MEANS["prices"][m][i] for a in mine for s in a["stages"] for m in s["tokens"])
            for i in (0, 1)
        )  # type: ignore[call-overload]
        assert cell.cost == pytest.approx((read + wrote) / 1e6 / len(mine))
    si = content.structure(ALL, "si")
    assert si is not None
    shares = [
        sum(content.cell(t, w).share for t in content.grid.tasks) / 2  # type: ignore[union-attr]
        for w in content.grid.wirings if content.grid.structure(w) == "si"
    ]  # fmt: skip
    assert si.mean == pytest.approx(sum(shares) / 6)
    assert si.best_share == max(shares)
    pi = content.structure(ALL, "pi")
    assert pi is not None
    assert (pi.paths, pi.distinct, pi.sd) == (6, 1, 0.0)


def test_the_made_up_pace_is_found_again(run: Path) -> None:
    """In the made-up run a group takes 1.05 times the sum of its members."""
    slowest = build(read_run(run)).slowest
    assert len(slowest.groups) == 4
    assert slowest.by_sum is not None
    assert slowest.by_sum.slope == pytest.approx(1.05, abs=0.03)
    assert all(g.own_ms is not None and g.own_ms < 1 for g in slowest.groups)


class Reader(HTMLParser):
    """Well-formed enough: every opened element is closed in order; keeps what it points to."""

    VOID = frozenset("meta br hr img input link".split())

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(run: Path) -> None:
    page = (run / "report.html").read_text("utf-8")
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    assert all(link.startswith("#") for link in reader.links)
    assert reader.tags.isdisjoint({"link", "img", "iframe", "object"})
    assert not re.findall(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page)
    assert 'name="viewport"' in page
    data = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[0])
    assert [len(task["questions"]) for task in data["tasks"]] == [20, 20]
    cell = data["tasks"][0]["questions"][0]["cells"][3]
    assert [s["role"] for s in cell["stages"]] == ["solver", "reviewer", "verifier"]


def test_plots_are_xml_with_names(run: Path) -> None:
    found = list((run / "plots").glob("*.svg"))
    assert {file.stem for file in found} == {"pareto-seconds", "pareto-money", "spread", "flow", "pace"}
    for file in found:
        root = ElementTree.fromstring(file.read_text("utf-8"))  # noqa: S314 - our own
        assert root.get("aria-label")
        assert root.get("viewBox", "").startswith("0 0 480 ")
        assert not re.findall(r"nan|inf|None", file.read_text("utf-8"))


def test_markdown_and_latex_tables_are_even(run: Path) -> None:
    text = (run / "report.md").read_text("utf-8")
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    for link in re.findall(r"\]\((plots/[^)]+)\)", text):
        assert (run / link).exists()
    tex = (run / "report.tex").read_text("utf-8")
    assert tex.count("\\begin{table}") == tex.count("\\end{table}") > 8
    for line in tex.splitlines():
        assert not re.search(r"(?<!\\)[%#_]", line) or line.startswith("%") or line.endswith("{%")
        assert (
            line.count("{") - line.count("\\{") == line.count("}") - line.count("\\}")
            or "resizebox" in line
            or "end{tabular}" in line
        )


def test_json_holds_no_nan_and_everything_else(run: Path) -> None:
    found: Any = json.loads((run / "report.json").read_text("utf-8"), parse_constant=lambda text: pytest.fail(text))
    assert len(found["cells"]) == 32
    assert len(found["paths"]) == 27
    assert {"advice", "order", "pace", "steps", "mirrors", "weakest", "structures"} <= set(found)


def test_the_papers_numbers_stand_beside_ours_where_models_and_tasks_correspond(tmp_path: Path) -> None:
    spec = made_up(tmp_path, ("arithmetic",), 8, notes=MEANS)
    lines = (tmp_path / "answers.jsonl").read_text("utf-8").replace('"task":"arithmetic"', '"task":"GSM8K"')
    other = tmp_path / "renamed"
    write_run(
        other, Spec((Task("GSM8K", "", spec.tasks[0].questions),), spec.paths, spec.settings, spec.models, notes=MEANS)
    )
    (other / "answers.jsonl").write_text(lines, "utf-8")
    tables = {t.title: t for s in sections(build(read_run(other))) for t in s.blocks if isinstance(t, Table)}
    ours, theirs = tables["Accuracy and seconds, by task and structure"].rows
    assert ours[0] == "GSM8K"
    assert theirs == (
        "source",
        "67 / 19.3",
        "58 / 21.5",
        "26 / 26.2",
        "50.33 / 22.3",
        "76 / 33.2",
        "74 / 59.8",
        "79 / 24.8",
        "80 / 30.8",
    )
    rows = {row[0]: row[2] for row in tables["Right answers and seconds of every path"].rows}
    assert rows["source: Qwen>Yi>Ds"] == "76 %"
    assert rows["source: Qwen>Ds|Yi"] == "72 %"


def test_what_models_write_stays_text(tmp_path: Path) -> None:
    nasty = '</script><script>alert(1)</script><img src=x onerror=alert(2)> & "quotes" \\end{table} $%_'
    question = Question("q<b>", f"{nasty}?", "1", "number", nasty)
    spec = Spec((Task(f"t{nasty[:9]}", "", (question,)),), make_paths((), (), ["a", "a>b"]), Settings())
    write_run(tmp_path, spec)
    with open_store(tmp_path) as store:
        for wiring in ("a", "a>b"):
            key = key_of(spec.tasks[0].name, question, wiring, spec.settings.value())
            store.append(
                Record(
                    key,
                    spec.tasks[0].name,
                    question.id,
                    wiring,
                    "number",
                    "1",
                    nasty,
                    error=None if wiring == "a" else nasty,
                )
            )
    write(build(read_run(tmp_path)), tmp_path)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<img" not in page
    assert page.count("<script") == 2
    Reader().feed(page)
    assert "\\end{table} $" not in (tmp_path / "report.tex").read_text("utf-8")


def test_runs_that_are_hardly_begun(tmp_path: Path) -> None:
    made_up(tmp_path / "few", ("logic",), 2, skip=0.8)
    write(build(read_run(tmp_path / "few")), tmp_path / "few")
    assert "not finished" in (tmp_path / "few" / "report.md").read_text("utf-8")
    made_up(tmp_path / "none", ("logic",), 2, skip=1.1)
    with pytest.raises(StoreError, match="nothing was answered"):
        build(read_run(tmp_path / "none"))


def test_a_run_without_its_questions_is_still_read(run: Path, tmp_path: Path) -> None:
    """Question sets are not always free to be passed on."""
    for name in ("run.json", "answers.jsonl"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    content, whole = build(read_run(tmp_path)), build(read_run(run))
    assert content.cells == whole.cells
    write(content, tmp_path, ("html",), texts=False)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "Step 1" not in page
    shown = json.loads(re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    cells = [cell for task in shown["tasks"] for question in task["questions"] for cell in question["cells"] if cell]
    assert {cell["given"] for cell in cells} == {None}
    assert {question["answer"] for task in shown["tasks"] for question in task["questions"]} == {""}


def test_old_answers_are_judged_anew(tmp_path: Path) -> None:
    made_up(tmp_path, ("arithmetic",), 3)
    file = tmp_path / "answers.jsonl"
    file.write_text(file.read_text("utf-8").replace('"right":true', '"right":false'), "utf-8")
    assert sum(c.right for c in build(read_run(tmp_path)).cells) > 0
    assert sum(c.right for c in build(read_run(tmp_path), rescore=False).cells) == 0


def test_data_frames(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pandas", None)
        with pytest.raises(ImportError, match=r"modelnet-gateway\[notebook\]"):
            open_run(run).answers()
    pytest.importorskip("pandas")
    found = open_run(run)
    answers = found.answers()
    assert len(answers) == 640
    shares = answers.groupby(["task", "wiring"])["right"].mean()
    for row in found.summary().itertuples():
        assert shares[row.task, row.wiring] == pytest.approx(row.share)
    stages = found.stages()
    assert set(stages[stages.wiring == "qwen>ds>yi"].stage) == {0, 1, 2}
    assert stages.fusion_pieces.notna().any()


def test_ticks_are_round_and_inside() -> None:
    assert Scale(0, 100, 0, 1).ticks() == [0, 20, 40, 60, 80, 100]
    assert Scale(0.9, 3.2, 0, 1, log=True).ticks() == [1, 1.5, 2, 3]
    for low, high in ((0.0, 0.7), (3, 3.2), (17, 91)):
        ticks = Scale(low, high, 0, 1).ticks()
        assert 2 <= len(ticks) <= 12
        assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)


def test_the_frontier_is_what_nothing_beats(run: Path) -> None:
    found = plots.points(build(read_run(run)))
    front = plots.frontier(found)
    for point in found:
        beaten = any(
            p.share >= point.share
            and p.seconds <= point.seconds
            and p is not point
            and (p.share, p.seconds) != (point.share, point.seconds)
            for p in found
        )
        assert (point in front) == (not beaten)


def test_every_part_of_the_report_has_something_to_say(run: Path) -> None:
    parts = sections(build(read_run(run)))
    assert len(parts) == 10
    assert sum(isinstance(b, Picture) for p in parts for b in p.blocks) == 5
    for part in parts:
        for block in part.blocks:
            if isinstance(block, Table):
                assert block.rows
                assert {len(row) for row in block.rows} == {len(block.columns)}, block.title
