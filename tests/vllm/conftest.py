"""Two real engines, started when the first test needs them and ended with the run. Skipped where they can't be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
for folder in (TESTS / "support", TESTS / "contract"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import vllm_engines  # noqa: E402
from vllm_engines import Engine  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests here that use an engine have the marker, and time for its start."""
    for item in items:
        if Path(item.path).parent == Path(__file__).parent and {"engines", "case"} & set(item.fixturenames):  # type: ignore[attr-defined]
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    """By model name. A test that ends one starts it again."""
    reason = vllm_engines.why_not("smol", "qwen")
    if reason:
        pytest.skip(reason)
    logs = tmp_path_factory.mktemp("engines")
    found = {
        "smol": Engine("smol", logs / "smol.log"),
        # Long inputs are read in several passes here.
        "qwen": Engine("qwen", logs / "qwen.log", core=1, args=["--max-num-batched-tokens", "256"]),
    }
    try:
        for engine in found.values():
            engine.launch()
        for engine in found.values():
            engine.wait()
        yield found
    finally:
        for engine in found.values():
            engine.stop()
