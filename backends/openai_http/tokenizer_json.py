"""The table id → bytes out of a Hugging Face `tokenizer.json`.

Two families of text tokens exist. *Byte-level* (GPT-2, Qwen, Llama 3): every character of a token stands for one byte, by a
fixed map. *SentencePiece-style* (Gemma, Llama 2, Mistral): `▁` is a space, `<0xNN>` one byte, the rest is UTF-8. Which one it
is, the file's pre-tokenizer and decoder say. Tokens added beside the model's own are text as it stands, and control tokens
where they are marked special.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from backends.types import Vocabulary

_TURN_ENDS = (
    "<|im_end|> <|eot_id|> <|eom_id|> <|end|> <|eot|> <end_of_turn> <turn|> <|end_of_turn|> <|return|> <|endoftext|> "
    "<|end_of_text|> <|end_of_sentence|> <|end▁of▁sentence|> <｜end▁of▁sentence｜> <eos> </s> [EOS]"
)
TURN_ENDS = frozenset(_TURN_ENDS.split())
"""Control tokens known to end a turn: files often name only the end of the document."""

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_RESERVED = re.compile(r"<unused\d+>|<\|?reserved[^<>]*>|\[unused\d+\]|\[PAD\d*\]")


def read_tokenizer_json(path: str | Path, end_tokens: Sequence[str] = ()) -> Vocabulary:
    """Read a tokenizer.json, or the directory that holds it.

    Ends are `end_tokens` if any are given, else what generation_config.json, config.json and tokenizer_config.json beside
    it name, and every special token of `TURN_ENDS`. Ids up to config.json's `vocab_size` carry nothing where the table has
    none. Raises OSError, and ValueError for what is no such file, has no ends, or is of another family (WordPiece).
    """
    file = Path(path)
    file = file / "tokenizer.json" if file.is_dir() else file
    data = _json(file)
    model = data.get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise ValueError("not a tokenizer.json: it has no model with a vocabulary")
    if model.get("type", "BPE") not in ("BPE", "Unigram"):
        raise ValueError(f"tokenizers of type {model.get('type')} are not supported")
    byte_level = "ByteLevel" in set(_types(data.get("pre_tokenizer"))) | set(_types(data.get("decoder")))
    decode = from_byte_level if byte_level else from_sentencepiece
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
    config = _beside(file, "config.json")
    ends = _ends(file, config, names, special, end_tokens)
    size = max([*table, *ends]) + 1
    if isinstance(padded := _text_config(config).get("vocab_size"), int):
        size = max(size, padded)
    tokens = tuple(b"" if id in ends else table.get(id, b"") for id in range(size))
    return Vocabulary(tokens, ends, _fingerprint(tokens, ends, byte_level, data))


def _ends(
    file: Path, config: dict[str, Any], names: dict[str, int], special: set[int], given: Sequence[str]
) -> frozenset[int]:
    if given:
        if unknown := [text for text in given if text not in names]:
            raise ValueError(f"no such tokens: {', '.join(unknown)}")
        return frozenset(names[text] for text in given)
    ends = {names[text] for text in TURN_ENDS if names.get(text) in special}
    for source in (_beside(file, "generation_config.json"), config, _text_config(config)):
        value = source.get("eos_token_id")
        ends.update(id for id in (value if isinstance(value, list) else [value]) if isinstance(id, int))
    named = _beside(file, "tokenizer_config.json").get("eos_token")
    text = named.get("content") if isinstance(named, dict) else named
    if isinstance(text, str) and text in names:
        ends.add(names[text])
    if not ends:
        raise ValueError("nothing says which tokens end a turn")
    return frozenset(ends)


def _fingerprint(tokens: Sequence[bytes], ends: frozenset[int], byte_level: bool, data: dict[str, Any]) -> str:
    """Hex digest of all that decides how text becomes tokens."""
    model = data["model"]
    # Merges are written "a b" by older versions and ["a", "b"] by newer ones: the same tokenizer.
    merges = [merge.split(" ", 1) if isinstance(merge, str) else list(merge) for merge in model.get("merges") or ()]
    scores = model["vocab"] if isinstance(model["vocab"], list) else None
    rest = {
        "kind": model.get("type", "BPE"),
        "byte_level": byte_level,
        "ends": sorted(ends),
        "merges": merges,
        "scores": scores,
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
    """Id and text: BPE has a map from text to id, Unigram a list of [text, score]."""
    if isinstance(vocab, dict):
        return ((int(id), text) for text, id in vocab.items())
    return ((id, str(entry[0])) for id, entry in enumerate(vocab))


def _types(part: Any) -> Iterator[str]:
    """The types in a pre-tokenizer or decoder, those inside sequences included."""
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


BYTE_OF_CHARACTER = _byte_of_character()


def from_byte_level(text: str) -> bytes:
    """A byte-level token's bytes."""
    try:
        return bytes(BYTE_OF_CHARACTER[character] for character in text)
    except KeyError:
        return text.encode()  # not written in the map: a token that was added by hand


def from_sentencepiece(text: str) -> bytes:
    """A SentencePiece token's bytes."""
    byte = _BYTE.fullmatch(text)
    return bytes([int(byte[1], 16)]) if byte else text.replace("▁", " ").encode()


def _json(file: Path) -> dict[str, Any]:
    data = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(data, dict):
        return data
    raise ValueError(f"{file.name} is not a JSON object")


def _beside(file: Path, name: str) -> dict[str, Any]:
    other = file.with_name(name)
    return _json(other) if other.is_file() else {}


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Models that also see pictures keep the language model's part in `text_config`."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config
