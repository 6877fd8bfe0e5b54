"""The key-value part of a GGUF file: single values as they are, arrays as digests.

llama.cpp gives no access to a tokenizer's merges and scores, and two tokenizers with the same table but other merges are not
the same. Their bytes are hashed where they lie in the file. Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Scalar = str | int | float | bool

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class NotGGUF(ValueError):
    """The file is not a GGUF file of version 2 or 3, or is cut short."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """values: key → value. digests: key → sha256 (hex) over an array's type, length and bytes."""

    values: dict[str, Scalar]
    digests: dict[str, str]


def read_metadata(path: str | os.PathLike[str]) -> Metadata:
    """Read all keys. Raises NotGGUF, OSError."""
    with Path(path).open("rb") as file:
        if os.fstat(file.fileno()).st_size < 24:
            raise NotGGUF("too short")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _Reader(data).metadata()
            except (struct.error, IndexError, UnicodeDecodeError, KeyError) as error:
                raise NotGGUF("cut short or damaged") from error


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def metadata(self) -> Metadata:
        magic, version, _tensors, keys = self._take("4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise NotGGUF("no GGUF of version 2 or 3")
        values: dict[str, Scalar] = {}
        digests: dict[str, str] = {}
        for _ in range(keys):
            key = self._string()
            (kind,) = self._take("I")
            if kind == _ARRAY:
                digests[key] = self._array()
            else:
                values[key] = self._string() if kind == _STRING else self._take(_SCALARS[kind])[0]
        return Metadata(values, digests)

    def _take(self, layout: str) -> tuple[Any, ...]:
        shape = struct.Struct("<" + layout)
        values = shape.unpack_from(self._data, self._at)
        self._at += shape.size
        return values

    def _string(self) -> str:
        (length,) = struct.unpack_from("<Q", self._data, self._at)
        start = self._at + 8
        self._at = start + length
        if self._at > len(self._data):
            raise NotGGUF("cut short")
        return self._data[start : self._at].decode()

    def _array(self) -> str:
        start = self._at
        self._skip_array()
        if self._at > len(self._data):
            raise NotGGUF("cut short")
        return hashlib.sha256(self._data[start : self._at]).hexdigest()

    def _skip_array(self) -> None:
        kind, count = struct.unpack_from("<IQ", self._data, self._at)
        self._at += 12
        if kind == _ARRAY:
            for _ in range(count):
                self._skip_array()
        elif kind == _STRING:
            data, at, length = self._data, self._at, struct.Struct("<Q").unpack_from
            for _ in range(count):
                at += 8 + length(data, at)[0]
            self._at = at
        else:
            self._at += count * struct.calcsize("<" + _SCALARS[kind])
