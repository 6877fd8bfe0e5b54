"""docs/api.md shows what the program does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from edge import CHAT, edge, fake
from test_web_errors import BACKEND_ERRORS

from gateway.wire import decode
from gateway.wire.errors import to_api_error
from gateway.wire.sampling import foreign_sampling

pytestmark = pytest.mark.anyio

TREE = Path(__file__).resolve().parents[2]
PAGE = (TREE / "docs/api.md").read_text("utf-8")
SNIPPETS: list[dict[str, Any]] = [
    json.loads(text) for text in re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
]


def section(title: str) -> str:
    return re.split(r"^## ", PAGE, flags=re.MULTILINE)[[*_titles()].index(title) + 1]


def _titles() -> list[str]:
    return re.findall(r"^## (.*)$", PAGE, re.MULTILINE)


def first_cells(text: str) -> set[str]:
    """Everything in code marks in the first column of the tables."""
    return {
        name
        for line in text.splitlines()
        if line.startswith("|")
        for name in re.findall(r"`([^`]+)`", line.split("|")[1])
    }


async def test_requests_and_answers() -> None:
    """The requests are answered, and what is shown of an answer has the keys that answers have."""
    asked = [snippet for snippet in SNIPPETS if "messages" in snippet]
    (shown,) = [snippet["modelnet"] for snippet in SNIPPETS if "messages" not in snippet]
    assert len(asked) == 2
    async with edge(fake("qwen"), fake("smol"), fake("gemma")) as e:
        for body in asked:
            assert (await e.call("POST", CHAT, body)).status == 200
        answer = (await e.call("POST", CHAT, asked[1])).json()
        assert answer["choices"][0]["message"]["content"] in ("yes", "no")
        found = answer["modelnet"]
        stage, described = found["stages"][1], shown["stages"][0]
        assert set(shown) == set(found)
        assert set(described) == {*stage, "dropped", "early_prefill"}  # a fake reads nothing early
        assert set(described["fusion"]) == set(stage["fusion"])
        assert set(described["models"][0]) == set(stage["models"][0])
        assert set(shown["record"][0]) == set(found["record"][0])


def test_every_field_is_described() -> None:
    """Those that are read here, and those that only a model's own server knows."""
    described = first_cells(section("Fields"))
    assert described >= decode._CONSUMED
    named = re.findall(
        r'"(\w+)"', (TREE / "gateway/wire/sampling.py").read_text("utf-8").split("_NEUTRAL")[1].split("}")[0]
    )
    assert len(named) > 5
    assert described >= set(named)
    assert foreign_sampling(dict.fromkeys(named, "x")).keys() == set(named)
    assert first_cells(section("What a request may say under `modelnet`")) == set(decode._EXTENSION)


def rows() -> dict[tuple[int, str], str]:
    """(status, code) → whether a client tries again."""
    found = {}
    for line in section("Errors").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 3 and cells[1].isdigit():
            for code in re.findall(r"`(\w+)`", cells[2]) or [""]:
                found[int(cells[1]), code] = cells[3]
    return found


def test_every_error_is_described() -> None:
    """All codes in the sources, and statuses and retries of everything that a backend can raise."""
    written = "\n".join(file.read_text("utf-8") for file in (TREE / "gateway").rglob("*.py"))
    codes = set(re.findall(r'\bcode="(\w+)"', written))
    assert codes <= {code for _, code in rows()}
    for error in BACKEND_ERRORS:
        shown = to_api_error(error)
        again = shown.retry and shown.status in (408, 409, 429, *range(500, 600))
        assert rows()[shown.status, shown.code or ""] == ("yes" if again else "no")
