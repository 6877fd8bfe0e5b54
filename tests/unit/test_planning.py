"""Plans: nesting taken apart, equal things merged, roles, what is refused before any call, and how a plan is shown."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from rich.console import Console

from backends.catalog import Catalog, Entry
from backends.protocol import Session
from backends.types import TextRequest, Vocabulary
from gateway.cli.plan_view import error_text, plan_tree
from strategies.planning import Branch, FusedStage, Plan, PlanError, TextStage, branches, outline, plan
from strategies.planning.outline import percentage
from strategies.routing import Alias, UnknownModel, resolve
from strategies.topology import TopologyError, parse


class TextOnly:
    """Has the methods that make a backend a TextBackend; planning calls none of them."""

    def __init__(self, name: str) -> None:
        self.name = name

    def stream(self, request: TextRequest) -> AbstractAsyncContextManager[Any]:
        raise AssertionError("planning calls no backend")

    async def start(self) -> None:
        raise AssertionError("planning calls no backend")

    async def ready(self) -> None:
        raise AssertionError("planning calls no backend")

    async def aclose(self) -> None:
        raise AssertionError("planning calls no backend")


class WithSessions(TextOnly):
    """Those of a TokenBackend."""

    async def vocabulary(self) -> Vocabulary:
        raise AssertionError("planning calls no backend")

    def open(
        self, messages: Sequence[Any], *, k: int, max_tokens: int | None = None
    ) -> AbstractAsyncContextManager[Session]:
        raise AssertionError("planning calls no backend")


CATALOG = Catalog(
    {name: Entry(WithSessions(name)) for name in "abcdxyz"}
    | {"chat": Entry(TextOnly("chat"), "its server gives no log-probabilities"), "bare": Entry(TextOnly("bare"))}
    | {"off": Entry(WithSessions("off"), "switched off by the configuration")}
)


def planned(text: str) -> Plan:
    return plan(parse(text).topology, CATALOG)


def stages(text: str) -> list[Any]:
    """A plan in short: (model, role, reads) for a text stage, [(model, role, reads, weight), …] for a fused one."""
    short: list[Any] = []
    for stage in planned(text).stages:
        if isinstance(stage, TextStage):
            short.append((stage.branch.model, stage.branch.role, stage.branch.reads))
        else:
            weighted = zip(stage.branches, stage.weights, strict=True)
            short.append([(b.model, b.role, b.reads, pytest.approx(w)) for b, w in weighted])
    return short


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", [("a", "solver", None)]),
        ("chat", [("chat", "solver", None)]),
        ("a>chat", [("a", "solver", None), ("chat", "verifier", 0)]),
        ("a>b>c", [("a", "solver", None), ("b", "reviewer", 0), ("c", "verifier", 1)]),
        ("a>a", [("a", "solver", None), ("a", "verifier", 0)]),
        ("b|a", [[("a", "solver", None, 0.5), ("b", "solver", None, 0.5)]]),
        ("b*3|a", [[("a", "solver", None, 0.25), ("b", "solver", None, 0.75)]]),
        ("x>b|a", [("x", "solver", None), [("a", "verifier", 0, 0.5), ("b", "verifier", 0, 0.5)]]),
        ("a|b>x", [[("a", "solver", None, 0.5), ("b", "solver", None, 0.5)], ("x", "verifier", 0)]),
        (
            "(x>a|b)*2|c",
            [
                ("x", "solver", None),
                [("a", "verifier", 0, 1 / 3), ("b", "verifier", 0, 1 / 3), ("c", "solver", None, 1 / 3)],
            ],
        ),
        (
            "x>(a>b)|c",
            [("x", "solver", None), ("a", "reviewer", 0), [("b", "verifier", 1, 0.5), ("c", "verifier", 0, 0.5)]],
        ),
        (
            "(a*3|b)|c*2",
            [[("a", "solver", None, 0.25), ("b", "solver", None, 1 / 12), ("c", "solver", None, 2 / 3)]],
        ),
        ("(a|b)|a", [[("a", "solver", None, 0.75), ("b", "solver", None, 0.25)]]),
        ("a|a", [("a", "solver", None)]),
        ("chat|chat*7", [("chat", "solver", None)]),
        ("x>(a|a)", [("x", "solver", None), ("a", "verifier", 0)]),
        ("(x>a)|(x>b)", [("x", "solver", None), [("a", "verifier", 0, 0.5), ("b", "verifier", 0, 0.5)]]),
        ("(x>a)|(x>a)", [("x", "solver", None), ("a", "verifier", 0)]),
        (
            "(x>a)|(y>a)|a",
            [
                ("x", "solver", None),
                ("y", "solver", None),
                [("a", "solver", None, 1 / 3), ("a", "verifier", 0, 1 / 3), ("a", "verifier", 1, 1 / 3)],
            ],
        ),
        (
            "(a|b>c)|d>y",
            [
                [("a", "solver", None, 0.5), ("b", "solver", None, 0.5)],
                [("c", "reviewer", 0, 0.5), ("d", "solver", None, 0.5)],
                ("y", "verifier", 1),
            ],
        ),
        (
            "x>((a>b)|c>d)|y",
            [
                ("x", "solver", None),
                ("a", "reviewer", 0),
                [("b", "reviewer", 1, 0.5), ("c", "reviewer", 0, 0.5)],
                [("d", "verifier", 2, 0.5), ("y", "verifier", 0, 0.5)],
            ],
        ),
    ],
)
def test_plans(text: str, expected: list[Any]) -> None:
    assert stages(text) == expected


def test_a_plan_keeps_the_wiring_its_shape_and_its_models() -> None:
    made = planned("(x>a|b)*2|c")
    assert made.topology == parse("(x>a|b)*2|c").topology
    assert made.shape == "mixed"
    assert made.models == ("x", "a", "b", "c")
    assert planned("s2p:x>a|b").shape == "s2p"


@pytest.mark.parametrize(
    "members",
    [
        ("a", "b*2", "c"),
        ("(x>a)", "(y>a)*2", "a*3"),
        ("((x>a)|(y>b))", "(z>c)", "d"),
        ("(y|x*2>a)", "(x>a)", "(y>b)*0.1"),
    ],
)
def test_the_order_of_members_never_shows(members: tuple[str, ...]) -> None:
    plans = {planned("|".join(order)).stages for order in itertools.permutations(members)}
    assert len(plans) == 1


def test_weights_of_very_deep_and_unequal_groups_stay_positive_and_add_up() -> None:
    text = "a"
    for _ in range(8):
        text = f"({text})*0.000000001|b*999999999" if text != "a" else "a*0.000000001|b*999999999"
    (stage,) = planned(text).stages
    assert isinstance(stage, FusedStage)
    assert stage.weights[0] > 0
    assert sum(stage.weights) == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "column", "model", "reason"),
    [
        ("a|chat", 2, "chat", "its server gives no log-probabilities"),
        ("chat>a|chat", 7, "chat", "its server gives no log-probabilities"),
        ("a|off", 2, "off", "switched off by the configuration"),
        ("a|bare", 2, "bare", "its backend opens no token sessions"),
        ("a>(chat>b)|(a>chat)", 14, "chat", "its server"),
        ("off|chat", 0, "off", "switched off"),
        ("chat|off", 0, "chat", "its server"),
        ("(chat|chat)|chat|a", 1, "chat", "its server"),
    ],
)
def test_a_group_member_without_token_sessions_is_refused_where_it_stands(
    text: str, column: int, model: str, reason: str
) -> None:
    with pytest.raises(PlanError) as caught:
        planned(text)
    assert (caught.value.text, caught.value.column, caught.value.model) == (text, column, model)
    assert caught.value.message.startswith(f"'{model}' can't be a member of a group: {reason}")


def test_a_group_that_would_wait_for_itself_is_refused() -> None:
    """Two sessions of one model at once, where the model holds one: it could never be opened."""
    narrow = Catalog({**CATALOG, "a": Entry(WithSessions("a"), seats=1), "b": Entry(WithSessions("b"), seats=2)})
    for text, column in (("(x>a)|a", 6), ("c|(b>a)|a", 8)):
        with pytest.raises(PlanError, match="holds 1 sessions at most") as caught:
            plan(parse(text).topology, narrow)
        assert (caught.value.column, caught.value.model) == (column, "a")
    for text in ("a>a|b", "a|b>a", "(x>b)|b", "(x>a)|(x>a)"):
        plan(parse(text).topology, narrow)


def test_a_chain_in_a_group_may_begin_with_a_model_without_token_sessions() -> None:
    assert stages("(chat>a)|b")[0] == ("chat", "solver", None)


def test_errors_of_a_route_point_into_what_the_client_wrote() -> None:
    aliases = {"fast": Alias("chat>a"), "both": Alias("a|chat")}
    with pytest.raises(PlanError) as caught:
        plan(resolve(" fast > both ", aliases, CATALOG), CATALOG)
    assert (caught.value.text, caught.value.column, caught.value.model) == (" fast > both ", 8, "chat")


def test_a_model_that_left_the_catalogue_is_unknown() -> None:
    smaller = Catalog({name: entry for name, entry in CATALOG.items() if name != "chat"})
    with pytest.raises(UnknownModel) as caught:
        plan(resolve("a>chat", {}, CATALOG), smaller)
    assert (caught.value.column, caught.value.name) == (2, "chat")


def test_the_outline_says_what_a_plan_does() -> None:
    described = outline(planned("(x>a|b)*2|c"), fuser="linear")
    assert described.wiring == "(x>a|b)*2|c"
    assert described.shape == "mixed"
    first, second = described.stages
    assert (first.number, first.fuser, first.last) == (1, None, False)
    assert (first.branches[0].model, first.branches[0].percent, first.branches[0].reads) == ("x", None, None)
    assert (second.number, second.fuser, second.last) == (2, "linear", True)
    assert [(b.model, b.role, b.reads) for b in second.branches] == [
        ("a", "verifier", 1),
        ("b", "verifier", 1),
        ("c", "solver", None),
    ]
    assert [b.percent for b in second.branches] == pytest.approx([100 / 3] * 3)


@pytest.mark.parametrize(
    ("percent", "text"),
    [
        (50.0, "50"),
        (100 / 3, "33.3"),
        (12.5, "12.5"),
        (0.0001, "0.0001"),
        (99.9999, "100"),
        (100.0, "100"),
        (0.06, "0.1"),
    ],
)
def test_percentages(percent: float, text: str) -> None:
    assert percentage(percent) == text


def drawn(renderable: Any, width: int = 100) -> str:
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def test_the_tree_in_the_terminal() -> None:
    route = resolve("s2p:x>pair", {"pair": Alias("a*3|b")}, CATALOG)
    assert drawn(plan_tree(plan(route, CATALOG), name="s2p:x>pair", fuser="linear")) == (
        "s2p:x>pair  s2p, serial to parallel\n"
        "= x>a*3|b\n"
        "├── stage 1  one model writes\n"
        "│   └── x  solver    reads the question\n"
        "└── stage 2  fused token by token by linear  → answer\n"
        "    ├── a  verifier     75 %  reads stage 1\n"
        "    └── b  verifier     25 %  reads stage 1"
    )


def test_a_name_with_brackets_is_not_read_as_markup() -> None:
    made = planned("a")
    assert "[bold]a" in drawn(plan_tree(made, name="[bold]a", fuser="linear"))


def test_an_error_in_the_terminal_stands_under_its_column() -> None:
    with pytest.raises(TopologyError) as caught:
        planned("a|chat")
    assert drawn(error_text(caught.value)) == (
        "a|chat\n  ^\ncolumn 3: 'chat' can't be a member of a group: its server gives no log-probabilities"
    )


def test_every_read_points_back() -> None:
    for text in ["x>(a>b)|c", "(x>a)|(y>(b|c>d)|a)>z", "a>b>c|d>x|y>z"]:
        for index, stage in enumerate(planned(text).stages):
            assert all(b.reads is None or b.reads < index for b in branches(stage))
            assert all(isinstance(b, Branch) for b in branches(stage))
