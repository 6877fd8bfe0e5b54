"""Any server that speaks the OpenAI API, over HTTP.

`http` is the one module that talks to the network; `failures` maps everything that can go wrong there; `sse` splits a byte
stream into events; `wire` builds and reads chat completions. Token sessions stand on `dialects`: what vLLM and llama.cpp's
server offer beyond the OpenAI API (prompts as token ids, log-probabilities by token id, a rendered chat template). One
request a step: slow beside a real session, but it needs nothing installed in the server. The table id → bytes comes from
the model's own tokenizer files (`tokenizer_json`).
"""

from backends.openai_http.backend import OpenAIHTTPBackend
from backends.openai_http.settings import OpenAIHTTPSettings

__all__ = ["OpenAIHTTPBackend", "OpenAIHTTPSettings"]
