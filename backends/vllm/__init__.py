"""Models behind vLLM servers, several alike for one model if need be.

Text comes over the ordinary API (`backends.openai_http`), from any vLLM. Token sessions come through the extension in
`backends/vllm_plugin`, installed in vLLM's own environment: one WebSocket per server carries all sessions there (`connection`),
in the binary frames of `frames`, of which both sides have the same copy.

A session stays on the server where it was opened; new ones go to the server that has least to do. A server that can't be
reached is left out for a while that doubles, and is back with the first request that reaches it.
"""

from backends.vllm.backend import VLLMBackend
from backends.vllm.settings import VLLMSettings

__all__ = ["VLLMBackend", "VLLMSettings"]
