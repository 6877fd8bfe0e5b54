"""What a running plan reports, in order of time.

Per stage: one `StageStarted`, any number of `Delta`, `MemberDropped` and `Recorded`, one `StageFinished`. Stages that do not depend
on each other interleave. The last stage's `Delta`s are the answer. After its `StageFinished` comes one `Finished`, then nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from backends.types import TokenLogprob, ToolCallDelta, Usage
from strategies.fusion.meters import Certificate, Meters


@dataclass(frozen=True, slots=True)
class BranchReport:
    """What one model spent in a stage. seconds: of a group's member, how long its forward passes were waited for in all."""

    model: str
    role: str
    usage: Usage
    weight: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Dropped:
    """A member that left a group before the answer was whole.

    branch: index in the stage's branches. model: its name. piece: how many pieces had been said by then. reason: for clients to
    read. late: it was too slow, not broken.
    """

    branch: int
    model: str
    piece: int
    reason: str
    late: bool = False


@dataclass(frozen=True, slots=True)
class DraftReport:
    """What reading ahead came to in a group's stage; tokens are the members' own, of all members together.

    proposed: tokens read ahead. accepted: those of them that were then said. passes: times that the group read ahead. spared: rounds of
    steps that took no pass. settled: passes made again, singly, where a draft's own distribution was not good enough. led: of the
    passes, those that read what the fastest member had said while it waited for the others.
    """

    proposed: int = 0
    accepted: int = 0
    passes: int = 0
    spared: int = 0
    settled: int = 0
    led: int = 0


@dataclass(frozen=True, slots=True)
class PrefillReport:
    """What a stage's models read before its inputs were whole. prepared: times that one of them read what there was. failed: models that
    then read no further, because their backends failed at it; their part in the stage itself is not touched by that."""

    prepared: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class QuorumReport:
    """What not waiting for everybody came to in a group's stage.

    pieces: said while somebody was missing who could not have changed them. lag: the most pieces that a member was behind.
    """

    pieces: int = 0
    lag: int = 0


@dataclass(frozen=True, slots=True)
class StageReport:
    """A finished stage. seconds: from its start to its last token; first_token: to its first (None if it wrote nothing).

    gap: seconds from the end of the stages that it reads (of the last of them) to its first token; None if it reads none, or wrote nothing.
    prefill: where models of it could read early.

    dropped: members that left on the way, in the order in which they did; from then on the others' weights were scaled to one.
    waited: of a group, seconds in which it waited for its members (their forward passes, and the way there and back); own: seconds of
    its steps in which it did not: choosing, committing, handing on. drafts: of a group that may read ahead. quorum: of one that need
    not wait for everybody.
    """

    stage: int
    branches: tuple[BranchReport, ...]
    seconds: float
    first_token: float | None
    finish_reason: str
    meters: Meters | None = None
    dropped: tuple[Dropped, ...] = ()
    waited: float | None = None
    own: float | None = None
    drafts: DraftReport | None = None
    gap: float | None = None
    prefill: PrefillReport | None = None
    quorum: QuorumReport | None = None

    @property
    def usage(self) -> Usage:
        return sum((b.usage for b in self.branches), Usage())


@dataclass(frozen=True, slots=True)
class StageStarted:
    """`stage` is the index in `Plan.stages`."""

    stage: int


@dataclass(frozen=True, slots=True)
class StageRestarted:
    """A stage's model failed, and the stage begins anew: what its `Delta`s have said so far is void. Never the last stage."""

    stage: int


@dataclass(frozen=True, slots=True)
class Delta:
    """More of a stage's text or tool calls. `reasoning`: text that the model's server itself marked as reasoning; `refusal`: one that it
    gives in place of an answer (of the last stage only; an earlier one's is its text).

    tokens: where log-probabilities were asked for, those that make up `text`; refusal_tokens: `refusal`.
    """

    stage: int
    text: str
    reasoning: str = ""
    tokens: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCallDelta, ...] = ()
    refusal: str = ""
    refusal_tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class MemberDropped:
    """A group goes on without one of its members. Told at once; the stage's report has it too."""

    stage: int
    dropped: Dropped


@dataclass(frozen=True, slots=True)
class Recorded:
    """How a group came to a piece, where a record was asked for; one event per piece, the end included.

    piece: number of the piece, from 0. text: its bytes, empty at the end. probability: the pooled one. certificate: how certain it was.
    members: per branch its own probability of the piece; None: it was not asked, or left before.
    others: who would have said something else: (index of the branch, the bytes, its own probability of them); empty bytes: the end.
    """

    stage: int
    piece: int
    text: bytes
    probability: float
    certificate: Certificate
    members: tuple[float | None, ...]
    others: tuple[tuple[int, bytes, float], ...]


@dataclass(frozen=True, slots=True)
class StageFinished:
    """A stage has written its last."""

    report: StageReport


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete. `usage` adds up all stages and members."""

    finish_reason: str
    usage: Usage
    stages: tuple[StageReport, ...]


Event = StageStarted | StageRestarted | Delta | MemberDropped | Recorded | StageFinished | Finished
