"""The grammar of model names, its errors and their columns, and shapes."""

from __future__ import annotations

import pickle
from decimal import Decimal

import pytest

from strategies.topology import (
    Limits,
    Member,
    Model,
    Parallel,
    Serial,
    TopologyError,
    format,
    measure,
    parallel,
    parse,
    serial,
    shape,
)

A, B, C, D = (Model(name) for name in "abcd")


def group(*members: object) -> Parallel:
    return Parallel(tuple(m if isinstance(m, Member) else Member(m) for m in members))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "topology"),
    [
        ("a", A),
        ("Qwen/Qwen2.5-0.5B_x", Model("Qwen/Qwen2.5-0.5B_x")),
        ("a>b|c", Serial((A, group(B, C)))),
        ("a|b>c", Serial((group(A, B), C))),
        ("(a>b)>c", Serial((A, B, C))),
        ("a>(b>c)", Serial((A, B, C))),
        ("((a))", A),
        ("(a|b)", group(A, B)),
        ("(a|b)|c", group(group(A, B), C)),
        ("(a>b)|c", group(Serial((A, B)), C)),
        ("a*2|b", group(Member(A, Decimal(2)), B)),
        ("a*.5|b*0.25", group(Member(A, Decimal("0.5")), Member(B, Decimal("0.25")))),
        ("(a>b)*2|c", group(Member(Serial((A, B)), Decimal(2)), C)),
        ("((a|b)*3)*2|c", group(Member(group(A, B), Decimal(2)), C)),
        ("a*2", A),
        (" a >\tb |\n( c ) * 2 ", Serial((A, group(B, Member(C, Decimal(2)))))),
        ("s2p : a > b | c", Serial((A, group(B, C)))),
        ("pi", Model("pi")),
        ("si>p2s", Serial((Model("si"), Model("p2s")))),
        ("si-model|pi.1", group(Model("si-model"), Model("pi.1"))),
        ("si:si>pi", Serial((Model("si"), Model("pi")))),
    ],
)
def test_what_texts_mean(text: str, topology: object) -> None:
    assert parse(text).topology == topology


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("", 0, "found the end, expected a model or '('"),
        ("   ", 3, "found the end, expected a model or '('"),
        ("a>", 2, "found the end, expected a model or '('"),
        ("a>>b", 2, "found '>', expected a model or '('"),
        ("|a", 0, "found '|', expected a model or '('"),
        ("a||b", 2, "found '|', expected a model or '('"),
        ("()", 1, "found ')', expected a model or '('"),
        ("a)", 1, "found ')', expected '>', '|' or the end"),
        ("((a>b)", 6, "found the end, expected '>', '|' or the ')' for the '(' in column 1"),
        ("(a b)", 3, "found 'b', expected '>', '|' or the ')' for the '(' in column 1"),
        ("a b", 2, "found 'b', expected '>', '|' or the end"),
        ("a(b)", 1, "found '(', expected '>', '|' or the end"),
        ("a,b", 1, "found ',', expected '>', '|' or the end; stages are joined by '>', members of a group by '|'"),
        ("a｜b", 1, "found '｜', expected '>', '|' or the end; write the ASCII '|'"),
        ("千问>b", 0, "found '千', expected a model or '('; names are made of ASCII letters, digits and . _ - /"),
        ("a\x00", 1, "found U+0000, expected '>', '|' or the end"),
        ("a\ud800", 1, "found U+D800, expected '>', '|' or the end"),
        ("a*|b", 2, "found '|', expected a positive weight such as 2 or 0.5"),
        ("a*", 2, "found the end, expected a positive weight such as 2 or 0.5"),
        ("a*0|b", 2, "found '0', expected a positive weight such as 2 or 0.5"),
        ("a*0.0|b", 2, "found '0.0', expected a positive weight such as 2 or 0.5"),
        ("a* -1|b", 3, "found '-1', expected a positive weight such as 2 or 0.5"),
        ("a*+1|b", 2, "found '+1', expected a positive weight such as 2 or 0.5"),
        ("a*1e400|b", 2, "found '1e400', expected a positive weight such as 2 or 0.5"),
        ("a*1.|b", 2, "found '1.', expected a positive weight such as 2 or 0.5"),
        ("a*nan|b", 2, "found 'nan', expected a positive weight such as 2 or 0.5"),
        ("a*inf|b", 2, "found 'inf', expected a positive weight such as 2 or 0.5"),
        ("a*٣|b", 2, "found '٣', expected a positive weight such as 2 or 0.5; names are made of ASCII letters"),
        ("a*0.1234567891", 2, "expected a positive weight such as 2 or 0.5, with at most 9 digits on either side"),
        ("a*1*2|b", 3, "found '*', expected '>', '|' or the end"),
        ("si:", 3, "found the end, expected a model or '('"),
        ("p2:a|b>c", 0, "found 'p2:', expected a kind (si, pi, s2p, p2s) before ':'; did you mean 'p2s:'?"),
        ("S2P:a>b|c", 0, "did you mean 's2p:'?"),
        ("qwen:7b", 0, "found 'qwen:', expected a kind (si, pi, s2p, p2s) before ':'; names hold no ':'"),
        ("a>b:c", 3, "found ':', expected '>', '|' or the end; only a kind at the very start"),
        ("(si:a>b)|c", 3, "only a kind at the very start (si, pi, s2p, p2s) is followed by ':'"),
        ("si:pi:a|b", 5, "only a kind at the very start"),
        (":a", 0, "only a kind at the very start"),
    ],
)
def test_errors_point_and_say_what_was_expected(text: str, column: int, message: str) -> None:
    with pytest.raises(TopologyError) as caught:
        parse(text)
    assert caught.value.column == column
    assert message in caught.value.message
    assert caught.value.text == text
    assert str(caught.value) == f"column {column + 1}: {caught.value.message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "s2p:a|b>c",
            "this is p2s (one group, then single models), not s2p (single models, then one group); write 'p2s:'",
        ),
        ("pi:a", "this is one model, not pi (one group); drop the prefix"),
        ("si:a", "this is one model, not si (single models, one after another); drop the prefix"),
        ("si:a|b", "this is pi (one group), not si"),
        ("pi:a>b", "this is si (single models, one after another), not pi"),
        ("pi:(a>b)|c", "this is a mixed wiring that no kind describes, not pi (one group); drop the prefix"),
        ("s2p:a>(b>c)|d", "this is a mixed wiring"),
        ("p2s:a|b>c|d", "this is a mixed wiring"),
    ],
)
def test_a_wrong_kind_is_told_what_the_wiring_is(text: str, message: str) -> None:
    with pytest.raises(TopologyError) as caught:
        parse(text)
    assert caught.value.column == 0
    assert message in caught.value.message


