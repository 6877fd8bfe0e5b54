"""litellm, imported here and nowhere else, when the first hosted model starts.

Exactly one version: others were published with malware in them. Without the variable it would fetch a price list when imported.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from typing import Any

from backends.errors import BackendUnavailable

VERSION = "1.106.2"


def load(model: str) -> Any:
    """The module. Raises BackendUnavailable where it is missing, or another version than ours is there; then nothing is imported."""
    try:
        found = importlib.metadata.version("litellm")
    except importlib.metadata.PackageNotFoundError:
        raise BackendUnavailable(
            model, f"Model {model!r} needs litellm, which is not installed (the extra `hosted`)."
        ) from None
    if found != VERSION:
        raise BackendUnavailable(model, f"Model {model!r} needs litellm {VERSION} exactly; {found} is installed.")
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    litellm: Any = importlib.import_module("litellm")
    litellm.suppress_debug_info = True  # else it prints to standard output where something fails
    litellm.telemetry = False
    litellm.drop_params = False  # what a provider can't do is an error, never dropped in silence
    return litellm
