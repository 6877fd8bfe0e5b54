"""Where the gateway keeps what must outlive it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from gateway.storage.database import POSTGRES


def state_file(name: str) -> Path:
    """`$MODELNET_STATE/name`, by default in `$XDG_STATE_HOME/modelnet` or `~/.local/state/modelnet`. Nothing is created."""
    if given := os.environ.get("MODELNET_STATE"):
        return Path(given).expanduser() / name
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "modelnet" / name


def target(written: str | None, default: str, resolve: Callable[[str], Path]) -> str:
    """What `open_database` takes: a URL as it is written, a path as `resolve` reads it, else the default's place."""
    if written is None:
        return str(state_file(default))
    return written if written.startswith(POSTGRES) else str(resolve(written))


def is_there(place: str) -> bool:
    """Whether a database may hold something already: a file that exists, or any server."""
    return place.startswith(POSTGRES) or Path(place).exists()
