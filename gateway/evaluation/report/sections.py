"""What a report says, part by part. Every format writes these."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gateway.evaluation.report import plots
from gateway.evaluation.report.blocks import (
    NAMES,
    Block,
    Picture,
    Section,
    Table,
    Text,
    number,
    pair,
    percent,
    with_deviation,
)
from gateway.evaluation.report.content import Content
from gateway.evaluation.report.findings import differences, flow, order, pace, published
from strategies.evaluation.advice import Advice
from strategies.evaluation.summary import ALL, Cell, StructureRow, mean


def sections(content: Content) -> list[Section]:
    """The whole report, without parts that have nothing to say."""
    parts: list[tuple[str, Iterable[Block]]] = [
        ("Recommendation", _recommendation(content)),
        ("Accuracy and time", _accuracy(content)),
        ("Every path", _paths(content)),
        ("Differences that hold", differences(content)),
        ("Does the order matter?", order(content)),
        ("Does the slowest member set the pace?", pace(content)),
        ("Where chains went wrong, or were put right", flow(content)),
        ("Answers that were not found, cut or failed", _losses(content)),
        ("The source experiment's own numbers", published(content)),
        ("How it was done", _method(content)),
    ]
    found = [Section(title, tuple(blocks)) for title, blocks in parts]
    return [section for section in found if section.blocks]


def _recommendation(content: Content) -> list[Block]:
    blocks: list[Block] = [Text(content.advice.headline, strong=True)]
    blocks += [Text(reason) for reason in content.advice.reasons]
    if content.incomplete:
        blocks.append(
            Text(
                f"This run is not finished: {content.incomplete} answers are missing. Wirings are compared on the questions "
                f"that both answered."
            )
        )
    if content.failed:
        blocks.append(Text(f"{content.failed} questions failed and are counted nowhere; see below."))
    if content.by_task:
        rows = tuple((task, advice.wiring or "-", _why(advice)) for task, advice in content.by_task.items())
        blocks.append(Table("By task", ("task", "use", "because"), rows, texts=3))
    blocks.append(
        Picture(
            "pareto-seconds",
            plots.pareto(content),
            "Every wiring over all questions; bars are 95 % intervals. The line joins those that no other one beats in both.",
        )
    )
    unit = "money" if plots.in_money(content) else "tokens"
    blocks.append(Picture(f"pareto-{unit}", plots.pareto(content, by_cost=True), f"The same against {unit}."))
    return [block for block in blocks if not (isinstance(block, Picture) and not block.svg)]


def _why(advice: Advice) -> str:
    chosen = next((c for c in advice.comparisons if c.wiring == advice.wiring), None)
    if advice.shown and chosen is not None:
        return f"{100 * chosen.result.difference:+.0f} points against {advice.baseline}, p = {chosen.adjusted:.2g} (corrected)"
    return f"no other wiring is shown to beat {advice.baseline}" if advice.baseline else advice.headline


def _accuracy(content: Content) -> list[Block]:
    grid = content.grid
    singles = [w for w in grid.wirings if grid.structure(w) == "single"]
    structures = [s for s in dict.fromkeys(p.structure for p in grid.paths) if s != "single"]
    columns = [
        "task",
        *singles,
        *(["mean single"] if len(singles) > 1 else []),
        *(f"{NAMES[s]} best" for s in structures),
    ]
    rows: list[tuple[str, ...]] = []
    theirs: set[int] = set()
    for task in (*grid.tasks, *([ALL] if len(grid.tasks) > 1 else [])):
        tasks = grid.tasks if task == ALL else (task,)
        row = [task]
        row += [pair(_over(content, tasks, w, "share"), _over(content, tasks, w, "seconds")) for w in singles]
        if len(singles) > 1:
            found = content.structure(task, "single")
            row.append(pair(found.mean, found.seconds) if found else "-")
        for structure in structures:
            found = content.structure(task, structure)
            row.append(pair(found.best_share, found.best_seconds) if found else "-")
        rows.append(tuple(row))
        if (printed := _printed_row(content, task, singles, structures)) is not None:
            theirs.add(len(rows))
            rows.append(printed)
    note = "Right answers in % / mean seconds a question. Best: the path that was right most often, chosen on these same questions."
    if (at_once := max((int(s.get("concurrency", 1)) for s in content.run.notes.get("sittings", ())), default=1)) > 1:
        note += f" Up to {at_once} questions were asked at a time: the seconds are no single user's."
    if theirs:
        note += " Rows in italics: the source experiment, other models on other questions of the same kind."
    table = Table(
        "Accuracy and seconds, by task and structure", tuple(columns), tuple(rows), note, emphasis=frozenset(theirs)
    )
    return [table, *_spread(content)]


def _over(content: Content, tasks: Sequence[str], wiring: str, name: str) -> float:
    found = [content.cell(task, wiring) for task in tasks]
    return mean([getattr(cell, name) for cell in found if cell is not None]) if all(found) else math.nan


def _printed_row(
    content: Content, task: str, singles: Sequence[str], structures: Sequence[str]
) -> tuple[str, ...] | None:
    """The source experiment's row beside ours, where the task corresponds."""
    paper = content.published
    name = (
        ALL
        if task == ALL
        and all(paper.task(t) for t in content.grid.tasks)
        and len(content.grid.tasks) == len(paper.tasks)
        else paper.task(task)
    )
    if name is None or (task == ALL and name != ALL):
        return None

    def printed(found: tuple[float, float] | None) -> str:
        return "-" if found is None else f"{found[0]:g} / {found[1]:.1f}"

    row = ["source"]
    for wiring in singles:
        model = content.corresponds.get(wiring)
        row.append(printed((paper.means if name == ALL else paper.singles[name]).get(model) if model else None))
    if len(singles) > 1:
        row.append(printed(paper.means["single"] if name == ALL else paper.task_means[name]))
    best = paper.means if name == ALL else paper.best[name]
    return (*row, *(printed(best.get(s)) for s in structures))


