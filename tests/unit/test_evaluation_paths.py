"""Paths, built-in question sets, keys, courses through stages, and the source experiment's numbers."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from gateway.evaluation.report.content import published
from strategies.evaluation import judge, question_from
from strategies.evaluation.flow import Course, by_writer, steps
from strategies.evaluation.generated import MAKERS, generated
from strategies.evaluation.paths import STRUCTURES, path_of, paths
from strategies.evaluation.published import claims, recompute
from strategies.evaluation.records import Answers, Record, StageRecord, from_line, key_of, to_line
from strategies.topology import parse


def test_three_models_have_the_papers_24_paths_and_13_differ() -> None:
    found = paths(["qwen", "yi", "ds"], ["si", "pi", "s2p", "p2s"])
    assert len(found) == 24
    assert len({path.twin or path.wiring for path in found}) == 13
    assert {s: sum(p.structure == s and p.twin is None for p in found) for s in STRUCTURES[1:]} == {
        "si": 6,
        "pi": 1,
        "s2p": 3,
        "p2s": 3,
    }
    twins = {path.wiring: path.twin for path in found if path.twin}
    assert twins["qwen>yi|ds"] == "qwen>ds|yi"
    assert twins["yi|qwen>ds"] == "qwen|yi>ds"
    for path in found:
        assert parse(f"{path.structure}:{path.wiring}").topology  # the claim holds
        assert path.twin is None or path_of(path.twin).structure == path.structure


def test_a_mirror_is_never_the_twin_of_another_mirror() -> None:
    found = paths(["d", "c", "b", "a"], ["pi", "s2p", "p2s"])
    asked = {path.wiring for path in found if path.twin is None}
    assert all(path.twin in asked for path in found if path.twin is not None)
    assert len(asked) == 1 + 4 + 4


def test_what_has_no_paths_is_told() -> None:
    with pytest.raises(ValueError, match="3 models"):
        paths(["a", "b"], ["s2p"])
    with pytest.raises(ValueError, match="none of"):
        paths(["a", "b"], ["ring"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="once"):
        paths(["a", "a"], ["si"])


@pytest.mark.parametrize("task", MAKERS)
def test_built_in_questions_are_the_same_every_time_and_their_answers_right(task: str) -> None:
    found = generated(task, 60, 7)
    assert found == generated(task, 60, 7)
    assert found[:20] == generated(task, 20, 7)
    assert found != generated(task, 60, 8)
    assert len({q.stem for q in found}) == 60
    for question in found:
        marked = f"Answer: {question.answer}" if question.kind == "choice" else f"#### {question.answer}"
        assert judge(question, marked).right
        if task == "arithmetic":
            text = question.stem.removeprefix("What is ").rstrip("?")
            assert eval(text) == float(question.answer)  # noqa: S307 - our own sums
        if task == "equations":
            left, right, unknown = re.fullmatch(r"Solve (.*) = (.*) for (.)\.", question.stem).groups()  # type: ignore[union-attr]
            value = {unknown: int(question.answer)}
            assert eval(left, value) == eval(right, value)  # noqa: S307


def test_derivatives_are_those_of_sympy() -> None:
    sympy = pytest.importorskip("sympy")
    for question in generated("derivatives", 40, 3):
        text, x = re.fullmatch(r"Differentiate (.*) with respect to (.)\.", question.stem).groups()  # type: ignore[union-attr]
        assert sympy.simplify(sympy.diff(sympy.sympify(text), x) - sympy.sympify(question.answer)) == 0


def test_orders_in_logic_questions_hold() -> None:
    for question in generated("logic", 40, 3):
        above = dict(re.findall(r"(\w+) is \w+ than (\w+)\.", question.stem))
        first = next(name for name in above if name not in above.values())
        order = [first]
        while order[-1] in above:
            order.append(above[order[-1]])
        answer = question.choices["ABCD".index(question.answer)]
        asked = question.stem.split("Who is the ")[1]
        place = 1 if asked.startswith("second") else 3 if re.match("shortest|youngest|slowest", asked) else 0
        assert order[place] == answer


QUESTION = question_from({"id": "q", "question": "2+2?", "answer": "4"})


def stage(index: int, text: str, model: str = "a", right: bool = False) -> StageRecord:
    return StageRecord(
        index, (model,), ("solver" if index == 0 else "verifier",), text, 1.0, 0.1, "stop", {model: (3, 4)}, right=right
    )


def record(*rights: bool, wiring: str = "a>b") -> Record:
    stages = tuple(stage(i, "", "ab"[i % 2], right) for i, right in enumerate(rights))
    return Record(f"{rights}{wiring}", "t", "q", wiring, "number", "4", "#### 4", stages=stages, right=rights[-1])


def test_records_survive_the_way_to_a_line_and_back() -> None:
    whole = replace(record(True, False), first_token=0.5, error=None, judged="RIGHT", given="4")
    fused = replace(whole.stages[1], fusion={"pieces": 3}, disagreements=((0, "a", "b", "c"),))
    whole = replace(whole, stages=(whole.stages[0], fused))
    assert from_line(to_line(whole)) == whole
    later = json.loads(to_line(whole)) | {"new_field": 1}
    assert from_line(json.dumps(later)) == whole
    for bad in ("{}", "[]", "nonsense", '{"stages": [{}]}', "7"):
        with pytest.raises(ValueError):
            from_line(bad)


def test_a_key_changes_with_everything_that_changes_an_answer_and_with_nothing_else() -> None:
    key = key_of("t", QUESTION, "a>b", {"max_tokens": 5, "seed": 1})
    assert key == key_of("t", replace(QUESTION, answer="5"), "a>b", {"seed": 1, "max_tokens": 5})
    others = {
        key_of("u", QUESTION, "a>b", {"max_tokens": 5, "seed": 1}),
        key_of("t", replace(QUESTION, text="2+3?"), "a>b", {"max_tokens": 5, "seed": 1}),
        key_of("t", replace(QUESTION, id="r"), "a>b", {"max_tokens": 5, "seed": 1}),
        key_of("t", QUESTION, "b>a", {"max_tokens": 5, "seed": 1}),
        key_of("t", QUESTION, "a>b", {"max_tokens": 6, "seed": 1}),
    }
    assert len(others | {key}) == 6


def test_a_failure_makes_room_and_an_answer_stays() -> None:
    answers, good = Answers(), record(True, True)
    failed = replace(good, error="503", text="")
    answers.add(failed)
    assert not answers.finished(good.key)
    answers.extend([good, failed, replace(good, text="again")])
    assert answers.by_key[good.key] is good


@pytest.mark.parametrize(
    ("rights", "said"),
    [
        ((True, True, True), "right all along"),
        ((False, False), "never right"),
        ((False, True), "put right by stage 2"),
        ((True, False, False), "lost by stage 2"),
        ((True, False, True), "lost by stage 2, put right by stage 3"),
        ((True,), "right"),
        ((False,), "wrong"),
        ((), ""),
    ],
)
def test_courses_in_words(rights: tuple[bool, ...], said: str) -> None:
    assert Course(rights).said == said


def test_steps_are_counted() -> None:
    records = [record(True, True), record(True, False), record(False, True), record(False, True), record(False, False)]
    (found,) = steps(records)
    assert (found.kept, found.lost, found.repaired, found.wrong, found.gain, found.before) == (1, 1, 2, 1, 1, 2)
    assert (found.models, found.role, found.stage) == (("b",), "verifier", 1)
    (total,) = by_writer(steps([*records, *(replace(r, wiring="c>b") for r in records)]))
    assert (total.kept, total.lost, total.repaired, total.wrong) == (2, 2, 4, 2)


def test_the_papers_tables_come_out_as_printed_and_the_exceptions_are_named() -> None:
    checks = recompute(published())
    assert sum(c.agrees is True for c in checks) == 35
    assert {c.what for c in checks if c.agrees is False} == {
        "Yi, mean over tasks, accuracy",  # 43.30 for (26 + 54 + 50) / 3
        "si, mean accuracy over paths",  # 64.88 for 64.889
        "si, σ of accuracy over paths",  # 6.67 for 6.679
    }
    assert {c.what.split(",")[0] for c in checks if c.agrees is None} == {"si", "pi", "s2p", "p2s"}
    shown = {(c.task, c.better, c.worse) for c in claims(published()) if c.shown}
    assert shown == {("GSM8K", "p2s", "Qwen")}


def test_the_papers_task_names_are_known() -> None:
    paper = published()
    assert [paper.task(name) for name in ("gsm8k", "C-EVAL", "ceval_val_100", "math", "arithmetic")] == [
        "GSM8K",
        "C-Eval",
        "C-Eval",
        "Mathematics",
        None,
    ]
