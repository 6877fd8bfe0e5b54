"""structlog, set up once by whoever starts the process. Libraries' own loggers come out in the same form.

Nothing here ever sees headers or bodies: what is logged is named field by field where it is logged.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import structlog


def setup_logs(level: str = "info", format: str = "json", stream: TextIO | None = None) -> None:
    """Write the log to `stream` (standard error by default), from `level` on, as "json" lines or "console" text."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    out = sys.stderr if stream is None else stream
    renderer: list[Any]
    if format == "json":
        renderer = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        renderer = [structlog.dev.ConsoleRenderer(colors=out.isatty())]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("uvicorn", "uvicorn.error", "asyncio", "aiohttp", "modelnet.llama_cpp"):
        # Theirs tell of every start and stop; ours already do. What goes wrong still shows, and everything at debug.
        logging.getLogger(noisy).setLevel(logging.DEBUG if level == "debug" else max(logging.WARNING, root.level))
