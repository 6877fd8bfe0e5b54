"""Secrets are planted wherever a secret can be, everything goes wrong that can, and afterwards they are found nowhere."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from served import Process

SECRETS = {
    "UPSTREAM_KEY": "planted-upstream-key-0123456789",
    "UPSTREAM_HEADER": "planted-header-value-0123456789",
    "CLIENT_KEY": "planted-client-key-0123456789",
    "TEAM_KEY": "planted-team-key-0123456789",
    "ADMIN_KEY": "planted-admin-key-0123456789",
    "TRACE_KEY": "planted-trace-key-0123456789",
}
PROMPT = "planted-prompt-nobody-may-log"

CONFIG = """\
models:
  good: {{backend: fake, answer: "fine"}}
  echo:
    backend: openai
    base_url: {url}/v1
    api_key: ${{UPSTREAM_KEY}}
    headers: {{x-team: "${{UPSTREAM_HEADER}}"}}
  dead: {{backend: openai, base_url: "http://127.0.0.1:9/v1", api_key: "${{UPSTREAM_KEY}}"}}
  many: {{backend: vllm, urls: ["{url}/v1"], api_key: "${{UPSTREAM_KEY}}", sessions: auto}}
keys:
  - ${{CLIENT_KEY}}
  - {{key: "${{TEAM_KEY}}", name: team, requests_per_minute: 5}}
admin: {{key: "${{ADMIN_KEY}}", port: 0}}
server: {{log: {{level: debug, format: {format}}}}}
tracing: {{endpoint: "{url}/v1/traces", headers: {{x-auth: "${{TRACE_KEY}}"}}}}
resilience: {{retries: {{pause: 0.01}}}}
"""


class Echo(BaseHTTPRequestHandler):
    """Answers everything with everything it was sent, as errors of all kinds; and takes traces."""

    traces: list[bytes] = []  # noqa: RUF012 - of the one server
    turn = 0

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self._answer(200, b'{"object": "list", "data": []}')

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/v1/traces":
            Echo.traces.append(body)
            self._answer(200, b"")
            return
        said = f"{self.headers} {body.decode(errors='replace')}"
        error = json.dumps({"error": {"message": f"I was sent: {said}", "type": said, "code": said, "param": said}})
        Echo.turn += 1
        match Echo.turn % 8:
            case 0:
                self._answer(200, f"data: {error}\n\n".encode(), "text/event-stream")
            case 1:
                self._answer(200, error.encode())
            case 2:
                self._answer(200, said.encode(), "text/event-stream")
            case kind:
                self._answer((400, 401, 404, 422, 429, 500)[kind - 3 if kind > 2 else 0], error.encode())

    def _answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def echo() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def spellings(secret: str) -> list[bytes]:
    """As it is, encoded, and the most of it."""
    plain = secret.encode()
    return [plain, base64.b64encode(plain)[:-4], plain.hex().encode(), plain[:-6]]


@pytest.mark.parametrize("format", ["json", "console"])
def test_what_was_planted_is_found_nowhere(tmp_path: Path, format: str) -> None:
    pytest.importorskip("opentelemetry.sdk")
    found: dict[str, bytes] = {}
    with echo() as url:
        file = tmp_path / "gateway.yaml"
        file.write_text(CONFIG.format(url=url, format=format))
        arguments = ["-m", "gateway", "serve", "--config", str(file), "--port", "0"]
        env = {**SECRETS, "MODELNET_STATE": str(tmp_path / "state")}
        process = Process(tmp_path, "gateway", arguments, r"serving on (http://\S+)/v1", env)
        admin = process._found(r"admin API on (http://\S+)/admin")
        said = b""
        with httpx.Client(base_url=process.url, timeout=30) as client:
            for key in (SECRETS["CLIENT_KEY"], SECRETS["TEAM_KEY"], SECRETS["CLIENT_KEY"] + "x", SECRETS["ADMIN_KEY"]):
                client.headers["authorization"] = f"Bearer {key}"
                for wiring in ("good", "echo", "good>echo", "echo>good", "dead", "many", "echo|good", "nobody"):
                    for stream in (False, True):
                        for _ in range(3):
                            body = {
                                "model": wiring,
                                "stream": stream,
                                "messages": [{"role": "user", "content": PROMPT}],
                            }
                            reply = client.post("/v1/chat/completions", json=body)
                            said += str(reply.headers).encode() + reply.content
                for path in ("/v1/models", "/readyz", "/metrics", "/v1/models/good", "/nowhere"):
                    said += client.get(path).content
                said += client.post("/v1/embeddings", json={"model": "echo", "input": PROMPT}).content
                said += client.post("/tokenize", json={"model": "echo", "prompt": PROMPT}).content
                said += client.post("/v1/chat/completions", content=b"{").content
            for path in ("/admin/status", "/admin/keys"):
                said += httpx.get(admin + path, headers={"authorization": f"Bearer {SECRETS['ADMIN_KEY']}"}).content
                said += httpx.get(admin + path, headers={"authorization": f"Bearer {SECRETS['CLIENT_KEY']}"}).content
        found["answers"] = said
        found["/proc"] = Path(f"/proc/{process.process.pid}/cmdline").read_bytes()
        assert process.end() == 0, process.log()
        found["the log"] = process.log().encode()
        found["traces"] = b"".join(Echo.traces)
        for path in (tmp_path / "state").rglob("*"):
            if path.is_file():
                found[path.name] = path.read_bytes()
    assert b"fine" in found["answers"] and b"rejected the request" in found["answers"]
    assert found["traces"] and b"request_failed" in found["the log"] and "ledger.db" in found
    for where, data in found.items():
        for name, secret in SECRETS.items():
            for spelling in spellings(secret):
                assert spelling not in data, f"{name} in {where}: {data[max(0, data.find(spelling) - 200) :][:500]!r}"
        if where != "answers":  # a model may say again what it was asked
            assert PROMPT.encode() not in data, f"the prompt in {where}"
