"""A small part of what `make fuzz` does, always the same."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from fuzz import fuzz, made

COUNT = 1500


@pytest.mark.timeout(300)
def test_nothing_that_a_client_sends_breaks_the_gateway(tmp_path: Path) -> None:
    found = anyio.run(fuzz, tmp_path, 7, COUNT, 240.0, 0.1)
    assert not found.faults
    assert found.count == COUNT or found.count > COUNT / 4, "it was not given the time"
    good = sum(times for what, times in found.statuses.items() if what.endswith((" 200", " 201")))
    assert good > found.count / 10, "most of it must get further than the first check"


def test_an_input_is_a_function_of_its_number() -> None:
    def sent(seed: int, number: int) -> tuple[object, ...]:
        request = made(seed, number)[1]
        return request.method, request.path, request.headers, request.payload()

    assert all(sent(3, number) == sent(3, number) for number in range(200))
    assert sent(3, 1) != sent(4, 1)
