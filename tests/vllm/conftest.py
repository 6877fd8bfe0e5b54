"""Two real engines, started when the first test needs them and ended with the run. Skipped where vLLM is not installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
for folder in (TESTS / "support", TESTS / "contract", TESTS / "e2e"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import vllm_engines  # noqa: E402
from vllm_engines import Engine  # noqa: E402

HERE = Path(__file__).parent
OTHERS = {"unknown", "plain"}
"""Fixtures that put an engine of another make in the place of one of the two."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests here that use an engine have the marker, and time for its start; those that end one come last."""
    others = []
    for item in items:
        if Path(item.path).parent == HERE and {"servers", "case"} & (used := set(item.fixturenames)):  # type: ignore[attr-defined]
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.timeout(1800))
            if used & OTHERS:
                others.append(item)
    items[:] = [item for item in items if item not in others] + others


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    """By model name; for tests that may end one."""
    reason = vllm_engines.why_not("smol", "qwen")
    if reason:
        pytest.skip(reason)
    logs = tmp_path_factory.mktemp("engines")
    found = {
        "smol": Engine("smol", logs / "smol.log", args=["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]),
        # Long inputs are read in several passes here.
        "qwen": Engine("qwen", logs / "qwen.log", core=1, args=["--max-num-batched-tokens", "256"]),
    }
    try:
        yield found
    finally:
        for engine in found.values():
            engine.stop()


@pytest.fixture
def engines(servers: dict[str, Engine]) -> dict[str, Engine]:
    """By model name; one that an earlier test has ended is started again."""
    vllm_engines.bring_up(servers.values())
    return servers
