"""The admin API, through its own application."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from edge import CHAT, fake, question
from operated import Operated, operated

from gateway.web.admin import admin_app

pytestmark = pytest.mark.anyio

ADMIN = "an-admin-key-of-the-tests"
SPLIT = {"arms": {"plain": {"model": "a"}, "pair": {"model": "a|b"}}}


@asynccontextmanager
async def administered(folder: Path, **sections: Any) -> AsyncIterator[tuple[Operated, httpx.AsyncClient]]:
    prices = {"models": {"a": {"completion": 1.0}}}
    values = {"admin": {"key": ADMIN}, "routes": {"split": SPLIT}, "prices": prices, "keys": ["a-plain-key"]} | sections
    async with operated(folder, fake("a"), fake("b"), **values) as house:
        transport = httpx.ASGITransport(app=admin_app(house.loaded, house.operations))  # type: ignore[arg-type]
        headers = {"authorization": f"Bearer {ADMIN}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://admin", headers=headers) as client:
            yield house, client


async def chat(house: Operated, key: str, **fields: Any) -> Any:
    return await house.call("POST", CHAT, question(**fields), {"authorization": f"Bearer {key}"})


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer a-plain-key"}])
async def test_nobody_gets_in_without_the_admin_key(tmp_path: Path, headers: Mapping[str, str]) -> None:
    async with administered(tmp_path) as (house, client):
        client.headers.pop("authorization")
        for method, path in (
            ("GET", "/admin/keys"),
            ("POST", "/admin/keys"),
            ("GET", "/docs"),
            ("GET", "/openapi.json"),
        ):
            reply = await client.request(method, path, headers=headers)
            assert reply.status_code == 401
            assert reply.json()["error"]["code"] == "invalid_api_key"
            assert reply.headers["x-request-id"]
        assert (await client.get("/healthz")).status_code == 200
        assert (await chat(house, ADMIN)).status == 401  # nor does the admin key open the other door
        assert (await house.call("GET", "/admin/keys", headers={"authorization": "Bearer a-plain-key"})).status == 404


async def test_the_life_of_a_key(tmp_path: Path) -> None:
    async with administered(tmp_path) as (house, client):
        budget = {"money": 2.5, "per": "month"}
        made = await client.post("/admin/keys", json={"name": "team", "requests_per_minute": 2, "budget": budget})
        assert made.status_code == 201
        key, id = made.json().pop("key"), made.json()["id"]
        assert (await chat(house, key)).status == 200  # at once
        shown = (await client.get(f"/admin/keys/{id}")).json()
        assert "key" not in shown
        assert key not in json.dumps((await client.get("/admin/keys")).json())
        assert shown["budget"] == budget
        assert shown["state"] == "active"
        assert shown["spent"]["month"]["tokens"] > 0
        assert shown["spent"]["total"]["money"] > 0
        changed = await client.patch(f"/admin/keys/{id}", json={"wirings": ["b"], "requests_per_minute": None})
        assert changed.json()["requests_per_minute"] is None
        assert changed.json()["budget"] == budget  # not named: stays
        assert [(await chat(house, key, model=model)).status for model in ("a", "b")] == [403, 200]
        assert (await client.patch(f"/admin/keys/{id}", json={"expires": "2020-01-01"})).json()["state"] == "expired"
        assert "expired" in (await chat(house, key)).error["message"]
        assert (await client.patch(f"/admin/keys/{id}", json={"expires": None, "budget": None})).json()[
            "budget"
        ] is None
        assert (await client.delete(f"/admin/keys/{id}")).json()["state"] == "revoked"
        assert "revoked" in (await chat(house, key)).error["message"]
        assert (await client.delete("/admin/keys/nobody")).status_code == 404
        listed = (await client.get("/admin/keys")).json()["data"]
        assert [(entry["from"], entry["state"]) for entry in listed] == [
            ("configuration", "active"),
            ("store", "revoked"),
        ]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": " \n\t"},
        {"name": "x\x1b[2J"},
        {"name": "x" * 129},
        {"name": "x", "requests_per_minute": 0},
        {"name": "x", "requests_per_minute": "5"},
        {"name": "x", "budget": {"per": "day"}},
        {"name": "x", "budget": {"money": 1.0, "tokens": 1}},
        {"name": "x", "expires": "tomorrow"},
        {"name": "x", "expires": "9999-12-31T23:59:59-14:00"},
        {"name": "x", "expires": "0001-01-01T00:00:00+14:00"},
        {"name": "x", "unknown": 1},
        {"name": "x", "models": []},
    ],
)
async def test_keys_that_can_not_be(tmp_path: Path, body: dict[str, Any]) -> None:
    async with administered(tmp_path) as (_, client):
        reply = await client.post("/admin/keys", json=body)
        assert reply.status_code == 400
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


async def test_reports_and_status(tmp_path: Path) -> None:
    async with administered(tmp_path) as (house, client):
        for number in range(6):
            await chat(house, "a-plain-key", model="split", user=f"u{number}", max_tokens=2)
        await house.rows(6)
        found = (await client.get("/admin/experiments/split?days=1&metric=cost")).json()
        assert {arm["arm"] for arm in found["arms"]} == {"plain", "pair"}
        assert sum(arm["requests"] for arm in found["arms"]) == 6
        assert found["winner"] is None
        html = await client.get("/admin/experiments/split?format=html")
        assert html.headers["content-type"].startswith("text/html")
        assert "<svg" in html.text
        assert (await client.get("/admin/experiments/none")).status_code == 404
        assert (await client.get("/admin/experiments/split?metric=luck")).status_code == 400
        assert (await client.get("/admin/experiments/split?days=-1")).status_code == 400
        status = (await client.get("/admin/status")).json()
        assert status["ledger"]["written"] == 6
        assert status["keys"] == {"required": True, "failing": False}


async def test_a_key_of_another_process_shows_within_the_time_said(tmp_path: Path) -> None:
    from gateway.keys import Rights
    from gateway.keys.store import KeyStore

    async with administered(tmp_path) as (house, client):
        store = KeyStore(str(tmp_path / "keys.db"))
        key, text = store.create("other", Rights())
        deadline = time.monotonic() + 3
        while (await chat(house, text)).status != 200:
            assert time.monotonic() < deadline
        store.revoke(key.id)
        while (await chat(house, text)).status == 200:
            assert time.monotonic() < deadline + 3
        store.close()
        assert (await client.get(f"/admin/keys/{key.id}")).json()["state"] == "revoked"


@pytest.mark.parametrize("money", [0, -1, 1e-10, 1e-320, 1e300])
async def test_a_budget_is_an_amount_that_can_be_counted(tmp_path: Path, money: float) -> None:
    """In billionths of the currency."""
    async with administered(tmp_path) as (_, client):
        reply = await client.post("/admin/keys", json={"name": "x", "budget": {"money": money}})
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == "budget.money"
        least = await client.post("/admin/keys", json={"name": "x", "budget": {"money": 1e-9}})
        assert least.status_code == 201
