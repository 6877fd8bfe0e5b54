"""What /metrics says after something has happened, and that clients can't make it grow."""

from __future__ import annotations

import re
from typing import Any

import pytest
from edge import CHAT, Edge, edge, fake, question
from prometheus_client.parser import text_string_to_metric_families

from backends.fake import Fault
from backends.types import Usage
from gateway.observability.details import MOST_WIRINGS
from gateway.observability.labels import OTHER, Bounded
from gateway.observability.record import RequestRecord

pytestmark = pytest.mark.anyio


def value(e: Edge, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(e.app.metrics.text().decode()):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return None


def series(e: Edge) -> int:
    return sum(1 for line in e.app.metrics.text().splitlines() if not line.startswith(b"#"))


async def test_wirings_and_what_became_of_them() -> None:
    async with edge(fake("a"), fake("b", faults=(Fault(on="enter"),))) as e:
        assert (await e.chat("a", stream=True)).status == 200
        assert (await e.chat("a>a")).status == 200
        assert (await e.chat("a>b")).status == 502
        assert (await e.chat("nobody")).status == 404
        assert value(e, "modelnet_wiring_requests_total", wiring="a", outcome="ok") == 1
        assert value(e, "modelnet_wiring_requests_total", wiring="a>a", outcome="ok") == 1
        assert value(e, "modelnet_wiring_requests_total", wiring="a>b", outcome="error") == 1
        assert value(e, "modelnet_wiring_seconds_count", wiring="a>a") == 1
        assert value(e, "modelnet_wiring_first_token_seconds_count", wiring="a") == 1
        assert value(e, "modelnet_wiring_first_token_seconds_count", wiring="a>b") is None
        assert value(e, "modelnet_wiring_inter_token_seconds_count", wiring="a") == 1
        assert (value(e, "modelnet_wiring_tokens_total", wiring="a>a", direction="completion") or 0) > 10
        assert value(e, "modelnet_wiring_errors_total", wiring="a>b", cause="backend_unavailable") == 1
        assert value(e, "modelnet_wiring_errors_total", wiring="a", cause="backend_unavailable") is None
        assert value(e, "modelnet_request_errors_total", cause="backend_unavailable") == 1
        assert value(e, "modelnet_request_errors_total", cause="model_not_found") == 1
        assert "nobody" not in e.app.metrics.text().decode(), "no word of a client's"


async def test_routes_and_arms() -> None:
    routes = {"public": {"arms": {"one": {"model": "a", "weight": 1}, "two": {"model": "b>a", "weight": 0}}}}
    async with edge(fake("a"), fake("b"), routes=routes) as e:
        assert (await e.chat("public", stream=True)).status == 200
        assert value(e, "modelnet_arm_requests_total", route="public", arm="one", outcome="ok") == 1
        assert value(e, "modelnet_arm_seconds_count", route="public", arm="one") == 1
        assert value(e, "modelnet_arm_first_token_seconds_count", route="public", arm="one") == 1
        assert value(e, "modelnet_arm_inter_token_seconds_count", route="public", arm="one") == 1
        assert (value(e, "modelnet_arm_tokens_total", route="public", arm="one", direction="prompt") or 0) > 0
        e.backends["a"].faults = (Fault(on="enter"),)
        assert (await e.chat("public")).status == 502
        assert value(e, "modelnet_arm_errors_total", route="public", arm="one", cause="backend_unavailable") == 1
        assert value(e, "modelnet_wiring_requests_total", wiring="a", outcome="ok") == 1


async def test_the_time_between_two_tokens_of_an_answer() -> None:
    async with edge(fake("a", "one two three four five", delay=0.01)) as e:
        for stream in (True, False):
            assert (await e.chat("a", stream=stream)).status == 200
        assert value(e, "modelnet_wiring_inter_token_seconds_count", wiring="a") == 2
        assert (value(e, "modelnet_wiring_inter_token_seconds_sum", wiring="a") or 0) >= 0.018


def test_what_is_handed_on_goes_by_the_tokens_that_its_server_told() -> None:
    record = RequestRecord("r", shape="single", kind="stream", usage=Usage(3, 11))
    assert record.between() is None
    record.wrote()
    assert (record.between() or -1) >= 0
    record.kind = "json"
    assert record.between() is None, "all of it came at once"


async def test_stages_models_and_times() -> None:
    async with edge(fake("a", delay=0.1), fake("b")) as e:
        assert (await e.chat("a>b")).status == 200
        assert value(e, "modelnet_stage_first_token_seconds_count", shape="si", role="solver") == 1
        assert value(e, "modelnet_inter_token_seconds_count", shape="si", role="verifier") == 1
        assert value(e, "modelnet_model_first_token_seconds_count", model="a") == 1
        assert value(e, "modelnet_model_inter_token_seconds_count", model="a") == 1
        assert (value(e, "modelnet_model_inter_token_seconds_sum", model="a") or 0) >= 0.09
        assert (value(e, "modelnet_model_inter_token_seconds_sum", model="b") or 1) < 0.09
        assert (value(e, "modelnet_tokens_total", model="b", direction="completion") or 0) > 1


async def test_members_of_groups() -> None:
    async with edge(fake("slow", delay=0.01), fake("b")) as e:
        assert (await e.chat("slow|b")).status == 200
        assert value(e, "modelnet_slowest_member_total", model="slow") == 1
        assert value(e, "modelnet_slowest_member_total", model="b") is None
        assert value(e, "modelnet_member_step_seconds_count", model="b") == 1
        assert (value(e, "modelnet_member_step_seconds_sum", model="slow") or 0) > 0.005
        certified = value(e, "modelnet_fused_pieces_total", verdict="certified") or 0
        assert certified > 0
        assert value(e, "modelnet_wiring_fused_pieces_total", wiring="slow|b", verdict="certified") == certified
        assert (value(e, "modelnet_fused_passes_total") or 0) > 2
        assert value(e, "modelnet_fused_degraded_pieces_total") == 0


async def test_members_that_left() -> None:
    faults = (Fault(on="token", of="session", after=3),)
    async with edge(fake("a", faults=faults), fake("b"), limits={"on_member_failure": "drop"}) as e:
        assert (await e.chat("a|b")).status == 200
        assert value(e, "modelnet_members_dropped_total", model="a", why="failed") == 1
        pieces = sum(
            value(e, "modelnet_fused_pieces_total", verdict=v) or 0 for v in ("certified", "looked_up", "uncertified")
        )
        assert 0 < (value(e, "modelnet_fused_degraded_pieces_total") or 0) < pieces
        assert value(e, "modelnet_backend_errors_total", model="a", cause="unavailable") == 1


async def test_a_late_member_is_a_failure_of_it() -> None:
    faults = (Fault(on="token", of="session", after=2, action="hang"),)
    limits = {"on_member_failure": "drop", "member_seconds": 0.05}
    async with edge(fake("a", faults=faults), fake("b"), limits=limits) as e:
        assert (await e.chat("a|b")).status == 200
        assert value(e, "modelnet_members_dropped_total", model="a", why="late") == 1
        assert value(e, "modelnet_backend_errors_total", model="a", cause="timeout") == 1


async def test_what_is_there_before_anything_happened() -> None:
    async with edge(fake("a", seats=2)) as e:
        assert value(e, "modelnet_model_ready", model="a") == 1
        assert value(e, "modelnet_breaker_state", model="a") == 0
        assert value(e, "modelnet_seats_taken", model="a") == value(e, "modelnet_queue", model="a") == 0
        assert (
            value(
                e,
                "modelnet_places",
            )
            == 256
        )
        assert value(e, "modelnet_config_good") == 1
        info = next(line for line in e.app.metrics.text().decode().splitlines() if line.startswith("modelnet_info"))
        assert re.fullmatch(r'modelnet_info\{version="[^"]+"\} 1.0', info)


async def test_clients_can_not_make_it_grow() -> None:
    """Ten thousand names, wirings, users, headers and errors: a bounded number of series."""
    async with edge(fake("a"), fake("b")) as e:

        async def ask(model: str, **fields: Any) -> None:
            await e.call("POST", CHAT, question(model, **fields), {"x-request-id": model, "x-modelnet-arm": model})

        for number in range(MOST_WIRINGS + 5):
            await ask(f"a*{number + 1}|b*{number + 7}", max_tokens=1)
        many = series(e)
        for number in range(100):
            await ask(f"a*{number + 100}|b", max_tokens=1, user=f"user {number}")
            await ask(f"made-up-{number}")
            await ask("a", temperature=number + 3)
        assert series(e) - many < 60
        assert (value(e, "modelnet_wiring_requests_total", wiring=OTHER, outcome="ok") or 0) >= 100
        assert "made-up" not in e.app.metrics.text().decode() and "user 7" not in e.app.metrics.text().decode()
        await ask("a", max_tokens=1)
        assert (value(e, "modelnet_wiring_requests_total", wiring="a", outcome="ok") or 0) == 1, "always by its name"


def test_bounded_labels() -> None:
    label = Bounded(2, ["known"])
    assert [label(text) for text in ("x", "y", "z", "known", "x", "z")] == ["x", "y", OTHER, "known", "x", OTHER]
    label.know(["z"])
    assert label("z") == "z"
