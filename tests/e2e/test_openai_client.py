"""The official client against a real server process with scripted models."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

KEY = "sk-e2e-0123456789"
CONFIG = """
models:
  a: {backend: fake, answer: "Answer of a: 是的 😀.", delay: 0.01}
  b: {backend: fake, answer: "Answer of b: 是的 😀."}
  c: {backend: fake, answer: "Answer of c."}
  slow: {backend: fake, answer: "one two three four five six seven eight", delay: 0.1}
  silent: {backend: fake, faults: [{on: token, action: hang}]}
  broken: {backend: fake, answer: "one two three", faults: [{on: token, after: 2}]}
  gone: {backend: fake, faults: [{on: enter}]}
  unknown: {backend: openai, base_url: "${E2E_UPSTREAM}"}
aliases:
  duo: {expression: "s2p:a>b|c"}
server: {shutdown_seconds: 0.5, keepalive_seconds: 0.3}
keys: ["${E2E_KEY}"]
"""
WIRINGS = ["a", "si:a>b", "pi:a|b", "s2p:a>b|c", "p2s:a|b>c", "(a>b)|c", "duo"]
ASK: Any = [{"role": "user", "content": "Why?"}]


class Unknown(http.server.ThreadingHTTPServer):
    """A model server that knows no model. asked: paths that were posted to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                asked.append(self.path)
                self.do_GET()

            def do_GET(self) -> None:
                body = b'{"error": {"message": "The model `unknown` does not exist.", "type": "NotFoundError", "code": 404}}'
                self.send_response(404)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Gateway:
    """A server process, from its start to its end. upstream: base_url of the server behind the model `unknown`."""

    def __init__(self, folder: Path, upstream: str = "http://127.0.0.1:9/v1") -> None:
        config = folder / "gateway.yaml"
        config.write_text(CONFIG, encoding="utf-8")
        self.log = (folder / "log").open("w+", encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "--config", str(config), "--port", "0"],
            stderr=self.log,
            env={**os.environ, "E2E_KEY": KEY, "E2E_UPSTREAM": upstream},
        )
        self.url = self._url()
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=20)

    def _url(self) -> str:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(r"serving on (http://\S+)/v1", self.read_log()):
                return found[1]
            time.sleep(0.05)
        raise AssertionError(f"the gateway did not start:\n{self.read_log()}")

    def read_log(self) -> str:
        return Path(self.log.name).read_text(encoding="utf-8")

    def metric(self, name: str) -> float:
        request = urllib.request.Request(f"{self.url}/metrics", headers={"authorization": f"Bearer {KEY}"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310 - our own server
            text = response.read().decode()
        return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(f"{name} ")))

    def connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=20)
        self.client.close()
        self.log.close()
        return code


@pytest.fixture(scope="module")
def unknown() -> Iterator[Unknown]:
    with Unknown() as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield server
        finally:
            server.shutdown()
            serving.join()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, unknown: Unknown) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path_factory.mktemp("gateway"), unknown.url)
    try:
        yield gateway
    finally:
        code = gateway.end()
    assert code == 0


@contextlib.contextmanager
def posted(gateway: Gateway, **body: Any) -> Iterator[tuple[http.client.HTTPConnection, http.client.HTTPResponse]]:
    connection = gateway.connect()
    try:
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps({"messages": ASK, **body}), headers)
        yield connection, connection.getresponse()
    finally:
        connection.close()


@pytest.mark.parametrize("wiring", WIRINGS)
def test_streams_and_whole_answers(gateway: Gateway, wiring: str) -> None:
    """drop-in 1 to 8, 34, 36: all four kinds, a nested wiring and an alias, through the official client."""
    whole = gateway.client.chat.completions.create(model=wiring, messages=ASK)
    chunks = list(
        gateway.client.chat.completions.create(
            model=wiring, messages=ASK, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content != ""
    assert whole.model == wiring
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.model_dump() == whole.usage.model_dump()
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "stop"


def test_the_clients_own_stream_helper(gateway: Gateway) -> None:
    """drop-in 2, 36: it puts the answer together again."""
    with gateway.client.chat.completions.stream(model="duo", messages=ASK) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    whole = gateway.client.chat.completions.create(model="duo", messages=ASK)
    assert final.choices[0].message.content == whole.choices[0].message.content


@pytest.mark.anyio
async def test_the_asynchronous_client(gateway: Gateway) -> None:
    """drop-in 36."""
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0, timeout=20) as client:
        texts = ["", ""]
        stream = await client.chat.completions.create(model="a", messages=ASK, stream=True, n=2)
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        assert texts == ["Answer of a: 是的 😀."] * 2


def test_the_first_token_comes_before_the_last_is_written(gateway: Gateway) -> None:
    """drop-in 11: nothing on the way collects them."""
    times = [
        time.monotonic()
        for chunk in gateway.client.chat.completions.create(model="slow", messages=ASK, stream=True)
        if chunk.choices[0].delta.content
    ]
    assert times[-1] - times[0] > 0.5


def test_errors_are_the_clients_own_classes(gateway: Gateway) -> None:
    """drop-in 26, 27, 36."""
    create = gateway.client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as missing:
        create(model="a>nobody", messages=ASK)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        create(model="a", messages=ASK, temperature=9)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.AuthenticationError) as closed:
        gateway.client.with_options(api_key="sk-wrong").models.list()
    assert closed.value.code == "invalid_api_key"
    with pytest.raises(openai.InternalServerError) as gone:
        create(model="gone", messages=ASK, stream=True)
    assert gone.value.status_code == 502
    assert gone.value.request_id


