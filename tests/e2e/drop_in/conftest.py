"""One gateway for each file of the suite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from inprocess import Gateway, serving


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with serving() as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def nothing_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test: no model is busy, every place and gauge was given back."""
    yield
    if "gateway" in request.fixturenames:
        found: Gateway = request.getfixturevalue("gateway")
        found.until(found.idle)
