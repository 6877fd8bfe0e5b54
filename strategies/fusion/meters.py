"""How exact a fused answer was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Certificate = Literal["certified", "looked_up", "uncertified", "sampled"]
"""How certain one piece was, in the words of `Meters`."""


@dataclass(frozen=True, slots=True)
class Meters:
    """How exact a fused stage was. Counts over its committed pieces.

    pieces: pieces committed, the end included. certified: the winner was certain from the top-k lists alone.
    looked_up: certain after exact values were looked up. uncertified: neither; `worst_gap` is the largest amount (probability)
    by which a rival's upper bound passed the winner's lower bound among them.
    sampled: pieces that were drawn at random (a temperature was asked for), where certainty has no meaning.
    drift: times a member had to be set on a new tokenization of the last piece or pieces (repairs).
    lost_mass: probability mass of dropped readings, summed over the pieces, mean over members by weight; worst_lost: largest
    loss of one member in one piece. passes: forward passes, all members.
    widened: how often the members' lists were made longer because certificates failed (also the engine's to add).
    saved: forward passes that members were spared because the group went on without asking them (the gated fuser).
    """

    pieces: int = 0
    certified: int = 0
    looked_up: int = 0
    uncertified: int = 0
    worst_gap: float = 0.0
    sampled: int = 0
    drift: int = 0
    lost_mass: float = 0.0
    worst_lost: float = 0.0
    passes: int = 0
    saved: int = 0
    widened: int = 0
