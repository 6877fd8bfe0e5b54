"""A client that asks for one thing after the other, over one connection, where nothing else is allowed: nobody may refuse it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from served import KEY, serving, upstream

CONFIG = """
models:
  far: {{backend: openai, base_url: "{far}", model: far}}
  a: {{backend: fake, answer: "{{last}} and so on."}}
  b: {{backend: fake, answer: "{{last}} and so forth."}}
keys: [{{key: {key}, name: one, concurrency: 1}}]
limits: {{concurrent_requests: 1}}
"""
ROUNDS = 40
MESSAGES = [{"role": "user", "content": "Why?"}]
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "single": ("chat/completions", {"model": "a", "messages": MESSAGES}),
    "chain": ("chat/completions", {"model": "a>b", "messages": MESSAGES}),
    "streamed": ("chat/completions", {"model": "a|b", "messages": MESSAGES, "stream": True}),
    "forwarded": ("chat/completions", {"model": "far", "messages": MESSAGES}),
    "forwarded-stream": ("chat/completions", {"model": "far", "messages": MESSAGES, "stream": True}),
    "completions": ("completions", {"model": "a>b", "prompt": "Why?"}),
    "forwarded-text": ("completions", {"model": "far", "prompt": "Why?", "stream": True}),
    "responses": ("responses", {"model": "far", "input": "Why?"}),
    "responses-stream": ("responses", {"model": "a", "input": "Why?", "stream": True}),
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("one")
    with (
        upstream(folder, "far", "--answer", "{last} and so on.") as far,
        serving(folder, CONFIG.format(far=far, key=KEY)) as url,
        httpx.Client(base_url=f"{url}/v1", headers={"authorization": f"Bearer {KEY}"}) as made,
    ):
        yield made


@pytest.mark.parametrize("asked", ASKED)
def test_it_is_never_in_its_own_way(client: httpx.Client, asked: str) -> None:
    path, body = ASKED[asked]
    statuses = [client.post(path, json=body).status_code for _ in range(ROUNDS)]
    assert statuses == [200] * ROUNDS
