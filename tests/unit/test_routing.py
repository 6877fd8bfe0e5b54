"""Aliases: where they expand, what they may not do, and what a client reads about an unknown name."""

from __future__ import annotations

import pickle

import pytest

from strategies.routing import Alias, AliasError, UnknownModel, check_aliases, resolve
from strategies.topology import Limits, TopologyError, format, models

KNOWN = frozenset({"qwen", "smol", "gemma", "qwen-1.5b", "Llama"})
ALIASES = {
    "pair": Alias("qwen|smol", prompts="paper", fuser="gated", stage_max_tokens=5, max_tokens=7, description="two"),
    "chain": Alias("si:gemma > smol"),
    "best": Alias("s2p:gemma>pair"),
    "copy": Alias("pair"),
}


@pytest.mark.parametrize(
    ("name", "wiring", "columns"),
    [
        ("qwen", "qwen", (0,)),
        ("pair", "qwen|smol", (0, 0)),
        ("copy", "qwen|smol", (0, 0)),
        ("s2p:gemma>pair", "gemma>qwen|smol", (4, 10, 10)),
        ("chain>pair", "gemma>smol>qwen|smol", (0, 0, 6, 6)),
        ("pair*2|gemma", "(qwen|smol)*2|gemma", (0, 0, 7)),
        ("chain|qwen", "(gemma>smol)|qwen", (0, 0, 6)),
        ("qwen>(chain>best)", "qwen>gemma>smol>gemma>qwen|smol", (0, 6, 6, 12, 12, 12)),
        ("pi:pair", "qwen|smol", (3, 3)),
    ],
)
def test_aliases_expand_everywhere(name: str, wiring: str, columns: tuple[int, ...]) -> None:
    route = resolve(name, ALIASES, KNOWN)
    assert format(route.topology) == wiring
    assert route.columns == columns
    assert len(route.columns) == len(list(models(route.topology)))
    assert route.parsed.text == name


@pytest.mark.parametrize("name", ["pair", " (pair) ", "pi:pair"])
def test_the_settings_of_an_alias_hold_where_it_is_the_whole_name(name: str) -> None:
    assert resolve(name, ALIASES, KNOWN).alias is ALIASES["pair"]


@pytest.mark.parametrize("name", ["qwen", "pair>qwen", "pair|pair"])
def test_the_settings_of_an_alias_do_not_hold_inside_a_wiring(name: str) -> None:
    assert resolve(name, ALIASES, KNOWN).alias is None


def test_kinds_are_checked_after_expansion() -> None:
    assert resolve("s2p:qwen>pair", ALIASES, KNOWN).parsed.kind == "s2p"
    with pytest.raises(TopologyError) as caught:
        resolve("si:qwen>pair", ALIASES, KNOWN)
    assert caught.value.column == 0
    assert "this is s2p" in caught.value.message


@pytest.mark.parametrize(
    ("name", "column", "nearest"),
    [
        ("qwn", 0, ("qwen",)),
        ("s2p:qwen>gema|smol", 9, ("gemma",)),
        ("qwen > LLAMA", 7, ("Llama",)),
        ("par>nothing-like-it", 0, ("pair",)),
        ("qwen|zzzzzz", 5, ()),
    ],
)
def test_an_unknown_name_points_and_names_the_nearest(name: str, column: int, nearest: tuple[str, ...]) -> None:
    with pytest.raises(UnknownModel) as caught:
        resolve(name, ALIASES, KNOWN)
    assert caught.value.column == column
    assert caught.value.nearest[:1] == nearest
    assert "expected a model or alias" in caught.value.message
    assert ("did you mean" in caught.value.message) == bool(nearest)
    assert all(repr(near) in caught.value.message for near in nearest)


def test_an_unknown_name_survives_pickling() -> None:
    with pytest.raises(UnknownModel) as caught:
        resolve("qwn", ALIASES, KNOWN)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.name, again.nearest, str(again)) == ("qwn", caught.value.nearest, str(caught.value))


def test_a_very_long_unknown_name_is_answered_shortly() -> None:
    with pytest.raises(UnknownModel) as caught:
        resolve("q" * 500, ALIASES, KNOWN)
    assert len(caught.value.message) < 200


