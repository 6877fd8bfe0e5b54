"""The tokenizer as a table id → bytes, the ids that end a turn, and a fingerprint of all that makes it what it is.

The same rules as the gateway's own reader of tokenizer.json files, so that one tokenizer has one fingerprint however it is
reached: two families of text tokens exist, *byte-level* (GPT-2, Qwen, Llama 3: every character stands for one byte) and
*SentencePiece-style* (Gemma, Llama 2, Mistral: `▁` is a space, `<0xNN>` one byte). Added text tokens are text; control,
padding, reserved and end ids carry nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

_TURN_ENDS = (
    "<|im_end|> <|eot_id|> <|eom_id|> <|end|> <|eot|> <end_of_turn> <turn|> <|end_of_turn|> <|return|> <|endoftext|> "
    "<|end_of_text|> <|end_of_sentence|> <|end▁of▁sentence|> <｜end▁of▁sentence｜> <eos> </s> [EOS]"
)
TURN_ENDS = frozenset(_TURN_ENDS.split())
"""Control tokens known to end a turn: files often name only the end of the document."""

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_RESERVED = re.compile(r"<unused\d+>|<\|?reserved[^<>]*>|\[unused\d+\]|\[PAD\d*\]")


class NoTable(ValueError):
    """This tokenizer can't be told as a table."""


@dataclass(frozen=True)
class Table:
    """tokens: id → bytes. ends: ids that end the turn. fingerprint: hex digest of all that makes the tokenizer what it is."""

    tokens: list[bytes]
    ends: list[int]
    fingerprint: str


def table_of(tokenizer: Any, named_ends: Iterable[int], size: int) -> Table:
    """The table of a Hugging Face tokenizer of the fast kind.

    named_ends: ids that the model's configuration names as ends. size: of the output layer, at least.
    Raises NoTable for tokenizers of other kinds. Takes about a second.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise NoTable("its tokenizer has no table (only those with a tokenizer.json have one)")
    return table_of_json(json.loads(backend.to_str()), named_ends, getattr(tokenizer, "eos_token", None), size)


def table_of_json(data: dict[str, Any], named_ends: Iterable[int], end_text: str | None, size: int) -> Table:
    """The table in the contents of a tokenizer.json. Raises NoTable."""
    model = data.get("model")
    if not isinstance(model, dict) or "vocab" not in model or model.get("type", "BPE") not in ("BPE", "Unigram"):
        raise NoTable("its tokenizer is of another kind (BPE and Unigram have tables)")
    byte_level = "ByteLevel" in set(_types(data.get("pre_tokenizer"))) | set(_types(data.get("decoder")))
    decode = _from_byte_level if byte_level else _from_sentencepiece
    strings = dict(_strings(model["vocab"]))
    table = {id: decode(text) for id, text in strings.items()}
    names = {text: id for id, text in strings.items()}
    special: set[int] = set()
    for token in data.get("added_tokens") or ():
        id, text = int(token["id"]), str(token["content"])
        names[text] = id
        control = bool(token.get("special")) or bool(_RESERVED.fullmatch(text))
        table[id] = b"" if control else text.encode()
        if control:
            special.add(id)
    ends = {names[text] for text in TURN_ENDS if names.get(text) in special} | set(named_ends)
    if end_text in names:
        ends.add(names[end_text])
    if not ends:
        raise NoTable("nothing says which of its tokens end a turn")
    count = max([*table, *ends, size - 1]) + 1
    tokens = [b"" if id in ends else table.get(id, b"") for id in range(count)]
    return Table(tokens, sorted(ends), _fingerprint(tokens, ends, byte_level, data))


def _fingerprint(tokens: list[bytes], ends: set[int], byte_level: bool, data: dict[str, Any]) -> str:
    """Hex digest of all that decides how text becomes tokens."""
    model = data["model"]
    merges = [merge.split(" ", 1) if isinstance(merge, str) else list(merge) for merge in model.get("merges") or ()]
    rest = {
        "kind": model.get("type", "BPE"),
        "byte_level": byte_level,
        "ends": sorted(ends),
        "merges": merges,
        "scores": model["vocab"] if isinstance(model["vocab"], list) else None,
        "normalizer": data.get("normalizer"),
        "pre_tokenizer": data.get("pre_tokenizer"),
        "options": [bool(model.get(key)) for key in ("ignore_merges", "byte_fallback")],
    }
    digest = hashlib.sha256(b"tokenizer.json")
    for token in tokens:
        digest.update(len(token).to_bytes(4, "little") + token)
    digest.update(json.dumps(rest, sort_keys=True, ensure_ascii=True).encode())
    return digest.hexdigest()


def _strings(vocab: Any) -> Iterator[tuple[int, str]]:
    if isinstance(vocab, dict):
        return ((int(id), text) for text, id in vocab.items())
    return ((id, str(entry[0])) for id, entry in enumerate(vocab))


def _types(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("type"), str):
            yield part["type"]
        for inner in (*(part.get("pretokenizers") or ()), *(part.get("decoders") or ())):
            yield from _types(inner)


def _byte_of_character() -> dict[str, int]:
    """GPT-2's map: printable bytes stand for themselves, the others for the characters from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()


def _from_byte_level(text: str) -> bytes:
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in text)
    except KeyError:
        return text.encode()  # not written in the map: a token that was added by hand


def _from_sentencepiece(text: str) -> bytes:
    byte = _BYTE.fullmatch(text)
    return bytes([int(byte[1], 16)]) if byte else text.replace("▁", " ").encode()
