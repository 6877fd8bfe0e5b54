"""Fuzzes the gateway: names, bodies, headers, methods, paths and bytes, by changing valid requests to every endpoint.

    python tests/fuzz/fuzz.py [--seed N] [--count 200000] [--seconds 3600] [--socket 0.1] [--only INDEX]

No input may be answered with a 5xx, but a 504 to one that asked for less time; leave a traceback in an answer or an error in the log;
take long; be answered with anything that is not OpenAI's form; or leave anything running. Every input is a function of seed and number
alone: `--only` makes a single one again and shows it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import json
import logging
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from fuzz_mutations import mutated
from fuzz_requests import Request, valid
from fuzz_socket import framed, talk
from fuzz_target import Reply, Target, target

FINE = frozenset({200, 201, 204, 400, 401, 403, 404, 405, 409, 413, 415, 429, 431})
AT_ONCE = 8
CPU_SECONDS = 3.0
"""Of the whole process, for one input that is alone."""
HUNG_SECONDS = 60.0
LARGEST_ERROR = 13_000
"""Bytes of the body of an error: it repeats a little of what was sent, not all of it (2,000 characters, escaped at worst)."""
UNTOUCHED = 0.1
"""Part of the inputs that stay valid."""
SLOWEST = 20
"""That many are asked again, alone, to see what they cost."""

MOST_FAULTS = 50
"""After so many it stops."""
LARGEST_METRICS = 1_000_000
"""Bytes: clients can't make them grow."""

_input: ContextVar[int | None] = ContextVar("input", default=None)


class Faults(list[str]):
    """Told at once: a long run may be stopped."""

    def append(self, fault: str) -> None:
        sys.stdout.write(f"FAULT {fault}\n")
        sys.stdout.flush()
        super().append(fault)


@dataclass
class Findings:
    """What was seen. faults: what must not be, with the input's number."""

    faults: Faults = field(default_factory=lambda: Faults())
    statuses: Counter[str] = field(default_factory=Counter)
    slowest: list[tuple[float, int]] = field(default_factory=list)
    running: set[int] = field(default_factory=set)
    count: int = 0

    def fault(self, index: int, request: Request, what: str) -> None:
        shown = request.payload()[:300]
        self.faults.append(
            f"input {index}: {what}\n    {request.method} {request.path[:120]!r} {request.notes}\n    {shown!r}"
        )

    def took(self, index: int, seconds: float) -> None:
        self.slowest = sorted([*self.slowest, (seconds, index)], reverse=True)[:SLOWEST]

    def log(self, what: str) -> None:
        """An error was logged: by an input, or by a connection that some of those running at the moment has."""
        index = _input.get()
        self.faults.append(
            f"input {index}: logged {what}" if index is not None else f"one of {sorted(self.running)}: logged {what}"
        )


@contextlib.contextmanager
def listening(found: Findings) -> Iterator[None]:
    """Whatever is logged as an error is a fault; the rest is not written."""

    def hear(logger: Any, method: str, fields: Any) -> Any:
        if method in ("error", "critical", "exception") or fields.get("exc_info"):
            said = {key: value for key, value in fields.items() if key != "exc_info"}
            error = fields.get("exc_info")
            if error is True:
                error = sys.exc_info()[1]
            trace = "".join(traceback.format_exception(error)) if isinstance(error, BaseException) else ""
            found.log(f"{said}\n{trace}")
        raise structlog.DropEvent

    class Hearing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
            found.log(f"{record.name}: {record.getMessage()}\n{trace}")

    before, root = structlog.get_config(), logging.getLogger()
    handler = Hearing(logging.ERROR)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, hear],
        wrapper_class=structlog.make_filtering_bound_logger(20),
    )
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        structlog.configure(**before)


def made(seed: int, index: int) -> tuple[random.Random, Request]:
    """The input of that number, and the dice for the rest of what is done with it."""
    chance = random.Random(f"{seed}:{index}")
    request = valid(chance)
    return chance, request if chance.random() < UNTOUCHED else mutated(chance, request)


