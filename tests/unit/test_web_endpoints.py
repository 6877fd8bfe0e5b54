"""What holds for every endpoint that keeps models busy, whatever it is for; and the small ones among them."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping
from typing import Any

import anyio
import numpy as np
import pytest
from edge import Edge, Recorder, Reply, edge, fake

from backends.errors import BackendOverloaded, CapabilityMissing
from backends.fake import Fault

pytestmark = pytest.mark.anyio

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Why?"}]},
    "/v1/completions": {"prompt": "Why?"},
    "/v1/responses": {"input": "Why?"},
    "/v1/embeddings": {"input": "Why?"},
    "/tokenize": {"prompt": "Why?"},
    "/detokenize": {"tokens": [87, 104]},
}
PATHS = list(BODIES)
OWN = [path for path in PATHS if path != "/v1/embeddings"]
"""What a model of this process answers."""
TEXTS = ["/v1/chat/completions", "/v1/completions", "/v1/responses"]
VECTOR = [0.5, -1.0, 0.25]


class Embedder(Recorder):
    """A model behind a server that has embeddings. answer: what the server says; an exception is raised."""

    def __init__(self, name: str, answer: Any = None) -> None:
        super().__init__(name)
        self.answer = answer
        self.asked: list[dict[str, Any]] = []
        self.waiting = 0

    async def embed(self, fields: Mapping[str, Any]) -> Any:
        self.asked.append(dict(fields))
        self.waiting += 1
        try:
            if self.answer is None:
                await anyio.sleep_forever()
        finally:
            self.waiting -= 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def post(e: Edge, path: str, headers: Mapping[str, str] | None = None, **fields: Any) -> Reply:
    body = {"model": "a", **BODIES[path], **fields}
    return await e.call("POST", path, {key: value for key, value in body.items() if value is not ...}, headers)


def vectors(*found: Any, **fields: Any) -> dict[str, Any]:
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(found)]
    return {
        "object": "list",
        "model": "there",
        "data": data,
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
        **fields,
    }


# All of them


@pytest.mark.parametrize("path", OWN)
async def test_they_answer(path: str) -> None:
    async with edge(fake("a")) as e:
        reply = await post(e, path)
        assert reply.status == 200, reply.json()
        assert reply.header("content-type") == "application/json"
        assert e.idle()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"7", b'"x"', b"\xff", b'{"model": "a"}', b'{"model": 7}', b'{"model": null}', b"[" * 300],
)
async def test_bodies_that_are_none(path: str, body: bytes) -> None:
    """drop-in 24, 26."""
    async with edge(fake("a"), servers=("a",)) as e:
        reply = await e.call("POST", path, body, {"content-type": "application/json; charset=utf-8"})
        if reply.status == 404:  # /v1/embeddings: asked of a model that has none
            assert (path, reply.error["code"]) == ("/v1/embeddings", "unsupported_endpoint")
        elif not (path == "/v1/completions" and body == b'{"model": "a"}'):  # no prompt is the beginning of a text
            assert reply.status == 400
            assert reply.error["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", PATHS)
async def test_depth_and_nul_characters(path: str) -> None:
    """drop-in 24."""
    nested: Any = "x"
    for _ in range(200):
        nested = [nested]
    async with edge(fake("a")) as e:
        assert (await post(e, path, extra=nested)).status == 400
        reply = await post(e, path, user="a\x00b")
        assert (reply.status, reply.error["param"]) == (400, "user")


@pytest.mark.parametrize("path", PATHS)
async def test_too_large_is_413(path: str) -> None:
    """drop-in 24."""
    async with edge(fake("a"), limits={"body_bytes": 100}) as e:
        reply = await post(e, path, user="x" * 200)
        assert (reply.status, reply.error["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("path", PATHS)
async def test_compressed_bodies_are_named_as_what_they_are(path: str) -> None:
    async with edge(fake("a")) as e:
        packed = gzip.compress(b'{"model": "a"}')
        reply = await e.call("POST", path, packed, {"content-encoding": "gzip"})
        assert (reply.status, reply.error["code"]) == (415, "unsupported_encoding")
        assert "gzip" in reply.error["message"]
        assert (await e.call("POST", path, b"{", {"content-encoding": "identity"})).status == 400


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("model", ["nobody", "a>", "s2p:a", "a*0", ""])
async def test_names_that_mean_nothing_are_404s(path: str, model: str) -> None:
    """drop-in 27."""
    async with edge(fake("a")) as e:
        reply = await post(e, path, model=model)
        expected = (400, None) if not model else (404, "model_not_found")
        assert (reply.status, reply.error["code"], reply.error["param"]) == (*expected, "model")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH"])
async def test_wrong_methods_are_json_405s(path: str, method: str) -> None:
    """drop-in 26, 31."""
    async with edge(fake("a")) as e:
        reply = await e.call(method, path)
        assert (reply.status, reply.error["code"]) == (405, "method_not_allowed")
        assert reply.header("allow") == "POST"


@pytest.mark.parametrize("path", PATHS)
async def test_keys_ids_and_preflights(path: str) -> None:
    """drop-in 27, 29, 31."""
    async with edge(fake("a"), keys=["sk-of-a-test"]) as e:
        closed = await post(e, path, {"x-request-id": "mine-1"})
        assert (closed.status, closed.error["code"]) == (401, "invalid_api_key")
        assert closed.header("x-request-id") == "mine-1"
        opened = await post(e, path, {"authorization": "Bearer sk-of-a-test", "origin": "http://localhost:3000"})
        assert opened.status == (404 if path == "/v1/embeddings" else 200)
        assert opened.header("x-request-id")
        assert opened.header("access-control-allow-origin") == "http://localhost:3000"
        asked = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
        assert (await e.call("OPTIONS", path, headers=asked)).status == 204


@pytest.mark.parametrize("path", TEXTS)
async def test_one_limit_of_requests_for_all(path: str) -> None:
    """drop-in 27: places are counted over all endpoints together."""
    hanging = fake("a", faults=(Fault(on="token", action="hang"),))
    async with edge(hanging, fake("b"), limits={"concurrent_requests": 1}) as e:
        exchange = e.exchange("POST", path, {"model": "a", **BODIES[path]})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run)
            with anyio.fail_after(5):
                while not hanging.counters.streams:
                    await anyio.sleep(0.005)
            for other in OWN:
                reply = await post(e, other, model="b")
                assert (reply.status, reply.error["code"]) == (503, "overloaded")
                assert reply.header("retry-after")
            exchange.leave()
        assert (await post(e, path, model="b")).status == 200
        assert e.idle()


@pytest.mark.parametrize("path", TEXTS)
async def test_too_slow_is_504(path: str) -> None:
    """drop-in 27, 28."""
    async with edge(fake("a", faults=(Fault(on="token", action="hang"),)), limits={"request_seconds": 0.1}) as e:
        reply = await post(e, path)
        assert (reply.status, reply.error["code"]) == (504, "timeout")
        assert reply.header("x-should-retry") == "false"
        assert e.idle()


@pytest.mark.parametrize("path", TEXTS)
async def test_the_end_of_the_process_ends_them(path: str) -> None:
    """drop-in 31."""
    hanging = fake("a", faults=(Fault(on="token", after=1, action="hang"),))
    async with edge(hanging) as e:
        exchange = e.exchange("POST", path, {"model": "a", **BODIES[path], "stream": True})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run)
            await exchange.until(lambda reply: reply.sent)
            e.app.end_requests()
        assert b"shutting down" in exchange.reply.body
        assert b"[DONE]" not in exchange.reply.body
        assert e.idle()


# Embeddings


async def test_vectors_in_the_form_that_was_asked_for() -> None:
    """drop-in 35: servers that know only one form of the two."""
    encoded = base64.b64encode(np.array(VECTOR, "<f4").tobytes()).decode()
    for given in (VECTOR, encoded):
        async with edge(Embedder("a", vectors(given)), servers=("a",)) as e:
            floats = (await post(e, "/v1/embeddings")).json()
            assert floats["data"][0]["embedding"] == VECTOR
            assert (floats["model"], floats["object"]) == ("a", "list")
            coded = (await post(e, "/v1/embeddings", encoding_format="base64")).json()
            assert coded["data"][0]["embedding"] == encoded


async def test_fields_reach_the_server_and_what_was_spent_is_counted() -> None:
    """drop-in 23, 34."""
    backend = Embedder("a", vectors(VECTOR))
    async with edge(backend, servers=("a",)) as e:
        fields = {"input": ["x", "y"], "dimensions": 3, "encoding_format": "float", "user": "u", "unknown": {"k": 1}}
        reply = await post(e, "/v1/embeddings", **fields, nothing=None)
        assert backend.asked == [fields]
        assert reply.json()["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
        assert 'modelnet_tokens_total{direction="prompt",model="a"} 3.0' in e.app.metrics.text().decode()


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 0}, {"prompt_tokens": -9}, {"prompt_tokens": 2**63}])
async def test_embeddings_that_nobody_counted_are_estimated(usage: Any) -> None:
    async with edge(Embedder("a", vectors(VECTOR, usage=usage)), servers=("a",)) as e:
        reply = (await post(e, "/v1/embeddings", input="four words of text")).json()
        assert 0 < reply["usage"]["prompt_tokens"] == reply["usage"]["total_tokens"] < 40
        assert reply["modelnet"] == {"usage_estimated": True}
        counted = e.app.metrics.text().decode()
        assert f'modelnet_tokens_total{{direction="prompt",model="a"}} {reply["usage"]["prompt_tokens"]}.0' in counted


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ...}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": ["x", ""]}, "input[1]"),
        ({"input": ["x", 7]}, "input[1]"),
        ({"input": [[1, 2], ["x"]]}, "input[1]"),
        ({"input": ["x"] * 2049}, "input"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": "many"}, "dimensions"),
    ],
)
async def test_what_embeddings_refuse(fields: dict[str, Any], param: str) -> None:
    """drop-in 24."""
    backend = Embedder("a", vectors(VECTOR))
    async with edge(backend, servers=("a",)) as e:
        reply = await post(e, "/v1/embeddings", **fields)
        assert (reply.status, reply.error["param"]) == (400, param)
        assert not backend.asked


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (CapabilityMissing("a", "The server of model 'a' has no embeddings."), 404, "unsupported_endpoint"),
        (BackendOverloaded("a", "Full.", 3.0), 503, "overloaded"),
        ({"data": "x"}, 502, "backend_unavailable"),
        (vectors(None), 502, "backend_unavailable"),
        (vectors("not base64!"), 502, "backend_unavailable"),
        ({"data": [7]}, 502, "backend_unavailable"),
        (RuntimeError("secret"), 500, "internal_error"),
    ],
)
async def test_what_goes_wrong_at_the_server(answer: Any, status: int, code: str) -> None:
    """drop-in 26, 27."""
    async with edge(Embedder("a", answer), servers=("a",)) as e:
        reply = await post(e, "/v1/embeddings")
        assert (reply.status, reply.error["code"]) == (status, code)
        assert "secret" not in reply.error["message"]
        assert e.idle()


async def test_a_client_that_leaves_cancels_the_question() -> None:
    """drop-in 30: and the deadline does."""
    backend = Embedder("a")
    async with edge(backend, servers=("a",), limits={"request_seconds": 0.3}) as e:
        exchange = e.exchange("POST", "/v1/embeddings", {"model": "a", "input": "x"})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run)
            with anyio.fail_after(5):
                while not backend.waiting:
                    await anyio.sleep(0.005)
            exchange.leave()
            with anyio.fail_after(0.1):
                await exchange.finished.wait()
        assert not backend.waiting
        reply = await post(e, "/v1/embeddings")
        assert (reply.status, reply.error["code"]) == (504, "timeout")
        assert not backend.waiting
        assert e.idle()


# Tokens


async def test_tokens_of_a_model_here() -> None:
    async with edge(fake("a", context=99)) as e:
        told = (await post(e, "/tokenize", prompt="é 中", return_token_strs=True)).json()
        assert told == {
            "count": len(told["tokens"]),
            "max_model_len": 99,
            "tokens": told["tokens"],
            "token_strs": ["é", " ", "中"],
        }
        assert (await post(e, "/tokenize", prompt="é 中")).json()["token_strs"] is None
        assert (await post(e, "/detokenize", tokens=told["tokens"])).json() == {"prompt": "é 中"}
        chat = await post(e, "/tokenize", prompt=..., messages=[{"role": "user", "content": "é 中"}])
        assert chat.json()["count"] > told["count"]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/tokenize", {"prompt": ...}, "prompt"),
        ("/tokenize", {"prompt": 7}, "prompt"),
        ("/tokenize", {"prompt": ..., "messages": []}, "messages"),
        ("/tokenize", {"add_special_tokens": 1}, "add_special_tokens"),
        ("/detokenize", {"tokens": ...}, "tokens"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/detokenize", {"tokens": [10**6]}, "tokens[0]"),
        ("/detokenize", {"tokens": [True]}, "tokens[0]"),
    ],
)
async def test_what_tokens_refuse(path: str, fields: dict[str, Any], param: str) -> None:
    """drop-in 24."""
    async with edge(fake("a")) as e:
        reply = await post(e, path, **fields)
        assert (reply.status, reply.error["param"]) == (400, param)


# Models


@pytest.mark.parametrize("name", ["s2p:a>b|c", "(a>b)|c*0.5", "a > b", "a", "duo"])
async def test_wirings_that_are_not_listed_are_models_too(name: str) -> None:
    """drop-in 33: URL-encoded."""
    aliases = {"duo": {"expression": "a>b"}}
    async with edge(fake("a"), fake("b"), fake("c"), aliases=aliases) as e:
        encoded = name.replace(":", "%3A").replace(">", "%3E").replace("|", "%7C").replace(" ", "%20")
        reply = await e.call("GET", f"/v1/models/{encoded}")
        assert reply.status == 200
        found = reply.json()
        assert (found["id"], found["object"], type(found["created"])) == (name, "model", int)
        listed = (await e.call("GET", "/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == ["a", "b", "c", "duo"]


@pytest.mark.parametrize("name", ["nobody", "a%3Enobody", "s2p%3Aa", "a%3E", "%20"])
async def test_models_that_do_not_exist(name: str) -> None:
    """drop-in 27, 33."""
    async with edge(fake("a")) as e:
        reply = await e.call("GET", f"/v1/models/{name}")
        assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "model_not_found", "model")