def test_good_aliases_pass() -> None:
    check_aliases(ALIASES, KNOWN)


@pytest.mark.parametrize(
    ("aliases", "alias", "column", "message"),
    [
        ({"qwen": Alias("smol")}, "qwen", 0, "this is a model's name already"),
        ({"a:b": Alias("smol")}, "a:b", 0, "a name is made of"),
        ({"x": Alias("qwen>>smol")}, "x", 5, "found '>'"),
        ({"x": Alias("qwen>smoll")}, "x", 5, "did you mean 'smol'?"),
        ({"x": Alias("pi:qwen>smol")}, "x", 0, "this is si"),
        ({"x": Alias("qwen>x")}, "x", 5, "'x' stands for itself: x -> x"),
        (
            {"x": Alias("y"), "y": Alias("qwen|z"), "z": Alias("qwen>x")},
            "z",
            5,
            "'x' stands for itself: x -> y -> z -> x",
        ),
        ({"ok": Alias("qwen"), "x": Alias("ok>")}, "x", 3, "found the end"),
    ],
)
def test_faulty_aliases_are_found_at_configuration_time(
    aliases: dict[str, Alias], alias: str, column: int, message: str
) -> None:
    with pytest.raises(AliasError) as caught:
        check_aliases(aliases, KNOWN)
    assert caught.value.alias == alias
    assert caught.value.column == column
    assert message in caught.value.message
    assert str(caught.value).startswith(f"alias '{alias}', column {column + 1}: ")


def test_a_circle_is_found_by_a_request_too() -> None:
    with pytest.raises(AliasError, match="stands for itself"):
        resolve("qwen>x", {"x": Alias("y"), "y": Alias("x")}, KNOWN)


def test_aliases_that_double_again_and_again_are_refused_at_once() -> None:
    aliases = {"a0": Alias("qwen|smol")} | {f"a{i}": Alias(f"a{i - 1}|a{i - 1}") for i in range(1, 60)}
    with pytest.raises(AliasError) as caught:
        check_aliases(aliases, KNOWN, Limits(depth=12))
    assert caught.value.alias == "a5"
    assert caught.value.message == "with 'a4' expanded this has 64 models, expected at most 32"


@pytest.mark.parametrize("count", [12, 13])
def test_the_depth_of_aliases_does_not_depend_on_the_order_they_are_looked_at(count: int) -> None:
    upwards = {"a1": Alias("qwen")} | {f"a{i}": Alias(f"a{i - 1}") for i in range(2, count + 1)}
    downwards = dict(reversed(upwards.items()))
    for aliases in (upwards, downwards):
        if count <= 12:
            check_aliases(aliases, KNOWN, Limits(depth=12))
        else:
            with pytest.raises(AliasError, match="deeper than the 12 levels"):
                check_aliases(aliases, KNOWN, Limits(depth=12))


def test_a_long_line_of_aliases_does_not_exhaust_the_stack() -> None:
    aliases = {f"a{i}": Alias(f"a{i + 1}") for i in range(5000)} | {"a5000": Alias("qwen")}
    with pytest.raises(AliasError, match="deeper than"):
        resolve("a0", aliases, KNOWN)


@pytest.mark.parametrize(
    ("name", "limits", "column", "message"),
    [
        ("qwen|six", Limits(members=6), 5, "with 'six' expanded this has 7 models, expected at most 6"),
        ("qwen>long", Limits(stages=3), 5, "with 'long' expanded this has 4 stages, expected at most 3"),
        ("qwen|deep", Limits(depth=1), 5, "with 'deep' expanded this has 2 levels of parentheses, expected at most 1"),
    ],
)
def test_what_expansion_makes_too_large_points_at_the_alias(
    name: str, limits: Limits, column: int, message: str
) -> None:
    aliases = {"six": Alias("qwen|" * 5 + "smol"), "long": Alias("qwen>smol>gemma"), "deep": Alias("(qwen>smol)|gemma")}
    used = {key: value for key, value in aliases.items() if key in name}
    with pytest.raises(TopologyError) as caught:
        resolve(name, used, KNOWN, limits)
    assert not isinstance(caught.value, AliasError), "the alias itself is within the limits"
    assert (caught.value.column, caught.value.message) == (column, message)
