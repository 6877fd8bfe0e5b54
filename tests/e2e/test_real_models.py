"""Three real models of three tokenizers behind the real server, asked by the official client.

The server runs in a thread of this process, so that the tests can look at what it holds: sessions, seats, threads.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import openai
import pytest
import yaml

from gateway.app import Application
from gateway.runtime import Runtime, open_runtime
from gateway.settings import load
from gateway.web.serving import Server, bind, url

WEIGHTS = (
    "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "gemma-3-270m.Q4_K_M.gguf",
)
EVALS = Path(__file__).parents[1] / "evals" / "data"
HOME = Path(os.environ.get("MODELNET_HOME") or Path.home() / ".cache" / "modelnet") / "models"

pytestmark = [
    pytest.mark.models,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not all((HOME / name).exists() for name in WEIGHTS), reason="the demo's weights are missing: make weights"
    ),
]

CONFIG = """
models:
  qwen: {backend: llama_cpp, weights: qwen2.5-coder-0.5b-instruct, context: 1024}
  qwen-twin: {backend: llama_cpp, weights: qwen2.5-coder-0.5b-instruct, context: 1024}
  smol: {backend: llama_cpp, weights: smollm2-135m-instruct, context: 1024}
  smol-twin: {backend: llama_cpp, weights: smollm2-135m-instruct, context: 1024}
  gemma: {backend: llama_cpp, weights: gemma-3-270m, context: 1024}
