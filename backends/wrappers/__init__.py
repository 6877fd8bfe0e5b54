"""Resilience around a backend, with the backend's own interface and abilities.

    backend = guarded(backend, Guard(name, Policy(...), watcher))

    window    successes and failures of the last seconds
    breaker   closed, open, half open
    budget    how much may be asked twice
    causes    what an error says about the backend
    guard     what is kept of one backend, and the rules
    passage   one guarded use
    hedge     a second attempt beside a silent first
    wrap      the backend's interface, guarded
    watcher   whoever wants to know

What is repeated, and only that: entering, where the server had not begun (it could not be reached, or it said when to come again). A
breaker counts how every use ended. Nothing is queued here: the backends' seats do that.
"""

from backends.wrappers.breaker import Breaker, BreakerSettings, State
from backends.wrappers.guard import Guard, Policy
from backends.wrappers.watcher import Call, Use, Watcher
from backends.wrappers.wrap import guard_of, guarded, inner

__all__ = [
    "Breaker",
    "BreakerSettings",
    "Call",
    "Guard",
    "Policy",
    "State",
    "Use",
    "Watcher",
    "guard_of",
    "guarded",
    "inner",
]
