"""One URL into one file, from a server that breaks off, changes and lies."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest
from file_server import FileServer, noise

from gateway.weights import ChecksumMismatch, DiskFull, DownloadFailed, Unreachable
from gateway.weights.download import Policy, client, fetch, writing

pytestmark = pytest.mark.anyio

CONTENT = noise(900_000, 1)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FAST = Policy(attempts=3, first_wait=0.0, longest_wait=0.0, connect=2.0, read=2.0)


class Meter:
    """Adds up what the download says it did."""

    total = 0

    def __call__(self, n: int) -> None:
        self.total += n


async def get(files: FileServer, target: Path, meter: Meter | None = None, sha256: str | None = SHA256) -> None:
    async with client(FAST) as session:
        await fetch(session, files.url + "/f", target, policy=FAST, sha256=sha256, advance=meter or Meter())


async def test_a_plain_download_is_complete_and_leaves_nothing_else(files: FileServer, tmp_path: Path) -> None:
    files.files["/f"] = CONTENT
    meter = Meter()
    await get(files, tmp_path / "f", meter)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert meter.total == len(CONTENT)


async def test_connections_that_break_off_are_resumed_where_they_ended(files: FileServer, tmp_path: Path) -> None:
    files.files["/f"] = CONTENT
    files.drop_after["/f"] = 250_000
    meter = Meter()
    await get(files, tmp_path / "f", meter)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert [asked.range for asked in files.asked] == [None, "bytes=250000-", "bytes=500000-", "bytes=750000-"]
    assert meter.total == len(CONTENT)


async def test_an_earlier_runs_bytes_are_taken_up(files: FileServer, tmp_path: Path) -> None:
    files.files["/f"] = CONTENT
    files.drop_after["/f"] = 400_000
    files.fail["/f"] = [0, 503, 503, 503]
    with pytest.raises(Unreachable, match="503"):
        await get(files, tmp_path / "f")
    files.drop_after.clear()
    files.asked.clear()
    meter = Meter()
    await get(files, tmp_path / "f", meter)
    assert [asked.range for asked in files.asked] == ["bytes=400000-"]
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert meter.total == len(CONTENT)


async def test_a_file_that_changed_since_is_sent_from_its_start(files: FileServer, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(b"x" * 1000)
    (tmp_path / "f.part.json").write_text('{"validator": "\\"old\\"", "size": 900000}')
    files.files["/f"] = CONTENT
    meter = Meter()
    await get(files, tmp_path / "f", meter)
    assert [asked.range for asked in files.asked] == ["bytes=1000-"]
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert meter.total == len(CONTENT)


async def test_kept_bytes_that_were_damaged_are_noticed_and_fetched_again(files: FileServer, tmp_path: Path) -> None:
    files.files["/f"] = CONTENT
    (tmp_path / "f.part").write_bytes(b"x" * 1000)
    (tmp_path / "f.part.json").write_text(f'{{"validator": "\\"{files.etag("/f")[1:-1]}\\"", "size": 900000}}')
    meter = Meter()
    await get(files, tmp_path / "f", meter)
    assert [asked.range for asked in files.asked] == ["bytes=1000-", None]
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert meter.total == len(CONTENT)


async def test_a_server_without_ranges_is_read_from_the_start(files: FileServer, tmp_path: Path) -> None:
    files.files["/f"], files.ranges = CONTENT, False
    (tmp_path / "f.part").write_bytes(CONTENT[:1000])
    (tmp_path / "f.part.json").write_text(f'{{"validator": "\\"{files.etag("/f")[1:-1]}\\"", "size": 900000}}')
    await get(files, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


async def test_wrong_bytes_are_refused_and_both_hashes_named(files: FileServer, tmp_path: Path) -> None:
    other = noise(900_000, 2)
    files.files["/f"] = other
    with pytest.raises(ChecksumMismatch) as caught:
        await get(files, tmp_path / "f")
    assert SHA256 in str(caught.value) and hashlib.sha256(other).hexdigest() in str(caught.value)
    assert list(tmp_path.iterdir()) == []


async def test_a_busy_server_is_asked_again(files: FileServer, tmp_path: Path) -> None:
    files.files["/f"] = CONTENT
    files.fail["/f"] = [503, 429]
    files.headers["/f"] = {"Retry-After": "3600"}  # obeyed only up to the longest wait, which is 0 here
    await get(files, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


async def test_attempts_end(files: FileServer, tmp_path: Path) -> None:
    files.files["/f"] = CONTENT
    files.fail["/f"] = [500] * 10
    with pytest.raises(Unreachable, match="500"):
        await get(files, tmp_path / "f")
    assert len(files.asked) == FAST.attempts


async def test_what_is_not_there_is_not_asked_for_twice(files: FileServer, tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match="404"):
        await get(files, tmp_path / "f")
    assert len(files.asked) == 1


async def test_nobody_listening(tmp_path: Path) -> None:
    async with client(FAST) as session:
        with pytest.raises(Unreachable, match=r"can't reach 127\.0\.0\.1"):
            await fetch(session, "http://127.0.0.1:9/f", tmp_path / "f", policy=FAST)


async def test_a_local_file_is_copied(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a b").write_bytes(CONTENT)
    url = (tmp_path / "source" / "a b").as_uri()
    meter = Meter()
    async with client(FAST) as session:
        await fetch(session, url, tmp_path / "f", policy=FAST, sha256=SHA256, advance=meter)
        with pytest.raises(DownloadFailed, match="does not exist"):
            await fetch(session, url + "c", tmp_path / "g", policy=FAST)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert meter.total == len(CONTENT)


def test_a_full_disk_is_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="no space left"), writing(tmp_path / "f"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(DownloadFailed, match="Permission denied"), writing(tmp_path / "f"):
        raise OSError(errno.EACCES, "Permission denied")
