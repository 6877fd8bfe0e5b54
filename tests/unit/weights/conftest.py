"""The file server as a fixture."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from file_server import FileServer, serve


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """The server, which is also the hub of this test; no proxy in between."""
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    with serve() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
