"""What first answers would wait for is worked out while models load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from edge import CHAT, Edge, question

from backends.catalog import Catalog, Entry
from backends.errors import BackendUnavailable
from backends.fake import FakeBackend, FakeSettings
from backends.types import Vocabulary
from gateway.app import Application
from gateway.runtime import open_runtime
from gateway.settings import load
from strategies.engine import warming
from strategies.engine.guiding import tokenizers
from strategies.planning import plan
from strategies.routing import resolve
from strategies.vocabulary import forget_inventories
from strategies.vocabulary import inventory as inventories

pytestmark = pytest.mark.anyio

CONFIG = """
models:
  a: {backend: fake}
  b: {backend: fake}
  c: {backend: fake}
  text: {backend: fake}
aliases:
  pair: {expression: a|b}
  mixed: {expression: a|b>a|c}
"""


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is built, as it is; nothing is remembered from before."""
    done: list[str] = []
    forget_inventories()
    tokenizers.byte_tokenizer()  # for checking requests, whatever the models
    monkeypatch.setattr(tokenizers, "_kept", type(tokenizers._kept)())
    for module, name in ((tokenizers, "_build"), (inventories, "Common")):
        real = getattr(module, name)

        def watched(*given: Any, real: Any = real, name: str = name) -> Any:
            done.append(name)
            return real(*given)

        monkeypatch.setattr(module, name, watched)
    return done


async def test_after_loading_no_alias_and_no_model_builds_anything(tmp_path: Path, built: list[str]) -> None:
    """Three sets of tokenizers: a and b share one, c has another, and both together. The model of text alone has none."""
    file = tmp_path / "c.yaml"
    file.write_text(CONFIG, encoding="utf-8")

    async def build(name: str) -> Entry:
        words = ("then", "no") if name == "c" else ("the", "then", "yes")
        return Entry(FakeBackend(name, FakeSettings(words=words)), "it streams text" if name == "text" else None)

    async with open_runtime(load(file), build) as runtime:
        await runtime.wait_loaded()
        assert sorted(built) == ["Common"] * 3 + ["_build"] * 3
        edge = Edge(Application(runtime), runtime, {})
        for model in ("pair", "mixed", "a", "c", "c|b"):
            asked = question(model, response_format={"type": "json_object"})
            assert (await edge.call("POST", CHAT, asked)).status == 200
        assert len(built) == 6


class Away(FakeBackend):
    """Its server told what it can do, and is gone."""

    async def vocabulary(self) -> Vocabulary:
        raise BackendUnavailable(self.name, "It is gone.")


async def test_a_model_that_is_away_is_left_out_and_room_is_kept(
    monkeypatch: pytest.MonkeyPatch, built: list[str]
) -> None:
    """Warming ends before it would push out what it has just built."""
    backends = [FakeBackend(name, FakeSettings(words=(name * 3,))) for name in "bcd"]
    catalog = Catalog({each.name: Entry(each) for each in (Away("a"), *backends)})
    plans = [plan(resolve(name, {}, list(catalog)), catalog) for name in ("a", "a|b", "b", "c", "b", "d")]
    monkeypatch.setattr(warming, "MOST_PIECES", 2 * (len((await backends[0].vocabulary()).tokens) + 1))
    assert await warming.warm(plans, catalog) == 2
    assert built == ["Common", "_build", "Common", "_build", "Common"]
