"""A model's vocabulary as bytes, and the fingerprint of its tokenizer."""

from __future__ import annotations

import ctypes
import hashlib

from backends.llama_cpp.library import BYTE, CONTROL, UNKNOWN, UNUSED, USER_DEFINED, LoadedModel
from backends.types import Vocabulary

_SPM, _BPE, _UGM = 1, 2, 4  # enum llama_vocab_type
_SPACE = "▁".encode()


class _ByteOfCharacter(dict[int, str]):
    """GPT-2's map from printable characters back to bytes; anything else becomes a character that latin-1 can't encode."""

    def __init__(self) -> None:
        plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        moved = [byte for byte in range(256) if byte not in set(plain)]
        super().__init__({byte: chr(byte) for byte in plain})
        self.update({256 + n: chr(byte) for n, byte in enumerate(moved)})

    def __missing__(self, character: int) -> str:
        return "\uffff"


_BYTES = _ByteOfCharacter()


def vocabulary_of(model: LoadedModel) -> Vocabulary:
    """The whole table, read once per file; up to a second for 262k ids, so call it in a thread."""
    if model.vocabulary is None:
        model.vocabulary = _read(model)
    return model.vocabulary


def _read(model: LoadedModel) -> Vocabulary:
    ends = model.end_ids()
    kind = int(model.library.llama_vocab_type(model.vocab))
    tokens = tuple(
        b"" if id in ends or attributes & (CONTROL | UNKNOWN | UNUSED) else _bytes(model, kind, id, attributes)
        for id, attributes in enumerate(model.attributes())
    )
    return Vocabulary(tokens, ends, _fingerprint(model, tokens, ends))


def _bytes(model: LoadedModel, kind: int, id: int, attributes: int) -> bytes:
    text = model.text(id)
    if attributes & USER_DEFINED:
        return text
    if kind == _BPE and not attributes & BYTE:
        try:
            return text.decode().translate(_BYTES).encode("latin-1")
        except UnicodeError:
            pass  # a tokenizer of this kind with another alphabet: llama.cpp knows
    elif kind in (_SPM, _UGM):
        if attributes & BYTE and len(text) == 6:  # <0xNN>
            return bytes([int(text[3:5], 16)])
        return text.replace(_SPACE, b" ")
    return _piece(model, id)


def _piece(model: LoadedModel, id: int) -> bytes:
    room = 256
    while True:
        buffer = ctypes.create_string_buffer(room)
        count = int(model.library.llama_token_to_piece(model.vocab, id, buffer, room, 0, True))
        if count >= 0:
            return buffer.raw[:count]
        room = -count


def _fingerprint(model: LoadedModel, tokens: tuple[bytes, ...], ends: frozenset[int]) -> str:
    """sha256 over the table, the ends, and what the file says of the tokenizer: kind, pre-tokenizer, merges, scores."""
    digest = hashlib.sha256()
    values, digests = model.metadata.values, model.metadata.digests
    for key in ("model", "pre", "add_space_prefix", "remove_extra_whitespaces"):
        digest.update(f"{key}={values.get(f'tokenizer.ggml.{key}')}\n".encode())
    for key in ("merges", "scores", "precompiled_charsmap"):
        digest.update(f"{key}={digests.get(f'tokenizer.ggml.{key}')}\n".encode())
    digest.update(f"ends={sorted(ends)}\n".encode())
    digest.update(b"".join(len(token).to_bytes(4, "little") + token for token in tokens))
    return digest.hexdigest()
