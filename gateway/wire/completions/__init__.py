"""POST /v1/completions: texts that are continued, in the words of chat.

fields → `decode_completion` → a `CompletionRequest`: a `ChatRequest` with one choice for every prompt and answer
pieces of a run → `text_choice`, `TextChunkWriter`, with log-probabilities in the older form (`LegacyLogprobs`)
"""

from gateway.wire.completions.answer import TextChunkWriter, completion_value, text_choice
from gateway.wire.completions.logprobs import LegacyLogprobs, joined
from gateway.wire.completions.request import CompletionRequest, Prompt, check_text_forwardable, decode_completion

__all__ = [
    "CompletionRequest",
    "LegacyLogprobs",
    "Prompt",
    "TextChunkWriter",
    "check_text_forwardable",
    "completion_value",
    "decode_completion",
    "joined",
    "text_choice",
]
