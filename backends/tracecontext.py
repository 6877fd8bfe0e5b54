"""The W3C trace context of whatever is being done now, for servers that we ask: so their spans join ours.

Set by whoever traces, read by whoever sends a request; each task has its own. None: nothing is traced, and nothing is sent.
https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

from contextvars import ContextVar

TRACEPARENT: ContextVar[str | None] = ContextVar("modelnet.traceparent", default=None)
"""Value of the `traceparent` header."""
