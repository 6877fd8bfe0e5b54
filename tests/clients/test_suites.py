"""Tests that others have written for clients and servers of OpenAI's API, over the gateway, each in an environment of its own.

What they count is told at the end of a run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from environments import HERE, Environment
from scripts import KEY, WIRINGS, call, scripted, upstream

pytestmark = pytest.mark.clients

Counted = Callable[[dict[str, list[str]]], None]
Environments = Callable[[str], Environment]

JOKE = {"setup": "Why did the cat sit down?", "punchline": "It was tired."}
LANGCHAIN = [
    ("magic_function_no_args()", call("magic_function_no_args")),
    ("magic_function(3)", call("magic_function", input=3)),
    ("Pirate greeting", call("greeting_generator", answer_style="Pirate")),
    ("3 + 4", call("my_adder_tool", a=3, b=4)),
    ("no punchline", json.dumps({"setup": JOKE["setup"], "punchline": None})),
    ("joke about cats", json.dumps(JOKE)),
    ("It's sunny", "It is sunny."),
    ("San Francisco", call("get_weather", location="San Francisco, CA")),
    ("你好啊集团", call("unicode_customer", customer_name="你好啊集团", description="一家公司")),
    ("こんにちは株式会社", call("unicode_customer", customer_name="こんにちは株式会社", description="会社")),
    ("hi", "hello, how are you"),
]


def run_pytest(environment: Environment, folder: Path, *arguments: str, **variables: str) -> dict[str, list[str]]:
    """Outcome → names of the tests. Skipped ones with their reason, failed ones with the message."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    report = folder / "report.xml"
    done = subprocess.run(
        [str(environment.python), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={report}", *arguments],
        cwd=folder, env={**keep, **variables}, capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert report.exists(), f"{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
    found: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - pytest's own report
        name, outcome = f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}", "passed"
        for kind, told in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
            if (why := case.find(kind)) is not None:
                outcome, name = told, f"{name}: {why.get('message', '')[:300]}"
        found[outcome].append(name)
    return found


@pytest.fixture(scope="module")
def standard_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with scripted(tmp_path_factory.mktemp("standard"), LANGCHAIN) as url:
        yield url


@pytest.mark.timeout(900)
@pytest.mark.parametrize("wiring", WIRINGS)
def test_langchains_standard_tests(
    wiring: str, standard_url: str, environment: Environments, tmp_path: Path, counted: Counted
) -> None:
    """Unit and integration tests of a chat model."""
    client = environment("langchain")
    suite = shutil.copy(HERE / "langchain" / "standard.py", tmp_path)  # what it remembers of itself is kept beside it
    # One loop for all: langchain-openai keeps its connections from test to test.
    loop = ("--asyncio-mode=auto", "-o", "asyncio_default_test_loop_scope=session")
    found = run_pytest(
        client, tmp_path, "-c", os.devnull, *loop, "--snapshot-update", str(suite),
        OPENAI_BASE_URL=standard_url, OPENAI_API_KEY=KEY, WIRING=WIRINGS[wiring],
    )  # fmt: skip
    counted(found)
    assert not found["failed"], "\n".join(found["failed"])
    assert len(found["passed"]) > 40


ALIASES = ("gpt-6-astra", "gpt-3.5-turbo-instruct")
"""The names of models that the official client's tests use for texts, one wiring for all."""

REFUSED = {
    r"responses are not stored": "what would have to be stored",
    r"Nothing is stored here": "a conversation that would have to be stored",
    r"Unknown path: /v1/chat/completions/completion_id|Method GET is not allowed here": "stored chat completions",
    r"Method DELETE is not allowed here": "deleting a model",
    r"You must provide an input": "a response to nothing",
    r"suffix is not supported": "text between two texts",
    r"Embeddings\.test_\w*create\[(?:strict|aiohttp)\].*invalid for expected schema": "vectors as base64, which the client asks for "
    "by itself, and which its own strict check refuses before they are decoded",
    r"functions is the older form of tools": "functions and tools at once",
}
"""What their tests ask for and is refused clearly: part of the message, and what it is."""

OWN = ("chat/test_completions.py", "test_completions.py", "test_embeddings.py", "test_models.py", "test_responses.py")


@pytest.mark.timeout(900)
def test_the_official_clients_own_tests(environment: Environments, tmp_path: Path, counted: Counted) -> None:
    """They are made for a server that answers whatever is asked, so some ask what is refused here; see `REFUSED`."""
    client = environment("openai_own")
    (source,) = (client.folder / "source").glob("openai-*/")
    with ExitStack() as stack:
        vectors = stack.enter_context(upstream(tmp_path, "text-embedding-3-small"))
        url = stack.enter_context(
            scripted(
                tmp_path,
                [],
                models={"text-embedding-3-small": {"backend": "openai", "base_url": vectors}},
                aliases={name: {"expression": "s2p:a>b|c"} for name in ALIASES},
                key="My API Key",
            )
        )
        found = run_pytest(
            client, source, "-o", "addopts=", "-p", "no:xdist", "--timeout=60", *(f"tests/api_resources/{name}" for name in OWN),
            TEST_API_BASE_URL=url,
        )  # fmt: skip
    found["refused"] = [name for name in found["failed"] if any(re.search(message, name) for message in REFUSED)]
    found["failed"] = [name for name in found["failed"] if name not in found["refused"]]
    counted(found)
    assert not found["failed"], "\n".join(found["failed"])
    for message, what in REFUSED.items():
        assert any(re.search(message, name) for name in found["refused"]), f"no longer refused: {what}"
    assert len(found["passed"]) > 50


SLICE = HERE.parents[2] / "shared" / "openapi" / "openai-slice.json"
EXAMPLES = 25


@pytest.mark.timeout(900)
@pytest.mark.parametrize("wiring", ["single", "split-fused"])
@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/models"])
def test_what_the_published_contract_allows(
    path: str, wiring: str, standard_url: str, environment: Environments, tmp_path: Path, counted: Counted
) -> None:
    """drop-in 24, 26: requests made up from OpenAI's description get an answer of its form, or an error of its form; never a 500."""
    if not SLICE.exists():
        pytest.skip("OpenAI's description is not beside this checkout")
    contract = json.loads(SLICE.read_text("utf-8"))
    for name in ("CreateChatCompletionRequest", "CreateCompletionRequest"):
        for part in _objects(contract["components"]["schemas"][name]):
            if "model" in part.get("properties", {}):
                part["properties"]["model"] = {"type": "string", "enum": [WIRINGS[wiring]]}
    (tmp_path / "contract.json").write_text(json.dumps(contract), encoding="utf-8")
    done = subprocess.run(
        [
            *(str(environment("schemathesis").program("schemathesis")), "run", "contract.json", "--url", standard_url),
            *("--header", f"Authorization: Bearer {KEY}", "--mode", "positive", "--phases", "fuzzing", "--seed", "1"),
            *("--max-examples", str(EXAMPLES), "--include-path", path, "--generation-database", "none", "--no-color"),
            *("--checks", "not_a_server_error,response_schema_conformance,content_type_conformance"),
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    numbers = re.search(r"(\d+) generated(?:, (\d+) passed)?", done.stdout)
    assert numbers, done.stdout + done.stderr
    counted({"passed": ["request"] * int(numbers[2] or 0), "failed": ["request"] * (done.returncode != 0)})
    assert done.returncode == 0, done.stdout[-4000:]


def _objects(schema: Any) -> Iterator[dict[str, Any]]:
    """All objects of a schema, from the outermost in."""
    if isinstance(schema, dict):
        yield schema
        for value in schema.values():
            yield from _objects(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _objects(value)