limits: {stage_max_tokens: 24}
server: {log: {level: error}}
"""

PROMPTS = (
    "Why is the sky blue?",
    "Name three primary colours.",
    "What is 17 + 25?",
    "Write a haiku about rain.",
    "Translate 'good morning' into French.",
    "List the days of the week, separated by commas.",
    "中国的首都是哪里？",
    "请用一句话介绍长城。",
    "把“苹果”翻译成英文。",
    "一加一等于几？",
    "Write a Python function that reverses a string.",
    "def fibonacci(n):\n    ",
    "Write a for loop in C that prints 0 to 9.",
    "SELECT the names of all users older than 30 in SQL.",
    "What does `git rebase` do?",
    "Which emoji stands for a smile? 😀 or 🚗?",
    "Reply with three emoji: 🎉🎂🎁",
    'Explain JSON in one sentence: {"a": [1, 2]}',
    "   Leading spaces\n\n\tand tabs: what are they?",
    "Café, naïve, Größe: which languages are these words from?",
)


class Gateway:
    """The server in a thread of its own, and a client."""

    def __init__(self, folder: Path) -> None:
        config = folder / "models.yaml"
        config.write_text(CONFIG, encoding="utf-8")
        self._loaded = load(config)
        self._sock = bind("127.0.0.1", 0)
        self.runtime: Runtime | None = None
        self._server: Server | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=anyio.run, args=[self._serve], name="gateway")
        self._thread.start()
        assert self._ready.wait(120)
        self.client = openai.OpenAI(base_url=f"{url(self._sock)}/v1", api_key="none", max_retries=0, timeout=600)

    async def _serve(self) -> None:
        try:
            async with open_runtime(self._loaded) as runtime:
                await runtime.wait_loaded()
                self.runtime = runtime
                self._server = Server(Application(runtime), 1.0)
                self._ready.set()
                await self._server.serve(sockets=[self._sock])
        finally:
            self._ready.set()

    def end(self) -> None:
        self.client.close()
        if self._server is not None:
            self._server.stop()
        self._thread.join(60)
        self._sock.close()
        assert not self._thread.is_alive()

    def text(self, model: str, prompt: str, max_tokens: int, **more: Any) -> str:
        more = {"temperature": 0, **more}
        answer = self.client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": prompt}], max_tokens=max_tokens, **more
        )
        assert answer.choices[0].message.content is not None
        return answer.choices[0].message.content

    def fusion(self, model: str, prompt: str, max_tokens: int) -> tuple[str, str, dict[str, Any]]:
        """Text, finish reason and what the fused stage reports of itself."""
        answer = self.client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": prompt}], max_tokens=max_tokens, temperature=0
        )
        assert answer.model_extra is not None
        stage = answer.model_extra["modelnet"]["stages"][-1]
        return answer.choices[0].message.content or "", answer.choices[0].finish_reason, stage["fusion"]

    def seats(self) -> dict[str, tuple[int, int]]:
        """Model → seats taken, callers waiting."""
        assert self.runtime is not None
        found = {}
        for name, entry in self.runtime.catalog.items():
            backend: Any = entry.backend  # guarded; what is asked here is the backend's own
            stats = backend.stats()
            found[name] = (stats.used, stats.waiting)
        return found

    def assert_idle(self) -> None:
        """Everything is given back, within the time of a pass."""
        deadline = time.monotonic() + 10
        while any(self.seats().values()) and any(v != (0, 0) for v in self.seats().values()):
            assert time.monotonic() < deadline, self.seats()
            time.sleep(0.01)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    before = threading.active_count()
    running = Gateway(tmp_path_factory.mktemp("gateway"))
    yield running
    running.end()
    left = [t.name for t in threading.enumerate() if t.name.startswith("llama_cpp")]
    assert not left, f"threads left behind: {left}"
    assert threading.active_count() <= before + 4  # the loop's own helper threads end with the process


def test_copies_of_one_model_are_that_model(gateway: Gateway) -> None:
    """K copies: two names for the same weights, with equal and with unequal weights, are byte for byte the model alone."""
    for prompt in PROMPTS:
        alone = gateway.text("smol", prompt, 24)
        assert gateway.text("pi:smol|smol-twin", prompt, 24) == alone
        assert gateway.text("pi:smol*0.9|smol-twin*0.1", prompt, 24) == alone


@pytest.mark.slow
def test_copies_of_a_larger_model_are_that_model(gateway: Gateway) -> None:
    """The same with the model that speaks Chinese and writes code."""
    for prompt in PROMPTS:
        alone = gateway.text("qwen", prompt, 10)
        assert gateway.text("pi:qwen|qwen-twin", prompt, 10) == alone
        assert gateway.text("pi:qwen*0.9|qwen-twin*0.1", prompt, 10) == alone


def test_order_of_members_does_not_matter(gateway: Gateway) -> None:
    for prompt in ("Why is the sky blue?", "一加一等于几？"):
        texts = {
            gateway.text("pi:" + "|".join(order), prompt, 16)
            for order in itertools.permutations(("qwen", "smol", "gemma"))
        }
        assert len(texts) == 1
        assert texts.pop()


def test_one_hot_weight_follows_that_member(gateway: Gateway) -> None:
    """Same tokenizer: byte for byte. Other tokenizers: the heavy member's own choice of pieces, whoever the light one is."""
    for prompt in PROMPTS[:6]:
        assert gateway.text("pi:smol*1|smol-twin*0.000001", prompt, 16) == gateway.text("smol", prompt, 16)
    same = 0
    for prompt in PROMPTS[:6]:
        alone = gateway.text("smol", prompt, 16)
        fused = gateway.text("pi:smol*1|gemma*0.000001", prompt, 16)
        same += fused.startswith(alone[: len(alone) // 2])
    assert same >= 4  # a token that is no common piece can lose to one that shares its beginning


@pytest.mark.parametrize("model", ["smol", "smol|qwen", "qwen>smol|qwen"])
def test_drafts_change_nothing_that_a_client_sees(gateway: Gateway, model: str) -> None:
    """Of a model alone, a group, and a group that repeats another's answer: text, end, usage, log-probabilities, draws."""
    accepted = 0
    for prompt, asked in (
        ("Repeat this sentence three times: 'The cat sat on the mat.'", {"temperature": 0}),
        ("Repeat this sentence three times: 'The cat sat on the mat.'", {"temperature": 0, "stop": [" mat"]}),
        ("一加一等于几？", {"temperature": 0, "logprobs": True, "top_logprobs": 3}),
        ("List the days of the week, separated by commas.", {"temperature": 0.8, "seed": 5}),
    ):
        seen = []
        for drafts in ("off", "always"):
            answer = gateway.client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=24,
                extra_body={"modelnet": {"drafts": drafts}},
                **asked,  # type: ignore[call-overload]
            )
            (choice,) = answer.choices
            assert choice.message.content is not None and answer.usage is not None
            likely = choice.logprobs.model_dump() if choice.logprobs else None
            seen.append((choice.message.content, choice.finish_reason, answer.usage.total_tokens, likely))
            for stage in answer.model_extra["modelnet"]["stages"]:
                made = (stage.get("fusion") or {}).get("drafts") or {"accepted": 0}
                assert drafts == "always" or not made["accepted"]
                accepted += made["accepted"]
        assert seen[0] == seen[1] and seen[0][0]
    assert accepted
    gateway.assert_idle()


def test_three_tokenizers_write_valid_text_and_end_by_themselves(gateway: Gateway) -> None:
    ended = 0
    for prompt in (
        "What is the capital of France? One sentence.",
        "中国的首都是哪里？请用一句话回答。",
        "Reply with only: 🎉",
    ):
        text, reason, fusion = gateway.fusion("pi:qwen|smol|gemma", prompt, 60)
        assert text
        assert "\ufffd" not in text.rstrip("\ufffd")
        ended += reason == "stop"
        assert fusion["pieces"] == fusion["certified"] + fusion["looked_up"] + fusion["uncertified"]
        assert fusion["uncertified"] <= 0.2 * fusion["pieces"] + 1
        assert fusion["drift"] <= 3
        assert fusion["lost_mass"] <= 0.05 * fusion["pieces"]
    assert ended >= 2


def test_answers_of_three_tokenizers_keep_to_their_schemas(gateway: Gateway) -> None:
    """Nested objects, names and values in Chinese and emoji, one of several, numbers; greedy and not. All of the forms: make eval-forms."""
    forms = yaml.safe_load((EVALS / "forms.yaml").read_text(encoding="utf-8"))

    def ask(name: str, temperature: float) -> Any:
        form = {"name": name, "schema": forms[name]["schema"]}
        asked: Any = {"type": "json_schema", "json_schema": form}
        more = {"temperature": temperature, "seed": 1, "response_format": asked}
        return json.loads(gateway.text("pi:qwen|smol|gemma", forms[name]["question"], 200, **more))

    names = ("nested", "unicode_enum", "any_of", "numbers")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, names, (0.0, 1.0, 1.0, 0.0)))
    for name, answer in zip(names, answers, strict=True):
        jsonschema.validate(answer, forms[name]["schema"], format_checker=jsonschema.FormatChecker())


