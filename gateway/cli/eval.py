"""`modelnet eval`: which wiring is worth it, for these questions and these models.

    modelnet eval TASK…           ask, and write a report (`run` may be left out)
    modelnet eval report RUN      write the report again
    modelnet eval compare A B     two runs, wiring by wiring
    modelnet eval paper           the source experiment's printed tables, recomputed

Exit codes: 0 all is answered; 1 something failed; 2 what was asked for is wrong; 3 a budget ended the sitting; 130 interrupted. In the
last two cases the same command goes on where this one stopped.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

STOPPED, INTERRUPTED = 3, 130


class _Default(TyperGroup):
    """`eval TASK` is `eval run TASK`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


eval_app = typer.Typer(
    name="eval",
    cls=_Default,
    help="Find the wiring that is worth it: ask question sets, compare wirings, write a report.",
    no_args_is_help=True,
)

Run = Annotated[Path, typer.Argument(help="Directory of a run.")]


@eval_app.command()
def run(
    tasks: Annotated[
        list[str],
        typer.Argument(
            help="Question sets: a .jsonl or .csv file, a built-in one (arithmetic, equations, derivatives, logic), or "
            "hf:REPOSITORY[:CONFIGURATION[:SPLIT]]. Name=SOURCE gives it a name."
        ),
    ],
    models: Annotated[str, typer.Option(help="Models for the paths of the paper's experiment, e.g. a,b,c.")] = "",
    structures: Annotated[str, typer.Option(help="Of these structures.")] = "single,si,pi,s2p,p2s",
    wirings: Annotated[
        list[str] | None, typer.Option("--wiring", "-w", help="A wiring to ask, too (repeatable).")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Start a gateway from this file; default: the demo's."),
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="Ask this running gateway instead.")] = None,
    key_env: Annotated[
        str, typer.Option(help="Environment variable that holds the gateway's key.")
    ] = "MODELNET_API_KEY",
    questions: Annotated[
        int | None, typer.Option("--questions", "-n", min=1, help="Ask the first so many of each task.")
    ] = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw them with the seed; more of them keep the ones drawn before.")
    ] = False,
    columns: Annotated[str, typer.Option(help="Rename fields, e.g. question=problem,answer=solution.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Budget of the answer, tokens.")] = 400,
    stage_tokens: Annotated[
        int | None, typer.Option(min=1, help="Budget of every stage before, tokens; default: the gateway's.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 is greedy, as in the paper.")] = 0.0,
    prompts: Annotated[str, typer.Option(help="The prompt set: paper, default, or one of the gateway's.")] = "paper",
    seed: Annotated[int, typer.Option(help="Of generated questions, order, sampling and resampling.")] = 0,
    concurrency: Annotated[
        int,
        typer.Option(min=1, help="Questions at a time. More is faster in all; the seconds are then no single user's."),
    ] = 1,
    judge: Annotated[str | None, typer.Option(help="Wiring that judges answers of the kind judge.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only show what it would cost.")] = False,
    probe: Annotated[
        bool, typer.Option("--probe", help="With --plan: ask every model one question first, to know the time.")
    ] = False,
    budget_time: Annotated[str | None, typer.Option(help="Begin nothing new after this time: 90s, 30m, 2h.")] = None,
    budget_tokens: Annotated[
        str | None, typer.Option(help="… after so many tokens, read and written: 200k, 1M.")
    ] = None,
    budget_money: Annotated[float | None, typer.Option(help="… after so much money; needs --price.")] = None,
    price: Annotated[
        list[str] | None,
        typer.Option(help="MODEL=READ/WRITTEN, of a million tokens (repeatable)."),
    ] = None,
    check_symmetry: Annotated[
        int, typer.Option(min=0, help="Ask mirrors (other orders of a group) so many questions of each task, too.")
    ] = 0,
    corresponds: Annotated[
        str, typer.Option(help="Which of the paper's models ours stand for, e.g. a=Qwen,b=Yi,c=Ds.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="Directory of the run; default: .eval/ and a name made from what is asked.")
    ] = None,
    texts: Annotated[bool, typer.Option(help="Put questions and answers into the HTML report.")] = True,
) -> None:
    """Ask every wiring every question, resume what was interrupted, and write a report."""
    from gateway.cli.check import complain, read_config
    from gateway.cli.demo import pull
    from gateway.evaluation.errors import EvaluationError, SpecError
    from gateway.evaluation.runner import Budget
    from gateway.evaluation.sitting import Order
    from gateway.evaluation.spec import Settings
    from gateway.observability.logs import setup_logs
    from gateway.settings import SettingsError
    from gateway.weights import WeightsError
    from strategies.topology import TopologyError

    setup_logs("critical", "console")  # what fails is kept beside the answers
    try:
        settings = Settings(max_tokens, stage_tokens, temperature, seed, prompts, judge)
        prices = _prices(price or [])
        _check_money(budget_money, prices)
        order = Order(
            tasks, _split(models), _split(structures), wirings or [], settings, out,
            loaded=None if base_url or (plan and not probe) else read_config(config),
            base_url=base_url, key=os.environ.get(key_env),
            count=questions, sample=sample, columns=_pairs(columns, "--columns"), concurrency=concurrency,
            budget=Budget(_seconds(budget_time), _tokens(budget_tokens), budget_money), prices=prices,
            check_symmetry=check_symmetry, plan_only=plan, probe=probe, corresponds=_pairs(corresponds, "--corresponds"),
            command=_command(),
        )  # fmt: skip
        if order.loaded is not None:
            pull(order.loaded)
        code = _sit(order, texts)
    except (SettingsError, SpecError, TopologyError, WeightsError) as error:
        code = complain(error)
    except EvaluationError as error:
        complain(error)
        code = 1
    raise typer.Exit(code)


