"""A server's stream or answer, as the client gets it when a request is handed on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from relayed import DONE, HEAD, ROLE, SPENT, STOP, USAGE, chunk, chunks, event, relay, renamed, through

from backends import errors
from backends.openai_http.relay import LONGEST_EVENT, Relay, UsageWanted
from backends.types import Usage


def test_only_the_name_changes() -> None:
    """drop-in 3, 23: fields that nobody here knows come through, byte for byte."""
    odd = chunk({"content": "a", "reasoning_content": "r", "x": {"y": [1]}}, token_ids=[7], service_tier="default")
    words = [chunk({"content": text}) for text in ("Hello ", "世界 🎉", '"usage": "error" \\ \n', "\u2028")]
    parts = (ROLE, odd, *words, STOP, DONE)
    assert through(relay(), *parts) == renamed(*parts)
    assert through(relay(), b"".join(parts)) == renamed(*parts)
    assert through(relay(shown="up"), *parts) == b"".join(parts)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 4096])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_however_the_bytes_are_cut(size: int, newline: bytes) -> None:
    """drop-in 11."""
    parts = b"".join(
        (ROLE, chunk({"content": "héllo 中国"}), chunk({"content": "🎉"}), chunk({"content": "x"}), STOP, SPENT, DONE)
    )
    sent = parts.replace(b"\n", newline)
    given = through(relay(usage="once"), *[sent[at : at + size] for at in range(0, len(sent), size)])
    assert given == renamed(parts)


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("last", ["choices", "model"])
def test_most_chunks_are_not_parsed(separators: tuple[str, str], last: str) -> None:
    """However the server spaces its JSON, and wherever the model's name stands in it."""

    class Counting(Relay):
        parsed = 0

        def _event(self, event: bytes) -> bytes:
            self.parsed += 1
            return super()._event(event)

    def said(text: str) -> bytes:
        value = json.loads(chunk({"content": text})[6:])
        value[last] = value.pop(last)
        return b"data: " + json.dumps(value, separators=separators, ensure_ascii=False).encode() + b"\n\n"

    r = Counting("m", "mine", 1, "no")
    r.feed(ROLE + said("a"))
    assert r.parsed == 2
    for sent in (said("b"), said("c") + said("ü 🎉\n") + said("{}")):
        assert r.feed(sent) == sent.replace(b'"up"', b'"mine"')
    assert r.parsed == 2
    assert '"d"' in chunks(r.feed(said("x") + said('"d"') + said("e")))[1]["choices"][0]["delta"]["content"]
    assert r.parsed == 3
    r.feed(said("f"))
    assert r.parsed == 3


def test_a_name_inside_the_text_stays() -> None:
    """Only the chunk's own `model` is the model."""
    inside = chunk({"content": '"model":"up"', "model": "up"}, more={"model": "up"})
    given = through(relay(), ROLE, chunk({"content": "a"}), inside, inside, STOP, DONE)
    found = chunks(given)[2]
    assert found["model"] == "mine"
    assert found["more"] == {"model": "up"}
    assert found["choices"][0]["delta"] == {"content": '"model":"up"', "model": "up"}


def test_the_role_comes_first_and_once() -> None:
    """drop-in 2: also where the server forgets it, or repeats it with every delta."""
    forgotten = chunks(through(relay(), chunk({"content": "a"}), chunk({"content": "b"}), STOP, DONE))
    assert [c["choices"][0]["delta"] for c in forgotten] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {"content": "b"},
        {},
    ]
    assert {c["id"] for c in forgotten} == {"chatcmpl-1"}
    again = [chunk({"role": "assistant", "content": text}) for text in "abc"]
    repeated = chunks(through(relay(), *again, STOP, DONE))
    assert [c["choices"][0]["delta"] for c in repeated] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {"content": "b"},
        {"content": "c"},
        {},
    ]


@pytest.mark.parametrize(
    ("said", "given"),
    [
        ({"role": "assistant", "content": None}, [{"role": "assistant", "content": ""}]),
        ({"role": "assistant"}, [{"role": "assistant", "content": ""}]),
        (
            {"role": "assistant", "content": "", "refusal": None},
            [{"role": "assistant", "content": "", "refusal": None}],
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [{"index": 0, "id": "c", "type": "function"}]},
            [
                {"role": "assistant", "content": ""},
                {"content": None, "tool_calls": [{"index": 0, "id": "c", "type": "function"}]},
            ],
        ),
    ],
)
def test_the_first_delta_is_the_role_alone(said: dict[str, Any], given: list[dict[str, Any]]) -> None:
    """drop-in 2: servers open a choice in several ways; clients look for one."""
    found = chunks(through(relay(), chunk(said), STOP, DONE))
    assert [c["choices"][0]["delta"] for c in found] == [*given, {}]


