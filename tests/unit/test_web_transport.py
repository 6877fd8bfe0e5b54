"""Keys, origins, request ids, logs, probes, models and metrics."""

from __future__ import annotations

import io
import json

import pytest
import structlog
from edge import CHAT, edge, fake, question

from backends.fake import Fault
from gateway.observability.logs import setup_logs

pytestmark = pytest.mark.anyio

KEY = "sk-test-0123456789"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong-key-here"},
        {"authorization": "Bearer "},
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": "Bearer \xff"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", CHAT), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/x")]
)
async def test_without_a_key_nothing_is_told(headers: dict[str, str], method: str, path: str) -> None:
    """drop-in 27: 401 `invalid_api_key`, whatever is asked for."""
    async with edge(fake("a"), keys=["sk-another-key", KEY]) as e:
        reply = await e.call(method, path, question(), headers)
        assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
        assert reply.header("www-authenticate") == "Bearer"
        assert reply.header("x-request-id")
        assert KEY.encode() not in reply.body


async def test_with_a_key_all_is_served() -> None:
    """drop-in 27: any of the keys; probes need none."""
    async with edge(fake("a"), keys=["sk-another-key", KEY]) as e:
        for scheme in ("Bearer", "bearer"):
            assert (await e.call("POST", CHAT, question(), {"authorization": f"{scheme} {KEY}"})).status == 200
        assert (await e.call("GET", "/healthz")).status == 200
        assert (await e.call("GET", "/readyz")).status == 200


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-123_x.y:z/=@", True), ("", False), ("a b", False), ("x" * 129, False), ("ü", False), (None, False)],
)
async def test_every_response_names_its_request(given: str | None, kept: bool) -> None:
    """drop-in 29: the client's id if it is sane; also on errors and streams."""
    headers = {} if given is None else {"x-request-id": given}
    async with edge(fake("a")) as e:
        for method, path, body in (
            ("POST", CHAT, question()),
            ("POST", CHAT, question(stream=True)),
            ("POST", CHAT, b"{"),
            ("GET", CHAT, None),
            ("GET", "/nowhere", None),
            ("GET", "/healthz", None),
            ("OPTIONS", CHAT, None),
        ):
            found = (await e.call(method, path, body, headers)).header("x-request-id")
            assert found
            assert (found == given) == kept


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        (None, "http://localhost:5173", "http://localhost:5173"),
        (None, "http://127.0.0.1", "http://127.0.0.1"),
        (None, "https://evil.example", None),
        (None, "http://localhost.evil.example", None),
        (["https://app.example"], "https://app.example", "https://app.example"),
        (["https://app.example"], "https://app.example.evil.example", None),
        (["https://app.example"], "https://appxexample", None),
        (["*"], "https://anything.example", "*"),
        ([], "http://localhost:1", None),
    ],
)
async def test_origins(origins: list[str] | None, origin: str, allowed: str | None) -> None:
    """drop-in 31: preflights are answered, without a key; errors carry the headers too."""
    server = {} if origins is None else {"cors": origins}
    ask = {"origin": origin, "access-control-request-headers": "authorization, x-stainless-os"}
    async with edge(fake("a"), server=server, keys=[KEY]) as e:
        preflight = await e.call("OPTIONS", CHAT, None, ask)
        assert preflight.status == 204
        assert preflight.header("access-control-allow-origin") == allowed
        expected = ask["access-control-request-headers"] if allowed else None
        assert preflight.header("access-control-allow-headers") == expected
        for headers, status in (({}, 401), ({"authorization": f"Bearer {KEY}"}, 200)):
            reply = await e.call("POST", CHAT, question(), {"origin": origin, **headers})
            assert reply.status == status
            assert reply.header("access-control-allow-origin") == allowed


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "127.0.0.1:8000"}, 200),
        ({"host": "[::1]:8000", "origin": "http://[::1]:8000"}, 200),
        ({"host": "localhost", "origin": "http://localhost:5173"}, 200),
        ({"host": "app.example", "origin": "https://app.example"}, 200),
        ({"host": "localhost:8000", "origin": "https://evil.example", "content-type": "text/plain"}, 403),
        ({"host": "localhost:8000", "origin": "null"}, 403),
        ({"host": "evil.example:8000"}, 403),
        ({"host": "evil.example", "origin": "http://evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "[", "origin": "http://["}, 403),
    ],
)
async def test_pages_of_elsewhere_are_not_this_machine(headers: dict[str, str], status: int) -> None:
    """Without keys. A simple request needs no preflight, and one under a name that leads here is of the same origin."""
    server = {"cors": ["http://localhost:*", "https://app.example"]}
    async with edge(fake("a"), server=server) as e:
        assert (await e.call("POST", CHAT, question(), headers)).status == status
        assert (await e.call("GET", "/v1/models", None, headers)).status == status
        assert (await e.call("GET", "/healthz", None, headers)).status == 200
    async with edge(fake("a"), server=server, keys=[KEY]) as e:
        assert (await e.call("POST", CHAT, question(), {**headers, "authorization": f"Bearer {KEY}"})).status == 200
    async with edge(fake("a"), server={"cors": ["*"]}) as e:
        assert (await e.call("POST", CHAT, question(), headers)).status == 200


async def test_one_log_line_a_request_without_secrets_or_prompts(logged: list[dict[str, object]]) -> None:
    """drop-in 26: nothing private is logged by default."""
    async with edge(fake("a", "the answer is violet"), keys=[KEY]) as e:
        headers = {"authorization": f"Bearer {KEY}", "x-request-id": "mine"}
        await e.call("POST", f"{CHAT}?api_key=hunter2", question(user="private"), headers)
        (line,) = [line for line in logged if line["event"] == "request"]
        assert line["request_id"] == "mine"
        assert (line["status"], line["model"], line["shape"], line["kind"]) == (200, "a", "single", "json")
        assert line["completion_tokens"]
        everything = repr(logged)
        for secret in (KEY, "Why?", "violet", "private", "hunter2"):
            assert secret not in everything


async def test_prompts_are_logged_when_the_operator_says_so(logged: list[dict[str, object]]) -> None:
    """Configuration `server.log.prompts`."""
    async with edge(fake("a"), server={"log": {"prompts": True}}) as e:
        await e.chat()
        (line,) = [line for line in logged if line["event"] == "messages"]
        assert line["messages"] == [{"role": "user", "content": "Why?"}]


async def test_failures_are_logged_with_their_cause(logged: list[dict[str, object]]) -> None:
    """What the client is not told is in the log."""

    def odd(model: str) -> Exception:
        return RuntimeError("the cause")

    async with edge(fake("a", faults=(Fault(on="enter", error=odd),))) as e:
        await e.chat()
        (line,) = [line for line in logged if line["event"] == "request_failed"]
        assert line["reason"] == "the cause"
        assert isinstance(line["exc_info"], RuntimeError)


def test_logs_are_json_lines() -> None:
    """structlog and the standard library's loggers write the same form."""
    import logging

    before = logging.getLogger().handlers[:], logging.getLogger().level, structlog.get_config()
    out = io.StringIO()
    try:
        setup_logs("info", "json", out)
        structlog.get_logger("x").info("hello", n=1)
        logging.getLogger("some.library").warning("watch %s", "out")
        structlog.get_logger("x").debug("silent")
        try:
            raise ValueError("boom")
        except ValueError:
            structlog.get_logger("x").exception("failed")
    finally:
        logging.getLogger().handlers[:] = before[0]
        logging.getLogger().setLevel(before[1])
        structlog.configure(**before[2])
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [
        ("hello", "info"),
        ("watch out", "warning"),
        ("failed", "error"),
    ]
    assert "boom" in lines[2]["exception"]


async def test_models_aliases_and_wirings() -> None:
    """drop-in 33: all listed, `created` an integer; names work URL-encoded, and so do valid wirings."""
    aliases = {"team/duo": {"expression": "s2p:a>a|b", "description": "both"}}
    async with edge(fake("a"), fake("b"), fake("text", sessions=False), aliases=aliases) as e:
        value = (await e.call("GET", "/v1/models")).json()
        assert value["object"] == "list"
        assert [m["id"] for m in value["data"]] == ["a", "b", "text", "team/duo"]
        for model in value["data"]:
            assert model["object"] == "model"
            assert isinstance(model["created"], int)
            assert isinstance(model["owned_by"], str)
        for path, id, kind in (
            ("a", "a", "model"),
            ("team/duo", "team/duo", "alias"),
            ("team%2Fduo", "team/duo", "alias"),
            ("s2p%3Aa%3Ea%7Cb", "s2p:a>a|b", "wiring"),
            ("a>b", "a>b", "wiring"),
        ):
            reply = await e.call("GET", f"/v1/models/{path}")
            assert reply.status == 200
            assert (reply.json()["id"], reply.json()["modelnet"]["kind"]) == (id, kind)
        assert (await e.call("GET", "/v1/models/team/duo")).json()["modelnet"]["wiring"] == "a>a|b"
        for path, status, code in (
            ("c", 404, "model_not_found"),
            ("a%3E", 404, "model_not_found"),
            ("pi%3Aa%3Eb", 404, "model_not_found"),
            ("a%7Ctext", 400, "unsupported_wiring"),
        ):
            reply = await e.call("GET", f"/v1/models/{path}")
            assert (reply.status, reply.error["code"]) == (status, code)


async def test_readiness_asks_the_models() -> None:
    """503 with reasons while nothing can serve; a hanging model does not hang the probe."""
    backend = fake("a")
    async with edge(backend) as e:
        assert (await e.call("GET", "/readyz")).json() == {"status": "ready", "not_ready": {}}
        backend.faults = (Fault(on="ready"),)
        reply = await e.call("GET", "/readyz")
        assert reply.status == 503
        assert "fails as scripted" in reply.json()["not_ready"]["a"]
        assert (await e.call("GET", "/healthz")).status == 200
        assert (await e.call("HEAD", "/healthz")).status == 200


async def test_metrics_count_what_happens() -> None:
    """Requests by status, shape and kind; tokens; stages; how exact groups were."""
    async with edge(fake("a"), fake("b")) as e:
        await e.chat("a|b")
        await e.chat("a>b", stream=True)
        await e.chat("nobody")
        await e.chat("x" * 300)
        text = (await e.call("GET", "/metrics")).body.decode()
        for line in (
            'modelnet_requests_total{kind="json",shape="pi",status="200"} 1.0',
            'modelnet_requests_total{kind="stream",shape="si",status="200"} 1.0',
            'modelnet_requests_total{kind="json",shape="unknown",status="404"} 2.0',
            'modelnet_first_token_seconds_count{shape="si"} 1.0',
            'modelnet_stage_seconds_count{role="solver",shape="si"} 1.0',
            "modelnet_active_requests 0.0",
        ):
            assert line in text
        pieces = [
            float(line.split()[-1]) for line in text.splitlines() if line.startswith("modelnet_fused_pieces_total")
        ]
        assert sum(pieces) > 0
        assert 'modelnet_tokens_total{direction="completion",model="b"}' in text
        assert "nobody" not in text
        assert "xxx" not in text
