"""Token sessions for vLLM: what a model would say next, streamed to whoever decides what it says.

    v1, v2      the tap: a logits processor for either model runner; sends distributions out of the engine
    tap         what both have in common: which rows are ours, what is sent, what is kept for exact look-ups
    drafts      the hook that scores a whole draft in one pass (for versions of vLLM that it knows)
    scheduler   rewinds a session in place (for versions of vLLM that it knows)
    tag         the mark in a request's `extra_args` that makes it ours
    link        from the engine's process to the API server's and back
    door        the WebSocket route, and what its connections share
    client      one connection: frames in, frames out
    host        all sessions, admission, and which one follows which
    sessions    sessions as streaming inputs of the engine, rewinding
    early       prompts that are read before they are whole
    kept        values of places before, for exact look-ups
    vocabulary  the tokenizer as a table id → bytes
    frames      the protocol of the door

Nothing here imports torch when it is imported.
"""

__version__ = "0.1.0"