def _spread(content: Content) -> list[Block]:
    paper = content.published
    rows = []
    for row in content.structures:
        if row.task == ALL and row.structure != "single":
            printed = paper.spreads.get(row.structure)
            told = (
                "-" if printed is None else f"{printed[0]:.1f} ± {printed[1]:.1f}; {printed[2]:.1f} ± {printed[3]:.1f}"
            )
            paths = f"{row.paths}" + (f" ({row.distinct} different)" if row.distinct != row.paths else "")
            rows.append(
                (NAMES[row.structure], paths, *_with_deviations(row),
                 f"{row.best}: {percent(row.best_share)}", percent(row.held_out), told)
            )  # fmt: skip
    if not rows:
        return []
    note = (
        "Mean ± σ over paths, every order counted (mirrors are alike). Held out: the path that is best on one half of the questions, "
        "looked at on the other half (mean of 200 splits): what choosing the best path is really worth. Source: its accuracy and "
        "seconds over paths."
    )
    columns = ("structure", "paths", "right, %", "seconds", "best path", "held out", "source")
    return [
        Table("Spread over paths", columns, tuple(rows), note),
        *(
            [
                Picture(
                    "spread",
                    plots.spread(content),
                    "One mark per path, the bar is their mean; dashed: the best single model.",
                )
            ]
            if plots.spread(content)
            else []
        ),
    ]


def _with_deviations(row: StructureRow) -> tuple[str, str]:
    """Without them where all paths are one: its copies do not spread."""
    if row.distinct == 1:
        return number(100 * row.mean), number(row.seconds)
    return with_deviation(100 * row.mean, 100 * row.sd), with_deviation(row.seconds, row.seconds_sd)


def _paths(content: Content) -> list[Block]:
    grid = content.grid
    printed = _printed_paths(content)
    rows, theirs = [], set()
    for wiring in grid.wirings:
        found = [content.cell(task, wiring) for task in grid.tasks]
        row = [wiring, NAMES[grid.structure(wiring)]]
        row += [
            f"{c.right}/{c.answered} ({100 * c.low:.0f}-{100 * c.high:.0f}), {c.seconds:.1f} s" if c else "-"
            for c in found
        ]
        known = [c for c in found if c is not None]
        whole = len(known) == len(
            found
        )  # a mean over other tasks than its neighbours' would stand there as if it were theirs
        row += [
            percent(mean([c.share for c in known])) if whole else "-",
            number(mean([c.seconds for c in known])) if whole else "-",
            number(mean([c.completion_tokens for c in known])) if whole else "-",
        ]
        rows.append(tuple(row))
        if wiring in printed:
            theirs.add(len(rows))
            rows.append(("source: " + printed[wiring][0], "", *printed[wiring][1], "", "", ""))
    columns = ("wiring", "structure", *grid.tasks, "mean, %", "mean s", "tokens written")
    note = "Right of answered (95 %, Wilson), mean seconds."
    twins = [f"{p.wiring} = {p.twin}" for p in grid.paths if p.twin is not None]
    if twins:
        note += f" Not asked, because the order of a group's members never shows: {len(twins)} mirrors."
    blocks: list[Block] = [
        Table(
            "Right answers and seconds of every path", columns, tuple(rows), note, texts=2, emphasis=frozenset(theirs)
        )
    ]
    if content.mirrors:
        checked = tuple((m.wiring, m.twin, f"{m.same} of {m.asked}") for m in content.mirrors)
        different = sum(m.asked - m.same for m in content.mirrors)
        said = (
            "The mirrors that were asked said the same to the letter."
            if not different
            else f"{different} answers of mirrors differed: the symmetry does not hold here."
        )
        blocks += [Text(said), Table("Mirrors asked", ("mirror", "twin", "same text"), checked, texts=2)]
    return blocks


