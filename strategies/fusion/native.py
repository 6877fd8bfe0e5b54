"""Which core the fuser runs on: the compiled one (`compiled`), where it was built for this Python, else the one in Python (`readings`).

It is built when the gateway is installed, where there is a C compiler. MODELNET_NATIVE=off in the environment leaves it alone. Both say
the same (docs/adr/0009).
"""

from __future__ import annotations

import hashlib
import logging
import os
from importlib import import_module
from pathlib import Path
from types import ModuleType

log = logging.getLogger(__name__)

CORE = "strategies.fusion._core"
VERSION = 2
"""Of the interface between core/ and `compiled`: one that was built from other sources is left alone."""


def find() -> ModuleType | None:
    """`compiled`, or None."""
    if os.environ.get("MODELNET_NATIVE", "").lower() in {"off", "no", "0", "false"}:
        return None
    try:
        core = import_module(CORE)
        fits = core.VERSION == VERSION and _of_these_sources(core.SOURCES)
        compiled = import_module("strategies.fusion.compiled") if fits else None
    except ModuleNotFoundError:
        return None  # never built here
    except (ImportError, AttributeError, SystemError) as error:
        log.warning("the fuser's core can't be loaded, so it runs in Python, some five times slower: %s", error)
        return None
    if not fits:
        log.warning("the fuser's core was built from other sources, so it runs in Python, some five times slower")
    return compiled


def _of_these_sources(digest: str) -> bool:
    """Whether the core was built from what lies beside this, if anything does: a wheel has no sources."""
    sources = sorted(Path(__file__).with_name("core").glob("*.[ch]"))
    return not sources or digest == hashlib.sha256(b"".join([path.read_bytes() for path in sources])).hexdigest()


core = find()
"""None: in Python. A pool keeps to what this is when it is made."""


def name() -> str:
    """For people."""
    return "python" if core is None else "native"
