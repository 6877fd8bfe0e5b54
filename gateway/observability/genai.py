"""Names of attributes in traces: OpenTelemetry's conventions for generative AI and HTTP, and our own. All of them are here.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/ (still in development there: a change is a change of this file)
"""

from __future__ import annotations

# Conventions
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
RESPONSE_ID = "gen_ai.response.id"
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
OUTPUT_TYPE = "gen_ai.output.type"
ERROR_TYPE = "error.type"
METHOD = "http.request.method"
ROUTE = "http.route"
STATUS = "http.response.status_code"
RESEND = "http.request.resend_count"

# Values
CHAT = "chat"
TEXT_COMPLETION = "text_completion"
EMBEDDINGS = "embeddings"
OURSELVES = "modelnet"

# Our own
REQUEST_ID = "modelnet.request_id"
WIRING = "modelnet.wiring"
SHAPE = "modelnet.shape"
KEY = "modelnet.key"
ARM_ROUTE = "modelnet.route"
ARM = "modelnet.arm"
STAGE = "modelnet.stage"
ROLE = "modelnet.role"
MODELS = "modelnet.models"
WEIGHTS = "modelnet.weights"
USE = "modelnet.use"
FIRST_SECONDS = "modelnet.first_token_seconds"
GAP_SECONDS = "modelnet.gap_seconds"
PREPARED = "modelnet.early_prefill.prepared"
PREPARING_FAILED = "modelnet.early_prefill.failed"
PIECES = "modelnet.fusion.pieces"
CERTIFIED = "modelnet.fusion.certified"
LOOKED_UP = "modelnet.fusion.looked_up"
UNCERTIFIED = "modelnet.fusion.uncertified"
DRIFT = "modelnet.fusion.drift"
PASSES = "modelnet.fusion.passes"
QUORUM = "modelnet.fusion.quorum"
DROPPED = "modelnet.fusion.dropped"
FIRST_EVENT = "first token"
"""Name of a span's event."""

OPERATIONS = {
    "/v1/chat/completions": CHAT,
    "/v1/responses": CHAT,
    "/v1/completions": TEXT_COMPLETION,
    "/v1/embeddings": EMBEDDINGS,
}
"""Path → what is done there."""

PATHS = frozenset({*OPERATIONS, "/v1/models", "/v1/feedback", "/tokenize", "/detokenize"})
"""Paths that spans are named after. Names that clients make up would make spans impossible to group."""


def route(path: str) -> str:
    """A path as spans are named after it."""
    if path in PATHS:
        return path
    return "/v1/models/{model}" if path.startswith("/v1/models/") else "other"
