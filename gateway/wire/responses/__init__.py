"""OpenAI's Responses API, said in terms of chat: translated once on the way in and once on the way out.

    fields → `decode_responses` → a `ChatRequest`, and what the answer repeats of the request
    pieces of a run → `Output` → output items, and the events that tell of them in the order in which clients need them

So it works over every wiring that chat works over. Nothing is stored: a conversation is what the client sends.
"""

from gateway.wire.responses.names import in_responses_words
from gateway.wire.responses.output import Output, TornCall, closing_event, failed_event, response_value
from gateway.wire.responses.request import ResponsesRequest, decode_responses

__all__ = [
    "Output",
    "ResponsesRequest",
    "TornCall",
    "closing_event",
    "decode_responses",
    "failed_event",
    "in_responses_words",
    "response_value",
]