@pytest.mark.parametrize(("said", "given"), [("eos", "stop"), ("length", "length"), (7, "stop"), (["x"], "stop")])
def test_reasons_are_those_that_clients_know(said: Any, given: str) -> None:
    last = chunks(through(relay(), chunk({"content": "a"}), chunk({}, said), DONE))[-1]
    assert last["choices"][0]["finish_reason"] == given


def test_an_empty_reason_is_none() -> None:
    """drop-in 4, 10: some servers write it in all chunks but the last; text that broke off is not whole because of it."""
    parts = [chunk({"role": "assistant", "content": ""}, ""), *(chunk({"content": text}, "") for text in "abc")]
    found = chunks(through(relay(), *parts, STOP, DONE))
    assert [c["choices"][0]["finish_reason"] for c in found] == [None] * 4 + ["stop"]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in found) == "abc"
    text = [event({**HEAD, "choices": [{"index": 0, "text": said, "finish_reason": ""}]}) for said in "ab"]
    end = event({**HEAD, "choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
    assert [c["choices"][0]["finish_reason"] for c in chunks(through(relay(), *text, end, DONE))] == [
        None,
        None,
        "length",
    ]
    for torn in (parts, text):
        with pytest.raises(errors.BackendUnavailable, match="broke off"):
            through(relay(), *torn)


def test_every_chunk_has_a_delta() -> None:
    """drop-in 2: the official client looks into it; Azure tells what its filter found without one."""
    filtered = event({**HEAD, "choices": [{"index": 0, "finish_reason": None, "content_filter_results": {}}]})
    found = chunks(through(relay(), filtered, ROLE, chunk({"content": "a"}), filtered, chunk(None, "stop"), DONE))
    deltas = [c["choices"][0]["delta"] for c in found]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {},
        {
            "content": "",
        },
        {"content": "a"},
        {},
        {},
    ]


def test_the_role_of_every_choice() -> None:
    """drop-in 2, 12."""
    parts = [chunk({"content": f"{n}"}, index=n) for n in (1, 0, 2, 1)] + [chunk({}, "stop", n) for n in range(3)]
    found = chunks(through(relay(choices=3), *parts, DONE))
    for index in range(3):
        deltas = [c["choices"][0]["delta"] for c in found if c["choices"][0]["index"] == index]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert all("role" not in delta for delta in deltas[1:])
    first = [c["choices"][0]["index"] for c in found if "role" in c["choices"][0]["delta"]]
    assert first == [0, 1, 2]  # openai-python's `.stream()` fails over any other order


def test_nothing_follows_a_finish() -> None:
    """drop-in 4."""
    given = through(relay(), ROLE, chunk({"content": "a"}), STOP, chunk({"content": ""}), chunk({}, "stop"), DONE)
    assert given == renamed(ROLE, chunk({"content": "a"}), STOP, DONE)


@pytest.mark.parametrize("where", ["own chunk", "with the finish", "in every chunk"])
@pytest.mark.parametrize("wanted", ["no", "once"])
def test_usage(where: str, wanted: UsageWanted) -> None:
    """drop-in 5: once, in a chunk of its own, if it was asked for; metered in any case."""
    parts = [ROLE, chunk({"content": "a"}), chunk({"content": "b"}), STOP, SPENT]
    if where == "with the finish":
        parts[3:] = [chunk({}, "stop", usage=USAGE)]
    if where == "in every chunk":
        parts = [chunk({"role": "assistant", "content": ""}, usage=USAGE), chunk({"content": "a"}, usage=USAGE)]
        parts += [chunk({"content": "b"}, usage=USAGE), chunk({}, "stop", usage=USAGE)]
    r = relay(usage=wanted)
    given = through(r, *parts, DONE)
    expected = [ROLE, chunk({"content": "a"}), chunk({"content": "b"}), STOP]
    assert given == renamed(*expected, *([SPENT] if wanted == "once" else []), DONE)
    assert r.spent == Usage(3, 2, 1)


@pytest.mark.parametrize("size", [1, 7, 300, 100_000])
@pytest.mark.parametrize("told", [None, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}])
def test_usage_that_a_server_does_not_tell(size: int, told: Any) -> None:
    """drop-in 5, 34: an estimate, and named so: a token for every piece, or for every four bytes where that is more; zeros are no count."""
    ends = [STOP, *([event({**HEAD, "choices": [], "usage": told})] if told else []), DONE]
    words = [chunk({"content": text}) for text in ("a", "b", "c", "d", "e", "f")]
    for parts, tokens in (([ROLE, *words], 6), ([ROLE, *words, chunk({"content": "中" * 40})], 32)):
        sent = b"".join([*parts, *ends])
        r = Relay("m", "mine", 1, "once", prompt=9)
        given = through(r, *[sent[at : at + size] for at in range(0, len(sent), size)])
        usage = {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": 9 + tokens}
        last = event({**HEAD, "choices": [], "usage": usage, "modelnet": {"usage_estimated": True}})
        assert given == renamed(*parts, STOP, last, DONE)
        assert r.usage == Usage(9, tokens, estimated=True)
        assert through(relay(usage="no"), sent) == renamed(*parts, STOP, DONE)


def test_usage_of_an_answer_that_breaks_off() -> None:
    """What came was spent; where nothing came, nothing is known."""
    r = Relay("m", "mine", 1, "once", prompt=9)
    assert r.usage is None
    through(r, ROLE, chunk({"reasoning_content": "four"}), chunk({"content": "more"}), ended=False)
    assert r.usage == Usage(9, 2, estimated=True)


def test_usage_in_every_chunk_on_request() -> None:
    """vLLM's `continuous_usage_stats` is passed on."""
    parts = [chunk({"role": "assistant", "content": ""}, usage=USAGE), chunk({"content": "a"}, usage=USAGE)]
    parts += [chunk({"content": "b"}, usage=USAGE), chunk({}, "stop", usage=USAGE), SPENT, DONE]
    assert through(relay(usage="always"), *parts) == renamed(*parts)


def test_null_usage_is_no_usage() -> None:
    """drop-in 5: OpenAI writes null in all chunks but the last."""
    parts = [chunk({"role": "assistant", "content": ""}, usage=None)]
    parts += [chunk({"content": text}, usage=None) for text in "abc"] + [chunk({}, "stop", usage=None), SPENT, DONE]
    assert through(relay(usage="once"), *parts) == renamed(*parts)


def test_no_other_chunk_without_choices() -> None:
    """drop-in 6: Azure begins with one; clients look at choices[0]."""
    filtered = event({"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": [{}]})
    found = chunks(through(relay(), filtered, ROLE, chunk({"content": "a"}), STOP, DONE))
    assert [len(c["choices"]) for c in found] == [1, 1, 1]
    assert len({(c["id"], c["created"], c["object"], c["model"]) for c in found}) == 1


def test_one_identity() -> None:
    """drop-in 3: servers that forget it, or change it with every chunk."""
    bare = [event({"choices": [{"index": 0, "delta": {"content": text}}]}) for text in "ab"]
    found = chunks(
        through(relay(), *bare, event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}), DONE)
    )
    assert len({(c["id"], c["created"]) for c in found}) == 1
    assert found[0]["id"].startswith("chatcmpl-")
    assert isinstance(found[0]["created"], int)
    assert {c["object"] for c in found} == {"chat.completion.chunk"}
    changing = [
        event({**HEAD, "id": f"x{n}", "created": n, "choices": json.loads(ROLE[6:])["choices"]}) for n in (5, 6)
    ]
    found = chunks(through(relay(), *changing, STOP, DONE))
    assert [(c["id"], c["created"]) for c in found] == [("x5", 5)] * 3
    prompt = event({"choices": [], "created": 0, "id": "", "model": "", "object": "", "prompt_filter_results": []})
    assert through(relay(), prompt, ROLE, STOP, DONE) == renamed(ROLE, STOP, DONE)


