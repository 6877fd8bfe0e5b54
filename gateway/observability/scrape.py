"""Reading /metrics from outside: a snapshot, and what happened between two of them. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """at: seconds of any clock. values: series → labels → value."""

    at: float
    values: Mapping[str, Mapping[Labels, float]]

    @classmethod
    def of(cls, text: str, at: float) -> Snapshot:
        """From Prometheus' text format. Raises ValueError for what is no such thing."""
        values: dict[str, dict[Labels, float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                values.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
        return cls(at, values)

    def total(self, name: str, **labels: str) -> float:
        """The sum of a series over all label values that are not named."""
        wanted = set(labels.items())
        return sum(value for found, value in self.values.get(name, {}).items() if wanted <= found)

    def label(self, name: str, label: str) -> list[str]:
        """The values that a label has in a series, sorted."""
        return sorted({dict(found)[label] for found in self.values.get(name, {}) if label in dict(found)})


NOTHING = Snapshot(0.0, {})


@dataclass(frozen=True, slots=True)
class Between:
    """What happened between two snapshots; `NOTHING` as the first: since the gateway began."""

    before: Snapshot
    now: Snapshot
    seconds: float

    def count(self, name: str, **labels: str) -> float:
        """How much a counter has grown. A gateway that was started anew meanwhile counts from zero."""
        now, before = self.now.total(name, **labels), self.before.total(name, **labels)
        return now - before if now >= before else now

    def rate(self, name: str, **labels: str) -> float:
        """The same per second."""
        return self.count(name, **labels) / self.seconds if self.seconds > 0 else 0.0

    def share(self, name: str, part: Mapping[str, str], **labels: str) -> float | None:
        """The part of a counter's growth that has these further labels; None where there was none."""
        whole = self.count(name, **labels)
        return self.count(name, **labels, **part) / whole if whole else None

    def quantile(self, name: str, q: float, **labels: str) -> float | None:
        """Of a histogram, as Prometheus' histogram_quantile does it: even within a bucket. None where nothing was observed.

        name: without `_bucket`.
        """
        wanted = set(labels.items())
        counts: dict[float, float] = {}
        for snapshot, sign in ((self.now, 1.0), (self.before, -1.0)):
            for found, value in snapshot.values.get(f"{name}_bucket", {}).items():
                if wanted <= found:
                    bound = float(dict(found)["le"])
                    counts[bound] = counts.get(bound, 0.0) + sign * value
        return _quantile(sorted(counts.items()), q)


def _quantile(buckets: Iterable[tuple[float, float]], q: float) -> float | None:
    """buckets: (upper bound, observations up to it), ascending, the last bound infinite."""
    found = list(buckets)
    if not found or found[-1][1] <= 0:
        return None
    wanted, low, below = q * found[-1][1], 0.0, 0.0
    for bound, upto in found:
        if upto >= wanted and upto > below:
            if math.isinf(bound):
                return low  # all that is known: it is more
            return low + (bound - low) * (wanted - below) / (upto - below)
        low, below = (low, below) if math.isinf(bound) else (bound, max(below, upto))
    return low
