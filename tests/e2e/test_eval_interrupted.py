"""`modelnet eval` against a running gateway, killed twenty times at random moments: what comes out is what comes out of one sitting."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CONFIG = """\
models:
  a: {backend: fake, answer: "It is #### 4", delay: 0.004, rules: [{contains: "+", answer: "The sum is 58.\\n#### 58"}]}
  b: {backend: fake, answer: "I think that it is #### 5", delay: 0.003, seed: 2}
  c: {backend: fake, answer: "Answer: B", delay: 0.002, seed: 3}
"""
TIMES = {"seconds", "first_token", "at", "waiting_seconds", "own_seconds", "passes", "drafts", "quorum"}
"""What depends on the clock: how far a group reads ahead, and whom it waits for, too; never what it says."""


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[str]:
    """The URL of a gateway in a process of its own."""
    config = tmp_path / "c.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(config), "--port", "0"]
    log = tmp_path / "gateway.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, stderr=out)
    try:
        for _ in range(300):
            if found := re.search(r"serving on (http\S+)", log.read_text(encoding="utf-8")):
                break
            assert process.poll() is None, log.read_text(encoding="utf-8")
            time.sleep(0.1)
        else:
            pytest.fail("the gateway did not start")
        yield found[1]
    finally:
        process.terminate()
        process.wait(20)


def command(base: str, out: Path) -> list[str]:
    return [
        sys.executable, "-m", "gateway", "eval", "arithmetic", "logic", "--models", "a,b,c", "-n", "4", "--concurrency", "2",
        "--base-url", base, "--out", str(out), "--seed", "3",
    ]  # fmt: skip


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def answers(directory: Path) -> dict[str, Any]:
    lines = (directory / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    found = {value["key"]: without_times(value) for value in map(json.loads, lines)}
    assert len(found) == len(lines), "a finished question was asked again"
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_twenty_times(gateway: str, tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    subprocess.run(command(gateway, whole), check=True, capture_output=True, timeout=120)
    chance, kills, grown = random.Random(5), 0, 0
    file = torn / "answers.jsonl"
    while kills < 20:
        before = file.stat().st_size if file.exists() else 0
        process = subprocess.Popen(command(gateway, torn), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # At any moment: while it starts, and while it asks.
        time.sleep(chance.uniform(0.1, 1.0))
        deadline = time.monotonic() + chance.choice([0.0, 20.0])
        target = before + chance.randrange(1, 6000)
        while (
            process.poll() is None
            and time.monotonic() < deadline
            and (file.stat().st_size if file.exists() else 0) < target
        ):
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait(10)
            kills += 1
            grown += (file.stat().st_size if file.exists() else 0) > before
        if chance.random() < 0.3 and file.exists():  # what a torn write leaves
            with file.open("ab") as out:
                out.write(b'{"key":"0123456789abcdef","task":"arithm')
        if process.returncode == 0:
            break
    done = subprocess.run(command(gateway, torn), check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert kills == 20
    assert grown >= 5
    assert answers(torn) == answers(whole)
    reports = [json.loads((where / "report.json").read_text(encoding="utf-8")) for where in (whole, torn)]
    assert [(c["task"], c["wiring"], c["right"], c["answered"]) for c in reports[0]["cells"]] == [
        (c["task"], c["wiring"], c["right"], c["answered"]) for c in reports[1]["cells"]
    ]