def test_comments_and_other_lines() -> None:
    """drop-in 6, 9: comments pass, `id:`, `event:` and `retry:` do not."""
    words = [chunk({"content": text}) for text in "abc"]
    sent = [
        b": ping\n\n",
        ROLE,
        words[0],
        b": ping\n\n",
        b"id: 7\nevent: x\nretry: 9\n" + words[1],
        b":c\n" + words[2],
        STOP,
        DONE,
    ]
    expected = [b": ping\n\n", ROLE, words[0], b": ping\n\n", words[1], b":c\n\n", words[2], STOP, DONE]
    assert through(relay(), *sent) == renamed(*expected)
    assert through(relay(), b"".join(sent)) == renamed(*expected)


def test_done_is_ours_to_say() -> None:
    """drop-in 1: exactly once, whatever comes behind it; also where the server forgets it, or the last blank line."""
    whole = (ROLE, chunk({"content": "a"}), STOP)
    assert through(relay(), *whole, DONE, DONE, chunk({"content": "b"})) == renamed(*whole, DONE)
    assert through(relay(), *whole) == renamed(*whole, DONE)
    assert through(relay(), *whole, b"data: [DONE]") == renamed(*whole, DONE)
    assert through(relay(), ROLE, STOP.removesuffix(b"\n\n")) == renamed(ROLE, STOP, DONE)


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ((), errors.BackendUnavailable),
        ((ROLE,), errors.BackendUnavailable),
        ((ROLE, chunk({"content": "a"})), errors.BackendUnavailable),
        ((ROLE, chunk({"content": "a"}), b'data: {"choi'), errors.BackendUnavailable),
        ((ROLE, b"data: nonsense\n\n", STOP, DONE), errors.BackendUnavailable),
        ((ROLE, b"data: [1]\n\n", STOP, DONE), errors.BackendUnavailable),
        ((ROLE, event({"error": {"message": "died", "code": 500}}), DONE), errors.BackendUnavailable),
        ((ROLE, event({"error": {"message": "slow", "code": 429}}), DONE), errors.BackendOverloaded),
        ((ROLE, b"event: error\n" + event({"message": "no", "code": 400}), DONE), errors.RequestRejected),
        ((ROLE, chunk({"content": "a"}), chunk({}, "abort"), DONE), errors.BackendUnavailable),
        ((ROLE, chunk({"content": "a"}), chunk({"content": "b"}), chunk({}, "error"), DONE), errors.BackendUnavailable),
        ((ROLE, b"data: " + b"x" * (LONGEST_EVENT + 1)), errors.BackendUnavailable),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_what_is_not_whole_raises(parts: tuple[bytes, ...], kind: type[errors.BackendError], at_once: bool) -> None:
    """drop-in 10: no [DONE]; what came before is passed on first."""
    r = relay()
    given = b""
    for part in [b"".join(parts)] if at_once else parts:
        given += r.feed(part)
    given += r.finish()
    assert type(r.failure) is kind
    assert b"[DONE]" not in given
    if parts and not (at_once and len(parts[-1]) > LONGEST_EVENT):
        assert given.startswith(renamed(ROLE))
    assert r.feed(STOP + DONE) == b""


