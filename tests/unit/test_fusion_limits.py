"""Groups at the edge of what their members can do: no look-ups, bytes without tokens, nothing but control tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from backends.catalog import Catalog, Entry
from backends.errors import BackendError
from backends.fake import FakeBackend, FakeSettings
from backends.fake.model import BYTES, FakeModel
from backends.types import Message, TopK, Vocabulary
from strategies.engine import Options, run
from strategies.engine.events import Delta, Finished
from strategies.fusion import Greedy, LinearPool
from strategies.planning.planner import plan
from strategies.prompting import PromptSet
from strategies.topology import parse

pytestmark = pytest.mark.anyio

PROMPTS = PromptSet.from_mapping("test", {"default": {"solver": "", "reviewer": "{answer}", "verifier": "{answer}"}})
GRIN = "Hi \U0001f600 you"


async def answer(wiring: str, backends: Sequence[FakeBackend], **options: object) -> tuple[str, Finished]:
    catalog = Catalog({backend.name: Entry(backend) for backend in backends})
    texts: list[str] = []
    last = None
    made = plan(parse(wiring).topology, catalog)
    try:
        async with run(made, [Message("user", "Hi")], Options(prompts=PROMPTS, **options), catalog) as events:
            async for last in events:
                if isinstance(last, Delta):
                    texts.append(last.text)
    finally:
        assert all(backend.counters.sessions == 0 for backend in backends)
    assert isinstance(last, Finished)
    return "".join(texts), last


@pytest.mark.parametrize("fuser", ["linear", "union-top-k"])
async def test_a_member_without_look_ups_leaves_steps_uncertified(fuser: str) -> None:
    """A server that gives no single probabilities can be a member; the report says what that cost."""
    text = "Hello world, the answer"
    backends = [
        FakeBackend("a", FakeSettings(answer=text, lookup=False, words=("Hello", " world"), confidence=0.4)),
        FakeBackend("b", FakeSettings(answer=text, lookup=False, confidence=0.4)),
    ]
    said, done = await answer("a|b", backends, top_k=2, fuser=fuser)
    assert said == text
    meters = done.stages[-1].meters
    assert meters is not None
    assert meters.uncertified > 0
    assert meters.looked_up == 0
    assert meters.pieces == meters.certified + meters.uncertified


def lacking(missing: bytes) -> tuple[bytes, ...]:
    return (*(byte for byte in BYTES if byte not in missing), b"Hi", b" you")


@pytest.mark.parametrize("fuser", ["linear", "union-top-k"])
@pytest.mark.parametrize("missing", [b"\xf0", "\U0001f600".encode(), b" "])
async def test_a_member_passes_over_bytes_that_it_has_no_token_for(fuser: str, missing: bytes) -> None:
    """As its own tokenizer does with such text in a prompt. (SmolLM2 has no token for 21 of the 256 bytes.)"""
    backends = [
        FakeBackend("a", model=FakeModel(lambda _: GRIN, confidence=0.99)),
        FakeBackend("b", model=FakeModel(lambda _: "Hi you", pieces=lacking(missing), confidence=0.5)),
    ]
    said, _ = await answer("a*9|b", backends, fuser=fuser)
    assert said == GRIN


@pytest.mark.parametrize("fuser", ["linear", "union-top-k"])
async def test_members_that_list_no_text_are_an_error_of_theirs(fuser: str) -> None:
    size = len(FakeModel(lambda _: "", words=("yes",)))
    control = np.zeros(size)
    control[size - 4] = 1.0  # `start`, before `separator` and the two ends
    models = [FakeModel(lambda _: "", words=(word,), rule=lambda _: control) for word in ("yes", "no!")]
    backends = [FakeBackend(name, model=model) for name, model in zip("ab", models, strict=True)]
    with pytest.raises(BackendError, match="no text"):
        await answer("a|b", backends, top_k=1, fuser=fuser)


def test_a_place_behind_the_text_keeps_no_lists() -> None:
    """A long answer must not keep every distribution that it was chosen from."""
    tables = [Vocabulary((*words, b""), frozenset({256}), name) for name, words in (("a", BYTES), ("b", BYTES[::-1]))]
    fuser = LinearPool(tables, [0.5, 0.5], Greedy())
    for _ in range(10):
        for member, (nodes, table) in enumerate(zip(fuser.due(), tables, strict=True)):
            ids = np.arange(256, dtype=np.int32)
            probabilities = np.full(256, 0.5 / 255)
            probabilities[table.tokens.index(b"x")] = 0.5
            order = np.argsort(-probabilities, kind="stable")
            for node in nodes:
                fuser.feed(member, node, TopK(ids[order], np.log(probabilities[order]), 0.0))
        assert not fuser.wants()
        assert fuser.commit().text == b"x"
    for (node,) in fuser.due():
        behind = node.parent
        while behind is not None:
            assert not (behind.ids or behind.probs or behind.nexts or behind.masses)
            behind = behind.parent
