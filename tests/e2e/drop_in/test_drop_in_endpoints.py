"""Models, usage and what else stands beside chat: lines 33 to 35."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from inprocess import WIRINGS, Gateway


def test_models_are_listed(gateway: Gateway) -> None:
    """drop-in 33: models, then aliases; `created` is an integer."""
    listed = gateway.client.models.list().data
    names = [model.id for model in listed]
    assert {"a", "b", "far", "duo"} <= set(names)
    assert names.index("far") < names.index("duo")
    for model in listed:
        assert model.object == "model"
        assert isinstance(model.created, int)
        assert isinstance(model.owned_by, str)


@pytest.mark.parametrize("wiring", [*WIRINGS.values(), "(a>b)|c*0.5"])
def test_one_model_by_its_encoded_name(gateway: Gateway, wiring: str) -> None:
    """drop-in 33: `:`, `>` and `|` encoded as clients do."""
    found = gateway.client.models.retrieve(wiring)
    assert found.id == wiring
    assert isinstance(found.created, int)
    assert gateway.call("GET", f"/v1/models/{quote(wiring, safe='')}").json()["id"] == wiring


@pytest.mark.parametrize("wiring", [wiring for wiring in WIRINGS.values() if wiring != "far"])
@pytest.mark.parametrize("stream", [True, False])
def test_usage_is_what_was_spent(gateway: Gateway, wiring: str, stream: bool) -> None:
    """drop-in 34: all stages, members and choices added up; the parts stand under `modelnet`."""
    fields = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    reply = gateway.chat(wiring, n=2, **fields)
    last = reply.chunks()[-1] if stream else reply.json()
    stages = last["modelnet"]["stages"]
    assert {stage["choice"] for stage in stages} == {0, 1}
    for kind in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert sum(model["usage"][kind] for stage in stages for model in stage["models"]) == last["usage"][kind] > 0
        assert sum(stage["usage"][kind] for stage in stages) == last["usage"][kind]
    members = {model["model"] for stage in stages for model in stage["models"]}
    assert members == set(gateway.client.models.retrieve(wiring).model_dump()["modelnet"].get("wiring", wiring)) & set(
        "abc"
    ) | ({"far"} if "far" in wiring else set())


def test_a_server_that_reports_usage_is_believed(gateway: Gateway) -> None:
    """drop-in 34: of the model's own server, alone and in a chain."""
    alone = gateway.chat("far").json()["usage"]
    assert (alone["prompt_tokens"], alone["completion_tokens"]) == (7, 5)
    stages = gateway.chat("a>far").json()["modelnet"]["stages"]
    assert stages[1]["usage"] == {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def test_how_a_group_came_to_its_pieces_can_be_asked_for(gateway: Gateway) -> None:
    """drop-in 18, 34: under `modelnet`, one entry a piece; the texts join to the answer."""
    for fields in ({}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}):
        reply = gateway.chat("a>b|c", modelnet={"record": True}, **fields)
        value = reply.json() if not fields else reply.chunks()[-1]
        record = value["modelnet"]["record"]
        text = reply.content() if fields else value["choices"][0]["message"]["content"]
        assert b"".join(bytes(each["bytes"]) for each in record).decode() == text
        assert [each["piece"] for each in record] == list(range(len(record)))
        for each in record:
            assert set(each) == {
                *("choice", "piece", "text", "bytes", "probability", "certificate", "members", "others"),
            }
            assert len(each["members"]) == 2
            assert 0 <= each["probability"] <= 1
    assert "record" not in gateway.chat("a>b|c").json()["modelnet"]
