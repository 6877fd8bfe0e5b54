"""What a model's server tells beside its text, in answers that are not handed on as they came."""

from __future__ import annotations

from typing import Any

import pytest
from edge import edge, fake
from responses_api import Scripted, ask, events_of, valid

from backends.types import TextDelta, TextEnd, Usage

pytestmark = pytest.mark.anyio

USAGE = {"stream_options": {"include_usage": True}}


# Usage


@pytest.mark.parametrize("wiring", ["a", "b>a"])
async def test_details_of_usage(wiring: str) -> None:
    """drop-in 34: what servers tell of caches and reasoning, in both APIs; nothing is made up for models that tell none."""
    a = Scripted("a", [TextDelta("Yes."), TextEnd("stop", Usage(20, 9, 16, 7))])
    async with edge(a, fake("b"), servers=("a",)) as e:
        whole = (await e.chat(wiring)).json()
        assert whole["usage"]["prompt_tokens_details"] == {"cached_tokens": 16}
        assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": 7}
        assert (await e.chat(wiring, stream=True, **USAGE)).chunks()[-1]["usage"] == whole["usage"]
        usage = valid((await ask(e, wiring)).json()).usage
        assert usage is not None
        assert (usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens) == (16, 7)
        assert events_of(await ask(e, wiring, stream=True))[-1]["response"]["usage"] == usage.to_dict()
        assert (await e.chat("b")).json()["usage"].keys() == {"prompt_tokens", "completion_tokens", "total_tokens"}


async def test_details_of_usage_of_several_stages_and_choices() -> None:
    """As the usage itself: all of them together."""
    a = Scripted("a", [TextDelta("One."), TextEnd("stop", Usage(20, 9, 16))])
    b = Scripted("b", [TextDelta("Two."), TextEnd("stop", Usage(30, 9, 4, 3))])
    async with edge(a, b, servers=("a", "b")) as e:
        usage: dict[str, Any] = (await e.chat("a>b", n=2)).json()["usage"]
        assert usage["prompt_tokens_details"] == {"cached_tokens": 40}
        assert usage["completion_tokens_details"] == {"reasoning_tokens": 6}
