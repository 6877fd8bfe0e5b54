"""Sessions that step together stay together.

Whoever steps many sessions sends their next ids one after another, within some milliseconds. An idle engine would start a pass
with the first that comes; the others would wait for that pass and have another one; and apart they would stay: twice the passes
for the same rows. So before a pass that would hold rows of sessions only, the engine waits for those that it has answered a
moment ago, for a small part of what a pass takes:

- only while nothing else could run: a request of another kind is never kept waiting;
- until all are back, or none has come for GAP of a pass, or SHARE of a pass is over;
- when none has come yet, only for sessions that came back within that time the last time.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable
from typing import Any

SHARE = 0.1
"""Of a pass: the longest wait."""
GAP = 0.03
"""Of a pass: how long after the last one that came."""
AWAY = 8
"""Passes: a session that is away for longer is not expected with the others."""
LEAST, MOST = 0.0005, 0.02
"""Seconds: no wait is shorter or longer, whatever a pass takes."""

_EXPECTED = {"_process_input_queue": ["self"], "_handle_client_request": ["self", "request_type", "request"]}


class Gathering:
    """Which sessions are ready for the next pass, and which are with their clients. clock: seconds, never going back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ready: dict[str, float] = {}  # session → when its input came
        self._out: dict[str, float] = {}  # session → when it was answered
        self._prompt: dict[str, bool] = {}  # session → it came back soon the last time
        self._began = self._ended = clock()
        self._pass = 0.0

    @property
    def ready(self) -> Iterable[str]:
        return self._ready

    def came(self, session: str) -> None:
        """Its next input is here."""
        now = self._clock()
        self._ready[session] = now
        answered = self._out.pop(session, None)
        if answered is not None:
            self._prompt[session] = now - answered <= self._of_a_pass(SHARE)

    def scheduled(self, sessions: Iterable[str]) -> None:
        """A pass with these begins."""
        self._began = self._clock()
        for session in sessions:
            self._ready.pop(session, None)

    def answered(self, sessions: Iterable[str]) -> None:
        """A pass has ended, and these wait for their clients."""
        self._ended = self._clock()
        self._pass = self._ended - self._began
        for session in sessions:
            self._out[session] = self._ended

    def gone(self, session: str) -> None:
        """It has ended."""
        for kept in (self._ready, self._out, self._prompt):
            kept.pop(session, None)

    def wait(self) -> float:
        """How many seconds the next pass should wait for another input; 0: go on now."""
        now = self._clock()
        if not self._ready or not self._out:
            return 0.0
        came = [when for when in self._ready.values() if when >= self._ended]
        if came:
            away = any(now - when < AWAY * self._pass for when in self._out.values())
            until = min(min(came) + self._of_a_pass(SHARE), max(came) + self._of_a_pass(GAP))
        else:
            away = any(when >= self._ended and self._prompt.get(session, True) for session, when in self._out.items())
            until = self._ended + self._of_a_pass(SHARE)
        return max(0.0, until - now) if away else 0.0

    def _of_a_pass(self, part: float) -> float:
        return min(MOST, max(LEAST, part * self._pass))


def install() -> bool:
    """Have engines of this process wait as their schedulers say (`patience`). False where vLLM is not as expected."""
    from vllm.v1.engine.core import EngineCoreProc

    from modelnet_vllm.drafts import as_expected

    if getattr(EngineCoreProc, "_modelnet", False):
        return True
    if not as_expected(EngineCoreProc, _EXPECTED, "sessions are not gathered"):
        return False
    _wrap(EngineCoreProc)
    return True


def _wrap(core_class: Any) -> None:
    process = core_class._process_input_queue

    def process_input_queue(self: Any) -> None:
        process(self)
        patience = getattr(self.scheduler, "patience", None)
        if patience is None or self.batch_queue or self.engines_running:
            return  # a pass is under way, or other ranks wait for us
        while (seconds := patience()) > 0:
            try:
                request = self.input_queue.get(timeout=seconds)
            except queue.Empty:
                return
            self._handle_client_request(*request)

    core_class._process_input_queue = process_input_queue
    core_class._modelnet = True
