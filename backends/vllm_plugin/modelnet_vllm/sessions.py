"""Sessions: streaming inputs of the engine, whose distributions come back over the link.

With `max_tokens=1` every input makes the engine compute one position and sample one token, which it drops when the next input
arrives: so whoever sends the inputs decides every token. Between inputs the engine does nothing for the session, but keeps its
KV cache. The distribution comes from the tap, before the engine has finished its own bookkeeping; the next input may be sent
at once and waits in the engine's queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modelnet_vllm import frames, link
from modelnet_vllm.early import common
from modelnet_vllm.kept import INPUTS
from modelnet_vllm.link import Wire
from modelnet_vllm.places import Full, Place
from modelnet_vllm.tag import EVERY, LAST, Tag

if TYPE_CHECKING:
    from modelnet_vllm.host import Host

log = logging.getLogger("vllm.modelnet")

SILENCE = 10.0
"""Seconds after the engine's own output within which the tap's frame must have come."""

Rows = tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]
"""ids int32 [n, k], log-probabilities float32 [n, k], mass outside float32 [n]."""


class Failure(Exception):
    """What a FAIL frame says."""

    def __init__(self, code: int, message: str, tokens: int = 0, limit: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.tokens = tokens
        self.limit = limit


class Session:
    """One token sequence in the engine. Calls one at a time. ids: all of it, the prompt included. told: the prompt that was asked for, of
    which less may be read (`early`)."""

    def __init__(self, host: Host, number: int, k: int, place: Place) -> None:
        self.number = number
        self.wire: Wire | None = None
        self.ids: list[int] = []
        self.prompt_tokens = 0
        self.place = place
        self.told: list[int] = []
        self._host = host
        self._k = k
        self._seq = 0
        self._mode = LAST
        self._first = 0
        self._wanted = 1
        self._read: list[
            tuple[int, range, int]
        ] = []  # the latest inputs: number, lengths whose rows they have, length at the end
        self._found: dict[int, Rows] = {}  # position (0 with LAST) → one row
        self._here: Rows | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._inputs: asyncio.Queue[Any] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._pushed = self._answered = 0  # inputs of this life, and the engine's outputs for them
        self._lives = 0
        self._failure: Failure | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, prompt: Sequence[int]) -> None:
        self.ids = list(prompt)
        self.prompt_tokens = len(prompt)
        self._launch()
        self._push(self.ids, LAST, None)

    @property
    def alive(self) -> bool:
        return self._failure is None

    def follow(self, prompt: Sequence[int], k: int) -> None:
        """Go on as the session of another prompt: what both begin with is not read again. Nobody waits for a call. The engine rewinds."""
        same = common(self.ids, prompt)
        self.prompt_tokens = len(prompt)
        if same == len(prompt) == len(self.ids) and k == self._k:
            return  # it is read, or being read
        self._k = k
        keep = min(same, len(prompt) - 1)
        cut = keep < len(self.ids)
        self.ids[keep:] = prompt[keep:]
        self._push(prompt[keep:], LAST, keep if cut else None, first=keep)

    async def step(self, drop: int, append: Sequence[int]) -> Rows:
        """One row: the distribution behind what is then there. Raises Failure."""
        self._check(drop, append)
        if not append:
            if not drop:
                return await self._last()
            # Nothing is kept of a position that was left: its last token is read once more.
            append = [self.ids[len(self.ids) - drop - 1]]
            drop += 1
        await self._move(drop, append, LAST)
        return await self._last()

    async def score(self, drop: int, draft: Sequence[int]) -> Rows:
        """As many rows as the draft has ids. Raises Failure."""
        self._check(drop, draft)
        if not draft:
            raise Failure(frames.REJECTED, "A draft has at least one id.")
        if not self._host.hooks:
            rows = []
            for at, id in enumerate(draft):
                rows.append(await self.step(drop if at == 0 else 0, [id]))
            return _joined(rows)
        await self._move(drop, draft, EVERY)
        await self._arrival()
        rows = [self._found[self._first + at] for at in range(self._wanted)]
        self._here = rows[-1]
        return _joined(rows)

    async def lookup(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """Log-probabilities float32 [n] (nats) at the current position. Raises Failure."""
        self._alive()
        if not len(ids):
            return np.empty(0, np.float32)
        for _ in range(2):
            await self._last()
            values = await self._kept(ids, self._seq, 0)
            if len(values):
                return values
            await self._move(1, self.ids[-1:], LAST)  # the row was dropped to keep others: compute it again
        raise Failure(frames.UNAVAILABLE, "The engine keeps no values to look up.")

    async def recall(self, ids: NDArray[np.int32], back: int) -> NDArray[np.float32]:
        """As `lookup`, so many ids before the end: in the draft just scored, or behind a step before; empty where that is not kept.
        Raises Failure."""
        self._alive()
        place = len(self.ids) - back
        for seq, lengths, end in reversed(self._read):
            if place in lengths and self._complete():
                return await self._kept(ids, seq, end - place)
        return np.empty(0, np.float32)

    async def close(self) -> None:
        """Free everything in the engine. Idempotent."""
        self.fail(Failure(frames.NO_SESSION, "The session is closed."))
        await self._end()

    def fail(self, failure: Failure) -> None:
        """Nothing works any more; whoever waits is told."""
        if self._failure is None:
            self._failure = failure
            self._host.forget(self)
            self.place.release()
            if self._timer is not None:
                self._timer.cancel()
            if self._task is not None:
                self._task.cancel()
        self._wake()

    def arrived(self, wire: Wire, seq: int, first: int, rows: Rows) -> None:
        """Frames of the tap. Those of an input that was answered already (computed again after a preemption) are late."""
        self.wire = wire
        if seq != self._seq:
            return
        for at in range(len(rows[0])):
            self._found[first + at] = tuple(part[at : at + 1] for part in rows)  # type: ignore[assignment]
        if self._complete():
            self._wake()

    # Inside

    def _check(self, drop: int, append: Sequence[int]) -> None:
        self._alive()
        if drop > len(self.ids) - self.prompt_tokens:
            raise Failure(frames.REJECTED, f"Can't drop {drop} of {len(self.ids) - self.prompt_tokens} appended ids.")
        total = len(self.ids) - drop + len(append)
        if total + 1 > self._host.context:
            text = f"The model can read {self._host.context} tokens; {total + 1} are needed."
            raise Failure(frames.TOO_LONG, text, total + 1, self._host.context)
        try:
            self._host.grow(self.place, total + 1)
        except Full as error:
            raise Failure(frames.OVERLOADED, f"At capacity: {error}.") from None

    def _alive(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _kept(self, ids: NDArray[np.int32], seq: int, back: int) -> NDArray[np.float32]:
        """What the engine keeps of an input, so many rows before its last one; empty where that is gone."""
        assert self.wire is not None
        head = link.SESSION.pack(self.number) + link.NUMBER.pack(seq)
        rest = link.NUMBER.pack(back) + np.asarray(ids, "<i4").tobytes()
        return np.frombuffer(await self._host.ask(self.wire, link.LOOKUP, head, rest), "<f4")

    async def _last(self) -> Rows:
        if self._here is None:
            await self._arrival()
            self._here = _joined([self._found[at] for at in sorted(self._found)][-1:])
        return self._here

    def _complete(self) -> bool:
        if self._mode == LAST:
            return 0 in self._found and (self._host.hooks or self._answered >= self._pushed)
        return all(self._first + at in self._found for at in range(self._wanted))

    async def _arrival(self) -> None:
        """Until all rows of the input under way are here."""
        while not self._complete():
            self._alive()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._alive()
        if not self._host.hooks:
            # Parts of a long input give frames too: the last one before the engine's own output counts. What the engine
            # sent before that output is on the link, so it is here when an echo has come back.
            assert self.wire is not None
            await self._host.ask(self.wire, link.ASK_ECHO, b"")
            self._alive()
        for ids, logprobs, _ in self._found.values():
            if np.isnan(logprobs[0, 0]):
                raise Failure(frames.UNAVAILABLE, "The model gave no numbers (NaN).")
            if ids.shape[1] == 0:
                raise Failure(frames.UNAVAILABLE, "The model gave no distribution.")

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _move(self, drop: int, append: Sequence[int], mode: int) -> None:
        """Drop, append, and have the engine compute what is new."""
        keep = len(self.ids) - drop
        self.ids[keep:] = append
        if drop and not self._host.rewinds:
            await self._end()
            self._launch()
            self._push(self.ids, mode, None, first=keep)
        else:
            self._push(append, mode, keep if drop else None, first=keep)

    def _push(self, ids: Sequence[int], mode: int, keep: int | None, first: int = 0) -> None:
        from vllm import SamplingParams
        from vllm.engine.protocol import StreamingInput
        from vllm.sampling_params import RequestOutputKind

        self._seq += 1
        end = len(self.ids)
        # What was found before is that of another text where the session was cut back.
        self._read = [(seq, range(at.start, min(at.stop, first + 1)), last) for seq, at, last in self._read]
        self._read.append((self._seq, range(first + 1 if mode == EVERY else end, end + 1), end))
        del self._read[:-INPUTS]
        self._mode, self._first, self._wanted = mode, first, len(self.ids) - first
        self._found = {}
        self._here = None
        self._pushed += 1
        tag = Tag(self.number, self._seq, self._k, mode, first, keep, self._host.listener.path)
        params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args=tag.extra_args(),
        )
        if hasattr(params, "skip_clone"):
            params.skip_clone = True  # nobody else has it: a deep copy at every step would be for nothing
        # A copy: vLLM extends the list that it is given. The form is that of `vllm.inputs.tokens_input`.
        prompt = {"type": "token", "prompt_token_ids": [int(id) for id in ids]}
        self._inputs.put_nowait(StreamingInput(prompt=prompt, sampling_params=params))

    def _launch(self) -> None:
        self._inputs = asyncio.Queue()
        self._pushed = self._answered = 0
        self._lives += 1
        name = f"modelnet-{self.number:x}-{self._lives}"
        self._task = asyncio.create_task(self._run(name, self._inputs), name=name)

    async def _run(self, name: str, inputs: asyncio.Queue[Any]) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        async def stream() -> AsyncGenerator[Any, None]:
            while True:
                yield await inputs.get()

        params = SamplingParams(max_tokens=1, output_kind=RequestOutputKind.DELTA, detokenize=False)
        try:
            async with contextlib.aclosing(self._host.engine.generate(stream(), params, name)) as outputs:
                async for output in outputs:
                    self._output(output)
            self.fail(Failure(frames.UNAVAILABLE, "The engine ended the session."))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the engine raises, whoever waits must hear of it
            log.warning("modelnet: a session failed in the engine: %s: %s", type(error).__name__, error)
            self.fail(Failure(frames.UNAVAILABLE, f"The engine failed ({type(error).__name__})."))

    def _output(self, output: Any) -> None:
        """The engine is done with an input: the tap's frame must be here by now, or soon."""
        if not output.outputs or not output.outputs[0].token_ids:
            return
        self._answered += len(output.outputs[0].token_ids)
        if self._complete():
            self._wake()
        elif (
            self._answered >= self._pushed
        ):  # else it was of an input before: the frame is here sooner than the engine's own output
            seq = self._seq
            loop = asyncio.get_running_loop()
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_later(SILENCE, self._silent, seq)

    def _silent(self, seq: int) -> None:
        if seq == self._seq and not self._complete():
            self.fail(Failure(frames.UNAVAILABLE, "The engine's logits processor sends nothing (is it loaded?)."))

    async def _end(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # was told already


def _joined(rows: Sequence[Rows]) -> Rows:
    if len(rows) == 1:
        return rows[0]
    ids, logprobs, outside = zip(*rows, strict=True)
    return np.concatenate(ids), np.concatenate(logprobs), np.concatenate(outside)