def test_a_wrong_kind_behind_white_space_points_at_the_kind() -> None:
    with pytest.raises(TopologyError) as caught:
        parse("  pi : a")
    assert caught.value.column == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", "single"),
        ("a>b", "si"),
        ("a>b>a", "si"),
        ("a|b", "pi"),
        ("(a|b)*2|c", "pi"),
        ("a>b|c", "s2p"),
        ("a>b>c|d", "s2p"),
        ("a>(b|c)|d", "s2p"),
        ("a|b>c", "p2s"),
        ("a|b>c>d", "p2s"),
        ("(a>b)|c", "mixed"),
        ("a>(b>c)|d", "mixed"),
        ("(a>b)|c>d", "mixed"),
        ("a|b>c|d", "mixed"),
        ("a>b|c>d", "mixed"),
        ("a|b>c>a|b", "mixed"),
        ("((a>b)|c)|d", "mixed"),
    ],
)
def test_shapes(text: str, expected: str) -> None:
    assert shape(parse(text).topology) == expected


@pytest.mark.parametrize(
    ("text", "limits", "column"),
    [
        ("abcdef", Limits(length=5), 5),
        ("((a))", Limits(depth=1), 1),
        ("a>b>c", Limits(stages=2), 3),
        ("(a>b)|(c>d)", Limits(stages=2), 8),
        ("a|b>c", Limits(members=2), 4),
    ],
)
def test_limits_point_at_what_is_too_much(text: str, limits: Limits, column: int) -> None:
    with pytest.raises(TopologyError) as caught:
        parse(text, limits)
    assert caught.value.column == column
    assert "allowed" in caught.value.message or "at most" in caught.value.message


