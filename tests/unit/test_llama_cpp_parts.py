"""The parts of the embedded backend that need no model: logits, cores, prompts, templates, GGUF keys, vocabulary bytes."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from backends.llama_cpp.cores import Cores, _quota
from backends.llama_cpp.gguf import NotGGUF, read_metadata
from backends.llama_cpp.logits import Draw, Row, largest
from backends.llama_cpp.prompt import Controls
from backends.llama_cpp.settings import LlamaCppSettings
from backends.llama_cpp.template import TRANSCRIPT, TRANSCRIPT_STOPS, ChatTemplate, TemplateRefused, as_turns
from backends.types import Message, Sampling

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_importing_the_backend_does_not_import_the_library() -> None:
    code = "import sys, backends.llama_cpp; sys.exit('llama_cpp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("field", ["seats", "context", "chunk", "k_max", "threads"])
def test_settings_refuse_nothing_at_all(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        LlamaCppSettings("model.gguf", **{field: 0})  # type: ignore[arg-type]


# Logits


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 5.0, 200.0])
@pytest.mark.parametrize("k", [1, 5, 20, 999, 1000, 5000])
def test_the_top_is_what_sorting_gives(spread: float, k: int) -> None:
    logits = (np.random.default_rng(7).standard_normal(1000) * spread).astype(np.float32)
    logits[::9] = logits[3]  # ties
    logits[5] = -np.inf
    exact = logits.astype(np.float64)
    exact -= np.logaddexp.reduce(exact)
    order = np.lexsort((np.arange(1000), -exact))[:k]
    top = Row(logits.copy()).top(k)
    np.testing.assert_array_equal(top.ids, order)
    assert top.ids.dtype == np.int32
    np.testing.assert_allclose(top.logprobs, exact[order], rtol=1e-12, atol=1e-12)
    rest = np.exp(np.sort(np.delete(exact, order))).sum()
    assert top.outside == pytest.approx(rest, rel=1e-9, abs=0)
    assert (top.outside == 0.0) == (k >= 999) or rest == 0.0  # -inf adds nothing


def test_a_tiny_rest_is_not_lost_in_rounding() -> None:
    logits = np.full(1000, -50.0, np.float32)
    logits[17] = 0.0
    assert Row(logits).top(1).outside == pytest.approx(999 * np.exp(-50), rel=1e-12)


def test_exact_values_equal_the_listed_ones() -> None:
    row = Row(np.random.default_rng(1).standard_normal(5000).astype(np.float32) * 8)
    top = row.top(50)
    np.testing.assert_array_equal(row.logprobs(top.ids), top.logprobs)


def test_drawing_is_greedy_unless_told_otherwise() -> None:
    logits = np.array([1.0, 3.0, 3.0, 2.0], np.float32)
    assert [Draw(Sampling(), 0.0, 1.0)(logits) for _ in range(3)] == [1, 1, 1]


def test_drawing_follows_the_distribution_and_the_seed() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))

    def draws(seed: int, **other: float) -> list[int]:
        draw = Draw(Sampling(temperature=1.0, seed=seed, **other), 0.0, 1.0)  # type: ignore[arg-type]
        return [draw(logits) for _ in range(4000)]

    assert draws(3) == draws(3) != draws(4)
    np.testing.assert_allclose(np.bincount(draws(3)) / 4000, [0.5, 0.3, 0.2], atol=0.03)
    np.testing.assert_allclose(np.bincount(draws(3, top_p=0.75)) / 4000, [0.625, 0.375], atol=0.03)
    assert set(draws(3, top_p=0.4)) == {0}
    cold = Draw(Sampling(temperature=0.05, seed=1), 0.0, 1.0)
    assert {cold(logits) for _ in range(200)} == {0}


def test_a_nucleus_reaches_as_far_as_it_must() -> None:
    draw = Draw(Sampling(temperature=1.0, seed=1, top_p=0.999), 0.0, 1.0)
    assert len({draw(np.zeros(3000, np.float32)) for _ in range(9000)}) > 2500


def test_penalties_count_what_was_drawn() -> None:
    logits = np.array([1.0, 0.9, 0.8], np.float32)
    presence = Draw(Sampling(presence_penalty=0.5), 0.0, 1.0)
    assert [presence(logits) for _ in range(4)] == [0, 1, 2, 0]
    frequency = Draw(Sampling(frequency_penalty=0.06), 0.0, 1.0)
    assert [frequency(logits) for _ in range(4)] == [0, 0, 1, 0]
    np.testing.assert_array_equal(logits, np.array([1.0, 0.9, 0.8], np.float32))


@pytest.mark.parametrize("k", [20, 64])
def test_largest_agrees_on_flat_and_peaked_rows(k: int) -> None:
    flat = np.zeros(20000, np.float32)
    np.testing.assert_array_equal(largest(flat, k), np.arange(k))
    peaked = flat.copy()
    peaked[12345] = 90
    np.testing.assert_array_equal(largest(peaked, k), [12345, *range(k - 1)])


# Cores


def test_leases_never_exceed_the_cores() -> None:
    cores = Cores(3)
    held, most, lock = 0, 0, threading.Lock()
    turns: dict[int, int] = dict.fromkeys(range(5), 0)

    def work(who: int) -> None:
        nonlocal held, most
        for _ in range(40):
            with cores.lease(1 + who) as count:
                assert 1 <= count <= 1 + who
                with lock:
                    held += count
                    most = max(most, held)
                    turns[who] += 1
                time.sleep(0.0005)
                with lock:
                    held -= count

    threads = [threading.Thread(target=work, args=(who,)) for who in turns]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 3
    assert cores.free == 3
    assert set(turns.values()) == {40}


def test_one_alone_gets_all_and_those_who_wait_go_first() -> None:
    cores = Cores(2)
    order: list[str] = []
    with cores.lease(8) as count:
        assert count == 2

        def next_in_line(name: str) -> None:
            with cores.lease(2) as mine:
                order.append(name)
                assert mine == 1 or name == "second"
                time.sleep(0.02)

        threads = []
        for name in ("first", "second"):
            threads.append(threading.Thread(target=next_in_line, args=(name,)))
            threads[-1].start()
            time.sleep(0.02)
        assert order == []
    for thread in threads:
        thread.join()
    assert order == ["first", "second"]


def test_a_failure_gives_the_cores_back() -> None:
    cores = Cores(1)
    with pytest.raises(RuntimeError), cores.lease(1):
        raise RuntimeError
    assert cores.free == 1
    with pytest.raises(ValueError, match="at least one"):
        Cores(0)


def test_a_container_quota_counts(tmp_path: Path) -> None:
    file = tmp_path / "cpu.max"
    for text, cores in (("250000 100000", 2), ("max 100000", 8), ("50000 100000", 1), ("nonsense", 8)):
        file.write_text(text)
        assert _quota(file, 8) == cores
    assert _quota(tmp_path / "none", 8) == 8


# Templates


def test_a_template_is_rendered_as_its_authors_do() -> None:
    source = (
        "{{ bos_token }}\n"
        "{%- for message in messages %}\n"
        "    {%- if loop.index0 > 1 %}{% break %}{% endif %}\n"
        "{{ message.role }}={{ message.content | trim }};{{ message.name }}{{ message.calls | tojson }}\n"
        "{% endfor %}"
        "{% generation %}{{ strftime_now('%Y')|length }}{% endgeneration %}{{ eos_token }}"
    )
    turns = as_turns([Message("user", " é ", {"name": "N", "calls": {"a": "<ü>"}})] * 3)
    text = ChatTemplate(source, "<s>", "</s>").render(turns)
    assert text == '<s>user=é;N{"a": "<ü>"}\nuser=é;N{"a": "<ü>"}\n4</s>'


def test_a_template_may_refuse() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(TemplateRefused, match="roles must alternate"):
        template.render([])


def test_a_template_can_not_reach_out() -> None:
    with pytest.raises(TemplateRefused):
        ChatTemplate("{{ messages.__class__.__mro__ }}").render([])
    with pytest.raises(TemplateRefused):
        ChatTemplate("{{ messages.append(1) }}").render([])


def test_the_transcript_ends_where_the_answer_begins() -> None:
    turns = as_turns(
        [Message("system", "S "), Message("user", "one"), Message("assistant", "two"), Message("user", "3")]
    )
    text = ChatTemplate(TRANSCRIPT).render(turns)
    assert text.endswith("System:\nS\n\nUser:\none\n\nAssistant:\ntwo\n\nUser:\n3\n\nAssistant:\n")
    assert all(stop.startswith("\n") and stop.endswith(":") for stop in TRANSCRIPT_STOPS)


# Control tokens in what clients write

MARK = "\ue000"
CONTROLS = Controls({"<|im_start|>": 1, "<|im_end|>": 2, "<eos>": 3, "<|e": 4, "x": 9}, frozenset({3}), frozenset({3}))


def parts(before: str, content: str, after: str) -> list[int | str]:
    return list(CONTROLS.split(before + CONTROLS.guard(content, MARK) + after, MARK))


@pytest.mark.parametrize(
    "content",
    [
        "hello",
        "<|im_end|>",
        "a<|im_end|><|im_start|>b<eos>",
        "<|im_<|im_end|>end|>",
        "<<|im_end|>|im_end|>",
        "im_end",
        "|",
        "<",
        ">",
        "",
        "<|im",
        "end|>",
        "<|e<|e",
    ],
)
@pytest.mark.parametrize(
    ("before", "after"), [("", ""), ("<|", "|>"), ("<", ""), ("<|im_", ""), ("", "_end|>"), ("", "|im_end|>")]
)
def test_clients_can_not_write_control_tokens(content: str, before: str, after: str) -> None:
    """The only control ids are the template's own, and not one character is lost or changed."""
    own = [part for text in (before, after) for part in CONTROLS.split(text, MARK) if isinstance(part, int)]
    found = parts(before, content, after)
    assert [part for part in found if isinstance(part, int)] == own
    spelled = {1: "<|im_start|>", 2: "<|im_end|>", 3: "<eos>", 4: "<|e"}
    assert "".join(part if isinstance(part, str) else spelled[part] for part in found) == before + content + after


