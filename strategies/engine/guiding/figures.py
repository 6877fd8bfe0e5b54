"""Numbers of a schema as the library reads them: as doubles, and not always the nearest.

It has no others, so a schema that says more must say it in theirs, or is refused: an identifier of 18 digits whose last ones are rounded is
worse than none. What is not finite is left to the library, which says what is wrong with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from strategies.engine.guiding.bounds import BadConstraint

WHOLE = 2**53
"""All whole numbers up to here are doubles."""
LARGEST = 2**63 - 1024
"""The largest double that is an integer of the library's."""
DIGITS, POWER = 15, 22
"""A number of so many digits, times or divided by ten to this power at most, is read right."""
STEP = 1e-9
"""How far inside an open bound a closed one is put, where there is room …"""
RELATIVE = 1e-12
"""… and of large ones this part of it, so that it has not too many digits."""


def held_exactly(value: Any) -> None:
    """Raises BadConstraint where a number in a `const` or an `enum` would come out as another one."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case dict() as inner:
                waiting.extend(inner.values())
            case list() as inner:
                waiting.extend(inner)
            case bool():
                pass
            case int() | float() as number if not _exact(number):
                raise BadConstraint(
                    f"The number {str(number)[:40]} has too many digits to be held; write it as a string."
                )


def with_bounds_inside(schema: Mapping[str, Any], *, alone: bool) -> dict[str, Any]:
    """The schema with bounds that the library keeps: nothing passes that the given ones forbid. alone: no other part of the document can
    say more of the same number. Raises BadConstraint."""
    made = dict(schema)
    for key in ("minimum", "exclusiveMinimum"):
        if (value := _number(made.get(key))) is not None:
            made[key] = -_below(-value)
    for key in ("maximum", "exclusiveMaximum"):
        if (value := _number(made.get(key))) is not None:
            made[key] = _below(value)
    _close(made, "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", 1, alone)
    _close(made, "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum", -1, alone)
    return made


def _close(
    made: dict[str, Any], closed: str, opened: str, other: str, other_opened: str, sign: int, alone: bool
) -> None:
    """Turn an open bound that is a whole number into a closed one, where the bound on the other side is less than one away, or may be by
    another part of the document: there the library lets the number itself through. sign: 1 for a lower bound, -1 for an upper one."""
    value = _number(made.get(opened))
    if value is None or value != int(value):
        return
    fars = [far for key in (other, other_opened) if (far := _number(made.get(key))) is not None]
    room = min((sign * (far - value) for far in fars), default=1)
    if room <= 0 or (alone and room >= 1):
        return
    inside = value + sign * min(max(STEP, abs(value) * RELATIVE), room / 2)
    if inside == value:  # of large ones the next is as near as the library can say
        inside = int(math.nextafter(float(value), sign * math.inf))
    if any(sign * inside > sign * far for far in fars):
        raise BadConstraint(f"There are too few numbers between {value} and the bound on the other side.")
    already = _number(made.get(closed))
    made[closed] = inside if already is None else sign * max(sign * inside, sign * already)
    del made[opened]


def _number(value: Any) -> float | None:
    """None for what is no finite number, such as an `exclusiveMinimum` of draft 4."""
    return None if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value) else value


def _finite(number: float) -> bool:
    return -math.inf < number < math.inf


def _exact(number: float) -> bool:
    if not _finite(number) or (abs(number) <= WHOLE and number == int(number)):
        return True
    _, digits, exponent = Decimal(repr(number)).as_tuple()
    written = "".join(map(str, digits)).rstrip("0")
    assert isinstance(exponent, int)
    return len(written) <= DIGITS and abs(exponent + len(digits) - len(written)) <= POWER


def _below(value: float) -> float:
    """The largest number up to this one that the library reads as it is written. Raises BadConstraint."""
    if abs(value) <= WHOLE:
        return value
    if value < -LARGEST:
        raise BadConstraint(f"A bound can't be held: numbers are from {-LARGEST} to {LARGEST}.")
    near = int(float(min(math.floor(value), LARGEST)))
    return near if near <= value else int(math.nextafter(float(near), -math.inf))