def test_a_server_that_never_says_why_it_ends() -> None:
    """drop-in 4, 5, 19: with [DONE] all is there, but openai-node's `.stream()` fails over a choice without a reason."""
    call = chunk(
        {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
    )
    for said, reason in ((chunk({"content": "a"}), "stop"), (call, "tool_calls")):
        given = through(relay(usage="once"), ROLE, said, SPENT, DONE)
        assert given == renamed(ROLE, said, chunk({}, reason), SPENT, DONE)
    for none in ([], None):
        given = chunks(through(relay(), ROLE, chunk({"content": "a", "tool_calls": none}), DONE))
        assert given[-1]["choices"][0]["finish_reason"] == "stop"
    head = {**HEAD, "object": "text_completion"}
    text, end = (
        event({**head, "choices": [{"index": 0, "text": said, "logprobs": None, "finish_reason": reason}]})
        for said, reason in (("a", None), ("", "stop"))
    )
    assert through(relay(), text, DONE) == renamed(text, end, DONE)
    both = [chunk({"role": "assistant", "content": ""}, index=index) for index in (0, 1)]
    found = chunks(through(relay(choices=2), *both, STOP, DONE))
    assert [c["choices"][0]["index"] for c in found if c["choices"][0]["finish_reason"]] == [0, 1]


def test_a_choice_that_never_ends() -> None:
    """drop-in 10: of two choices one is cut off."""
    with pytest.raises(errors.BackendUnavailable, match="broke off"):
        through(relay(choices=2), chunk({"content": "a"}), chunk({"content": "b"}, index=1), STOP)


def test_a_server_that_gives_fewer_choices() -> None:
    """Some ignore n: what they give is whole all the same."""
    assert chunks(through(relay(choices=3), ROLE, STOP))[-1]["choices"][0]["finish_reason"] == "stop"


def test_when_text_has_come() -> None:
    r = relay()
    r.feed(ROLE)
    assert not r.wrote
    r.feed(chunk({"reasoning_content": "hm"}))
    assert not r.wrote
    r.feed(chunk({"content": "a"}))
    assert r.wrote


def test_text_completions() -> None:
    """No roles there."""
    head = {"id": "cmpl-1", "object": "text_completion", "created": 7, "model": "up"}
    words = [event({**head, "choices": [{"index": 0, "text": text, "finish_reason": None}]}) for text in "abc"]
    end = event({**head, "choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})
    r = relay()
    assert through(r, *words, end, DONE) == renamed(*words, end, DONE)
    assert r.wrote
    for first in (True, False):  # what a filter says beside the text, before it or behind it
        beside = event({**head, "choices": [{"index": 0, "finish_reason": None, "content_filter_results": {}}]})
        parts = (beside, words[0]) if first else (words[0], beside)
        found = chunks(through(relay(), *parts, end, DONE))
        assert [c["choices"][0]["text"] for c in found] == (["", "a", ""] if first else ["a", "", ""])
        assert not any("delta" in c["choices"][0] for c in found)
