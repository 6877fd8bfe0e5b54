"""Small parts that every request passes: what is cheaper than a library's must not say anything else."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import prometheus_client
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.exposition import generate_latest

from gateway.observability import tallies
from gateway.observability.logs import QuickLogger, setup_logs
from gateway.web.asgi import header
from gateway.web.transport import HeadHolder

BOUNDS = (0.1, 1.0, 2.5, 10.0)


@given(st.lists(st.tuples(st.sampled_from(["a", 'b"\n\\', ""]), st.floats(0, 20)), max_size=20))
def test_tallies_say_what_the_library_would(touched: list[tuple[str, float]]) -> None:
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    texts = []
    for kinds in (tallies, prometheus_client):
        registry = prometheus_client.CollectorRegistry()
        counter = kinds.Counter("c", "Counted.", ["x"], registry=registry)
        gauge = kinds.Gauge("g", "Gauged.", registry=registry)
        spread = kinds.Histogram("h", "Spread.", ["x"], buckets=BOUNDS, registry=registry)
        for label, value in [*touched, *((label, bound) for label, _ in touched[:2] for bound in BOUNDS)]:
            counter.labels(label).inc(value)
            gauge.inc()
            gauge.dec(value)
            spread.labels(label).observe(value)
        texts.append(generate_latest(registry))
    assert texts[0] == texts[1]


def test_tallies_refuse_wrong_labels() -> None:
    registry = prometheus_client.CollectorRegistry()
    counter = tallies.Counter("c", "Counted.", ["x", "y"], registry=registry)
    with pytest.raises(ValueError, match="x, y"):
        counter.labels("only one")
    with pytest.raises(ValueError, match="Duplicated"):
        tallies.Gauge("c_total", "Again.", registry=registry)


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: name


HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


def test_a_head_goes_with_its_body() -> None:
    wire = Wire()
    held = HeadHolder(wire)
    for data in (HEAD, b"hi", b"more", HEAD, b"3\r\nabc\r\n", b"0\r\n\r\n"):
        held.write(data)
    assert wire.writes == [HEAD + b"hi", b"more", HEAD + b"3\r\nabc\r\n", b"0\r\n\r\n"]


def test_a_head_alone_is_not_lost() -> None:
    wire = Wire()
    held = HeadHolder(wire)
    held.write(HEAD)
    held.close()
    assert (wire.writes, wire.closed) == ([HEAD], True)


@pytest.mark.parametrize("data", [b"HTTP/1.1 100 Continue\r\n\r\n", HEAD + b"hi", b"hi"])
def test_what_is_no_head_goes_at_once(data: bytes) -> None:
    wire = Wire()
    held = HeadHolder(wire)
    held.write(data)
    assert wire.writes == [data]
    assert held.get_write_buffer_size() == "get_write_buffer_size"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """A JSON log, set up as a process would; afterwards all is as before."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, structlog.get_config(), QuickLogger.setup
    out = io.StringIO()
    setup_logs("info", "json", out)
    yield out
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    structlog.configure(**before[2])
    QuickLogger.setup = before[3]


def test_the_quick_line_is_an_ordinary_line(log: io.StringIO) -> None:
    fields = {"n": 1, "odd": {1, 2} and "x", "half": "\ud800", "big": 2**70}
    with structlog.contextvars.bound_contextvars(request_id="r", n="not this"):
        QuickLogger("q").log(logging.INFO, "request", dict(fields))
        structlog.get_logger("q").info("request", **fields)
    quick, ordinary = (json.loads(line) for line in log.getvalue().splitlines())
    assert {**quick, "timestamp": ""} == {**ordinary, "timestamp": ""}
    assert (quick["request_id"], quick["level"], quick["n"]) == ("r", "info", 1)


def test_the_quick_line_keeps_to_the_level(log: io.StringIO) -> None:
    QuickLogger("q").log(logging.DEBUG, "probe", {})
    assert not log.getvalue()


def test_the_quick_line_can_be_captured(log: io.StringIO) -> None:
    """Wherever lines go elsewhere than to the stream, this one goes there too."""
    logger = QuickLogger("q")
    with structlog.testing.capture_logs() as lines:
        logger.log(logging.INFO, "request", {"n": 1})
    assert lines == [{"event": "request", "log_level": "info", "n": 1}]
    assert not log.getvalue()


def test_the_first_of_two_headers_counts() -> None:
    scope: dict[str, Any] = {"headers": [(b"a", b"1"), (b"b", b"\xff"), (b"a", b"2")]}
    assert [header(scope, name) for name in (b"a", b"b", b"c")] == ["1", "ÿ", None]