def test_deep_nesting_is_an_error_not_a_recursion() -> None:
    text = "(" * 10_000
    with pytest.raises(TopologyError) as caught:
        parse(text, Limits(length=20_000, depth=12))
    assert caught.value.column == 12


@pytest.mark.parametrize("bad", [{"length": 0}, {"depth": 0}, {"depth": 13}, {"stages": -1}, {"members": 0}])
def test_limits_are_sane(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="limit"):
        Limits(**bad)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (" ( a > (b > c) ) ", "a>b>c"),
        ("a*1|b*1.0|c*1.50", "a|b|c*1.50"),
        ("a*.5|b", "a*0.5|b"),
        ("a*007|b", "a*7|b"),
        ("(a|b)*2|(c)", "(a|b)*2|c"),
        ("(a>b)|c>d", "(a>b)|c>d"),
    ],
)
def test_canonical_text(text: str, canonical: str) -> None:
    assert format(parse(text).topology) == canonical


def test_weights_given_with_an_exponent_are_written_without() -> None:
    topology = group(Member(A, Decimal("1E+3")), Member(B, Decimal("1E-7")))
    assert format(topology) == "a*1000|b*0.0000001"
    assert parse(format(topology)).topology == topology


def test_constructors_hold_the_normal_form() -> None:
    with pytest.raises(ValueError, match="two or more stages"):
        Serial((A,))
    with pytest.raises(ValueError, match="not a chain itself"):
        Serial((A, Serial((B, C))))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two or more members"):
        Parallel((Member(A),))
    assert serial([A, Serial((B, C)), D]) == Serial((A, B, C, D))
    assert serial([A]) == A
    assert parallel([Member(A, Decimal(3))]) == A


@pytest.mark.parametrize("name", ["", "a b", "a:b", "千问", "a\n", "(a)"])
def test_names_that_could_not_be_written_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a name is made of"):
        Model(name)


@pytest.mark.parametrize("weight", ["0", "-1", "NaN", "Infinity", "1E+400", "1E-10", "sNaN"])
def test_weights_that_could_not_be_written_are_refused(weight: str) -> None:
    with pytest.raises(ValueError, match="a weight is a positive decimal"):
        Member(A, Decimal(weight))


def test_measure_counts_as_the_parser_does() -> None:
    size = measure(parse("a>((b>c)|d)*2|e>f").topology)
    assert (size.depth, size.stages, size.members) == (2, 4, 6)


def test_the_caret_stands_under_the_column() -> None:
    assert TopologyError("a>>b", 2, "x").caret() == "a>>b\n  ^"
    assert TopologyError("a>", 2, "x").caret() == "a>\n  ^"


def test_the_caret_counts_wide_characters_twice_and_marks_not_at_all() -> None:
    assert TopologyError("千问>｜", 3, "x").caret() == "千问>｜\n     ^"
    assert TopologyError("e\u0301>>", 3, "x").caret() == "e\u0301>>\n  ^"


def test_the_caret_shows_control_characters_as_pictures() -> None:
    assert TopologyError("a\n\x1b[31m\u202e\ud800!", 9, "x").caret() == "a␊␛[31m��!\n         ^"


def test_the_caret_of_a_long_text_shows_what_is_around_the_column() -> None:
    shown, caret = TopologyError("千" * 200 + "!" + "b" * 300, 200, "x").caret().split("\n")
    assert shown.startswith("…千")
    assert shown.endswith("b…")
    assert len(caret) == 1 + 50 + 1, "the ellipsis, 25 wide characters, the caret"
    assert shown[1 + 25] == "!"


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(TopologyError("a>", 2, "m")))
    assert (error.text, error.column, error.message) == ("a>", 2, "m")
