"""What can be set on an embedded model, and what it tells about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class LlamaCppSettings:
    """path: the GGUF file. context: tokens per session, cut to what the model was trained for.

    seats: sequences served at once; queue: callers that may wait for one (more are turned away).
    temperature, top_p: where a request says nothing; 0 is greedy.
    chat_template: Jinja source instead of the file's own. k_max: the longest TopK a session may ask for; None: the vocabulary.
    threads: the most threads for one pass; None: all cores of the budget.
    chunk: prompt tokens per pass; between two of them other sessions take a step.
    repack: let llama.cpp rearrange the weights for this CPU (AMX and the like). Faster, but it needs a second copy of the
        weights in memory, and some builds of llama.cpp crash in it: "auto" tries it in a process of its own first.
    prefix_cache: keep the beginnings of prompts that were read, for those that begin alike.
    batching: how many sequences share a pass: "exact", as many as leave each other's logits as they are, to the last bit; "fast", all.
        And whether drafts are read token by token, or in one pass.
    """

    path: str
    context: int = 4096
    seats: int = 4
    queue: int = 16
    temperature: float = 0.0
    top_p: float = 1.0
    chat_template: str | None = None
    k_max: int | None = None
    threads: int | None = None
    chunk: int = 64
    repack: Literal["auto", "on", "off"] = "auto"
    batching: Literal["exact", "fast"] = "exact"
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        for name in ("context", "seats", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.repack not in ("auto", "on", "off"):
            raise ValueError("repack must be auto, on or off")
        if self.batching not in ("exact", "fast"):
            raise ValueError("batching must be exact or fast")
        if self.queue < 0:
            raise ValueError("queue can't be negative")
        for name in ("k_max", "threads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError("temperature must be at least 0 and top_p in (0, 1]")


@dataclass(frozen=True, slots=True)
class LlamaCppStats:
    """Counters since the start, and how full it is now.

    seats, used, waiting: places, those taken, callers in the queue. passes: calls of llama_decode.
    prompt_tokens, decoded_tokens: tokens read in chunks (prompts and drafts) and one by one. kept_tokens: of prompts, not read again.
    """

    seats: int
    used: int
    waiting: int
    passes: int
    prompt_tokens: int
    decoded_tokens: int
    kept_tokens: int
