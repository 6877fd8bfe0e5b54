"""Weighted rendezvous hashing: which arm a subject belongs to.

Every arm draws a number u in (0, 1), the hash of (salt, subject, arm), and the arm with the smallest -ln(u) / weight wins. Those are
independent exponential variables with the weights as rates, so an arm wins with the probability weight / sum of the weights.

An arm's draw depends on nothing but its own name. So if one weight grows, subjects move to that arm only, and none moves between two
others; in general a subject moves from one arm to another only where the second gained against the first.

Highest random weight: Thaler, Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM Transactions on Networking
6(1), 1998. Weights by the logarithm: Schindelhauer, Schomaker, "Weighted distributed hash tables", SPAA 2005.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping


def draw(salt: str, subject: str, arm: str) -> float:
    """A number in (0, 1), the same everywhere and for ever for the same three texts."""
    hashed = hashlib.blake2b(digest_size=8, person=b"modelnet-arm")
    for part in (salt, subject, arm):
        data = part.encode("utf-8", "surrogatepass")
        hashed.update(len(data).to_bytes(4, "big"))  # so that ("ab", "c") is not ("a", "bc")
        hashed.update(data)
    # 53 bits and a half: neither 0 nor 1 can come out, and no two numbers become one in a double.
    return ((int.from_bytes(hashed.digest(), "big") >> 11) + 0.5) / 2.0**53


def assign(salt: str, subject: str, weights: Mapping[str, float]) -> str:
    """The arm of a subject. Arms of weight 0 get nobody. Raises ValueError if no weight is positive."""
    scores = {arm: -math.log(draw(salt, subject, arm)) / weight for arm, weight in weights.items() if weight > 0}
    if not scores:
        raise ValueError("no arm has a positive weight")
    return min(scores, key=lambda arm: (scores[arm], arm))


def shares(weights: Mapping[str, float]) -> dict[str, float]:
    """What part of the subjects each arm gets."""
    total = sum(weights.values())
    return {arm: weight / total for arm, weight in weights.items()}


def pseudonym(salt: str, subject: str) -> str:
    """A subject as the ledger knows it: 16 hexadecimal digits that say who is who, and not who it is."""
    hashed = hashlib.blake2b(digest_size=8, person=b"modelnet-subj")
    hashed.update(len(salt.encode()).to_bytes(4, "big") + salt.encode())
    hashed.update(subject.encode("utf-8", "surrogatepass"))
    return hashed.hexdigest()
