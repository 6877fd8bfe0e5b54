"""A request may choose the prompt set and the budget of the stages before the answer."""

from __future__ import annotations

from typing import Any

import pytest
from edge import edge, fake


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
@pytest.mark.parametrize(
    ("extension", "param", "said"),
    [
        ({"prompts": "nowhere"}, "modelnet.prompts", "There is no prompt set 'nowhere'; there are default, paper."),
        ({"prompts": 7}, "modelnet.prompts", "must be a string"),
        ({"stage_max_tokens": 0}, "modelnet.stage_max_tokens", "between 1 and"),
        ({"stage_max_tokens": "2"}, "modelnet.stage_max_tokens", "integer"),
    ],
)
async def test_what_can_not_be_chosen_is_a_400(extension: dict[str, Any], param: str, said: str) -> None:
    async with edge(fake("a")) as e:
        reply = await e.chat("a", modelnet=extension)
    assert reply.status == 400
    assert reply.error["param"] == param
    assert said in reply.error["message"]
