"""A model's vocabulary from a file beside the gateway, where its server gives none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from backends.openai_http.gguf import read_gguf_vocabulary
from backends.openai_http.tokenizer_json import read_tokenizer_json
from backends.types import Vocabulary


def read_vocabulary(path: str | Path, end_tokens: Sequence[str] = ()) -> Vocabulary:
    """From a GGUF file, or a tokenizer.json (or its directory). Raises OSError, ValueError. Takes up to a second."""
    if Path(path).suffix == ".gguf":
        return read_gguf_vocabulary(path, end_tokens)
    return read_tokenizer_json(path, end_tokens)
