"""One llama.cpp context: a KV cache of several sequences, and the one call that computes. Used by one thread at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from backends.errors import BackendUnavailable
from backends.llama_cpp.cores import Cores
from backends.llama_cpp.library import LoadedModel
from backends.llama_cpp.logits import Logits

ROWS = 16
"""Rows of logits that one pass may ask for beyond one per sequence (they cost a vocabulary of floats each)."""


class DecodeFailed(RuntimeError):
    """llama_decode returned a code that is not 0."""


class Context:
    """`seats` sequences of `context` tokens each. `room`: tokens a sequence can hold in fact."""

    def __init__(self, name: str, model: LoadedModel, context: int, seats: int, chunk: int, cores: Cores, threads: int):
        """Raises BackendUnavailable when there is no memory for it."""
        self._library = library = model.library
        self.rows = max(seats, ROWS)
        self.chunk = max(chunk, self.rows)
        params = library.llama_context_default_params()
        params.n_ctx = context * seats
        params.n_seq_max = seats
        params.n_batch = params.n_ubatch = self.chunk
        params.n_outputs_max = self.rows
        params.n_threads = params.n_threads_batch = 1
        params.kv_unified = False  # a stream for each sequence: its attention never looks at another's cells
        params.swa_full = True  # a cache cut to the sliding window could not be rewound
        params.flash_attn_type = 0  # with it the thread count changes the logits
        params.offload_kqv = params.op_offload = False
        params.no_perf = True
        self._context = library.llama_init_from_model(model.model, params)
        if not self._context:
            raise BackendUnavailable(name, f"There is not enough memory for the sessions of model {name!r}.")
        self._memory = library.llama_get_memory(self._context)
        self._batch = library.llama_batch_init(self.chunk, 0, 1)
        for row in range(self.chunk):
            self._batch.n_seq_id[row] = 1
        self._cores = cores
        self._threads = threads
        self._vocabulary = model.size
        self.room = min(context, int(library.llama_n_ctx_seq(self._context)))

    def decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> list[Logits]:
        """Compute rows of (sequence, position, token, whether its logits are wanted), at most `chunk`.

        Returns a copy of the logits, float32 [V], of each row that wants them, in order. Waits for cores. Raises DecodeFailed.
        """
        batch = self._batch
        batch.n_tokens = len(rows)
        for at, (sequence, position, token, wanted) in enumerate(rows):
            batch.token[at] = token
            batch.pos[at] = position
            batch.seq_id[at][0] = sequence
            batch.logits[at] = wanted
        with self._cores.lease(self._threads) as threads:
            self._library.llama_set_n_threads(self._context, threads, threads)
            code = self._library.llama_decode(self._context, batch)
            self._library.llama_synchronize(self._context)
        if code != 0:
            raise DecodeFailed(f"llama_decode returned {code}")
        return [self._logits(at) for at, row in enumerate(rows) if row[3]]

    def forget(self, sequence: int, start: int = 0) -> None:
        """Drop what a sequence holds from position `start` on."""
        if not self._library.llama_memory_seq_rm(self._memory, sequence, start, -1):
            raise DecodeFailed("this model's memory can't be cut back")

    def free(self) -> None:
        self._library.llama_batch_free(self._batch)
        self._library.llama_free(self._context)

    def _logits(self, at: int) -> Logits:
        pointer: Any = self._library.llama_get_logits_ith(self._context, at)
        if not pointer:
            raise DecodeFailed("no logits")
        row: Logits = np.ctypeslib.as_array(pointer, (self._vocabulary,))
        return row.copy()  # llama.cpp uses the buffer again in the next pass
