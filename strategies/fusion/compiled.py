"""The compiled core (core/, built as `_core`) in the form of its reference in Python: `readings`, and steps of `pool` and `linear`.

The same results, sums being made in the same order: they differ at most as the core's exponential function (core/numbers.c) differs from
numpy's, by a unit or two in the last place.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from backends.types import Ids
from strategies.fusion import _core
from strategies.fusion.readings import NO_IDS
from strategies.fusion.restarting import Restarting

View = _core.View
decide, due, losing, pooled, say = _core.decide, _core.due, _core.losing, _core.pooled, _core.say


class Readings(_core.Readings, Restarting):
    """As `strategies.fusion.readings.Readings`."""

    __slots__ = ()

    def missing(self, pieces: Sequence[int], most: int) -> Ids:
        """See there."""
        ids = self._missing(pieces, most)
        return ids[0] if len(ids) == 1 else np.concatenate(ids) if ids else NO_IDS
