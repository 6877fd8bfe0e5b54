"""What was worked out about vocabularies, kept in a folder from one process to the next.

An entry is a few numpy arrays under a name that says all that they depend on (a digest). It is written whole or not at all, and read
only if it is what was written: a file that is cut, changed, somebody else's or of another format counts as none, and is replaced.
Nothing in it is ever run: numpy's own format, without pickled objects. The folder takes so many bytes at most; what was not used for
longest goes first.

Nobody need keep anything: without a folder, or with one that can't be written, everything is worked out anew.
"""

from __future__ import annotations

import io
import os
import secrets
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = "1"
"""Part of every name's digest: another way to write or to work out entries must change it."""
MOST_BYTES = 128 << 20
"""An entry takes about 4 bytes per token and set of tokenizers: 4 MB for three large ones."""
ABANDONED = 3600.0
"""Seconds after which a file that is only half written will never be finished."""

_END, _HALF = ".npz", ".part"


class Shelf:
    """One folder of entries. Safe to use from several threads and processes at once; nothing here raises OSError."""

    __slots__ = ("_folder", "_most")

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        """folder: it need not exist; nothing else should be in it."""
        self._folder = folder
        self._most = most_bytes

    def get(self, name: str) -> Mapping[str, NDArray[Any]] | None:
        """The arrays that were put under this name; None if there are none that can be trusted."""
        path = self._path(name)
        try:
            if path.stat().st_size > self._most:
                return None
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
                found = {key: archive[key] for key in archive.files}  # the checksum of each is compared
        except (OSError, EOFError, KeyError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile):
            return None
        if str(found.pop("name", "")) != name:
            return None
        with suppress(OSError):
            os.utime(path)
        return found

    def put(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep arrays (of numbers) under a name. Does nothing if that is not possible."""
        buffer = io.BytesIO()
        named: dict[str, Any] = {**arrays, "name": np.array(name)}
        np.savez(buffer, **named)
        path = self._path(name)
        half = path.with_suffix(f".{os.getpid()}-{secrets.token_hex(4)}{_HALF}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            half.write_bytes(buffer.getbuffer())
            half.replace(path)
        except OSError:
            with suppress(OSError):
                half.unlink(missing_ok=True)
            return
        self._make_room()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{_END}"

    def _make_room(self) -> None:
        left, old = self._most, time.time() - ABANDONED
        files: list[tuple[float, int, Path]] = []
        with suppress(OSError):
            for path in self._folder.iterdir():
                with suppress(OSError):  # another process was quicker
                    stat = path.stat()
                    if path.suffix == _END:
                        files.append((stat.st_mtime, stat.st_size, path))
                    elif path.suffix == _HALF and stat.st_mtime < old:
                        path.unlink()
        for _, size, path in sorted(files, reverse=True):
            left -= size
            if left < 0:
                with suppress(OSError):
                    path.unlink()


_used: list[Shelf] = []


def keep_in(folder: Path | None, most_bytes: int = MOST_BYTES) -> None:
    """From now on what is worked out about vocabularies is kept in this folder, for the whole process. None: nowhere, as at first."""
    _used[:] = [] if folder is None else [Shelf(folder, most_bytes)]


@contextmanager
def keeping_in(folder: Path | None) -> Iterator[None]:
    """The same for the time of a block, for measuring."""
    before = list(_used)
    keep_in(folder)
    try:
        yield
    finally:
        _used[:] = before


def shelf() -> Shelf | None:
    """Where things are kept, if anywhere."""
    return _used[0] if _used else None
