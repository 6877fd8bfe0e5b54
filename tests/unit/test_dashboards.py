"""What dashboards and alert rules ask for is what the gateway shows: every metric, every label, every query."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import promql_parser
import pytest
import yaml
from edge import edge, fake

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "modelnet.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
FROM_PROMETHEUS = {"job", "instance", "le"}
"""Labels that we do not set ourselves, or that belong to histograms."""


async def shown() -> dict[str, set[str]]:
    """Every series that can come out of /metrics → its labels. What is optional (ledger, shared limits, stored keys) is there."""
    found: dict[str, set[str]] = {}
    async with edge(fake("a")) as e:
        operations: Any = e.runtime.operations
        operations.ledger = SimpleNamespace(written=1, dropped=1, waiting=1, failing=None)
        operations.keeper = SimpleNamespace(failing=False)
        operations.limiter.shared = SimpleNamespace(down=False, failures=0)
        for family in e.app.metrics.registry.collect():
            endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "info": ["_info"]}
            labels = set(getattr(family, "_labelnames", ())) | {name for s in family.samples for name in s.labels}
            for ending in endings.get(family.type, [""]):
                found[family.name + ending] = labels
    return found


def selectors(node: Any) -> Iterator[Any]:
    """All selectors of metrics in a query."""
    if hasattr(node, "matchers"):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        if (below := getattr(node, name, None)) is not None:
            yield from selectors(below)
    for below in getattr(node, "args", None) or []:
        yield from selectors(below)


def queries() -> list[tuple[str, str]]:
    """(where, query), with Grafana's variables filled in."""
    dashboard = json.loads(DASHBOARD.read_text())
    found = [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", [])]
    found += [(note["name"], note["expr"]) for note in dashboard["annotations"]["list"]]
    found += [(rule["alert"], rule["expr"]) for rule in rules()]
    return [(where, text.replace("$__rate_interval", "5m").replace("$job", ".*")) for where, text in found]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


@pytest.mark.anyio
async def test_every_query_asks_for_what_there_is() -> None:
    there = await shown()
    assert len(queries()) > 80
    for where, text in queries():
        names = set()
        for selector in selectors(promql_parser.parse(text)):
            assert selector.name in there, f"{where}: {selector.name}"
            names |= there[selector.name]
            matched = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", str(selector.matchers))) | {
                matcher.name for matcher in getattr(selector.matchers, "matchers", [])
            }
            assert matched <= there[selector.name] | FROM_PROMETHEUS, f"{where}: {matched}"
        grouped = {name.strip() for names in re.findall(r"\bby \(([^)]*)\)", text) for name in names.split(",")}
        assert grouped <= names | FROM_PROMETHEUS, f"{where}: {grouped}"


@pytest.mark.anyio
async def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    """Or is here, with the reason."""
    elsewhere = {
        "modelnet_requests",  # its parts are
        "modelnet_retry_budget",  # for looking at one model
        "modelnet_breaker_turns",  # the state is
        "modelnet_places_taken",  # the requests under way are
        "modelnet_draining",  # a moment
        "modelnet_shadows_running",
        "modelnet_limits_down",  # alerts
        "modelnet_limits_failures",
        "modelnet_keys_failing",
        "modelnet_ledger_failing",
    }
    text = DASHBOARD.read_text()
    families = {
        re.sub(r"_(total|bucket|sum|count)$", "", name) for name in await shown() if name.startswith("modelnet_")
    }
    assert {name for name in families if name not in text} <= elsewhere


def test_the_dashboard_is_one_that_grafana_loads() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) and dashboard["uid"] == "modelnet-gateway"
    places = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & places, f"{panel['title']} covers another panel"
        places |= cells


def test_alerts_say_what_is_wrong_and_how_bad_it_is() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) >= 15
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket") and rule["annotations"]["summary"]
        promql_parser.parse(rule["expr"])
        for label in re.findall(r"\$labels\.(\w+)", str(rule["annotations"])):
            assert f"by (job, {label}" in rule["expr"] or f", {label})" in rule["expr"] or f", {label}," in rule["expr"]
