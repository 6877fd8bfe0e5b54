"""What our own code costs per piece of a group's answer, the models left out.

Over the distributions of a real answer (`gateway.bench.tape`):
    fuser     the fuser alone: due, route, feed, wants, supply, commit, and making text of the pieces. *Cold* is the first answer
              after the tables of the group's pieces were built anew, when no token has been spelled yet; *warm* all later ones.
    engine    the whole run of the plan over sessions that answer at once: the fuser, and tasks, event loop and events around it.
              What a request costs once (opening sessions, composing prompts) is spread over its pieces too.
    tables    what that building costs, and what reading the tables costs where they were kept (`strategies.vocabulary.keep_in`).
All are processor time of the one thread that does the work: others on the machine hardly show in it. Wall-clock time is kept beside it.
In a real run the fuser reads what the faster members say while the slower ones still compute, so less than this is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from backends.errors import CapabilityMissing
from backends.textout import TextOut
from backends.types import LogProbs, TopK, Vocabulary
from gateway.bench.report import Number
from gateway.bench.speed import answer
from gateway.bench.tape import ReplayDiffers, Tape, playing
from strategies.fusion import Fuser, Node, chooser_for, fuser_of, root, route
from strategies.vocabulary import forget_inventories, inventory_of, keeping_in


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of one whole replay: processor time of this thread, and wall-clock time."""

    processor: float
    wall: float


class Stopwatch:
    """What passes between making it and `read`."""

    __slots__ = ("_processor", "_wall")

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.thread_time()

    def read(self) -> Spent:
        return Spent(time.thread_time() - self._processor, time.perf_counter() - self._wall)


async def measure(tape: Tape, wiring: str, replays: int, tell: Callable[[str], None]) -> list[Number]:
    """Replay `replays` times each way. Raises ReplayDiffers if a replay is not what was recorded."""
    tell(f"our own code: {wiring}, k {tape.options.top_k}")
    vocabularies = await vocabularies_of(tape)
    built, read = tables_of(vocabularies)
    cold, *warm = [through_fuser(tape, vocabularies) for _ in range(replays + 1)]
    engine = [await through_engine(tape) for _ in range(replays + 1)][1:]
    per_piece = 1e3 / tape.meters.pieces
    k = tape.options.top_k
    return [
        Number("tables", wiring, "ms", (1e3 * built.processor,), k),
        Number("tables read", wiring, "ms", (1e3 * read.processor,), k),
        Number("fuser cold", wiring, "ms/piece", (cold.processor * per_piece,), k),
        Number("fuser", wiring, "ms/piece", tuple(spent.processor * per_piece for spent in warm), k),
        Number("fuser wall", wiring, "ms/piece", tuple(spent.wall * per_piece for spent in warm), k),
        Number("engine", wiring, "ms/piece", tuple(spent.processor * per_piece for spent in engine), k),
        Number("engine wall", wiring, "ms/piece", tuple(spent.wall * per_piece for spent in engine), k),
    ]


def tables_of(vocabularies: Sequence[Vocabulary]) -> tuple[Spent, Spent]:
    """What the tables of a group's pieces cost: built, and read where they were kept in a folder. They are then remembered."""
    with TemporaryDirectory() as folder:
        spent = []
        for kept in (None, Path(folder), Path(folder)):
            with keeping_in(kept):
                forget_inventories()
                watch = Stopwatch()
                inventory_of(vocabularies)
                spent.append(watch.read())
        built, _, read = spent
        return built, read


async def vocabularies_of(tape: Tape) -> tuple[Vocabulary, ...]:
    """One per branch."""
    backends = [tape.catalog[branch.model].token_backend() for branch in tape.stage.branches]
    return tuple([await backend.vocabulary() for backend in backends if backend is not None])


async def through_engine(tape: Tape) -> Spent:
    """One replay through the engine. Raises ReplayDiffers."""
    catalog = playing(tape)
    watch = Stopwatch()
    text, finished = await answer(tape.plan, tape.options, catalog)
    spent = watch.read()
    _compare(tape, text, finished.stages[-1].meters == tape.meters)
    return spent


def through_fuser(tape: Tape, vocabularies: Sequence[Vocabulary]) -> Spent:
    """One replay through a new fuser, as the engine would drive it. Raises ReplayDiffers."""
    options = tape.options
    fuser = fuser_of(options.fuser)(vocabularies, tape.stage.weights, chooser_for(options.sampling))
    turn_stops = [getattr(tape.catalog[b.model].backend, "turn_stops", ()) for b in tape.stage.branches]
    out = TextOut([*options.sampling.stop, *(stop for stops in turn_stops for stop in stops)])
    tops = [[call.result for call in track.calls if call.kind == "step"] for track in tape.tracks]
    values = [[call.result for call in track.calls if call.kind == "lookup"] for track in tape.tracks]
    watch = Stopwatch()
    try:
        text = _drive(fuser, out, tops, values, tape.meters.pieces)
    except StopIteration:
        raise ReplayDiffers("the fuser asks for more than was recorded") from None
    spent = watch.read()
    meters = fuser.meters
    _compare(tape, text, (meters.certified, meters.drift) == (tape.meters.certified, tape.meters.drift))
    return spent


def _drive(
    fuser: Fuser,
    out: TextOut,
    tops: Sequence[Sequence[TopK]],
    values: Sequence[Sequence[LogProbs | CapabilityMissing]],
    pieces: int,
) -> str:
    """The engine's loop (`strategies.engine.group`) with the waiting taken out."""
    places: list[Node | None] = [None] * len(tops)
    said_next, value_next = [iter(top) for top in tops], [iter(value) for value in values]
    texts = []
    ended = False
    for _ in range(pieces):
        while True:
            for member, nodes in enumerate(fuser.due()):
                for node in nodes:
                    route(places[member] or root(node), node)
                    places[member] = node
                    fuser.feed(member, node, next(said_next[member]))
            while wanted := fuser.wants():
                for lookup in wanted:
                    value = next(value_next[lookup.member])
                    if not isinstance(value, CapabilityMissing):
                        fuser.supply(lookup, value)
            if not any(fuser.due()):
                break
        said = fuser.commit()
        ended = said.end or out.stopped
        texts.append(out.finish() if said.end else out.feed(said.text))
    if not ended:
        texts.append(out.finish())
    return "".join(texts)


def _compare(tape: Tape, text: str, same_meters: bool) -> None:
    if text != tape.text or not same_meters:
        raise ReplayDiffers(f"the replay says {text[:200]!r}, the recording {tape.text[:200]!r}")
