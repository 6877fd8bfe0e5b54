"""Real processes for end-to-end tests: a gateway, and servers of scripted models for it to reach."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import openai

KEY = "sk-e2e-0123456789"


class Process:
    """A server from its start to its end. `url`: what `said` finds in its output."""

    def __init__(self, folder: Path, name: str, arguments: list[str], said: str, env: Mapping[str, str]) -> None:
        self._log = folder / f"{name}.log"
        with self._log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, *arguments], stdout=output, stderr=output, env={**os.environ, **env}
            )
        self.url = self._found(said)

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def _found(self, said: str) -> str:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(said, self.log()):
                return found[1]
            time.sleep(0.05)
        self.end()
        raise AssertionError(f"it did not start:\n{self.log()}")

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)


@contextmanager
def upstream(folder: Path, name: str, *arguments: str) -> Iterator[str]:
    """A fake model server; its base_url."""
    more = ["--port", "0", "--name", name, *arguments]
    server = Process(folder, f"upstream-{name}", ["-m", "backends.fake.server", *more], r"(http://\S+/v1)", {})
    try:
        yield server.url
    finally:
        server.end()


@contextmanager
def serving(folder: Path, config: str) -> Iterator[str]:
    """A gateway with this configuration; its URL. It has to end well."""
    file = folder / "gateway.yaml"
    file.write_text(config, encoding="utf-8")
    arguments = ["-m", "gateway", "serve", "--config", str(file), "--port", "0"]
    server = Process(folder, "gateway", arguments, r"serving on (http://\S+)/v1", {})
    try:
        yield server.url
    finally:
        code = server.end()
    assert code == 0, server.log()


@contextmanager
def gateway(folder: Path, config: str, key: str = KEY) -> Iterator[openai.OpenAI]:
    """The official client of a gateway with this configuration; its `base_url` leads to `/v1/`."""
    with (
        serving(folder, f'{config}\nkeys: ["{key}"]\n') as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=20) as client,
    ):
        yield client
