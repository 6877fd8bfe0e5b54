"""Errors: their bodies, their statuses, and that none is forgotten."""

from __future__ import annotations

import json

import anyio
import pytest
from edge import CHAT, edge, fake, golden, question

from backends import errors
from backends.fake import Fault
from gateway.wire.errors import APIError, to_api_error
from gateway.wire.topology_errors import wiring_error
from strategies.planning import PlanError
from strategies.routing import AliasError, UnknownModel
from strategies.topology import TopologyError

pytestmark = pytest.mark.anyio

BACKEND_ERRORS = {
    # error: status, code, param, whether SDKs should try again
    errors.BackendError("a", "It failed."): (502, "backend_error", None, False),
    errors.BackendUnavailable("a", "It is gone."): (502, "backend_unavailable", None, True),
    errors.CircuitOpen("a", "It keeps failing.", 2.5): (503, "backend_unavailable", None, True),
    errors.BackendTimeout("a", "It is slow."): (504, "timeout", None, False),
    errors.BackendOverloaded("a", "It is full.", 2.5): (503, "overloaded", None, True),
    errors.ContextTooLong("a", "It is long.", 9, 5): (400, "context_length_exceeded", "messages", True),
    errors.RequestRejected("a", "It is wrong.", 422, "seed"): (400, "request_rejected", "seed", True),
    errors.BackendAuthFailed("a", "It is closed."): (502, "backend_auth_failed", None, False),
    errors.CapabilityMissing("a", "It can't."): (400, "unsupported_model", "model", True),
    errors.SessionClosed("a", "It was closed."): (500, "internal_error", None, False),
}


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


def test_every_backend_error_has_a_row() -> None:
    """drop-in 10, 27: the table is complete, the test too."""
    shipped = {kind for kind in subclasses(errors.BackendError) if kind.__module__.startswith("backends.")}
    assert {type(error) for error in BACKEND_ERRORS} == shipped


@pytest.mark.parametrize(("error", "expected"), BACKEND_ERRORS.items(), ids=lambda value: type(value).__name__)
def test_backend_errors_become_statuses(
    error: errors.BackendError, expected: tuple[int, str, str | None, bool]
) -> None:
    """drop-in 10, 26, 27, 28: status, code, param; `x-should-retry: false` where a retry can't help."""
    mapped = to_api_error(error)
    assert (mapped.status, mapped.code, mapped.param, mapped.retry) == expected
    assert ("x-should-retry" in mapped.headers()) == (not mapped.retry)
    assert set(json.loads(mapped.body())["error"]) == {"message", "type", "param", "code"}
    if not isinstance(error, errors.SessionClosed):
        assert mapped.message == error.message


def test_what_lasts_is_not_asked_again() -> None:
    """Until its operator mends it: the same status and code, and SDKs are told."""
    error = errors.BackendUnavailable("a", "Its server does not know it.")
    error.lasting = True
    mapped = to_api_error(error)
    assert (mapped.status, mapped.code, mapped.headers()) == (502, "backend_unavailable", {"x-should-retry": "false"})


@pytest.mark.parametrize(("status", "shown"), [(400, 400), (403, 403), (404, 400), (409, 400), (413, 413), (422, 400)])
def test_refusals_of_a_server_never_become_422(status: int, shown: int) -> None:
    """drop-in 24, 27: nor a 404, which would mean that the model is unknown."""
    assert to_api_error(errors.RequestRejected("a", "No.", status)).status == shown


def test_every_error_of_a_wiring_is_mapped() -> None:
    """drop-in 27: unknown model and bad grammar are 404 `model_not_found`."""
    found = [
        (TopologyError("a>", 2, "found the end"), 404, "model_not_found"),
        (UnknownModel("x", 0, "x", ("a",)), 404, "model_not_found"),
        (PlanError("a|b", 0, "a", "can't be fused"), 400, "unsupported_wiring"),
        (AliasError("x", "a>", 2, "found the end"), 500, "internal_error"),
    ]
    shipped = {kind for kind in subclasses(TopologyError) if kind.__module__.startswith("strategies.")}
    assert {type(error) for error, _, _ in found} == shipped
    for error, status, code in found:
        mapped = wiring_error("x", error)
        assert (mapped.status, mapped.code) == (status, code)
    assert wiring_error("x" * 9999, found[0][0]).message.count("x") < 300


def test_unknown_errors_say_nothing() -> None:
    """drop-in 26: no tracebacks, paths or keys."""
    mapped = to_api_error(ValueError("/secret/path"))
    assert mapped.status == 500
    assert "secret" not in mapped.message


@pytest.mark.parametrize(
    "name", ["unknown_model", "bad_grammar", "wrong_kind", "unfusable", "unknown_path", "wrong_method"]
)
async def test_error_bodies(name: str) -> None:
    """drop-in 26, 27: the whole body, as a golden file shows it."""
    asked = {
        "unknown_model": ("POST", CHAT, question("a>bee")),
        "bad_grammar": ("POST", CHAT, question("a>|b")),
        "wrong_kind": ("POST", CHAT, question("s2p:a>b")),
        "unfusable": ("POST", CHAT, question("a|text")),
        "unknown_path": ("POST", "/v1/audio/speech", {}),
        "wrong_method": ("GET", CHAT, None),
    }
    async with edge(fake("a"), fake("b"), fake("beech"), fake("text", sessions=False)) as e:
        reply = await e.call(*asked[name])
        shown = f"{reply.status}\n{json.dumps(reply.error, indent=2, ensure_ascii=False)}\n"
        golden(f"error_{name}.txt", shown)


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/audio/speech", "/v1/embeddings/", "/v1/chat/completions/"])
async def test_unknown_paths_are_json_404s(path: str) -> None:
    """drop-in 26, 35."""
    async with edge(fake("a")) as e:
        reply = await e.call("POST", path, {})
        assert (reply.status, reply.error["code"]) == (404, "unknown_url")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", CHAT, "POST"),
        ("HEAD", CHAT, "POST"),
        ("PUT", CHAT, "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/a", "GET, HEAD"),
        ("POST", "/healthz", "GET, HEAD"),
    ],
)
async def test_wrong_methods_are_json_405s(method: str, path: str, allow: str) -> None:
    """drop-in 26, 31."""
    async with edge(fake("a")) as e:
        reply = await e.call(method, path, {})
        assert (reply.status, reply.error["code"]) == (405, "method_not_allowed")
        assert sorted((reply.header("allow") or "").split(", ")) == sorted(allow.split(", "))


