"""Traces: a span per request, stage and use of a model, joined to the client's and to the servers', and nothing private in them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import structlog
from aiohttp import web
from edge import CHAT, Edge, fake, question
from reads_early import ReadsEarly

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from backends.catalog import Entry
from backends.fake import FakeBackend, FakeSettings, Fault
from backends.fake.server import FakeServer
from backends.openai_http import OpenAIHTTPBackend, OpenAIHTTPSettings
from backends.tracecontext import TRACEPARENT
from gateway.app import Application
from gateway.observability import genai
from gateway.observability.tracing import Tracing
from gateway.runtime import open_runtime
from gateway.settings import Loaded, Settings
from gateway.settings.resilience import Tracing as Section
from gateway.settings.source import Source

pytestmark = pytest.mark.anyio
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@asynccontextmanager
async def traced(
    *backends: Any, sample: float = 1.0, **sections: Any
) -> AsyncIterator[tuple[Edge, InMemorySpanExporter]]:
    spans = InMemorySpanExporter()
    tracing = Tracing(Section(endpoint="http://127.0.0.1:9", sample=sample), SimpleSpanProcessor(spans))
    by_name = {backend.name: backend for backend in backends}
    settings = Settings.model_validate({"models": {name: {"backend": "fake"} for name in by_name}, **sections})

    async def build(name: str) -> Entry:
        native = isinstance(by_name[name], OpenAIHTTPBackend)
        return Entry(by_name[name], why_not_fused=await by_name[name].why_not_fused(), native=native)

    from pathlib import Path

    async with open_runtime(Loaded(settings, Path("t.yaml"), Source(Path("t.yaml"))), build) as runtime:
        await runtime.wait_loaded()
        yield Edge(Application(runtime, tracing=tracing), runtime, by_name), spans
    tracing.close()


def tree(spans: Sequence[ReadableSpan]) -> dict[str, str | None]:
    """Name → name of the parent."""
    names = {span.context.span_id: span.name for span in spans if span.context is not None}
    return {span.name: None if span.parent is None else names.get(span.parent.span_id, "elsewhere") for span in spans}


def named(spans: InMemorySpanExporter, name: str) -> ReadableSpan:
    (found,) = [span for span in spans.get_finished_spans() if span.name == name]
    return found


def values(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_a_wiring_is_a_tree_of_spans() -> None:
    async with traced(fake("a"), fake("b"), fake("c")) as (e, spans):
        reply = await e.chat("a>b|c")
        assert reply.status == 200
        assert tree(spans.get_finished_spans()) == {
            "chat s2p": None,
            "stage 0 a": "chat s2p",
            "chat a": "stage 0 a",
            "stage 1 b|c": "chat s2p",
            "chat b": "stage 1 b|c",
            "chat c": "stage 1 b|c",
        }
        assert len({span.context.trace_id for span in spans.get_finished_spans() if span.context}) == 1
        request, stage, member = named(spans, "chat s2p"), named(spans, "stage 1 b|c"), named(spans, "chat b")
        assert (request.kind, member.kind) == (SpanKind.SERVER, SpanKind.CLIENT)
        usage = reply.json()["usage"]
        found = values(request)
        assert found[genai.OPERATION] == "chat" and found[genai.PROVIDER] == "modelnet"
        assert found[genai.REQUEST_MODEL] == "a>b|c" and found[genai.WIRING] == "a>b|c" and found[genai.STATUS] == 200
        assert found[genai.INPUT_TOKENS] == usage["prompt_tokens"]
        assert found[genai.OUTPUT_TOKENS] == usage["completion_tokens"]
        assert found[genai.REQUEST_ID] == reply.header("x-request-id")
        assert values(stage)[genai.PIECES] > 0 and list(values(stage)[genai.WEIGHTS]) == [0.5, 0.5]
        assert values(stage)[genai.GAP_SECONDS] >= values(stage)[genai.FIRST_SECONDS]
        assert genai.GAP_SECONDS not in values(named(spans, "stage 0 a")) and genai.PREPARED not in values(stage)
        assert values(member)[genai.REQUEST_MODEL] == "b" and values(member)[genai.USE] == "session"
        assert values(named(spans, "chat a"))[genai.OUTPUT_TOKENS] > 0
        assert [event.name for event in member.events] == [genai.FIRST_EVENT]


async def test_what_was_read_early_is_on_the_stage_and_no_span_of_its_own() -> None:
    async with traced(fake("a", answer="word " * 200, delay=0.0001), ReadsEarly("b")) as (e, spans):
        assert (await e.chat("a>b")).status == 200
        assert set(tree(spans.get_finished_spans())) == {"chat si", "stage 0 a", "chat a", "stage 1 b", "chat b"}
        found = values(named(spans, "stage 1 b"))
        assert found[genai.PREPARED] > 1 and found[genai.PREPARING_FAILED] == 0


async def test_stages_that_run_side_by_side_keep_their_own_models() -> None:
    async with traced(fake("a", delay=0.001), fake("b"), fake("c"), fake("d", delay=0.001)) as (e, spans):
        assert (await e.chat("(a>b)|(c>d)")).status == 200
        found = tree(spans.get_finished_spans())
        assert (found["chat a"], found["chat c"]) == ("stage 0 a", "stage 1 c")
        assert found["chat b"] == found["chat d"] == "stage 2 b|d"


async def test_every_choice_has_stages_of_its_own() -> None:
    async with traced(fake("a"), fake("b")) as (e, spans):
        assert (await e.chat("a>b", n=3)).status == 200
        names = [span.name for span in spans.get_finished_spans()]
        assert names.count("stage 0 a") == names.count("chat b") == 3


async def test_a_client_s_trace_goes_on_through_us_to_the_server() -> None:
    upstream = FakeBackend("up", FakeSettings("hello"))
    async with FakeServer(upstream, dialect="plain") as server:
        far = OpenAIHTTPBackend("far", OpenAIHTTPSettings(base_url=server.base_url, model="up", sessions="off"))
        async with traced(far, fake("b")) as (e, spans):
            for wiring in ("b>far", "far"):  # through the engine, and handed on
                spans.clear()
                server.headers.clear()
                assert (await e.call("POST", CHAT, question(wiring), {"traceparent": PARENT})).status == 200
                call = named(spans, "chat far")
                assert call.context is not None
                sent = next(
                    value for head in server.headers for key, value in head.items() if key.lower() == "traceparent"
                )
                assert sent == f"00-0af7651916cd43dd8448eb211c80319c-{call.context.span_id:016x}-01"
                root = next(span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER)
                assert root.parent is not None and f"{root.parent.span_id:016x}" == "b7ad6b7169203331"
        await far.aclose()


async def test_nothing_is_sent_where_nothing_is_traced() -> None:
    upstream = FakeBackend("up", FakeSettings("hello"))
    async with FakeServer(upstream, dialect="plain") as server:
        far = OpenAIHTTPBackend("far", OpenAIHTTPSettings(base_url=server.base_url, model="up", sessions="off"))
        from edge import edge

        async with edge(fake("b")) as e:
            assert (await e.call("POST", CHAT, question("b"), {"traceparent": PARENT})).status == 200
        from backends.types import Message, TextRequest

        async with far.stream(TextRequest((Message("user", "Hi"),))) as events:
            assert [event async for event in events]
        assert not any("traceparent" in {key.lower() for key in head} for head in server.headers)
        assert TRACEPARENT.get() is None
        await far.aclose()


async def test_failures_are_told_by_their_causes() -> None:
    faults = (Fault(on="token", of="stream", after=1),)
    async with traced(fake("a", faults=faults), fake("b"), resilience={"retries": {"stages": 1}}) as (e, spans):
        assert (await e.chat("a>b")).status == 502
        calls = [span for span in spans.get_finished_spans() if span.name == "chat a"]
        assert len(calls) == 2, "one for each run of the stage"
        for span in (*calls, named(spans, "stage 0 a")):
            assert span.status.status_code is StatusCode.ERROR and values(span)[genai.ERROR_TYPE] == "unavailable"
        request = named(spans, "chat si")
        assert values(request)[genai.ERROR_TYPE] == "backend_unavailable" and values(request)[genai.STATUS] == 502
        assert request.status.status_code is StatusCode.ERROR


async def test_a_client_that_leaves_ends_every_span() -> None:
    hangs = (Fault(on="token", action="hang"),)
    async with traced(fake("a"), fake("b", faults=hangs)) as (e, spans), anyio.create_task_group() as tasks:
        exchange = e.exchange("POST", CHAT, question("a>a|b", stream=True))
        tasks.start_soon(exchange.run)
        with anyio.fail_after(10):
            while not e.backends["b"].counters.sessions:  # it is opened last
                await anyio.sleep(0.005)
        exchange.leave()
        await exchange.finished.wait()
        names = [span.name for span in spans.get_finished_spans()]
        assert sorted(names) == sorted(["chat s2p", "stage 0 a", "chat a", "stage 1 a|b", "chat a", "chat b"])
        assert values(named(spans, "chat s2p"))[genai.STATUS] == 499


async def test_nothing_private_is_in_a_trace() -> None:
    keys = [{"key": "the-very-secret-key", "name": "me"}]
    async with traced(fake("a", answer="an answer nobody may see"), fake("b"), keys=keys) as (e, spans):
        body = question("a>b", user="someone", messages=[{"role": "user", "content": "a question nobody may see"}])
        headers = {"authorization": "Bearer the-very-secret-key", "cookie": "session=nobody-may-see"}
        assert (await e.call("POST", CHAT, body, headers)).status == 200
        text = "".join(span.to_json() for span in spans.get_finished_spans())
        assert "nobody" not in text and "secret" not in text and '"me"' in text


async def test_probes_are_not_traced_and_made_up_paths_do_not_name_spans() -> None:
    async with traced(fake("a")) as (e, spans):
        for path in ("/healthz", "/readyz", "/metrics"):
            await e.call("GET", path)
        assert not spans.get_finished_spans()
        await e.call("GET", "/v1/models/a")
        await e.call("GET", "/made/up/by/a/client")
        assert [span.name for span in spans.get_finished_spans()] == ["GET /v1/models/{model}", "GET other"]


async def test_the_sampling_is_the_client_s_or_ours() -> None:
    async with traced(fake("a"), sample=0.0) as (e, spans):
        await e.chat("a")
        assert not spans.get_finished_spans()
        await e.call("POST", CHAT, question(), {"traceparent": PARENT})
        assert spans.get_finished_spans()
        spans.clear()
        await e.call("POST", CHAT, question(), {"traceparent": PARENT.removesuffix("1") + "0"})
        assert not spans.get_finished_spans()


async def test_log_lines_join_on_the_request_and_the_trace() -> None:
    async with traced(fake("a")) as (e, _spans):
        with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
            reply = await e.call("POST", CHAT, question(), {"traceparent": PARENT})
        (line,) = [line for line in logs if line["event"] == "request"]
        assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
        assert line["request_id"] == reply.header("x-request-id")


async def test_spans_arrive_at_a_collector_with_our_headers() -> None:
    """The real exporter, over HTTP, in its own form."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    got: list[tuple[str | None, bytes]] = []

    async def collect(request: web.Request) -> web.Response:
        got.append((request.headers.get("x-team"), await request.read()))
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/traces", collect)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    section = Section.model_validate({"endpoint": f"http://127.0.0.1:{port}/v1/traces", "headers": {"x-team": "us"}})
    tracing = Tracing(section)
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
    with tracing.request(scope):
        pass
    await anyio.to_thread.run_sync(tracing.close)
    await runner.cleanup()
    ((team, data),) = got
    (sent,) = ExportTraceServiceRequest.FromString(data).resource_spans
    assert team == "us" and sent.scope_spans[0].spans[0].name == "chat unknown"
    assert {"service.name", "service.version"} <= {attribute.key for attribute in sent.resource.attributes}


async def test_a_collector_that_is_not_there_holds_up_nothing() -> None:
    section = Section(endpoint="http://127.0.0.1:9/v1/traces", timeout=0.5)
    tracing = Tracing(section)
    with tracing.request({"type": "http", "method": "POST", "path": CHAT, "headers": []}):
        pass
    with anyio.fail_after(10):
        await anyio.to_thread.run_sync(tracing.close)


def test_names_are_of_one_file() -> None:
    """No other file of ours writes an attribute's name."""
    from pathlib import Path

    names = {value for key, value in vars(genai).items() if key.isupper() and isinstance(value, str)}
    names = {name for name in names if name.startswith(("gen_ai.", "http.", "error."))}
    assert "gen_ai.operation.name" in names
    for file in Path(__file__).parents[2].glob("gateway/**/*.py"):
        if file.name != "genai.py":
            text = file.read_text("utf-8")
            assert not [name for name in names if json.dumps(name) in text], file
