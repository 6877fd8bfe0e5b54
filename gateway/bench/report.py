"""A run's numbers: as tables that fit 80 columns, as JSON, and beside an earlier run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from gateway.bench.machine import Commit, Machine

FORMAT = 1
"""Of the JSON file; a file of another format can't be compared with."""
TARGET = 0.1
"""ms of our own code per piece that three members at k = 20 should stay within."""

_COMPARED = ("speed", "first", "to slowest", "to sum", "fuser", "engine", "resident", "anonymous")


@dataclass(frozen=True, slots=True)
class Number:
    """A measured quantity. of: the wiring, or the moment. samples: raw, in the order of measuring, at least one. k: tokens that each
    member listed, where that matters."""

    measure: str
    of: str
    unit: str
    samples: tuple[float, ...]
    k: int | None = None

    @property
    def value(self) -> float:
        """The median."""
        return statistics.median(self.samples)


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run. date: ISO 8601, UTC. settings: what was asked for. texts: recorded group → what it wrote."""

    version: str
    date: str
    commit: Commit | None
    machine: Machine
    settings: Mapping[str, Any]
    numbers: tuple[Number, ...]
    texts: Mapping[str, str]

    def find(self, measure: str, of: str, k: int | None = None) -> Number | None:
        """The number of that name, if it was measured."""
        return next((n for n in self.numbers if (n.measure, n.of, n.k) == (measure, of, k)), None)

    def as_json(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        return {
            "format": FORMAT,
            "version": self.version,
            "date": self.date,
            "commit": None if self.commit is None else asdict(self.commit),
            "machine": {**asdict(self.machine), "busy": self.machine.busy},
            "settings": dict(self.settings),
            "numbers": [{**asdict(n), "value": n.value} for n in self.numbers],
            "texts": dict(self.texts),
        }

    def write(self, file: Path) -> None:
        """As JSON; directories are made. Raises OSError."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(self.as_json(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read(file: Path) -> dict[str, Any]:
    """An earlier run's file. Raises OSError, and ValueError if it is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"{file}: written by another version; measure anew")
        _values(found)
        return {**found, "machine": dict(found["machine"]), "settings": dict(found["settings"])}
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: not a file that bench wrote") from error


def _values(earlier: Mapping[str, Any]) -> dict[tuple[str, str, int | None], float]:
    return {(n["measure"], n["of"], n["k"]): float(n["value"]) for n in earlier["numbers"]}


def tables(report: Report) -> RenderableType:
    """What there is to see, section by section."""
    parts: list[RenderableType] = [Text(_where(report)), *_warnings(report), Text(), _speed(report)]
    groups = [n.of for n in report.numbers if n.measure == "certified"]
    if groups:
        parts += [Text(), _exactness(report, groups)]
    if any(n.measure == "fuser" for n in report.numbers):
        parts += [Text(), _own(report)]
    parts += [Text(), _memory(report)]
    return Group(*parts)


def _where(report: Report) -> str:
    machine, commit = report.machine, report.commit
    load = "unknown" if machine.load is None else " ".join(f"{value:.1f}" for value in machine.load)
    memory = "" if machine.memory is None else f", {machine.memory / 2**30:.0f} GiB"
    code = "no checkout" if commit is None else f"commit {commit.id[:12]}{' with changes' if commit.dirty else ''}"
    settings = report.settings
    return (
        f"{machine.cpu}: {machine.cores} cores{memory}; load before: {load}\n"
        f"Python {machine.python}, llama-cpp-python {machine.llama_cpp_python or 'none'}, fuser {machine.fuser}, {code}\n"
        f"{settings['tokens']} tokens, {settings['rounds']} rounds, k {settings['top_k']}; medians"
    )


def _warnings(report: Report) -> list[RenderableType]:
    if not report.machine.busy:
        return []
    text = "The machine is busy with something else: trust the ratios inside this run, not its times."
    return [Text(text, style="bold yellow")]


def _table(title: str, *headings: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, header_style="dim", pad_edge=False, width=80
    )
    for index, heading in enumerate(headings):
        left = index == 0
        table.add_column(
            heading, justify="left" if left else "right", overflow="fold", no_wrap=not left, ratio=1 if left else None
        )
    return table


def _speed(report: Report) -> Table:
    table = _table("Speed", "wiring", "per s", "ms each", "first, s", "written", "to slowest", "to sum")
    for of in dict.fromkeys(n.of for n in report.numbers if n.measure == "written"):
        written = report.find("written", of)
        assert written is not None
        cells = [_cell(report, measure, of, shown) for measure, shown in (("speed", "{:.1f}"), ("time", "{:.1f}"))]
        cells.append(_cell(report, "first", of, "{:.2f}"))
        cells.append(f"{written.value:.0f} {written.unit}")
        cells += [_cell(report, measure, of, "{:.2f}") for measure in ("to slowest", "to sum")]
        table.add_row(Text(of), *cells)
    table.caption = "to slowest, to sum: a piece's time to that of its members' tokens, alone, same round"
    table.caption_justify = "left"
    return table


def _exactness(report: Report, groups: Sequence[str]) -> Table:
    table = _table("Exactness, per piece", "wiring", "certified", "looked up", "uncertified", "drift", "lost", "passes")
    for of in groups:
        shares = [_cell(report, m, of, "{:.1%}") for m in ("certified", "looked up", "uncertified")]
        rest = [_cell(report, m, of, shown) for m, shown in (("drift", "{:.3f}"), ("lost", "{:.3%}"))]
        table.add_row(Text(of), *shares, *rest, _cell(report, "passes", of, "{:.2f}"))
    return table


def _own(report: Report) -> Table:
    title = "Our own code, ms of processor time per piece, without the models"
    table = _table(title, "wiring", "k", "fuser cold", "fuser", "with engine", "tables, ms")
    for number in report.numbers:
        if number.measure == "fuser":
            of, k = number.of, number.k
            cells = [_cell(report, m, of, "{:.3f}", k) for m in ("fuser cold", "fuser", "engine")]
            table.add_row(Text(of), str(k), *cells, _cell(report, "tables", of, "{:.0f}", k))
    table.caption = (
        "fuser: choosing pieces and making text of them; with engine: also tasks, event loop and events, "
        f"over recorded sessions. Target for 3 members at k = 20: {TARGET} (fuser)"
    )
    table.caption_justify = "left"
    return table


def _memory(report: Report) -> Table:
    table = _table("Memory, MiB", "", "before loading", "after loading", "after the runs", "peak")
    for measure in ("resident", "anonymous"):
        moments = ("before loading", "after loading", "after the runs", "peak")
        cells = [_cell(report, measure, moment, "{:.0f}") for moment in moments]
        table.add_row(measure, *cells)
    return table


def _cell(report: Report, measure: str, of: str, shown: str, k: int | None = None) -> str:
    number = report.find(measure, of, k)
    return "-" if number is None else shown.format(number.value)


def comparison(report: Report, earlier: Mapping[str, Any]) -> RenderableType:
    """What both runs measured, with the ratio now / then."""
    then = _values(earlier)
    table = _table(f"Against {earlier['date']}", "of", "measure", "unit", "then", "now", "ratio")
    for n in report.numbers:
        before = then.get((n.measure, n.of, n.k))
        if n.measure in _COMPARED and before is not None:
            measure = n.measure if n.k is None else f"{n.measure}, k {n.k}"
            ratio = f"{n.value / before:.2f}" if before else "-"
            table.add_row(Text(n.of), measure, n.unit, f"{before:.4g}", f"{n.value:.4g}", ratio)
    return Group(*[Text(line, style="bold yellow") for line in _differences(report, earlier)], table)


def _differences(report: Report, earlier: Mapping[str, Any]) -> list[str]:
    """Why the comparison may be unfair."""
    lines = []
    machine, other = report.as_json()["machine"], earlier["machine"]
    changed = [key for key in ("cpu", "cores", "python", "llama_cpp_python", "fuser") if machine[key] != other.get(key)]
    if changed:
        lines.append(f"The earlier run was on another machine or environment: {', '.join(changed)} differ.")
    if other.get("busy"):
        lines.append("The machine was busy during the earlier run.")
    settings = [key for key, value in report.settings.items() if earlier["settings"].get(key) != value]
    if settings:
        lines.append(f"The earlier run had other settings: {', '.join(settings)}.")
    return lines
