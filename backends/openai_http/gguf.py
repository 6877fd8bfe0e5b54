"""The table id → bytes out of a GGUF file's head, without llama.cpp.

A GGUF file begins with the magic "GGUF", a version (uint32), the number of tensors and of metadata pairs (uint64 each), then
the pairs: a string key, a type (uint32), a value. Everything is little-endian; a string is its length (uint64) and its
bytes; an array its element type, its length, its elements. The tokenizer is in the pairs `tokenizer.ggml.*`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from backends.openai_http.tokenizer_json import TURN_ENDS, from_byte_level, from_sentencepiece
from backends.types import Vocabulary

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5  # tokenizer.ggml.token_type; 1 is normal, 6 a byte
_MOST = 1 << 24  # elements and bytes of one value: beyond it the file is broken
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def read_gguf_vocabulary(path: str | Path, end_tokens: Sequence[str] = ()) -> Vocabulary:
    """Read a GGUF file's vocabulary. Ends are `end_tokens` if any are given, else the file's and the known turn ends.

    Raises OSError, and ValueError for what is no GGUF file, has no tokenizer, no ends, or a WordPiece one.
    """
    meta = _metadata(Path(path))
    try:
        kind, strings = meta["tokenizer.ggml.model"], meta["tokenizer.ggml.tokens"]
    except KeyError as error:
        raise ValueError("the GGUF file has no tokenizer") from error
    if kind not in ("gpt2", "llama", "gemma4"):
        raise ValueError(f"tokenizers of type {kind} are not supported")
    kinds = meta.get("tokenizer.ggml.token_type") or [1] * len(strings)
    decode = from_byte_level if kind == "gpt2" else from_sentencepiece
    names = {text.decode(errors="replace"): id for id, text in enumerate(strings)}
    if end_tokens:
        if unknown := [text for text in end_tokens if text not in names]:
            raise ValueError(f"no such tokens: {', '.join(unknown)}")
        ends = frozenset(names[text] for text in end_tokens)
    else:
        named = {meta.get(f"tokenizer.ggml.{key}") for key in _END_KEYS}
        known = {names[text] for text in TURN_ENDS if text in names and kinds[names[text]] == _CONTROL}
        ends = frozenset(id for id in named | known if isinstance(id, int) and id < len(strings))
    if not ends:
        raise ValueError("nothing says which tokens end a turn")
    tokens: list[bytes] = []
    for id, (raw, token_type) in enumerate(zip(strings, kinds, strict=True)):
        if id in ends or token_type in (_UNKNOWN, _CONTROL, _UNUSED):
            tokens.append(b"")
        elif token_type == _USER_DEFINED:
            tokens.append(raw.replace("▁".encode(), b" ") if kind != "gpt2" else raw)
        else:
            tokens.append(decode(raw.decode(errors="replace")))
    return Vocabulary(tuple(tokens), ends, _fingerprint(tokens, ends, meta))


def _fingerprint(tokens: Sequence[bytes], ends: frozenset[int], meta: dict[str, Any]) -> str:
    digest = hashlib.sha256(b"gguf")
    for part in (*tokens, *(meta.get("tokenizer.ggml.merges") or ())):
        digest.update(len(part).to_bytes(4, "little") + part)
    rest = [meta.get(f"tokenizer.ggml.{key}") for key in ("model", "pre", "scores", "add_space_prefix")]
    digest.update(repr((sorted(ends), rest)).encode())
    return digest.hexdigest()


def _metadata(path: Path) -> dict[str, Any]:
    """The metadata; strings as str, those in arrays as bytes. `general.*` and the like included."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError("not a GGUF file")
        version, _, pairs = struct.unpack("<IQQ", _exactly(file, 20))
        if version not in (2, 3):
            raise ValueError(f"GGUF version {version} is not supported")
        found: dict[str, Any] = {}
        for _ in range(_bounded(pairs)):
            key = _string(file).decode(errors="replace")
            found[key] = _value(file, _scalar(file, "<I"))
        return found


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file).decode(errors="replace")
    if kind == _ARRAY:
        inner, count = _scalar(file, "<I"), _bounded(_scalar(file, "<Q"))
        if inner == _STRING:
            return [_string(file) for _ in range(count)]
        if inner in _SCALARS:
            shape = struct.Struct(f"<{count}{_SCALARS[inner][1]}")
            return list(shape.unpack(_exactly(file, shape.size)))
    if kind in _SCALARS:
        return _scalar(file, _SCALARS[kind])
    raise ValueError("the GGUF file is broken")


def _scalar(file: BinaryIO, shape: str) -> Any:
    return struct.unpack(shape, _exactly(file, struct.calcsize(shape)))[0]


def _string(file: BinaryIO) -> bytes:
    return _exactly(file, _bounded(_scalar(file, "<Q")))


def _bounded(count: int) -> int:
    if count > _MOST:
        raise ValueError("the GGUF file is broken")
    return count


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise ValueError("the GGUF file ends too early")
    return data
