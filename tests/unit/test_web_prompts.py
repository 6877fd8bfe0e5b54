"""A request may choose the prompt set, the budget of the stages before the answer, and whether groups read ahead and models early."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from edge import edge, fake
from reads_early import ReadsEarly

from backends.errors import BackendUnavailable
from backends.fake import FakeSettings
from backends.types import Message


@pytest.mark.anyio
async def test_the_prompt_set_of_a_request() -> None:
    a = fake("a")
    async with edge(a) as e:
        assert (await e.chat("a")).status == 200
        assert (await e.chat("a", modelnet={"prompts": "paper"})).status == 200
    plain, paper = (str(request.messages[-1].content) for request in a.requests)
    assert plain == "Why?"
    assert paper.startswith("Why?")
    assert "step by step" in paper


@pytest.mark.anyio
async def test_the_budget_of_stages_is_not_the_answers() -> None:
    a, b = fake("a", answer="one two three four five"), fake("b", answer="one two three four five")
    async with edge(a, b) as e:
        reply = await e.chat("a>b", modelnet={"stages": True, "stage_max_tokens": 2}, stream=True)
        usual = await e.chat("a>b", modelnet={"stages": True}, stream=True)
    assert len(reply.reasoning()) < len(usual.reasoning()) == len("one two three four five")
    assert reply.content() == usual.content() == "one two three four five"


@pytest.mark.anyio
async def test_reading_ahead_is_chosen_by_request_alias_and_configuration() -> None:
    """The same answer in all cases; who reads ahead tells what came of it, here and in the metrics."""
    text = "one two three four five, one two three four five, one two three four five"
    a, b = fake("a", answer=text), fake("b", answer=text)
    aliases = {"ahead": {"expression": "a>a|b", "drafts": "on"}}
    async with edge(a, b, aliases=aliases, limits={"drafts": "off"}) as e:
        for model, asked, drafted in (
            ("a>a|b", {}, False),
            ("a>a|b", {"drafts": "on"}, True),
            ("ahead", {}, True),
            ("ahead", {"drafts": "off"}, False),
        ):
            reply = await e.chat(model, modelnet=asked)
            assert reply.status == 200
            assert reply.json()["choices"][0]["message"]["content"] == text
            fusion = reply.json()["modelnet"]["stages"][-1]["fusion"]
            assert ("drafts" in fusion) == drafted
            if drafted:
                assert fusion["drafts"]["accepted"] > 0
                assert fusion["drafts"]["spared"] > 0
        shown = e.app.metrics.text().decode()
    assert 'modelnet_fused_drafts_total{what="accepted"}' in shown


class Prepares(ReadsEarly):
    """Reads early, and fails at it the second time."""

    asked = 0

    async def prepare(self, messages: Sequence[Message], *, ended: bool) -> int:
        self.asked += 1
        if self.asked % 2 == 0:
            raise BackendUnavailable(self.name, "It is gone.")
        return 16


@pytest.mark.anyio
async def test_early_prefill_is_chosen_by_request_alias_and_configuration() -> None:
    """The same answer in all cases; who reads early tells what came of it, here and in the metrics."""
    text = "one two three four five " * 20
    a, b = fake("a", answer=text, delay=0.0001), Prepares("b", FakeSettings(answer="Yes."))
    aliases = {"early": {"expression": "a>b", "early_prefill": "auto"}}
    async with edge(a, b, aliases=aliases, limits={"early_prefill": "off"}) as e:
        for model, asked, early in (
            ("a>b", {}, False),
            ("a>b", {"early_prefill": "auto"}, True),
            ("early", {}, True),
            ("early", {"early_prefill": "off"}, False),
        ):
            b.asked = 0
            reply = await e.chat(model, modelnet=asked)
            assert reply.status == 200
            assert reply.json()["choices"][0]["message"]["content"] == "Yes."
            first, second = reply.json()["modelnet"]["stages"]
            assert "gap_seconds" not in first and second["gap_seconds"] >= second["first_token_seconds"]
            assert second.get("early_prefill") == ({"prepared": 1, "failed": 1} if early else None)
        shown = e.app.metrics.text().decode()
    assert 'modelnet_early_prefills_total{outcome="prepared"} 2.0' in shown
    assert 'modelnet_early_prefills_total{outcome="failed"} 2.0' in shown
    assert 'modelnet_stage_gap_seconds_count{role="verifier",shape="si"} 4.0' in shown


@pytest.mark.anyio
async def test_models_read_early_unless_it_is_switched_off() -> None:
    a, b = fake("a", answer="one two three four five " * 20, delay=0.0001), Prepares("b", FakeSettings(answer="Yes."))
    async with edge(a, b) as e:
        assert "early_prefill" in (await e.chat("a>b")).json()["modelnet"]["stages"][1]


@pytest.mark.anyio
async def test_not_waiting_for_everybody_is_chosen_by_request_alias_and_configuration() -> None:
    """The same answer in all cases; who does not wait tells what came of it, here and in the metrics."""
    text = "one two three four five, one two three four five, one two three four five"
    aliases = {"waits": {"expression": "a|b|c", "quorum": "off"}, "hurries": {"expression": "a|b|c", "quorum": "auto"}}
    for limits, asked, model, hurries in (
        ({}, {}, "a|b|c", True),
        ({}, {"quorum": "off"}, "a|b|c", False),
        ({}, {}, "waits", False),
        ({}, {"quorum": "auto"}, "waits", True),
        ({"quorum": "off"}, {}, "a|b|c", False),
        ({"quorum": "off"}, {}, "hurries", True),
    ):
        models = [fake(name, answer=text, confidence=0.97, delay=0.005 if name == "c" else 0.0) for name in "abc"]
        async with edge(*models, aliases=aliases, limits=limits) as e:
            reply = await e.chat(model, modelnet={"drafts": "off", **asked})
            assert reply.status == 200
            assert reply.json()["choices"][0]["message"]["content"] == text
            fusion = reply.json()["modelnet"]["stages"][-1]["fusion"]
            assert ("quorum" in fusion) == hurries
            if hurries:
                assert fusion["quorum"]["pieces"] > 5
                assert fusion["quorum"]["lag"] > 0
            counted = f"modelnet_fused_quorum_pieces_total {float(fusion['quorum']['pieces'])}" if hurries else ""
            assert counted in e.app.metrics.text().decode()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("extension", "param", "said"),
    [
        ({"prompts": "nowhere"}, "modelnet.prompts", "There is no prompt set 'nowhere'; there are default, paper."),
        ({"prompts": 7}, "modelnet.prompts", "must be a string"),
        ({"stage_max_tokens": 0}, "modelnet.stage_max_tokens", "between 1 and"),
        ({"stage_max_tokens": "2"}, "modelnet.stage_max_tokens", "integer"),
        ({"drafts": "never"}, "modelnet.drafts", "off, auto, on"),
        ({"drafts": True}, "modelnet.drafts", "must be a string"),
        ({"early_prefill": "on"}, "modelnet.early_prefill", "can be off, auto"),
        ({"early_prefill": 1}, "modelnet.early_prefill", "must be a string"),
        ({"quorum": "on"}, "modelnet.quorum", "off, auto"),
        ({"quorum": False}, "modelnet.quorum", "must be a string"),
    ],
)
async def test_what_can_not_be_chosen_is_a_400(extension: dict[str, Any], param: str, said: str) -> None:
    async with edge(fake("a")) as e:
        reply = await e.chat("a", modelnet=extension)
    assert reply.status == 400
    assert reply.error["param"] == param
    assert said in reply.error["message"]