@pytest.mark.parametrize(
    "wiring", ["si:smol>qwen", "pi:qwen|smol", "s2p:smol>qwen|gemma", "p2s:smol|gemma>qwen", "(smol>qwen)|gemma"]
)
def test_every_kind_streams_token_by_token(gateway: Gateway, wiring: str) -> None:
    """The official client sees the first token well before the last one is decoded, and the stream equals the whole answer."""
    ask: Any = {"model": wiring, "messages": [{"role": "user", "content": "Count from one to ten."}], "max_tokens": 24}
    began = time.monotonic()
    times, parts, reason = [], [], None
    with gateway.client.chat.completions.create(stream=True, temperature=0, **ask) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                if choice.delta.content:
                    times.append(time.monotonic() - began)
                    parts.append(choice.delta.content)
                reason = choice.finish_reason or reason
    assert reason in ("stop", "length")
    assert len(parts) > 4
    writing = times[-1] - times[0]
    assert writing > 0.3 * len(parts) * 0.005, "the text came in one lump"
    whole = gateway.client.chat.completions.create(temperature=0, **ask)
    assert "".join(parts) == whole.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.completion_tokens > len(parts) / 2
    gateway.assert_idle()


def test_eight_at_once_over_mixed_wirings_and_half_of_them_leave(gateway: Gateway) -> None:
    """None deadlocks; those who walk away leave no session, seat or thread behind."""
    wirings = [
        "qwen",
        "pi:qwen|smol",
        "si:smol>gemma",
        "s2p:smol>qwen|gemma",
        "pi:smol|gemma",
        "p2s:smol|qwen>smol",
        "gemma",
        "(smol>qwen)|gemma",
    ]
    threads = {t.name for t in threading.enumerate() if t.name.startswith("llama_cpp")}

    def ask(index: int) -> str | None:
        messages: Any = [{"role": "user", "content": f"Tell me about the number {index}."}]
        stream = gateway.client.chat.completions.create(
            model=wirings[index], messages=messages, max_tokens=20, stream=True
        )
        with stream:
            for seen, chunk in enumerate(stream):
                if index % 2 and seen == 3:
                    return "left"
                if chunk.choices and chunk.choices[0].finish_reason:
                    return chunk.choices[0].finish_reason
        return None

    with ThreadPoolExecutor(8) as pool:
        ends = list(pool.map(ask, range(8)))
    assert all(end == "left" for end in ends[1::2])
    assert all(end in ("stop", "length") for end in ends[0::2])
    gateway.assert_idle()
    assert {t.name for t in threading.enumerate() if t.name.startswith("llama_cpp")} == threads


def test_seed_and_temperature_hold_for_the_pool(gateway: Gateway) -> None:
    ask = ("pi:smol|gemma", "Invent a name for a cat.", 12)
    first, again, other = (gateway.text(*ask, temperature=1.2, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_a_long_prompt_is_a_clear_error(gateway: Gateway) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        gateway.text("pi:qwen|smol", "word " * 3000, 8)
    assert caught.value.code == "context_length_exceeded"
    assert "1024" in str(caught.value)
    gateway.assert_idle()
