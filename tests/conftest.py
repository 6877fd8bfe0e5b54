"""Shared fixtures."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keys and ledgers that a test names no place for go to a folder of this run, never to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELNET_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def anyio_backend() -> str:
    """All asynchronous tests run on asyncio, as the product does."""
    return "asyncio"
