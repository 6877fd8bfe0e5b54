"""The composition root: loading, failing, stopping."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from edge import fake

from backends.catalog import Entry
from backends.errors import BackendUnavailable
from backends.fake import FakeBackend, Fault
from backends.openai_http import OpenAIHTTPBackend
from backends.types import Sampling
from gateway.app import Application
from gateway.builders import Builders
from gateway.runtime import ModelNotReady, NothingLoaded, open_runtime
from gateway.settings import Loaded, load
from gateway.weights import NoSource

pytestmark = pytest.mark.anyio


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    file = tmp_path / "c.yaml"
    file.write_text("models:\n  a: {backend: fake}\n  b: {backend: fake}\n", encoding="utf-8")
    return load(file)


async def test_models_load_side_by_side_and_the_first_serves_while_others_load(loaded: Loaded) -> None:
    """Until all are done the gateway is not ready, but says who is missing."""
    go = anyio.Event()
    started: list[str] = []

    async def build(name: str) -> Entry:
        started.append(name)
        if name == "b":
            await go.wait()
        return Entry(fake(name))

    async with open_runtime(loaded, build) as runtime:
        app = Application(runtime)
        with anyio.fail_after(5):
            while runtime.statuses["a"].state != "ready":
                await anyio.sleep(0.001)
        assert started == ["a", "b"]
        assert runtime.loading
        assert app.metrics.text()
        assert runtime.prepare("a", Sampling(), {}).wiring == "a"
        with pytest.raises(ModelNotReady, match="'b' is loading"):
            runtime.prepare("a>b", Sampling(), {})
        assert await runtime.not_ready() == {"b": "is still loading"}
        go.set()
        await runtime.wait_loaded()
        assert not runtime.loading
        assert runtime.prepare("a>b", Sampling(), {}).plan.models == ("a", "b")


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (BackendUnavailable("b", "It is gone."), "It is gone."),
        (NoSource("No weights.", ()), "No weights."),
        (RuntimeError("/secret/path"), "an unexpected error; the log says more"),
    ],
)
async def test_one_failure_is_contained(loaded: Loaded, error: Exception, shown: str) -> None:
    """The reason is shown where it is known to be fit for clients."""

    async def build(name: str) -> Entry:
        if name == "b":
            raise error
        return Entry(fake(name))

    async with open_runtime(loaded, build) as runtime:
        await runtime.wait_loaded()
        assert runtime.statuses["b"].state == "failed"
        assert runtime.statuses["b"].reason == shown
        with pytest.raises(ModelNotReady) as caught:
            runtime.prepare("b", Sampling(), {})
        assert str(caught.value) == f"Model 'b' could not be started: {shown}"
        assert runtime.prepare("a", Sampling(), {}).wiring == "a"


async def test_failure_of_all_is_failure(loaded: Loaded) -> None:
    async def build(name: str) -> Entry:
        raise BackendUnavailable(name, f"{name} is gone.")

    async with open_runtime(loaded, build) as runtime:
        with pytest.raises(NothingLoaded, match=r"a: a is gone\.\n  b: b is gone\."):
            await runtime.wait_loaded()


async def test_leaving_frees_every_model_and_stops_what_is_loading(loaded: Loaded) -> None:
    """Also when left by an error, which comes out as it is."""
    backend = fake("a")
    cancelled = anyio.Event()

    async def build(name: str) -> Entry:
        if name == "a":
            return Entry(backend)
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()
        raise AssertionError

    with pytest.raises(KeyError, match="out"):
        async with open_runtime(loaded, build) as runtime:
            while runtime.statuses["a"].state != "ready":
                await anyio.sleep(0.001)
            raise KeyError("out")
    assert cancelled.is_set()
    with pytest.raises(BackendUnavailable, match="closed"):
        await backend.ready()


async def test_a_backend_whose_start_fails_is_closed(tmp_path: Path) -> None:
    """What it had opened must not stay."""
    file = tmp_path / "c.yaml"
    file.write_text("models: {a: {backend: fake, faults: [{on: start}]}}\n", encoding="utf-8")
    closed: list[str] = []

    class Watched(Builders):
        def _fake(self, name: str, settings: object) -> FakeBackend:
            backend = FakeBackend(name)
            backend.faults = (Fault(on="start"),)

            async def aclose() -> None:
                closed.append(name)

            backend.aclose = aclose  # type: ignore[method-assign]
            return backend

    with pytest.raises(BackendUnavailable):
        await Watched(load(file))("a")
    assert closed == ["a"]


async def test_settings_reach_the_backends(tmp_path: Path) -> None:
    """Every kind, built as the configuration says."""
    file = tmp_path / "c.yaml"
    file.write_text(
        """
models:
  echo:
    backend: fake
    answer: hi
    reasoning_text: thinking
    rules: [{contains: x, answer: y}]
    faults: [{on: token, after: 3, error: BackendTimeout}]
    sessions: false
    reasoning: ["<t>", "</t>"]
    owned_by: me
    seats: 3
  far:
    backend: openai
    base_url: http://127.0.0.1:9/v1/
    api_key: ${KEY:-}
    headers: {X-Team: blue}
    vocabulary: tok.json
    end_tokens: ["</s>"]
    extra_body: {a: {b: 1}}
    sessions: "off"
""",
        encoding="utf-8",
    )
    builders = Builders(load(file, {}))
    echo = await builders("echo")
    assert isinstance(echo.backend, FakeBackend)
    settings = echo.backend.settings
    assert (settings.answer, settings.reasoning, settings.rules[0].answer) == ("hi", "thinking", "y")
    assert (settings.faults[0].after, settings.faults[0].error) == (3, "BackendTimeout")
    assert (echo.reasoning, echo.owned_by, echo.seats) == (("<t>", "</t>"), "me", 3)
    assert echo.why_not_fused
    far = builders._openai("far", builders._loaded.settings.models["far"])  # type: ignore[arg-type]
    assert isinstance(far, OpenAIHTTPBackend)
    sent = far._settings
    assert sent.api_key is None
    assert sent.headers == {"X-Team": "blue"}
    assert sent.vocabulary == str((tmp_path / "tok.json").resolve())
    assert (sent.end_tokens, sent.extra_body) == (("</s>",), {"a": {"b": 1}})
    await far.aclose()


async def test_an_alias_brings_its_settings_only_where_it_is_the_whole_name(loaded: Loaded, tmp_path: Path) -> None:
    """Inside a larger wiring only its expression counts."""
    (tmp_path / "d.yaml").write_text(
        loaded.file.read_text(encoding="utf-8")
        + "aliases: {both: {expression: a|b, fuser: union-top-k, prompts: paper, max_tokens: 7, stage_max_tokens: 3}}\n",
        encoding="utf-8",
    )

    async def build(name: str) -> Entry:
        return Entry(fake(name))

    async with open_runtime(load(tmp_path / "d.yaml"), build) as runtime:
        await runtime.wait_loaded()
        own = runtime.prepare("both", Sampling(), {}).options
        assert (own.fuser, own.prompts.name, own.answer_max_tokens, own.stage_max_tokens) == (
            "union-top-k",
            "paper",
            7,
            3,
        )
        other = runtime.prepare("a>both", Sampling(), {})
        assert (other.options.fuser, other.options.prompts.name) == ("linear", "default")
        assert (other.options.answer_max_tokens, other.options.stage_max_tokens) == (1024, 512)
        assert other.wiring == "a>a|b"
