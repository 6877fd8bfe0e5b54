"""One URL into one file: resumed after an interruption, retried after a failure, checked at the end.

While it is under way the bytes are in `<target>.part`, and `<target>.part.json` notes what they are part of (the server's
validator and the full size). A later call takes up there: `Range` with `If-Range`, so a file that changed in between is
sent from its start. `<target>` appears only complete and checked, by a rename.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import re
import shutil
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import aiohttp
import anyio
import anyio.to_thread

from gateway.weights.errors import ChecksumMismatch, DiskFull, DownloadFailed, Unreachable

CHUNK = 1 << 18
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)$")


@dataclass(frozen=True, slots=True)
class Policy:
    """Patience, in seconds where not said otherwise.

    attempts: tries in a row that bring no new byte. first_wait doubles with each of them, up to longest_wait (also the
    longest Retry-After that is obeyed). connect and read: per connection, per read. parallel: downloads at a time.
    """

    attempts: int = 5
    first_wait: float = 0.5
    longest_wait: float = 20.0
    connect: float = 15.0
    read: float = 30.0
    parallel: int = 4


@dataclass(frozen=True, slots=True)
class _Mark:
    """What the partial bytes are part of. validator: a strong ETag or a Last-Modified date; size in bytes."""

    validator: str | None
    size: int | None


class _Transient(Exception):
    """Worth another try; `wait` is what the server asked for, seconds."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


@asynccontextmanager
async def client(policy: Policy) -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client that honours the environment's proxies and certificate settings."""
    timeout = aiohttp.ClientTimeout(
        total=None, connect=policy.connect, sock_connect=policy.connect, sock_read=policy.read
    )
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=_trust(), limit=policy.parallel),
        timeout=timeout,
        trust_env=True,
        auto_decompress=False,
        requote_redirect_url=False,  # a signed URL must stay as it was signed
        headers={"Accept-Encoding": "identity", "User-Agent": "modelnet-gateway"},
    ) as session:
        yield session


def _trust() -> ssl.SSLContext:
    """The system's certificates, those that pip or requests are told to use, and certifi's where the system has none."""
    context = ssl.create_default_context()
    for variable in ("REQUESTS_CA_BUNDLE", "PIP_CERT"):
        if bundle := os.environ.get(variable):
            with suppress(OSError, ssl.SSLError):
                context.load_verify_locations(bundle)
    if not context.cert_store_stats()["x509_ca"]:
        for module in ("certifi", "pip._vendor.certifi"):
            with suppress(ImportError):
                context.load_verify_locations(importlib.import_module(module).where())
                break
    return context


