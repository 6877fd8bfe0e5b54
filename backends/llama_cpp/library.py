"""The llama.cpp library and the weights it has loaded: imported when first needed, each file loaded once per process."""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backends.errors import BackendUnavailable
from backends.llama_cpp.gguf import Metadata, NotGGUF, read_metadata
from backends.types import Vocabulary

log = logging.getLogger("modelnet.llama_cpp")

# llama.cpp tells hundreds of things at load as "info" and expected ones as "warning": one level down each.
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.INFO, 4: logging.ERROR}  # enum ggml_log_level
_CONTINUED = 5

CONTROL, UNKNOWN, UNUSED, USER_DEFINED, BYTE, LSTRIP, RSTRIP = 1 << 3, 1 << 0, 1 << 1, 1 << 4, 1 << 5, 1 << 7, 1 << 8
"""Attributes of a token (enum llama_token_attr)."""

_guard = threading.RLock()
_bindings: Any = None
_callback: Any = None  # llama.cpp keeps a bare pointer to it: it must live as long as the process
_loaded: dict[tuple[object, ...], LoadedModel] = {}


def bindings(model: str) -> Any:
    """The module of ctypes functions, set up once. Raises BackendUnavailable if it isn't installed."""
    global _bindings  # noqa: PLW0603 - a library is a thing of the process
    with _guard:
        if _bindings is None:
            # libgomp reads this when it is loaded. Its idle threads would otherwise spin for milliseconds, on cores that
            # another model has leased by then.
            os.environ.setdefault("GOMP_SPINCOUNT", "1000")
            try:
                library = importlib.import_module("llama_cpp.llama_cpp")
            except (ImportError, OSError, RuntimeError) as error:
                message = (
                    f"Model {model!r} runs in process, but llama-cpp-python is not installed or does not load: "
                    "pip install 'modelnet-gateway[embedded]'."
                )
                raise BackendUnavailable(model, message) from error
            _send_log_to_ours(library)
            library.llama_backend_init()
            _bindings = library
        return _bindings


def _send_log_to_ours(library: Any) -> None:
    global _callback  # noqa: PLW0603 - as above
    last = logging.DEBUG

    def forward(level: int, text: bytes, _data: object) -> None:
        nonlocal last
        last = last if level == _CONTINUED else _LEVELS.get(level, logging.DEBUG)
        if log.isEnabledFor(last) and (line := text.decode(errors="replace").strip()) not in ("", "."):
            log.log(last, "%s", line)

    _callback = library.llama_log_callback(forward)
    library.llama_log_set(_callback, ctypes.c_void_p(0))


@dataclass(slots=True, eq=False)
class LoadedModel:
    """Weights and vocabulary. `model`, `vocab`: pointers of llama.cpp. users: backends that hold it. widths: seats → how many sequences
    may share a pass exactly, where it was tried out."""

    library: Any
    model: Any
    vocab: Any
    metadata: Metadata
    key: tuple[object, ...]
    users: int = 1
    vocabulary: Vocabulary | None = None
    widths: dict[int, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Ids in the vocabulary."""
        return int(self.library.llama_vocab_n_tokens(self.vocab))

    @property
    def trained_context(self) -> int:
        return int(self.library.llama_model_n_ctx_train(self.model))

    def text(self, id: int) -> bytes:
        """The token as it is written in the file (before any unescaping)."""
        return self.library.llama_vocab_get_text(self.vocab, id) or b""

    def attributes(self) -> list[int]:
        get, vocab = self.library.llama_vocab_get_attr, self.vocab
        return [get(vocab, id) for id in range(self.size)]

    def end_ids(self) -> frozenset[int]:
        is_end, vocab = self.library.llama_vocab_is_eog, self.vocab
        return frozenset(id for id in range(self.size) if is_end(vocab, id))

    def bos(self) -> tuple[int | None, bool]:
        """The id that begins a text, if there is one, and whether every text gets it."""
        id = int(self.library.llama_vocab_bos(self.vocab))
        return (None, False) if id < 0 else (id, bool(self.library.llama_vocab_get_add_bos(self.vocab)))

    def eos(self) -> int | None:
        id = int(self.library.llama_vocab_eos(self.vocab))
        return None if id < 0 else id

    def tokenize(self, text: bytes) -> list[int]:
        """Ids of plain text: what looks like a control token is text too. No BOS, no EOS."""
        room = len(text) + 16
        while True:
            ids = (ctypes.c_int32 * room)()
            count = self.library.llama_tokenize(self.vocab, text, len(text), ids, room, False, False)
            if count >= 0:
                return list(ids[:count])
            room = -count

    def tokenize_whole(self, text: bytes) -> list[int]:
        """Ids of a text in which control tokens are parsed: what llama.cpp itself does with a rendered template."""
        room = len(text) + 16
        ids = (ctypes.c_int32 * room)()
        count = self.library.llama_tokenize(self.vocab, text, len(text), ids, room, True, True)
        return list(ids[:count])


def load(name: str, path: str, repack: bool) -> LoadedModel:
    """The model of a file, loaded unless it already is. Blocks. Raises BackendUnavailable. Give it back with `release`."""
    library = bindings(name)
    try:
        status = Path(path).stat()
    except OSError as error:
        raise BackendUnavailable(name, f"The weights of model {name!r} are missing or unreadable.") from error
    key = (status.st_dev, status.st_ino, repack)
    with (
        _guard
    ):  # one file at a time: who wants the same waits for it, and who wants another would share the disk anyway
        if (model := _loaded.get(key)) is not None:
            model.users += 1
            return model
        model = _loaded[key] = _load(library, name, path, repack, key)
        return model


def _load(library: Any, name: str, path: str, repack: bool, key: tuple[object, ...]) -> LoadedModel:
    broken = f"The weights of model {name!r} can't be loaded."
    try:
        metadata = read_metadata(path)
    except (NotGGUF, OSError) as error:
        raise BackendUnavailable(name, broken) from error
    params = library.llama_model_default_params()
    params.n_gpu_layers = 0
    params.use_extra_bufts = repack
    model = library.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise BackendUnavailable(name, broken)
    return LoadedModel(library, model, library.llama_model_get_vocab(model), metadata, key)


def release(model: LoadedModel) -> None:
    """Free the weights if nobody else uses them. Its contexts must be freed before."""
    with _guard:
        model.users -= 1
        if model.users == 0:
            del _loaded[model.key]
            model.library.llama_model_free(model.model)