async def one(aim: Target, found: Findings, seed: int, index: int, socket_share: float) -> float:
    """Send one input and look at what comes of it. Returns seconds of the processor, others' included."""
    chance, request = made(seed, index)
    by_socket = not request.admin and chance.random() < socket_share
    found.running.add(index)
    began = time.process_time()
    try:
        async with asyncio.timeout(HUNG_SECONDS):
            if by_socket:
                await _on_socket(aim, found, index, chance, request)
            else:
                _input.set(index)
                reply = await aim.ask(request, chance.choice((1, 1, 1, 3)), chance.random() < 0.03)
                found.statuses[f"{_place(request)} {reply.status}"] += 1
                if (why := wrong(request, reply)) is not None:
                    found.fault(index, request, why)
    except TimeoutError:
        found.fault(index, request, f"nothing came in {HUNG_SECONDS:g} s")
    except Exception:  # noqa: BLE001 - nothing may be raised
        found.fault(index, request, traceback.format_exc())
    finally:
        found.running.discard(index)
    return time.process_time() - began


def _place(request: Request) -> str:
    """An endpoint, for the table."""
    path = request.path.split(b"?")[0].decode("latin-1")
    known = (
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/feedback", "/v1/models"),
    )
    known += ("/tokenize", "/detokenize", "/admin/")
    return next((each for each in known if path.startswith(each)), "others")


async def _on_socket(aim: Target, found: Findings, index: int, chance: random.Random, request: Request) -> None:
    data, whole = framed(chance, request)
    heard = await talk(aim.port, chance, data, whole)
    for status in heard.statuses[:1] or [0]:
        found.statuses[f"socket {status}"] += 1
    if heard.whole and not heard.statuses:
        found.fault(index, request, f"a whole request on a socket got no answer: {data[:300]!r}")
    for status in heard.statuses[:1]:
        if status not in FINE | {408} and not (status == 504 and _hurried(request)):
            found.fault(index, request, f"{status} on a socket: {heard.data[:600]!r}\n    to {data[:300]!r}")
    if b"Traceback (most" in heard.data and b"Traceback" not in data:
        found.fault(index, request, "a traceback on a socket")


def _hurried(request: Request) -> bool:
    """Whether it asked for less time than it may have."""
    return b"timeout" in request.payload() or any(name.lower() == b"x-modelnet-timeout" for name, _ in request.headers)


def wrong(request: Request, reply: Reply) -> str | None:
    """What must not be about an answer."""
    if reply.left and not reply.complete:
        return None
    if not reply.complete:
        return f"status {reply.status}, and no end"
    if [name for name, _ in reply.headers].count(b"x-request-id") != 1:
        return "no request id, or two"
    if reply.status not in FINE and not (reply.status == 504 and _hurried(request)):
        return f"status {reply.status}: {reply.body[:600]!r}"
    if b"Traceback (most" in reply.body and b"Traceback" not in request.payload():
        return "a traceback"
    kind = dict(reply.headers).get(b"content-type", b"")
    try:
        if reply.status >= 400:
            return _wrong_error(reply)
        if kind.startswith(b"text/event-stream"):
            return _wrong_stream(request, reply.body)
        if kind.startswith(b"application/json") and request.method != "HEAD":
            json.loads(reply.body)
    except (ValueError, KeyError, TypeError) as error:
        return f"unreadable: {error!r}: {reply.body[:300]!r}"
    return None


def _wrong_error(reply: Reply) -> str | None:
    value = json.loads(reply.body)["error"]
    if set(value) != {"message", "type", "param", "code"} or not isinstance(value["code"], str | None):
        return f"an error of another form: {reply.body[:300]!r}"
    return f"an error of {len(reply.body)} bytes: {reply.body[:100]!r}" if len(reply.body) > LARGEST_ERROR else None