async def test_unexpected_errors_are_plain_500s(caplog: pytest.LogCaptureFixture) -> None:
    """drop-in 26: whatever breaks, the body has the one form, and nothing of the cause in it."""

    def odd(model: str) -> Exception:
        return RuntimeError("password=hunter2")

    async with edge(fake("a", faults=(Fault(on="enter", error=odd),))) as e:
        for stream in (True, False):
            reply = await e.chat(stream=stream)
            assert (reply.status, reply.error["code"]) == (500, "internal_error")
            assert b"hunter2" not in reply.body
            assert reply.header("x-should-retry") == "false"
        assert e.idle()


async def test_overload_says_when_to_come_back() -> None:
    """drop-in 27: a full queue of a model is 503 with Retry-After."""
    async with edge(fake("a", seats=1, delay=0.05)) as e, anyio.create_task_group() as tasks:
        first = e.exchange("POST", CHAT, question(stream=True))
        tasks.start_soon(first.run)
        await first.until(lambda reply: reply.sent)
        reply = await e.chat()
        assert (reply.status, reply.error["code"]) == (503, "overloaded")
        assert reply.header("retry-after") == "1"
        first.leave()


async def test_the_gateways_own_limit_of_requests() -> None:
    """drop-in 27: beyond it 503 with Retry-After; the place is given back."""
    async with edge(fake("a", delay=0.02), limits={"concurrent_requests": 1}) as e, anyio.create_task_group() as tasks:
        first = e.exchange("POST", CHAT, question(stream=True))
        tasks.start_soon(first.run)
        await first.until(lambda reply: reply.sent)
        reply = await e.chat()
        assert (reply.status, reply.error["code"]) == (503, "overloaded")
        assert reply.header("retry-after") == "1"
        await first.finished.wait()
        assert first.reply.events()[-1] == "[DONE]"
        assert (await e.chat()).status == 200


async def test_too_slow_is_504() -> None:
    """drop-in 27, 28: before the first byte a status, after it an error event; no retry: it would be as slow."""
    async with edge(fake("a", "one two three", delay=0.3), limits={"request_seconds": 0.15}) as e:
        whole = await e.chat()
        assert (whole.status, whole.error["code"], whole.header("x-should-retry")) == (504, "timeout", "false")
        streamed = await e.chat(stream=True)
        assert streamed.status == 200
        assert json.loads(streamed.events()[-1])["error"]["code"] == "timeout"
        assert e.idle()


async def test_a_model_that_could_not_be_started_is_contained() -> None:
    """drop-in 27: wirings without it work; those with it are 503, and not worth a retry."""
    async with edge(fake("a"), fake("b", faults=(Fault(on="start"),))) as e:
        assert (await e.chat("a")).status == 200
        for reply in (await e.chat("a>b"), await e.call("GET", "/v1/models/a%3Eb")):
            assert (reply.status, reply.error["code"]) == (503, "model_not_ready")
            assert "fails as scripted" in reply.error["message"]
            assert reply.header("x-should-retry") == "false"
        ready = await e.call("GET", "/readyz")
        assert ready.status == 200
        assert list(ready.json()["not_ready"]) == ["b"]
        states = {m["id"]: m["modelnet"]["state"] for m in (await e.call("GET", "/v1/models")).json()["data"]}
        assert states == {"a": "ready", "b": "failed"}


def test_api_errors_pass_unchanged() -> None:
    """drop-in 26: what the edge raised itself is what the client gets."""
    error = APIError(418, "I'm a teapot.", code="teapot")
    assert to_api_error(error) is error


async def test_errors_repeat_a_little_of_what_was_sent() -> None:
    long = "x" * 30_000
    async with edge(fake("a")) as e:
        for path, body in (
            ("/v1/responses", {"model": "a", "input": [{"role": "user", "content": [{"type": long}]}]}),
            ("/v1/chat/completions", {**question("a"), "modelnet": {long: 1}}),
            ("/v1/chat/completions", question(long)),
        ):
            reply = await e.call("POST", path, body)
            assert reply.status in (400, 404)
            assert "xxxx" in reply.error["message"]
            assert len(reply.body) < 3000


async def test_the_description_of_the_api_is_made_without_complaint() -> None:
    """Warnings are errors here: an operation that two methods share would be one."""
    async with edge(fake("a")) as e:
        value = (await e.call("GET", "/openapi.json")).json()
        assert list(value["paths"]["/v1/models"]) == ["get"]
        assert (await e.call("HEAD", "/v1/models")).status == 200


async def test_a_query_may_hold_any_bytes() -> None:
    async with edge(fake("a")) as e:
        for path, status in (("/nowhere", 404), ("/v1/models", 200), ("/v1/models/nobody", 404), ("/readyz", 200)):
            exchange = e.exchange("GET", path)
            exchange._scope["query_string"] = b"\xe9\xff=%F0%9F"
            assert (await exchange.run()).status == status
