"""Finds out, in a process of its own, whether llama.cpp can compute with weights rearranged for this CPU.

Rearranging (AMX tiles and the like) is worth up to a factor of two and more in reading prompts. But builds made by some compilers
crash in it: GCC 12 drops the stores that set up AMX tiles unless told otherwise (llama.cpp issue 20824). A crash can't be
caught, so it is let happen elsewhere first: `python -m backends.llama_cpp.probe FILE`.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from functools import lru_cache

SECONDS = 120.0
TOKENS = 48
"""Computed in one pass and then one alone: several rows take other code than one."""


@lru_cache(maxsize=64)
def can_repack(path: str) -> bool:
    """Whether the file's model computes with rearranged weights. Blocks for as long as loading takes; asked once per file."""
    command = [sys.executable, "-W", "ignore", "-m", "backends.llama_cpp.probe", path]
    try:
        done = subprocess.run(command, check=False, timeout=SECONDS, stdin=subprocess.DEVNULL, capture_output=True)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def main(path: str) -> int:
    """Load, compute, and say by the exit code whether it went well."""
    from backends.llama_cpp.library import bindings

    library = bindings("probe")
    params = library.llama_model_default_params()
    params.n_gpu_layers = 0
    params.use_extra_bufts = True
    model = library.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        return 1
    settings = library.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 2 * TOKENS
    settings.n_threads = settings.n_threads_batch = 1
    settings.flash_attn_type = 0
    context = library.llama_init_from_model(model, settings)
    if not context:
        return 1
    code = 0
    for count in (TOKENS, 1):
        tokens = (ctypes.c_int32 * count)(*range(count))
        code |= int(library.llama_decode(context, library.llama_batch_get_one(tokens, count)))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