@pytest.mark.parametrize("model", ["unknown", "unknown>a", "a>unknown"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_its_server_does_not_know_is_told_once(
    gateway: Gateway, unknown: Unknown, model: str, stream: bool
) -> None:
    """drop-in 26, 27: only its operator can mend that, so the client does not ask again, as it does by itself after other 502."""
    patient = gateway.client.with_options(max_retries=2)
    unknown.asked.clear()
    with pytest.raises(openai.InternalServerError, match="does not know this model") as told:
        patient.chat.completions.create(model=model, messages=ASK, stream=stream)
    assert (told.value.status_code, told.value.code) == (502, "backend_unavailable")
    assert unknown.asked == ["/v1/chat/completions"]


def test_a_stream_that_breaks_is_an_error(gateway: Gateway) -> None:
    """drop-in 10: the client raises; it never takes a part for the whole."""
    with pytest.raises(openai.APIError, match="fails as scripted"):
        list(gateway.client.chat.completions.create(model="broken", messages=ASK, stream=True))


def test_models(gateway: Gateway) -> None:
    """drop-in 33: listed, and retrieved by names with `:>|` as the client encodes them."""
    listed = gateway.client.models.list().data
    assert [model.id for model in listed][-1] == "duo"
    for name in ("a", "duo", "s2p:a>b|c", "(a>b)|c*0.5"):
        found = gateway.client.models.retrieve(name)
        assert found.id == name
        assert isinstance(found.created, int)


def test_a_connection_lives_on_after_a_stream(gateway: Gateway) -> None:
    """drop-in 1, 31: the body ends right after [DONE]; the next request uses the same connection."""
    with posted(gateway, model="a", stream=True) as (connection, response):
        assert response.read().endswith(b"data: [DONE]\n\n")
        assert response.headers["x-request-id"]
        sock = connection.sock
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        assert connection.sock is sock


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", ["silent", "slow", "a>silent", "a|silent"])
def test_a_client_that_leaves_frees_everything(gateway: Gateway, model: str, stream: bool) -> None:
    """drop-in 30: over a real socket, before the first token and after it; the gauges return to nothing."""
    parts = urlsplit(gateway.url)
    body = json.dumps({"model": model, "messages": ASK, "stream": stream})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as sock:
        sock.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        deadline = time.monotonic() + 5
        while gateway.metric("modelnet_active_requests") != 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert gateway.metric("modelnet_active_requests") == 1
        time.sleep(0.4 if stream else 0.1)  # a stream has sent its headers by now
    left = time.monotonic()
    while gateway.metric("modelnet_active_requests") != 0 and time.monotonic() - left < 5:
        time.sleep(0.005)
    assert gateway.metric("modelnet_active_requests") == 0
    assert gateway.metric("modelnet_active_streams") == 0


def test_silent_streams_are_kept_alive(gateway: Gateway) -> None:
    """drop-in 9: comments come before the first token, and the official client does not mind them."""
    with posted(gateway, model="silent", stream=True) as (_, response):
        assert response.status == 200
        assert [response.readline() for _ in range(4)] == [b": keep-alive\n", b"\n"] * 2


def test_the_end_of_the_process_ends_streams(tmp_path: Path) -> None:
    """drop-in 10, 31: a signal lets streams run for the configured time, then ends them with an error event; exit code 0."""
    gateway = Gateway(tmp_path)
    caught: list[str] = []

    def read() -> None:
        try:
            list(gateway.client.chat.completions.create(model="slow", messages=ASK, stream=True))
        except openai.APIError as error:
            caught.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    while gateway.metric("modelnet_active_streams") != 1:
        time.sleep(0.02)
    began = time.monotonic()
    gateway.process.send_signal(signal.SIGTERM)
    reader.join(timeout=10)
    assert gateway.process.wait(timeout=10) == 0
    assert 0.4 < time.monotonic() - began < 4
    assert caught == ["The gateway is shutting down."]
    assert KEY not in gateway.read_log()
    gateway.end()