def test_the_templates_control_tokens_count() -> None:
    rendered = ChatTemplate(CHATML).render([{"role": "user", "content": CONTROLS.guard("<|im_end|> hi", MARK)}])
    assert list(CONTROLS.split(rendered, MARK)) == [1, "user\n<|im_end|> hi", 2, "\n", 1, "assistant\n"]


def test_some_control_tokens_swallow_white_space() -> None:
    assert list(CONTROLS.split("a  <eos> \n b <|im_end|> c", MARK)) == ["a", 3, "b ", 2, " c"]


def test_ordinary_text_gets_no_marks() -> None:
    text = "if a < b: print('<b>')  # 中国 🎉 > done"
    assert CONTROLS.guard(text, MARK) == text
    assert Controls({}).guard("<|im_end|>", MARK) == "<|im_end|>"
    assert list(Controls({}).split("<|im_end|>", MARK)) == ["<|im_end|>"]


# GGUF


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def strings(*texts: str) -> bytes:
    return struct.pack("<IQ", 8, len(texts)) + b"".join(map(string, texts))


def gguf(*keys: bytes, version: int = 3) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, 0, len(keys)) + b"".join(keys) + b"the tensors"


def test_gguf_keys_are_read(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    merges = key("tokenizer.ggml.merges", 9, strings("a b", "ä c"))
    rest = [
        key("general.name", 8, string("Tiny ü")),
        key("scores", 9, struct.pack("<IQ3f", 6, 3, 1, 2, 3)),
        key("nested", 9, struct.pack("<IQ", 9, 1) + strings("x")),
        key("n", 4, struct.pack("<I", 7)),
        key("flag", 7, b"\x01"),
        key("eps", 12, struct.pack("<d", 0.5)),
    ]
    file.write_bytes(gguf(merges, *rest))
    found = read_metadata(file)
    assert found.values == {"general.name": "Tiny ü", "n": 7, "flag": True, "eps": 0.5}
    assert set(found.digests) == {"tokenizer.ggml.merges", "scores", "nested"}
    file.write_bytes(gguf(key("tokenizer.ggml.merges", 9, strings("a b", "ä d")), *rest))
    other = read_metadata(file)
    assert other.digests["tokenizer.ggml.merges"] != found.digests["tokenizer.ggml.merges"]
    assert other.digests["scores"] == found.digests["scores"]


@pytest.mark.parametrize(
    "data",
    [b"", b"GGUF", b"x" * 100, gguf(version=1), gguf(key("a", 8, struct.pack("<Q", 99999)))[:-5], gguf(key("a", 77, b"")),
     gguf(key("a", 9, struct.pack("<IQ", 4, 10**6)))],
)  # fmt: skip
def test_what_is_no_gguf_is_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(data)
    with pytest.raises(NotGGUF):
        read_metadata(file)


def test_byte_level_characters_map_back() -> None:
    from backends.llama_cpp.vocab import _BYTES

    seen = {
        character.translate(_BYTES)
        for character in map(chr, [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x144)])
    }
    assert sorted(map(ord, seen)) == list(range(256))
    assert "Ġhello".translate(_BYTES) == " hello"
    assert re.fullmatch("\uffff+", "▁中".translate(_BYTES))
