"""Which core the fuser runs on: the compiled one (`compiled`), where it was built for this Python, else the one in Python (`readings`).

It is built when the gateway is installed, where there is a C compiler. MODELNET_NATIVE=off in the environment leaves it alone. Both say
the same (docs/adr/0009).
"""

from __future__ import annotations

import os
from types import ModuleType

VERSION = 1
"""Of the interface between core/ and `compiled`: one that was built from other sources is left alone."""


def find() -> ModuleType | None:
    """`compiled`, or None."""
    if os.environ.get("MODELNET_NATIVE", "").lower() in {"off", "no", "0"}:
        return None
    try:
        from strategies.fusion import _core

        if _core.VERSION != VERSION:
            return None
        from strategies.fusion import compiled
    except ImportError:
        return None
    return compiled


core = find()
"""None: in Python. A pool keeps to what this is when it is made."""


def name() -> str:
    """For people."""
    return "python" if core is None else "native"
