"""A group's answer on tape: every call that its sessions got and what they answered, to be played back without the models.

A tape is made by running the engine over backends that are the real ones but for their sessions, which also write down. Played
back, a session answers at once what the real one answered, and refuses any call that the real one was not asked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from backends.catalog import Catalog
from backends.errors import CapabilityMissing
from backends.protocol import Session, TokenBackend
from backends.types import LogProbs, Message, SomeIds, TextEvent, TextRequest, TopK, Vocabulary
from gateway.bench.speed import answer
from strategies.engine import Options
from strategies.fusion import Meters
from strategies.planning.plan import FusedStage, Plan


class ReplayDiffers(Exception):
    """What is played back is asked, or says, something else than was recorded. A measurement of it would mean nothing."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a session. ids: what was appended or asked for; of a rewind: how many were dropped.

    result: the answer; of a look-up that the server refused, the refusal.
    """

    kind: Literal["step", "score", "lookup", "rewind"]
    ids: tuple[int, ...]
    result: Any = None


@dataclass(slots=True)
class Track:
    """One session's calls, in their order."""

    prompt_tokens: int
    calls: list[Call]


@dataclass(frozen=True, slots=True)
class Tape:
    """A recorded answer. The plan is one group; tracks: one per branch. catalog: the real one, whose vocabularies hold."""

    plan: Plan
    stage: FusedStage
    options: Options
    catalog: Catalog
    tracks: tuple[Track, ...]
    text: str
    meters: Meters


async def record(plan: Plan, options: Options, catalog: Catalog) -> Tape:
    """Run a plan that is one group, and keep what its models said. Raises `backends.errors`, ValueError for other plans."""
    stage = plan.stages[-1]
    if len(plan.stages) > 1 or not isinstance(stage, FusedStage):
        raise ValueError("only a single group can be recorded")
    options = replace(options, quorum="off")  # played back at once, nobody is late
    tracks: list[Track] = []
    recorded = _with_backends(catalog, {name: Recorder(backend, tracks) for name, backend in _group(plan, catalog)})
    text, finished = await answer(plan, options, recorded)
    meters = finished.stages[-1].meters
    assert meters is not None
    return Tape(plan, stage, options, catalog, tuple(tracks), text, meters)


def playing(tape: Tape) -> Catalog:
    """A catalogue whose models say what is on the tape, once."""
    tracks = iter(tape.tracks)
    return _with_backends(
        tape.catalog, {name: Player(backend, tracks) for name, backend in _group(tape.plan, tape.catalog)}
    )


def _plain(ids: SomeIds) -> tuple[int, ...]:
    return tuple(ids.tolist() if isinstance(ids, np.ndarray) else ids)


def _group(plan: Plan, catalog: Catalog) -> list[tuple[str, TokenBackend]]:
    return [(name, backend) for name in plan.models if (backend := catalog[name].token_backend()) is not None]


def _with_backends(catalog: Catalog, backends: Mapping[str, TokenBackend]) -> Catalog:
    entries = {name: replace(catalog[name], backend=backend) for name, backend in backends.items()}
    return Catalog({**catalog.entries, **entries})


class _Other:
    """A backend that is another one but for its sessions. The engine opens a group's in the order of its branches, and so
    `tracks` are in it too."""

    def __init__(self, real: TokenBackend) -> None:
        self._real = real

    @property
    def name(self) -> str:
        return self._real.name

    @property
    def turn_stops(self) -> tuple[str, ...]:
        return tuple(getattr(self._real, "turn_stops", ()))

    async def vocabulary(self) -> Vocabulary:
        return await self._real.vocabulary()

    def stream(self, request: TextRequest) -> AbstractAsyncContextManager[AsyncIterator[TextEvent]]:
        return self._real.stream(request)

    async def start(self) -> None:
        """It was started already."""

    async def ready(self) -> None:
        await self._real.ready()

    async def aclose(self) -> None:
        """It is not this one's to close."""


class Recorder(_Other):
    """A `TokenBackend` whose sessions add a track each."""

    def __init__(self, real: TokenBackend, tracks: list[Track]) -> None:
        super().__init__(real)
        self._tracks = tracks

    @asynccontextmanager
    async def open(
        self, messages: Sequence[Message], *, k: int, max_tokens: int | None = None
    ) -> AsyncIterator[Session]:
        async with self._real.open(messages, k=k, max_tokens=max_tokens) as session:
            track = Track(session.prompt_tokens, [])
            self._tracks.append(track)
            yield _RecordedSession(session, track.calls)


class _RecordedSession:
    def __init__(self, real: Session, calls: list[Call]) -> None:
        self._real = real
        self._calls = calls

    @property
    def prompt_tokens(self) -> int:
        return self._real.prompt_tokens

    async def step(self, append: Sequence[int] = ()) -> TopK:
        result = await self._real.step(append)
        self._calls.append(Call("step", tuple(append), result))
        return result

    async def score(self, draft: Sequence[int]) -> list[TopK]:
        result = await self._real.score(draft)
        self._calls.append(Call("score", tuple(draft), result))
        return result

    async def lookup(self, ids: SomeIds) -> LogProbs:
        try:
            result = await self._real.lookup(ids)
        except CapabilityMissing as refusal:  # the engine goes on without
            self._calls.append(Call("lookup", _plain(ids), refusal))
            raise
        self._calls.append(Call("lookup", _plain(ids), result))
        return result

    async def rewind(self, n: int) -> None:
        await self._real.rewind(n)
        self._calls.append(Call("rewind", (n,)))

    async def close(self) -> None:
        await self._real.close()


class Player(_Other):
    """A `TokenBackend` whose sessions play the next track each."""

    def __init__(self, real: TokenBackend, tracks: Iterator[Track]) -> None:
        super().__init__(real)
        self._tracks = tracks

    @asynccontextmanager
    async def open(
        self, messages: Sequence[Message], *, k: int, max_tokens: int | None = None
    ) -> AsyncIterator[Session]:
        track = next(self._tracks, None)
        if track is None:
            raise ReplayDiffers(f"more sessions of {self.name} are opened than were recorded")
        yield _PlayedSession(self.name, track)


class _PlayedSession:
    def __init__(self, name: str, track: Track) -> None:
        self._name = name
        self._prompt_tokens = track.prompt_tokens
        self._calls = iter(track.calls)

    @property
    def prompt_tokens(self) -> int:
        return self._prompt_tokens

    async def step(self, append: Sequence[int] = ()) -> TopK:
        result: TopK = self._answer("step", append)
        return result

    async def score(self, draft: Sequence[int]) -> list[TopK]:
        result: list[TopK] = self._answer("score", draft)
        return result

    async def lookup(self, ids: SomeIds) -> LogProbs:
        result: LogProbs | CapabilityMissing = self._answer("lookup", ids)
        if isinstance(result, CapabilityMissing):
            raise result
        return result

    async def rewind(self, n: int) -> None:
        self._answer("rewind", (n,))

    async def close(self) -> None:
        """There is nothing to free."""

    def _answer(self, kind: str, ids: SomeIds) -> Any:
        call = next(self._calls, None)
        if call is None or call.kind != kind or call.ids != _plain(ids):
            raise ReplayDiffers(f"{self._name} is asked for {kind} of {list(ids)}, which was not recorded here")
        return call.result
