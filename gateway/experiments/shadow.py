"""Copies of requests to a second wiring. Nobody waits for them, nobody sees them fail, and there are never many.

A copy starts with its request and runs for at most `seconds`, on seats of its models that no request wants. What comes while
`concurrency` copies are running is not copied, and counted. Its row in the ledger names the completion that it is a copy of; its
tokens are charged to no key.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import structlog
from anyio.abc import TaskGroup

from backends.errors import BackendError
from backends.seats import BEHIND
from backends.types import Message
from gateway.experiments.choose import Choice
from gateway.ledger.meter import Meter
from gateway.ledger.prices import Prices
from gateway.ledger.row import Row
from gateway.ledger.writer import Ledger
from strategies.engine import run
from strategies.engine.events import Delta

if TYPE_CHECKING:
    from gateway.runtime import Prepared, Runtime

SHADOW_ARM = "shadow"

log = structlog.get_logger("modelnet.shadows")


@dataclass(frozen=True, slots=True)
class Original:
    """The request that is copied. completion: the id of its answer. prompt: its tokens, estimated. prepare: plans the copy."""

    choice: Choice
    completion: str
    request_id: str
    messages: tuple[Message, ...]
    prompt: int
    prepare: Callable[[str], Awaitable[Prepared]]


class Shadows:
    """Runs copies once it was started; before that, none is made."""

    def __init__(self, prices: Prices, concurrency: int, seconds: float) -> None:
        self.prices = prices
        self._most = concurrency
        self._seconds = seconds
        self._tasks: TaskGroup | None = None
        self._ledger: Ledger | None = None
        self.running = 0
        self.skipped = 0
        self.failed = 0
        self.finished = 0

    def start(self, tasks: TaskGroup, ledger: Ledger | None) -> None:
        """tasks: in which copies run, and end with it."""
        self._tasks, self._ledger = tasks, ledger

    def copy(self, runtime: Runtime, original: Original) -> None:
        """Begin a copy, or don't. Never waits, never raises."""
        if self._tasks is None or original.choice.route.shadow is None:
            return
        if self.running >= self._most:
            self.skipped += 1
            return
        self.running += 1
        self._tasks.start_soon(self._run, runtime, original)

    async def _run(self, runtime: Runtime, original: Original) -> None:
        shadow = original.choice.route.shadow
        assert shadow is not None
        BEHIND.set(True)
        row = Row(
            id=uuid.uuid4().hex,
            at=time.time(),
            request_id=original.request_id,
            endpoint="shadow",
            route=original.choice.route.name,
            arm=SHADOW_ARM,
            arm_by=SHADOW_ARM,
            subject=original.choice.subject,
            shadow_of=original.completion,
            model=shadow.model,
            kind="shadow",
        )
        meter, text, began = Meter(self.prices, original.prompt), "", time.perf_counter()
        try:
            with runtime.in_use(), anyio.move_on_after(self._seconds) as limit:
                prepared = await original.prepare(shadow.model)
                text = await self._answer(runtime, prepared, original.messages, meter, row, began)
            if limit.cancelled_caught:
                row.outcome, row.error = "error", "timeout"
        except anyio.get_cancelled_exc_class():
            row.outcome, row.error = "abandoned", "shutdown"
            raise
        except Exception as error:  # noqa: BLE001 - nobody is to see a copy fail
            row.outcome, row.error = "error", type(error).__name__
            if not isinstance(error, BackendError):
                log.warning("shadow_failed", route=row.route, error=type(error).__name__, reason=str(error))
        finally:
            self.running -= 1
            self.finished += row.outcome == "ok"
            self.failed += row.outcome == "error"
            row.seconds = time.perf_counter() - began
            usage, spent = meter.usage, meter.spent
            row.prompt_tokens, row.completion_tokens, row.nano = (
                usage.prompt_tokens,
                usage.completion_tokens,
                spent.nano,
            )
            row.stages = tuple(meter.stages)
            if shadow.texts:
                row.texts = texts(original.messages, [text])
            if self._ledger is not None:
                self._ledger.put(row)

    async def _answer(
        self,
        runtime: Runtime,
        prepared: Prepared,
        messages: tuple[Message, ...],
        meter: Meter,
        row: Row,
        began: float,
    ) -> str:
        plan = prepared.plan
        row.wiring, row.shape = prepared.wiring, plan.shape
        watch, parts, last = meter.run(plan), [], len(plan.stages) - 1
        try:
            async with run(plan, messages, prepared.options, runtime.catalog) as events:
                async for event in events:
                    watch.saw(event)
                    if isinstance(event, Delta) and event.stage == last:
                        if row.first_token is None:
                            row.first_token = time.perf_counter() - began
                        parts.append(event.text + event.refusal)
        finally:
            watch.close()
        return "".join(parts)


def texts(messages: Sequence[Message], answers: Sequence[str]) -> dict[str, Any]:
    """What the ledger keeps of texts, where it is to keep them."""
    return {"messages": [{"role": m.role, "content": m.content} for m in messages], "answers": list(answers)}
