"""What a count of right answers says."""

from __future__ import annotations

import math


def wilson(right: int, asked: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a share (E. B. Wilson 1927); z = 1.96 gives 95 %. (0, 1) if nothing was asked."""
    if asked == 0:
        return 0.0, 1.0
    share, square = right / asked, z * z
    centre = share + square / (2 * asked)
    spread = z * math.sqrt(share * (1 - share) / asked + square / (4 * asked * asked))
    whole = 1 + square / asked
    return max(0.0, (centre - spread) / whole), min(1.0, (centre + spread) / whole)