def _sit(order: Any, texts: bool) -> int:
    """One sitting and its report. Returns the exit code."""
    from rich.console import Console

    from gateway.cli.check import say
    from gateway.evaluation.sitting import directory_of, spec_of
    from gateway.evaluation.sitting import run as sit

    console = Console(stderr=True, highlight=False)
    try:
        directory, state = sit(order, Console(highlight=False) if order.plan_only else console)
    except KeyboardInterrupt:
        say(
            f"interrupted; what was answered is in {directory_of(order, spec_of(order))}, and the same command goes on from there"
        )
        return INTERRUPTED
    if state is None:
        return 0
    _report(directory, directory, ("html", "md", "json", "tex"), texts)
    for wiring, reason in state.abandoned.items():
        say(f"{wiring} was left alone after failing several times in a row: {reason}")
    if state.failed:
        say(
            f"{state.failed} questions failed, the last one: {(state.last_error or '').rstrip('.')}. The same command asks them again."
        )
        return 1
    if state.why != "done":
        left = state.total - state.finished_before - state.done
        say(f"the {state.why} budget is spent; {left} questions are left, and the same command goes on")
        return STOPPED
    return 0


def _report(run: Path, out: Path, formats: tuple[str, ...], texts: bool) -> None:
    from rich.console import Console

    from gateway.cli.eval_view import overview
    from gateway.evaluation.report.content import build
    from gateway.evaluation.report.write import write
    from gateway.evaluation.store import read_run

    content = build(read_run(run))
    written = write(content, out, formats, texts)
    console = Console(highlight=False)
    console.print(overview(content))
    for file in written:
        console.print(f"[dim]{file}[/]", soft_wrap=True)


