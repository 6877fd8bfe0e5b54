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
from strategies.fusion import FUSERS, Greedy, Guide, LinearPool, Shaping
from strategies.fusion.testing import Driver, model
from strategies.planning.planner import plan
from strategies.prompting import PromptSet
from strategies.topology import parse
from strategies.vocabulary import inventory_of

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


WORDS = [bytes([97 + a, 97 + b, 97 + c]) for a in range(10) for b in range(10) for c in range(10)]


class _Ruled:
    """A guide that lets these pieces come and no others."""

    def __init__(self, mask: bytes) -> None:
        self._mask = mask

    def allowed(self) -> bytes:
        return self._mask

    def said(self, piece: int) -> None:
        assert self._mask[piece]


@pytest.mark.parametrize("name", ["linear", "geometric", "gated", "entropy-weighted"])
def test_a_penalty_or_a_rule_that_allows_all_does_not_look_through_whole_vocabularies(name: str) -> None:
    """Of a step that lists can't settle: some rivals are looked up, as without them. It took a fifth of a second a piece."""
    tables = [
        Vocabulary((*WORDS, *BYTES, more, b""), frozenset({len(WORDS) + 257}), more.hex()) for more in (b"zz", b"zzz")
    ]
    models = [model(seed, len(table), 0.3) for seed, table in enumerate(tables)]
    pieces = inventory_of(tuple(tables)).pieces

    def asked(guide: Guide | None, shaping: Shaping | None) -> int:
        driver = Driver(fuser := FUSERS[name](tables, [0.5, 0.5], Greedy(shaping), guide=guide), models, 20)
        count = 0
        supply = fuser.supply

        def counted(lookup: object, logprobs: np.ndarray) -> None:
            nonlocal count
            count += len(logprobs)
            supply(lookup, logprobs)  # type: ignore[arg-type]

        fuser.supply = counted  # type: ignore[method-assign]
        driver.ready()
        assert fuser.commit().text
        assert fuser.meters.uncertified == 1
        return count

    plain = asked(None, None)
    assert asked(None, Shaping(0.5, 0.5, {})) == plain
    assert asked(_Ruled(bytes([0]) + bytes([1]) * (len(pieces) - 1)), None) <= 2 * plain


def test_what_a_rule_leaves_is_looked_for_where_lists_have_next_to_nothing_of_it() -> None:
    """More pieces may come than are bounded one by one. The only one of them that is listed is far less likely than one that many
    unlisted tokens begin with."""
    longer = [WORDS[900] + bytes([97 + a, 97 + b, 97 + c]) for a in range(5) for b in range(10) for c in range(10)]
    tables = [
        Vocabulary((*WORDS, *more, *BYTES, b""), frozenset({len(WORDS) + len(more) + 256}), f"rule {name}")
        for name, more in (("a", longer), ("b", [b"zzz"]))
    ]
    pieces = inventory_of(tuple(tables)).pieces
    mask = bytearray([1]) * len(pieces)
    for piece, text in enumerate(pieces):
        mask[piece] = len(text) > 1 and text not in WORDS[:5]
    fuser = LinearPool(tables, [0.5, 0.5], Greedy(), guide=_Ruled(bytes(mask)))
    listed = np.array([0, 1, 2, 3, 4, 5], np.int32)
    given = []
    for member, (nodes, table) in enumerate(zip(fuser.due(), tables, strict=True)):
        weights = np.full(len(table), 1e-6)
        weights[listed] = (0.3, 0.1, 0.1, 0.1, 0.1, 0.001)  # the first five may not come
        weights[len(WORDS) : len(table) - 257] = 0.3 / (len(table) - 257 - len(WORDS))
        given.append(weights / weights.sum())
        top = given[-1][listed] if member == 0 else given[-1][[*listed[:5], len(WORDS)]]
        ids = listed if member == 0 else np.array([*listed[:5], len(WORDS)], np.int32)
        fuser.feed(member, nodes[0], TopK(ids, np.log(top), float(1 - top.sum())))
    while wanted := fuser.wants():
        for lookup in wanted:
            fuser.supply(lookup, np.log(given[lookup.member][list(lookup.ids)]))
    assert fuser.commit().text == WORDS[900]
