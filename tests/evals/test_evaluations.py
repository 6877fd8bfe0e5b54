"""The evaluations of real models judge rightly, and what they ask can be asked; the models themselves are not needed for that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from asking import DATA, ask_all, table
from exactness import Boundaries, Sums, judged
from expected import Machine, expected, speed
from forms import TEMPERATURES, body, forms, wrong

from backends.types import Vocabulary
from gateway.settings import load
from gateway.settings.prompts import load_prompts
from strategies.engine.guiding import check
from strategies.engine.options import Constraint
from strategies.fusion import fuser_of
from strategies.vocabulary import inventory_of


def test_two_hundred_answers_of_forms_that_can_be_held() -> None:
    assert len(forms()) * len(TEMPERATURES) >= 200
    for form in forms().values():
        check(Constraint("json_schema", json.dumps(form["schema"])))
    asked = body("a|b", forms()["scalar"], 0.5, 3, 40)
    assert (asked["temperature"], asked["seed"], asked["response_format"]["type"]) == (0.5, 3, "json_schema")


def answer(text: str, reason: str = "stop") -> dict[str, Any]:
    return {"choices": [{"finish_reason": reason, "message": {"content": text}}]}


@pytest.mark.parametrize(
    ("form", "good", "bad", "why"),
    [
        ("prices", '{"bread": 0.29, "milk": 2.3, "stamp": 1.15}', '{"bread": 0.291, "milk": 1, "stamp": 1}', "multiple"),
        ("numbers", '{"celsius": -5.5, "rain": 0.07, "above": 4}', '{"celsius": 0, "rain": 2, "above": 4}', "maximum"),
        ("enum", '{"colour": "red", "sure": 2.5}', '{"colour": "red"}', "required"),
        ("scalar", '"是"', '"是', "no JSON"),
        ("formats", '{"day": "2024-02-29", "id": "12345678-1234-5678-1234-567890123456", "address": "1.2.3.4"}',
         '{"day": "2023-02-29", "id": "12345678-1234-5678-1234-567890123456", "address": "1.2.3.4"}', "date"),
    ],
)  # fmt: skip
def test_answers_are_judged_by_their_schema(form: str, good: str, bad: str, why: str) -> None:
    schema = forms()[form]["schema"]
    assert wrong(answer(good), schema) == ""
    assert why in wrong(answer(bad), schema)
    assert wrong(answer(good, "length"), schema) == "ended by length"


class Tokens:
    """Encodes by longest match."""

    def __init__(self, *texts: bytes) -> None:
        self.vocabulary = Vocabulary((*texts, b""), frozenset({len(texts)}), f"evaluations-{texts}")

    async def encode(self, text: str, *, special: bool) -> list[int]:
        assert not special
        data, ids = text.encode(), []
        while data:
            token = max((t for t in self.vocabulary.tokens if t and data.startswith(t)), key=len)
            ids.append(self.vocabulary.tokens.index(token))
            data = data[len(token) :]
        return ids


@pytest.mark.anyio
async def test_numbers_of_one_answer() -> None:
    """The third piece's end is inside of what the first member would say as one token; the last one's counts for nobody."""
    left, right = Tokens(b"a", b"b", b"c", b"bc", b"d"), Tokens(b"a", b"b", b"c", b"bc", b"d", b"ab")
    inventory = inventory_of([left.vocabulary, right.vocabulary])
    boundaries = Boundaries([left, right], inventory.spellers, inventory.pieces)
    said = [b"a", b"b", b"c", b"d"]
    record = [{"bytes": list(piece)} for piece in (*said, b"")]
    fusion = dict.fromkeys(("pieces", "certified", "looked_up", "uncertified", "drift"), 4)
    fusion |= {"lost_mass": 0.5, "worst_lost": 0.25, "worst_gap": 0.0}  # type: ignore[dict-item]
    told = {"record": record, "stages": [{"fusion": fusion}]}
    found, data = await judged({**answer("abcd"), "modelnet": told}, boundaries)
    assert data == b"abcd"
    assert (found.valid, found.ended, found.disagreed) == (1, 1, 1)
    both = Sums()
    both.add(found)
    both.add(Sums(answers=1, pieces=6, worst_lost=0.1))
    assert (both.answers, both.valid, both.pieces, both.worst_lost) == (2, 1, 10, 0.25)
    assert both.row("all")[:4] == ["all", "1 of 2", "1 of 2", "10"]
    assert both.row("all")[-1] == "100"
    for bytes_, reason, valid in ((b"\xe4\xb8", "length", 1), (b"\xe4\xb8", "stop", 0), (b"\xe4\xb8a", "length", 0)):
        cut = {**told, "record": [{"bytes": list(bytes_)}]}
        assert (await judged({**answer("", reason), "modelnet": cut}, boundaries))[0].valid == valid


def test_fifty_prompts_and_the_configuration_of_fusers() -> None:
    prompts = yaml.safe_load((DATA / "prompts.yaml").read_text(encoding="utf-8"))
    assert sum(map(len, prompts.values())) == 50
    loaded = load(Path(__file__).parent / "fusers.yaml")
    assert "brief" in load_prompts(loaded)
    for alias in loaded.settings.aliases.values():
        fuser_of(alias.fuser or "")
    assert table(["a", "b"], [[1, 2.5]]) == "| a | b |\n| --- | --- |\n| 1 | 2.5 |"


@pytest.mark.anyio
async def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    """Also where a run ended in the middle, and where the same is asked twice."""
    asked: list[int] = []

    def handle(request: httpx.Request) -> httpx.Response:
        number = json.loads(request.content)["number"]
        asked.append(number)
        return httpx.Response(500 if number == 3 and len(asked) < 6 else 200, json={"got": number})

    kept = tmp_path / "deep" / "answers.jsonl"
    told: list[int] = []
    async with httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://gateway") as client:

        async def ask(*numbers: int) -> list[dict[str, Any]]:
            bodies = [{"number": number} for number in numbers]
            return await ask_all(client, bodies, 1, kept, lambda _, answer: told.append(answer["got"]))

        with pytest.raises(ExceptionGroup):
            await ask(1, 2, 3, 4)
        assert asked == [1, 2, 3]
        assert await ask(4, 1, 2) == [{"got": 4}, {"got": 1}, {"got": 2}]
        assert asked == [1, 2, 3, 4]
        assert await ask(2, 5, 3) == [{"got": 2}, {"got": 5}, {"got": 3}]
    assert asked == [1, 2, 3, 4, 5, 3]
    assert told == [1, 2, 4, 5, 3]


FREE = Machine(parameters=1.0, bytes=1.0, bandwidth=1.0, flops=float("inf"), overhead=1.0)
"""A pass takes two seconds, however many tokens it reads."""


def test_drafts_are_replayed_where_passes_cost_something_else() -> None:
    line = {"wiring": "a|b", "steps": 3, "drafts": [("copied", 8, 8, 8), ("led", 4, 0, -1)]}
    # 3 steps, 9 rounds of the first draft and 1 of the second: with drafts 3 + 1 + 1 passes.
    assert speed([line], FREE, 1, 8) == pytest.approx(13 / 5)
    assert speed([line], FREE, 1, 2) == pytest.approx(13 / 7)  # nine rounds in threes
    assert speed([line], FREE, 64, 8) == pytest.approx(13 / 5)
    assert speed([line], FREE, 1, 0) == 1.0
    paid = Machine(parameters=1.0, bytes=0.0, bandwidth=1.0, flops=2.0, overhead=0.0)  # a second for each token
    assert paid.seconds(5, 4) == pytest.approx(20.0)
    assert speed([line], paid, 1, 8) == pytest.approx(13 / (3 + 9 + 5))
    assert expected([line], paid) == [["`a\\|b`", *["1.00 (0)"] * 4]]
    assert expected([line], FREE) == [["`a\\|b`", *["2.60 (8)"] * 4]]
    real = Machine()
    assert real.seconds(1, 1) == pytest.approx(0.003 + 0.008 + 16e9 / 1.5e14)