def _printed_paths(content: Content) -> dict[str, tuple[str, list[str]]]:
    """Wiring → the source experiment's path of the corresponding models, and its accuracies on our tasks."""
    paper, names = content.published, content.corresponds
    found: dict[str, tuple[str, list[str]]] = {}
    for path in content.grid.paths:
        table = paper.paths.get(path.structure, {})
        if all(name in names for name in path.order):
            theirs = path.wiring
            for ours in sorted(path.order, key=len, reverse=True):
                theirs = theirs.replace(ours, f"\0{names[ours]}")
            theirs = theirs.replace("\0", "")
            if theirs in table:
                row = [
                    f"{table[theirs][paper.tasks.index(t)]:g} %" if (t := paper.task(task)) else "-"
                    for task in content.grid.tasks
                ]
                if any(value != "-" for value in row):
                    found.setdefault(path.twin or path.wiring, (theirs, row))
    return found


def _losses(content: Content) -> list[Block]:
    def interesting(cell: Cell) -> bool:
        return bool(cell.none or cell.cut or cell.failed)

    rows = tuple(
        (c.task, c.wiring, str(c.answered), str(c.none), str(c.cut), str(c.failed), str(c.missing))
        for c in content.cells
        if interesting(c)
    )
    if not rows:
        return []
    note = (
        "No answer found: the text gives none; it counts as not right. Cut: out of tokens. Failed: the gateway or a model "
        "broke down; asked again by the next sitting."
    )
    columns = ("task", "wiring", "answered", "no answer found", "cut", "failed", "not asked yet")
    blocks: list[Block] = [Table("Losses", columns, rows, note, texts=2)]
    errors = sorted({f"{r.wiring}: {r.error}" for r in content.grid.records.values() if r.error is not None})
    return blocks + [Text(f"Failure: {error}") for error in errors[:10]]


def _method(content: Content) -> list[Block]:
    run, settings = content.run, content.run.settings
    machine = run.notes.get("machine") or {}
    asked = ", ".join(f"{task} {len(ids)}" for task, ids in run.tasks.items())
    facts = [
        ("questions", asked),
        ("paths", f"{len(run.paths)}, {len(content.grid.wirings)} of them different"),
        ("answers", f"{sum(c.answered for c in content.cells)}, {content.failed} failed, {content.incomplete} missing"),
        ("settings", ", ".join(f"{key} {value}" for key, value in settings.value().items() if value is not None)),
        ("machine", ", ".join(f"{key} {value}" for key, value in machine.items() if value not in (None, ""))),
        *((f"sitting {place}", _sitting(told)) for place, told in enumerate(run.notes.get("sittings", ()), 1)),
        ("corresponding models", ", ".join(f"{ours} = {theirs}" for ours, theirs in content.corresponds.items())),
        (
            "prices, per million tokens read / written",
            ", ".join(f"{m} {p.prompt:g}/{p.completion:g}" for m, p in content.prices.items()),
        ),
        ("command", str(run.notes.get("command", ""))),
        ("made", content.made),
    ]
    return [Table("Run", ("what", "value"), tuple((name, value) for name, value in facts if value), texts=2)]


def _sitting(told: Mapping[str, Any]) -> str:
    """Of a run over several: when, at how many questions at a time, and what was another machine or code than the one before."""
    machine = told.get("machine") or {}
    parts = [
        str(told.get("began", "")),
        f"{told.get('concurrency', 1)} at a time",
        *(f"{k} {machine[k]}" for k in ("cpu", "commit") if machine.get(k)),
    ]
    return ", ".join(part for part in parts if part)