@eval_app.command()
def report(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="Directory for the files; default: the run's own.")] = None,
    formats: Annotated[str, typer.Option("--format", "-f", help="Of html, md, json, tex.")] = "html,md,json,tex",
    texts: Annotated[bool, typer.Option(help="Put questions and answers into the HTML report.")] = True,
) -> None:
    """Write a run's report again: HTML, Markdown, JSON and LaTeX."""
    from gateway.cli.check import complain
    from gateway.evaluation.errors import EvaluationError
    from gateway.evaluation.report.write import FORMATS

    chosen = tuple(_split(formats))
    if unknown := [name for name in chosen if name not in FORMATS]:
        raise typer.Exit(complain(ValueError(f"no format {unknown[0]!r}: there are {', '.join(FORMATS)}")))
    try:
        _report(run, out or run, chosen, texts)
    except EvaluationError as error:
        raise typer.Exit(complain(error)) from error


@eval_app.command()
def compare(
    a: Run,
    b: Run,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Two runs of the same questions: what changed, wiring by wiring, and whether it holds."""
    import json

    from rich.console import Console

    from gateway.cli.check import complain
    from gateway.cli.eval_view import comparison
    from gateway.evaluation.compare import compare_runs
    from gateway.evaluation.errors import EvaluationError
    from gateway.evaluation.report.as_json import plain
    from gateway.evaluation.store import read_run

    try:
        found = compare_runs(read_run(a), read_run(b))
    except EvaluationError as error:
        raise typer.Exit(complain(error)) from error
    if as_json:
        typer.echo(json.dumps(plain(found), ensure_ascii=False, indent=1))
    else:
        Console(highlight=False).print(comparison(found))


@eval_app.command()
def paper() -> None:
    """The source experiment's printed means, spreads and best paths, recomputed from its own tables."""
    from rich.console import Console

    from gateway.cli.eval_view import recomputed
    from gateway.evaluation.report.content import published

    Console(highlight=False).print(recomputed(published()))


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _pairs(text: str, option: str) -> dict[str, str]:
    from gateway.evaluation.errors import SpecError

    found = {}
    for part in _split(text):
        left, equals, right = part.partition("=")
        if not (left and equals and right):
            raise SpecError(f"{option}: {part!r} is not of the form a=b")
        found[left.strip()] = right.strip()
    return found


def _prices(texts: list[str]) -> dict[str, Any]:
    from gateway.evaluation.errors import SpecError
    from strategies.evaluation.summary import Price

    found = {}
    for text in texts:
        match = re.fullmatch(r"([^=]+)=(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)", text)
        if match is None:
            raise SpecError(f"--price: {text!r} is not of the form MODEL=READ/WRITTEN")
        found[match[1]] = Price(float(match[2]), float(match[3]))
    return found


def _check_money(budget: float | None, prices: dict[str, Any]) -> None:
    from gateway.evaluation.errors import SpecError

    if budget is not None and not prices:
        raise SpecError("--budget-money needs the models' prices: --price MODEL=READ/WRITTEN")


def _seconds(text: str | None) -> float | None:
    return _scaled(text, {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}, "--budget-time: 90s, 30m, 2h")


def _tokens(text: str | None) -> int | None:
    found = _scaled(text, {"": 1, "k": 1e3, "K": 1e3, "M": 1e6}, "--budget-tokens: 5000, 200k, 1M")
    return None if found is None else int(found)


def _scaled(text: str | None, units: dict[str, float], usage: str) -> float | None:
    from gateway.evaluation.errors import SpecError

    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]?)", text.strip())
    if match is None or match[2] not in units:
        raise SpecError(f"{text!r} is not understood; {usage}")
    return float(match[1]) * units[match[2]]


def _command() -> str:
    """The command line, for the report: file names without the folders they are in."""
    import shlex
    import sys

    def shortened(arg: str) -> str:
        option, _, value = arg.rpartition("=")
        path = Path(value)
        known = "/" in value and (path.exists() or path.parent.is_dir())
        return f"{option}={path.name}" if known and option else path.name if known else arg

    return shlex.join(["modelnet", *map(shortened, sys.argv[1:])])
