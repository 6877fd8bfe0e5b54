"""A file server on this machine that sends ranges and misbehaves on demand."""

from __future__ import annotations

import hashlib
import io
import random
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from gateway.weights.catalogue import Source, Weights


def noise(size: int, seed: int) -> bytes:
    """Bytes that don't compress."""
    return random.Random(seed).randbytes(size)


def wheel(members: dict[str, bytes]) -> bytes:
    """A zip archive such as a wheel."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def weights(content: bytes, *sources: Source, sha256: str | None = None, size: int | None = None) -> Weights:
    """An entry for `content`, or for something that claims to be it."""
    return Weights(
        name="tiny",
        file="tiny.gguf",
        bytes=len(content) if size is None else size,
        sha256=hashlib.sha256(content).hexdigest() if sha256 is None else sha256,
        licence="none",
        description="noise",
        sources=sources,
    )


@dataclass
class Asked:
    """A request that arrived."""

    method: str
    path: str
    range: str | None


@dataclass
class FileServer:
    """files: path → content. Every field but `url` may be changed while it runs.

    drop_after: path → body bytes after which each GET breaks off. fail: path → statuses to answer first, in order (0: as it should be).
    headers: path → more headers. redirect: path → another path, with the headers of the first.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    drop_after: dict[str, int] = field(default_factory=dict)
    fail: dict[str, list[int]] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    redirect: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    asked: list[Asked] = field(default_factory=list)
    gate: threading.Event | None = None

    def gets(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.method == "GET"]

    def etag(self, path: str) -> str:
        return self.etags.get(path, '"' + hashlib.md5(self.files[path]).hexdigest() + '"')


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    files: FileServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        files, path = self.files, self.path
        files.asked.append(Asked(self.command, path, self.headers.get("Range")))
        extra = files.headers.get(path, {})
        if body and files.fail.get(path) and (status := files.fail[path].pop(0)):
            return self._empty(status, extra)
        if path in files.redirect:
            return self._empty(302, {**extra, "Location": files.redirect[path]})
        if path not in files.files:
            return self._empty(404, {})
        if body and files.gate is not None:
            files.gate.wait(5)
        content, start = files.files[path], 0
        wanted = re.match(r"bytes=(\d+)-$", self.headers.get("Range", ""))
        if wanted and files.ranges and self.headers.get("If-Range", files.etag(path)) == files.etag(path):
            start = int(wanted[1])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        for name, value in {"ETag": files.etag(path), **extra}.items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return None
        rest = content[start:]
        cut = files.drop_after.get(path)
        if cut is None or cut >= len(rest):
            self.wfile.write(rest)
            return None
        self.wfile.write(rest[:cut])
        self.close_connection = True
        return None

    def _empty(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@contextmanager
def serve() -> Iterator[FileServer]:
    files = FileServer()
    handler = type("Handler", (_Handler,), {"files": files})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    files.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield files
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
