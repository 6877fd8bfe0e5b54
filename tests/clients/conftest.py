"""Environments of clients and gateways for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from environments import ALWAYS, Environment, NotInstalled
from scripts import scripted


@pytest.fixture(scope="session")
def gateway_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of scripted models, up to and with `/v1`."""
    with scripted(tmp_path_factory.mktemp("gateway")) as url:
        yield url


@pytest.fixture(scope="session")
def environment() -> Callable[[str], Environment]:
    """By name, made where it is not there; skips where that can't be. Beyond those of every run only with MODELNET_CLIENTS=all."""
    failed: dict[str, str] = {}

    def get(name: str) -> Environment:
        found = Environment(name)
        if name not in ALWAYS and os.environ.get("MODELNET_CLIENTS") != "all":
            pytest.skip("not in every run (make test-clients runs it)")
        if name not in failed:
            try:
                found.make()
            except NotInstalled as error:
                failed[name] = f"its environment can't be made: {error}"
        if name in failed:
            pytest.skip(failed[name])
        return found

    return get


COUNTED = pytest.StashKey[list[tuple[str, dict[str, list[str]]]]]()


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> Callable[[dict[str, list[str]]], None]:
    """Takes outcome → names, for the table at the end of the run."""
    table = request.config.stash.setdefault(COUNTED, [])
    return lambda outcomes: table.append((request.node.name, outcomes))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What each client counted, and why it skipped."""
    table = config.stash.get(COUNTED, [])
    if table:
        terminalreporter.section("clients")
    for name, outcomes in table:
        counts = ", ".join(f"{len(names)} {outcome}" for outcome, names in outcomes.items())
        terminalreporter.write_line(f"{name}: {counts}")
    why = {skipped for _, outcomes in table for skipped in outcomes.get("skipped", ())}
    for line in sorted(why):
        terminalreporter.write_line(f"  skipped {line}")