async def fetch(
    session: aiohttp.ClientSession,
    url: str,
    target: Path,
    *,
    policy: Policy,
    sha256: str | None = None,
    size: int | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> None:
    """Bring `url` (http, https or file) to `target`; return at once if it is there, for then it was checked.

    sha256, size: what it must be, where known. advance: told the bytes done, those of an earlier run first.
    Raises Unreachable, ChecksumMismatch, DownloadFailed, DiskFull. Partial bytes stay, except wrong ones.
    """
    if target.exists():
        advance(target.stat().st_size)
        return
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        part = _part(target)
        kept = part.stat().st_size if part.exists() else 0
        advance(kept)
        for resumed in (True, False) if kept else (False,):
            await _complete(session, url, target, policy, size, advance)
            actual = await anyio.to_thread.run_sync(digest, part)
            if sha256 is None or actual == sha256:
                break
            advance(-part.stat().st_size)
            forget(target)
            if not resumed:
                raise ChecksumMismatch(urlsplit(url).path.rpartition("/")[2], sha256, actual)
        part.rename(target)
        forget(target)


def forget(target: Path) -> None:
    """Drop what is kept of an unfinished download."""
    _part(target).unlink(missing_ok=True)
    _mark(target).unlink(missing_ok=True)


def digest(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the system's errors on writing beside `path` into ones for people."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space left in {path.parent}; what arrived is kept for the next try") from error
        raise DownloadFailed(f"can't write {path}: {error.strerror or error}") from error


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _mark(target: Path) -> Path:
    return target.with_name(target.name + ".part.json")


def _read_mark(target: Path) -> _Mark:
    try:
        return _Mark(**json.loads(_mark(target).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return _Mark(None, None)


async def _complete(
    session: aiohttp.ClientSession,
    url: str,
    target: Path,
    policy: Policy,
    size: int | None,
    advance: Callable[[int], None],
) -> None:
    """Fill the partial file to its end, with as many attempts as bring something."""
    if urlsplit(url).scheme == "file":
        _start_over(target, advance)
        await anyio.to_thread.run_sync(_copy, url, target)
        advance(_part(target).stat().st_size)
        return
    fruitless = 0
    part = _part(target)
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            await _attempt(session, url, target, size, advance)
            return
        except _Transient as error:
            fruitless = 0 if part.exists() and part.stat().st_size > before else fruitless + 1
            if fruitless >= policy.attempts:
                raise Unreachable(f"{error} ({fruitless} attempts)") from error
            wait = error.wait if error.wait is not None else policy.first_wait * 2 ** max(fruitless - 1, 0)
            await anyio.sleep(min(wait, policy.longest_wait))


async def _attempt(
    session: aiohttp.ClientSession, url: str, target: Path, size: int | None, advance: Callable[[int], None]
) -> None:
    """One request. Raises _Transient where another may do better."""
    part, mark = _part(target), _read_mark(target)
    have = part.stat().st_size if part.exists() else 0
    if have and mark.size is not None and have == mark.size:
        return
    if have and (mark.validator is None or mark.size is None or have > mark.size):
        have = _start_over(target, advance)
    headers = {"Range": f"bytes={have}-", "If-Range": mark.validator} if have and mark.validator else {}
    host = urlsplit(url).hostname
    try:
        async with session.get(url, headers=headers) as response:
            if response.status == 206 and _continues(response, have, mark):
                pass
            elif response.status == 200:
                if have:
                    _start_over(target, advance)
                _begin(response, target, size)
            elif response.status in (206, 416):
                _start_over(target, advance)
                raise _Transient(f"{host} sent another range than the one asked for")
            elif response.status in _TRANSIENT:
                raise _Transient(f"{host} answered {response.status} {response.reason}", _retry_after(response))
            else:
                raise DownloadFailed(f"{host} answered {response.status} {response.reason}")
            with part.open("ab") as file:
                async for chunk in response.content.iter_chunked(CHUNK):
                    file.write(chunk)
                    advance(len(chunk))
    except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
        raise _Transient(reason(host, error)) from error
    except aiohttp.ClientError as error:
        raise DownloadFailed(f"{host}: {error}") from error
    expected, arrived = _read_mark(target).size, part.stat().st_size
    if expected is not None and arrived != expected:
        raise _Transient(f"{host} broke off after {arrived:,} of {expected:,} bytes")


def _begin(response: aiohttp.ClientResponse, target: Path, size: int | None) -> None:
    """A whole body is coming: refuse a wrong size before it does, note what it is."""
    length = response.content_length
    if size is not None and length is not None and length != size:
        raise DownloadFailed(f"the file there has {length:,} bytes, expected {size:,}")
    etag = response.headers.get("ETag")
    strong = etag if etag and not etag.startswith("W/") else None
    mark = _Mark(strong or response.headers.get("Last-Modified"), length)
    _mark(target).write_text(json.dumps(asdict(mark)), "utf-8")
    _part(target).write_bytes(b"")


def _start_over(target: Path, advance: Callable[[int], None]) -> int:
    part = _part(target)
    if part.exists():
        advance(-part.stat().st_size)
    forget(target)
    return 0


def _continues(response: aiohttp.ClientResponse, have: int, mark: _Mark) -> bool:
    """Does this partial answer go on where the file ends?"""
    found = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    return found is not None and int(found[1]) == have and int(found[2]) == mark.size


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else None


def reason(host: str | None, error: Exception) -> str:
    """A connection error in words."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"{host} shows a certificate that is not trusted here"
    if isinstance(error, TimeoutError):
        return f"{host} did not answer in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno  # negative: a name that does not resolve
        return f"can't reach {host}: {os.strerror(number) if number and number > 0 else error.os_error.strerror}"
    return f"the connection to {host} broke off"


def _copy(url: str, target: Path) -> None:
    source = Path(unquote(urlsplit(url).path))
    if not source.is_file():
        raise DownloadFailed(f"{source} does not exist")
    shutil.copyfile(source, _part(target))
