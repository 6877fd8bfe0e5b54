"""structlog, set up once by whoever starts the process. Libraries' own loggers come out in the same form.

Nothing here ever sees headers or bodies: what is logged is named field by field where it is logged.

Our own lines do not pass the standard library's logging: one line per request is a good part of what the gateway costs
(docs/hot-path.md). Libraries' lines do, and meet ours at the stream; each is written whole.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar, TextIO

import orjson
import structlog


def setup_logs(level: str = "info", format: str = "json", stream: TextIO | None = None) -> None:
    """Write the log to `stream` (standard error by default), from `level` on, as "json" lines or "console" text."""
    out = sys.stderr if stream is None else stream
    shared: list[Any] = [structlog.contextvars.merge_contextvars, structlog.stdlib.add_log_level, _stamped]
    renderer: list[Any]
    if format == "json":
        renderer = [structlog.processors.format_exc_info, _json]
    else:
        # Plain tracebacks: richer ones show the values of variables, and those hold prompts and keys.
        plain = structlog.dev.plain_traceback
        renderer = [structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=plain)]
    number = logging.getLevelNamesMapping()[level.upper()]
    processors = [*shared, *renderer]
    QuickLogger.setup = _Setup(processors, out, number) if format == "json" else None
    structlog.configure(
        processors=processors,
        logger_factory=structlog.WriteLoggerFactory(out),
        wrapper_class=structlog.make_filtering_bound_logger(number),
        cache_logger_on_first_use=False,  # tests set up logs more than once
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
    root.setLevel(number)
    for noisy in ("uvicorn", "uvicorn.error", "asyncio", "aiohttp", "modelnet.llama_cpp"):
        # Theirs tell of every start and stop; ours already do. What goes wrong still shows, and everything at debug.
        logging.getLogger(noisy).setLevel(logging.DEBUG if level == "debug" else max(logging.WARNING, root.level))


@dataclass(frozen=True, slots=True)
class _Setup:
    """What `setup_logs` has arranged. processors: structlog's own list, which tests change in place."""

    processors: list[Any]
    out: TextIO
    level: int


class QuickLogger:
    """For the one line that every request writes: as structlog writes it, by a shorter way, while JSON goes to the stream as it was
    set up. At all other times (tests that capture lines, text for people) it is an ordinary logger."""

    setup: ClassVar[_Setup | None] = None

    def __init__(self, name: str) -> None:
        self._logger = structlog.get_logger(name).bind()

    def log(self, level: int, event: str, fields: dict[str, Any]) -> None:
        """One line."""
        setup = QuickLogger.setup
        if setup is None or setup.processors[-1] is not _json:
            self._logger.log(level, event, **fields)
            return
        if level < setup.level:
            return
        fields["event"] = event
        structlog.contextvars.merge_contextvars(None, "", fields)
        fields["level"] = logging.getLevelName(level).lower()
        setup.out.write(_json(None, "", _stamped(None, "", fields)) + "\n")
        setup.out.flush()


_second = (0, "")


def _stamped(logger: Any, method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The time, ISO 8601 in UTC. What is above the second is written once a second."""
    global _second  # noqa: PLW0603 - a cache of one
    now = time.time_ns()
    whole, rest = divmod(now // 1000, 1_000_000)
    if _second[0] != whole:
        _second = (whole, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)))
    fields["timestamp"] = f"{_second[1]}.{rest:06d}Z"
    return fields


def _json(logger: Any, method: str, fields: MutableMapping[str, Any]) -> str:
    """One line of JSON; what has no form in it is written as its `repr`."""
    try:
        return orjson.dumps(fields, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # half a surrogate pair, a number beyond 64 bits
        return json.dumps(fields, default=repr)
