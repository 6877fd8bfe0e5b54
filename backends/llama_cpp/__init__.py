"""The embedded backend: a GGUF model in this process, on llama.cpp.

Model
    `Cores` is the process's budget of computing threads, shared by all backends. A `LlamaCppBackend` is one llama.cpp context
    with `seats` sequences, driven by one `Worker` thread; backends of the same file share the weights. A `Lane` is one
    sequence with the tokens it holds; a text stream and a token session are both a lane with another way of reading logits.
Invariants
    What a sequence's logits are never depends on who else is being served, or on how many threads compute:
    - all sequences that append a token are decoded in one llama_batch, one row each. A row's result does not depend on the
      other rows, bit for bit (measured; flash attention is off because with it the thread count changes the result);
    - prompts go in passes of their own, cut at fixed places, because llama.cpp would cut a batch of unequal sequences at places
      that depend on all of them;
    - all that is appended, drafts as well, is decoded one token at a time, so that how a text was cut into steps does not show.
    With `batching: fast` all that holds no more: a draft, or more than `SINGLY` tokens, is one pass, which differs from single steps in
    the last bits of its matrix products.
Cost
    A pass costs what the model costs; reading a row about 0.3 ms for 150,000 tokens; a turn through the event loop about 0.1 ms.

Importing this package does not import llama_cpp: starting a backend does.
"""

from backends.llama_cpp.backend import LlamaCppBackend
from backends.llama_cpp.cores import Cores
from backends.llama_cpp.settings import LlamaCppSettings, LlamaCppStats

__all__ = ["Cores", "LlamaCppBackend", "LlamaCppSettings", "LlamaCppStats"]
