"""A whole process: SIGHUP takes over a configuration, SIGTERM drains."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from served import Process

CONFIG = """\
models:
  a: {{backend: fake, answer: "{answer}", delay: 0.02}}
  b: {{backend: fake, delay: 0.02}}
server: {{drain_seconds: 1.0, shutdown_seconds: 10}}
ledger: {{enabled: false}}
"""
QUESTION = {"model": "a", "messages": [{"role": "user", "content": "Why?"}]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "gateway.yaml"
    file.write_text(CONFIG.format(answer="one"))
    return file


@pytest.fixture
def process(file: Path, tmp_path: Path) -> Iterator[Process]:
    arguments = ["-m", "gateway", "serve", "--config", str(file), "--port", "0"]
    found = Process(tmp_path, "gateway", arguments, r"serving on (http://\S+)/v1", {"MODELNET_STATE": str(tmp_path)})
    yield found
    found.end()


def said(process: Process) -> str:
    reply = httpx.post(f"{process.url}/v1/chat/completions", json=QUESTION, timeout=20)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)


def test_a_hangup_takes_over_the_file(process: Process, file: Path) -> None:
    assert said(process) == "one"
    file.write_text(CONFIG.format(answer="two"))
    process.process.send_signal(signal.SIGHUP)
    until(lambda: said(process) == "two")
    file.write_text("models: [")
    process.process.send_signal(signal.SIGHUP)
    until(lambda: "reload_failed" in process.log())
    assert said(process) == "two" and "Traceback" not in process.log()


def test_a_termination_drains(process: Process) -> None:
    """Probes say no, requests are still answered, running ones end whole, and the exit code is 0."""
    text: list[str] = []

    def stream() -> None:
        question = {"model": "b", "stream": True, "messages": [{"role": "user", "content": "Why? " * 20}]}
        with httpx.stream("POST", f"{process.url}/v1/chat/completions", json=question, timeout=20) as reply:
            for part in reply.iter_text():
                text.append(part)  # noqa: PERF402 - the test looks on

    running = threading.Thread(target=stream)
    running.start()
    until(lambda: bool(text))
    process.process.send_signal(signal.SIGTERM)
    assert "[DONE]" not in "".join(text), "it was over too soon to say anything"
    until(lambda: httpx.get(f"{process.url}/readyz").status_code == 503)
    assert httpx.get(f"{process.url}/readyz").json()["status"] == "draining"
    assert said(process) == "one"
    running.join(20)
    assert "[DONE]" in "".join(text) and "".join(text).count("chat.completion.chunk") > 100
    assert process.process.wait(timeout=20) == 0
