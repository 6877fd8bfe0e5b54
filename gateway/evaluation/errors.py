"""What can go wrong with an evaluation.

EvaluationError
├── SpecError        what was asked for can't be: a task, a wiring, settings that differ from the run's
├── StoreError       a run's directory can't be read or written
└── GatewayGone      the gateway can't be reached, or refuses everything
"""

from __future__ import annotations


class EvaluationError(Exception):
    """The text is for the person at the terminal."""


class SpecError(EvaluationError):
    """What was asked for can't be."""


class StoreError(EvaluationError):
    """A run's directory can't be read or written."""


class GatewayGone(EvaluationError):
    """The gateway can't be reached, or refuses everything. What was answered is kept."""
