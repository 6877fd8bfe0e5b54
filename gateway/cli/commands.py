"""The commands and their options. What they do is in the modules they import.

Exit codes: 0 done; 1 it failed; 2 what was asked for is wrong (options, configuration, wiring).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.eval import eval_app
from gateway.cli.experiment import experiment_app
from gateway.cli.keys import keys_app
from gateway.cli.models import models_app

app = typer.Typer(
    name="modelnet",
    help="Several language models answer as one, behind the OpenAI API: the model name is the wiring.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(models_app)
app.add_typer(keys_app)
app.add_typer(experiment_app)
app.add_typer(eval_app)

Config = Annotated[Path | None, typer.Option("--config", "-c", help="Configuration file; default: the demo's.")]


def _version(asked: bool) -> None:
    if asked:
        from gateway import __version__

        typer.echo(f"modelnet {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before any command."""


@app.command()
def serve(
    config: Config = None,
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to serve on; 0 takes a free one.")] = 8000,
) -> None:
    """Serve the OpenAI API."""
    from gateway.cli.serve import serve as run

    raise typer.Exit(run(config, host, port))


@app.command()
def check(
    config: Annotated[Path | None, typer.Argument(help="Configuration file; default: the demo's.")] = None,
    drafts: Annotated[
        bool,
        typer.Option(
            "--drafts", help="Start its models, and measure how far their scored drafts are from single steps."
        ),
    ] = False,
) -> None:
    """Validate a configuration; show its models and aliases, or what is wrong with file, line and key."""
    if drafts:
        from gateway.cli.draft_check import check_drafts

        raise typer.Exit(check_drafts(config))
    from gateway.cli.check import check as run

    raise typer.Exit(run(config))


@app.command()
def plan(
    wiring: Annotated[
        str, typer.Argument(help='The wiring, e.g. "s2p:qwen>ds|yi". Quote it: > and | mean something to shells.')
    ],
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Check the names against this configuration, and expand its aliases."),
    ] = None,
) -> None:
    """Draw what a wiring would run, as a tree."""
    from gateway.cli.check import plan as run

    raise typer.Exit(run(wiring, config))


@app.command()
def demo(
    config: Config = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to serve on; 0 takes a free one.")] = 8000,
    once: Annotated[bool, typer.Option("--once", help="End after the answer.")] = False,
    question: Annotated[str | None, typer.Option(help="What to ask.")] = None,
    wiring: Annotated[str, typer.Option(help="The wiring or alias to ask.")] = "demo",
) -> None:
    """Pull the demo's weights, serve them, and answer one question in the terminal."""
    from gateway.cli.demo import QUESTION
    from gateway.cli.demo import demo as run

    raise typer.Exit(run(config, port, once, question or QUESTION, wiring))


@app.command()
def bench(
    config: Config = None,
    wirings: Annotated[
        list[str] | None,
        typer.Option("--wiring", "-w", help="Measure this one (repeatable); default: pairs and a group of three."),
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=2, help="Tokens of every answer; default: 64.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Times that everything is asked; default: 3.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A first impression: 24 tokens, one round.")] = False,
    out: Annotated[Path, typer.Option(help="Write all numbers and their samples there, as JSON.")] = Path(
        ".bench/latest.json"
    ),
    against: Annotated[Path | None, typer.Option(help="Compare with the file of an earlier run.")] = None,
) -> None:
    """Measure the models alone and together, what our own code takes of it, and memory."""
    from gateway.cli.bench import bench as run

    raise typer.Exit(run(config, wirings or [], tokens, rounds, quick, out, against))


@app.command()
def top(
    url: Annotated[str, typer.Argument(help="Address of the gateway, without /v1.")] = "http://127.0.0.1:8000",
    once: Annotated[
        bool, typer.Option("--once", help="Print it once, over all the time since the gateway began.")
    ] = False,
    interval: Annotated[float, typer.Option(min=0.2, max=60, help="Seconds between two looks.")] = 2.0,
) -> None:
    """Watch a running gateway: requests, times, models, breakers, queues. A key is taken from $MODELNET_API_KEY."""
    import os

    from gateway.cli.top import top as run

    # Not an option: what stands on a command line can be read by everyone on the machine.
    raise typer.Exit(run(url, once, interval, os.environ.get("MODELNET_API_KEY")))