def _wrong_stream(request: Request, body: bytes) -> str | None:
    if not body.endswith(b"\n\n"):
        return "a stream that ends within an event"
    events = [line.removeprefix(b"data: ") for line in body.split(b"\n") if line.startswith(b"data: ")]
    chunks = [json.loads(event) for event in events if event != b"[DONE]"]
    errors = [chunk["error"] or {} for chunk in chunks if "error" in chunk]
    errors += [chunk["response"].get("error") or {} for chunk in chunks if chunk.get("type") == "response.failed"]
    for error in errors:
        if error.get("code") != "timeout" or not _hurried(request):
            return f"an error in a stream: {error}"
    whole = b"[DONE]" in events or any(chunk.get("type", "").startswith("response.") for chunk in chunks)
    return None if whole or errors else "a stream without an end"


async def fuzz(
    folder: Path, seed: int, count: int, seconds: float, socket_share: float, watched: bool = False
) -> Findings:
    """Up to `count` inputs, for `seconds` at most, some at once; then the slowest again, alone. watched: what no timeout can reach,
    because it never waits, ends the process and shows where it was."""
    found = Findings()
    until, todo = time.monotonic() + seconds, iter(range(count))

    async def client(aim: Target) -> None:
        for index in todo:
            if time.monotonic() > until or len(found.faults) >= MOST_FAULTS:
                return
            if index % 200 == 0:
                aim.tidy()
                if watched:
                    faulthandler.dump_traceback_later(4 * HUNG_SECONDS, exit=True)
            task = asyncio.create_task(one(aim, found, seed, index, socket_share))  # in a context of its own
            found.took(index, await task)
            found.count += 1

    with listening(found):
        async with target(folder) as aim:
            await asyncio.gather(*(client(aim) for _ in range(AT_ONCE)))
            await aim.rest()
            faulthandler.cancel_dump_traceback_later()
            await _again(aim, found, seed, socket_share)
            if (size := len(aim.app.metrics.text())) > LARGEST_METRICS:
                found.faults.append(f"the metrics have grown to {size} bytes")
    return found


async def _again(aim: Target, found: Findings, seed: int, socket_share: float) -> None:
    """The slowest inputs, one at a time."""
    candidates, found.slowest = found.slowest, []
    for _, index in candidates:
        seconds = await asyncio.create_task(one(aim, found, seed, index, socket_share))
        found.took(index, seconds)
        if seconds > CPU_SECONDS:
            found.fault(index, made(seed, index)[1], f"took {seconds:.1f} s of the processor")


async def show(folder: Path, seed: int, index: int, socket_share: float) -> Findings:
    """One input, shown."""
    _, request = made(seed, index)
    sys.stdout.write(
        f"{request.method} {request.path!r}\n{request.headers}\n{request.notes}\n{request.payload()[:4000]!r}\n"
    )
    found = Findings()
    with listening(found):
        async with target(folder) as aim:
            await one(aim, found, seed, index, socket_share)
            found.count = 1
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--socket", type=float, default=0.1, help="part of the inputs that goes over a real connection")
    parser.add_argument("--only", type=int, help="the number of one input")
    asked = parser.parse_args()
    warnings.simplefilter("error")
    sys.stdout.write(f"seed {asked.seed}\n")
    sys.stdout.flush()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if asked.only is not None:
            found = asyncio.run(show(Path(folder), asked.seed, asked.only, asked.socket))
        else:
            found = asyncio.run(fuzz(Path(folder), asked.seed, asked.count, asked.seconds, asked.socket, watched=True))
    slowest = ", ".join(f"{seconds * 1000:.0f} ms (input {index})" for seconds, index in found.slowest[:5])
    sys.stdout.write(f"{found.count} inputs in {time.monotonic() - began:.0f} s; slowest: {slowest}\n")
    for what, times in sorted(found.statuses.items()):
        if times >= found.count / 1000:
            sys.stdout.write(f"  {times:7} {what}\n")
    sys.stdout.write(f"{len(found.faults)} faults (seed {asked.seed})\n")
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
