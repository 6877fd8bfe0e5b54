"""Errors of a model name, as the client sees them: what was found, under which column, and what was expected."""

from __future__ import annotations

from gateway.wire.errors import APIError, internal_error, model_not_found
from strategies.planning import PlanError
from strategies.routing import AliasError
from strategies.topology import TopologyError

_SHOWN = 200


def wiring_error(model: str, error: TopologyError) -> APIError:
    """404 where the name is no wiring of known models; 400 where it is one that these models can't run."""
    if isinstance(error, AliasError):
        return internal_error()  # ruled out when the configuration was read
    shown = model if len(model) <= _SHOWN else model[: _SHOWN - 1] + "…"
    text = f"{error}\n{error.caret()}"
    if isinstance(error, PlanError):
        return APIError(400, f"The wiring {shown!r} can't run: {text}", code="unsupported_wiring", param="model")
    return model_not_found(f"The model {shown!r} does not exist: {text}")
