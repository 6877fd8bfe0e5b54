"""Shared fixtures."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """All asynchronous tests run on asyncio, as the product does."""
    return "asyncio"
