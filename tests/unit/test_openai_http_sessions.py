"""Token sessions of the generic HTTP backend: which servers can open them, and what becomes of those that can't do all of it."""

from __future__ import annotations

from typing import Any

import pytest
from upstream import ASK

from backends import errors
from backends.fake import FakeBackend, FakeSettings, Fault
from backends.fake.server import FakeServer
from backends.openai_http import OpenAIHTTPBackend, OpenAIHTTPSettings


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("dialect", "vocabulary", "settings", "reason"),
    [
        ("vllm", True, {}, None),
        ("llama.cpp", True, {}, None),
        ("vllm", False, {}, "no vocabulary"),
        ("plain", True, {}, "does not render"),
        ("vllm", True, {"sessions": "off"}, "switched off"),
    ],
)
async def test_why_not_fused(dialect: Any, vocabulary: bool, settings: dict[str, Any], reason: str | None) -> None:
    behind = FakeBackend("up")
    async with FakeServer(behind, dialect=dialect) as there:
        backend = OpenAIHTTPBackend(
            "m",
            OpenAIHTTPSettings(base_url=there.base_url, model="up", **settings),
            vocabulary=behind.model.vocabulary if vocabulary else None,
        )
        await backend.start()
        why = await backend.why_not_fused()
        if reason is None:
            assert why is None
        else:
            assert why is not None
            assert reason in why
            with pytest.raises(errors.CapabilityMissing, match=reason):
                async with backend.open(ASK.messages, k=4):
                    pass
            assert backend.admitted == 0
        await backend.aclose()


@pytest.mark.anyio
async def test_a_server_that_is_away_gives_no_verdict() -> None:
    behind = FakeBackend("up", FakeSettings())
    async with FakeServer(behind) as there:
        address = there.base_url
    backend = OpenAIHTTPBackend(
        "m", OpenAIHTTPSettings(base_url=address, model="up"), vocabulary=behind.model.vocabulary
    )
    assert "could not be asked" in (await backend.why_not_fused() or "")
    async with FakeServer(behind, port=int(address.split(":")[2].removesuffix("/v1"))):
        assert await backend.why_not_fused() is None
    await backend.aclose()


@pytest.mark.anyio
async def test_sessions_on_must_work() -> None:
    async with FakeServer(FakeBackend("up"), dialect="plain") as there:
        backend = OpenAIHTTPBackend("m", OpenAIHTTPSettings(base_url=there.base_url, sessions="on"))
        with pytest.raises(errors.CapabilityMissing):
            await backend.start()
        unreadable = OpenAIHTTPBackend(
            "m", OpenAIHTTPSettings(base_url=there.base_url, vocabulary="/nowhere/tokenizer.json")
        )
        with pytest.raises(errors.CapabilityMissing) as caught:
            await unreadable.start()
        assert "nowhere" not in caught.value.message
        await backend.aclose()


@pytest.mark.anyio
async def test_half_a_character_keeps_its_distribution() -> None:
    # llama.cpp writes on behind a token that is half a character, and forgets the probabilities of the first.
    behind = FakeBackend("up", FakeSettings(answer="龍", words=()))
    async with FakeServer(behind, dialect="llama.cpp") as there:
        backend = OpenAIHTTPBackend(
            "m", OpenAIHTTPSettings(base_url=there.base_url, model="up"), vocabulary=behind.model.vocabulary
        )
        async with backend.open(ASK.messages, k=4) as session, behind.open(ASK.messages, k=4) as direct:
            for append in ((), "龍".encode()[:1], "龍".encode()[1:2]):
                top, wanted = await session.step(append), await direct.step(append)
                assert top.ids.tolist() == wanted.ids.tolist()
                assert top.logprobs.tolist() == wanted.logprobs.tolist()
        await backend.aclose()


@pytest.mark.anyio
async def test_an_older_vllm_has_no_lookup() -> None:
    behind = FakeBackend("up", FakeSettings(lookup=False))
    async with FakeServer(behind) as there:
        backend = OpenAIHTTPBackend(
            "m", OpenAIHTTPSettings(base_url=there.base_url, model="up"), vocabulary=behind.model.vocabulary
        )
        async with backend.open(ASK.messages, k=4) as session:
            top = await session.step()
            assert (await session.lookup([int(top.ids[0])]))[0] == top.logprobs[0]
            other = next(id for id in range(100) if id not in set(top.ids.tolist()))
            with pytest.raises(errors.CapabilityMissing):
                await session.lookup([other])
            asked = len(there.requests)
            with pytest.raises(errors.CapabilityMissing):
                await session.lookup([other])
            assert len(there.requests) == asked  # it is known now
        await backend.aclose()


@pytest.mark.anyio
async def test_too_many_tokens_are_not_looked_up() -> None:
    """Every `max_logprobs` of them cost a request, one after the other."""
    behind = FakeBackend("up")
    async with FakeServer(behind) as there:
        backend = OpenAIHTTPBackend(
            "m", OpenAIHTTPSettings(base_url=there.base_url, model="up"), vocabulary=behind.model.vocabulary
        )
        async with backend.open(ASK.messages, k=4) as session:
            await session.step()
            asked = len(there.requests)
            with pytest.raises(errors.CapabilityMissing, match="at once"):
                await session.lookup(range(256))
            assert len(there.requests) == asked
            assert len(await session.lookup(range(100))) == 100
        await backend.aclose()


@pytest.mark.anyio
async def test_a_failing_draft_raises_its_own_error() -> None:
    behind = FakeBackend("up")
    async with FakeServer(behind) as there:
        backend = OpenAIHTTPBackend(
            "m", OpenAIHTTPSettings(base_url=there.base_url, model="up"), vocabulary=behind.model.vocabulary
        )
        async with backend.open(ASK.messages, k=4) as session:
            first = await session.step()
            behind.faults = (Fault(of="session", error="BackendOverloaded"),)
            with pytest.raises(errors.BackendOverloaded):
                await session.score([65, 66, 67])
            behind.faults = ()
            again = await session.step()
            assert again.ids.tolist() == first.ids.tolist()
        await backend.aclose()
