"""The table id → bytes out of tokenizer.json and GGUF files: small ones, written here."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from backends.openai_http.gguf import read_gguf_vocabulary
from backends.openai_http.tokenizer_json import BYTE_OF_CHARACTER, read_tokenizer_json
from backends.openai_http.vocabulary import read_vocabulary


def added(id: int, content: str, special: bool = True) -> dict[str, Any]:
    return {"id": id, "content": content, "special": special}


def byte_level(**changes: Any) -> dict[str, Any]:
    vocab = {"a": 0, "b": 1, "ab": 2, "Ġab": 3, "ä¸": 4, "Ń": 5, "ä¸Ń": 6, "Ċ": 7}
    base = {
        "model": {"type": "BPE", "vocab": vocab, "merges": ["a b", "Ġ ab", "ä ¸", "ä¸ Ń"]},
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Split", "pattern": {"Regex": "x"}}, {"type": "ByteLevel"}],
        },
        "decoder": {"type": "ByteLevel"},
        "added_tokens": [added(8, "<|endoftext|>"), added(9, "<|im_end|>"), added(10, "<tool_call>", False)],
    }
    return {**base, **changes}


def sentencepiece(**changes: Any) -> dict[str, Any]:
    vocab = {"<pad>": 0, "<eos>": 1, "<0xE4>": 2, "▁the": 3, "中": 4, "▁▁": 5, "\n\n": 6, "<unused7>": 7, "<b>": 8}
    base = {
        "model": {"type": "BPE", "vocab": vocab, "merges": [["▁", "the"]], "byte_fallback": True},
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "added_tokens": [added(0, "<pad>"), added(1, "<eos>"), added(6, "\n\n", False), added(7, "<unused7>", False)],
    }
    return {**base, **changes}


def write(directory: Path, data: Any, **beside: Any) -> Path:
    (directory / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    for name, content in beside.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def test_byte_level(tmp_path: Path) -> None:
    found = read_tokenizer_json(write(tmp_path, byte_level()))
    assert found.tokens == (
        b"a", b"b", b"ab", b" ab", b"\xe4\xb8", b"\xad", "中".encode(), b"\n", b"", b"", b"<tool_call>",
    )  # fmt: skip
    assert found.end_ids == {8, 9}
    assert read_vocabulary(tmp_path / "tokenizer.json").fingerprint == found.fingerprint


def test_the_map_of_bytes_is_one_to_one() -> None:
    assert sorted(BYTE_OF_CHARACTER.values()) == list(range(256))
    assert (BYTE_OF_CHARACTER["Ġ"], BYTE_OF_CHARACTER["Ċ"], BYTE_OF_CHARACTER["ł"], BYTE_OF_CHARACTER["!"]) == (
        32,
        10,
        160,
        33,
    )


def test_sentencepiece(tmp_path: Path) -> None:
    found = read_tokenizer_json(write(tmp_path, sentencepiece()))
    assert found.tokens == (b"", b"", b"\xe4", b" the", "中".encode(), b"  ", b"\n\n", b"", b"<b>")
    assert found.end_ids == {1}


def test_unigram(tmp_path: Path) -> None:
    model = {"type": "Unigram", "vocab": [["<unk>", 0], ["</s>", 0], ["▁a", -1.5], ["é", -2]], "unk_id": 0}
    data = sentencepiece(model=model, added_tokens=[added(0, "<unk>"), added(1, "</s>")])
    found = read_tokenizer_json(write(tmp_path, data))
    assert found.tokens == (b"", b"", b" a", "é".encode())
    model["vocab"][3][1] = -3  # type: ignore[index]
    assert read_tokenizer_json(write(tmp_path, data)).fingerprint != found.fingerprint


def test_ends_are_gathered(tmp_path: Path) -> None:
    data = byte_level(added_tokens=[added(8, "<|x|>"), added(9, "<|y|>"), added(10, "<|z|>")])
    with pytest.raises(ValueError, match="end a turn"):
        read_tokenizer_json(write(tmp_path, data))
    write(tmp_path, data, generation_config={"eos_token_id": [8]}, tokenizer_config={"eos_token": {"content": "<|y|>"}})
    assert read_tokenizer_json(tmp_path).end_ids == {8, 9}
    write(tmp_path, data, config={"eos_token_id": 10})
    assert read_tokenizer_json(tmp_path).end_ids == {8, 9, 10}
    assert read_tokenizer_json(tmp_path, ("<|z|>",)).end_ids == {10}
    with pytest.raises(ValueError, match="no such tokens"):
        read_tokenizer_json(tmp_path, ("<|nope|>",))


def test_padding_of_the_output_layer(tmp_path: Path) -> None:
    found = read_tokenizer_json(write(tmp_path, byte_level(), config={"text_config": {"vocab_size": 16}}))
    assert len(found) == 16
    assert found.tokens[11:] == (b"",) * 5


def test_fingerprints(tmp_path: Path) -> None:
    def fingerprint(data: dict[str, Any]) -> str:
        return read_tokenizer_json(write(tmp_path, data)).fingerprint

    base = fingerprint(byte_level())
    assert fingerprint(byte_level()) == base
    model = byte_level()["model"]
    newer = [merge.split(" ", 1) for merge in model["merges"]]
    assert fingerprint(byte_level(model={**model, "merges": newer})) == base  # the same, as newer versions write it
    different = [
        byte_level(model={**model, "merges": newer[::-1]}),
        byte_level(model={**model, "ignore_merges": True}),
        byte_level(model={**model, "vocab": {**model["vocab"], "a": 1, "b": 0}}),
        byte_level(normalizer=None),
        byte_level(pre_tokenizer={"type": "ByteLevel"}),
        byte_level(added_tokens=[added(8, "<|endoftext|>"), added(9, "<|im_end|>")]),
        byte_level(added_tokens=[added(8, "<|endoftext|>"), added(9, "<|im_start|>"), added(10, "<tool_call>", False)]),
    ]
    assert len({base, *map(fingerprint, different)}) == 1 + len(different)


@pytest.mark.parametrize("data", [[], {}, {"model": {}}, {"model": {"type": "WordPiece", "vocab": {"a": 0}}}])
def test_what_is_no_tokenizer(tmp_path: Path, data: Any) -> None:
    with pytest.raises(ValueError, match=r"JSON object|tokenizer"):
        read_tokenizer_json(write(tmp_path, data))


# GGUF


def gguf(path: Path, pairs: dict[str, Any]) -> Path:
    def string(value: str | bytes) -> bytes:
        data = value.encode() if isinstance(value, str) else value
        return struct.pack("<Q", len(data)) + data

    def value(item: Any) -> bytes:
        if isinstance(item, str):
            return struct.pack("<I", 8) + string(item)
        if isinstance(item, bool):
            return struct.pack("<I?", 7, item)
        if isinstance(item, int):
            return struct.pack("<II", 4, item)
        if isinstance(item[0], str):
            return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(map(string, item))
        return struct.pack(f"<IIQ{len(item)}i", 9, 5, len(item), *item)

    body = b"".join(string(key) + value(item) for key, item in pairs.items())
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + body)
    return path


T = "tokenizer.ggml."
BPE = {
    "general.name": "tiny",
    T + "model": "gpt2",
    T + "pre": "qwen2",
    T + "tokens": ["a", "Ġab", "ä¸", "<|im_end|>", "<|endoftext|>", "<tool_call>", "[PAD1]"],
    T + "token_type": [1, 1, 1, 3, 3, 4, 5],
    T + "merges": ["a b"],
    T + "eos_token_id": 4,
    T + "add_bos_token": False,
}


def test_gguf_byte_level(tmp_path: Path) -> None:
    found = read_vocabulary(gguf(tmp_path / "m.gguf", BPE))
    assert found.tokens == (b"a", b" ab", b"\xe4\xb8", b"", b"", b"<tool_call>", b"")
    assert found.end_ids == {3, 4}
    other = read_gguf_vocabulary(gguf(tmp_path / "m.gguf", {**BPE, T + "pre": "llama-bpe"}))
    assert other.fingerprint != found.fingerprint
    assert read_gguf_vocabulary(tmp_path / "m.gguf", ("<|im_end|>",)).end_ids == {3}


def test_gguf_sentencepiece(tmp_path: Path) -> None:
    pairs = {
        T + "model": "llama",
        T + "tokens": ["<unk>", "<eos>", "<0xE4>", "▁the", "▁▁", "</s>", "<unused1>"],
        T + "token_type": [2, 3, 6, 1, 4, 4, 5],
        T + "eos_token_id": 1,
    }
    found = read_gguf_vocabulary(gguf(tmp_path / "m.gguf", pairs))
    assert found.tokens == (b"", b"", b"\xe4", b" the", b"  ", b"</s>", b"")
    assert found.end_ids == {1}  # "</s>" is text here, a tag


@pytest.mark.parametrize("cut", [3, 20, 60])
def test_broken_gguf(tmp_path: Path, cut: int) -> None:
    path = gguf(tmp_path / "m.gguf", BPE)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="GGUF"):
        read_gguf_vocabulary(path)


def test_gguf_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no tokenizer"):
        read_gguf_vocabulary(gguf(tmp_path / "m.gguf", {"general.name": "x"}))
