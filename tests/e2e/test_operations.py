"""A served gateway as an operator meets it: the admin API beside it, the official client through it, the report afterwards."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest
from served import Process

ADMIN = "an-admin-key-of-the-tests"
CONFIG = f"""
models:
  a: {{backend: fake, answer: "one two three"}}
  b: {{backend: fake, answer: "four five six"}}
keys: [a-plain-key-of-the-tests]
key_store: {{database: keys.db}}
ledger: {{database: ledger.db, flush_seconds: 0.1}}
prices: {{models: {{a: {{prompt: 1.0, completion: 2.0}}}}}}
routes:
  split:
    arms: {{plain: {{model: a}}, chain: {{model: "a>b"}}}}
admin: {{key: {ADMIN}, port: 0}}
"""


def admin(url: str, method: str, path: str, body: object = None) -> object:
    headers = {"Authorization": f"Bearer {ADMIN}"}
    return httpx.request(method, f"{url}{path}", json=body, headers=headers, timeout=10).raise_for_status().json()


def test_a_key_from_its_making_to_the_report(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(CONFIG, encoding="utf-8")
    arguments = ["-m", "gateway", "serve", "--config", str(file), "--port", "0"]
    process = Process(tmp_path, "gateway", arguments, r"serving on (http://\S+)/v1", {})
    try:
        found = re.search(r"admin API on (http://\S+)", process.log())
        assert found is not None
        made = admin(found[1], "POST", "/keys", {"name": "team", "requests_per_minute": 30, "wirings": ["split"]})
        assert isinstance(made, dict)
        with openai.OpenAI(base_url=f"{process.url}/v1", api_key=made["key"], max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["split"]
            for number in range(20):
                raw = client.chat.completions.with_raw_response.create(
                    model="split", user=f"user-{number}", messages=[{"role": "user", "content": "Why?"}]
                )
                assert raw.headers["x-ratelimit-limit-requests"] == "30"
                completion = raw.parse()
                client.post("/feedback", cast_to=object, body={"id": completion.id, "score": number % 2})
            with pytest.raises(openai.PermissionDeniedError):
                client.chat.completions.create(model="a", messages=[{"role": "user", "content": "Why?"}])
            with pytest.raises(openai.RateLimitError) as caught:
                for _ in range(40):
                    client.chat.completions.create(model="split", messages=[{"role": "user", "content": "Why?"}])
            assert caught.value.code == "rate_limit_exceeded"
            assert float(caught.value.response.headers["retry-after-ms"]) > 0
            admin(found[1], "DELETE", f"/keys/{made['id']}")
            with pytest.raises(openai.AuthenticationError):
                client.models.list()
        status = admin(found[1], "GET", "/status")
        assert isinstance(status, dict)
        assert status["ledger"]["dropped"] == 0
        assert made["key"] not in process.log()
    finally:
        code = process.end()
    assert code == 0, process.log()
    told = subprocess.run(
        [sys.executable, "-m", "gateway", "experiment", "report", "split", "--config", str(file), "--json"],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    value = json.loads(told.stdout)
    assert {arm["arm"] for arm in value["arms"]} == {"plain", "chain"}
    assert sum(arm["scored"] for arm in value["arms"]) == 20
    assert value["winner"] is None
    assert all(arm["cost"] > 0 for arm in value["arms"] if arm["requests"])
