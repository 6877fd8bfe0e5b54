"""Runs a stage whose text comes out of token sessions: a group that writes together, or one model where we choose its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import anyio

from backends.catalog import Catalog
from backends.errors import BackendError, CapabilityMissing, ContextTooLong
from backends.protocol import Session, TokenBackend
from backends.raw import raw_ids
from backends.textout import TextOut
from backends.types import Sampling, TokenLogprob, Usage, Vocabulary
from strategies.engine import guiding
from strategies.engine.drafting import Ahead, Copier, Drafts, Pace, noise_of
from strategies.engine.events import BranchReport, Delta, Dropped, MemberDropped, Recorded, StageReport
from strategies.engine.group import Group, dropped
from strategies.engine.options import WILLING
from strategies.engine.quorum import Quorum, following, may_be_early
from strategies.engine.stages import Clock, Job, alone
from strategies.engine.tokens import Said, TokensOut
from strategies.fusion import Chooser, Commit, Fuser, Guide, Tell, chooser_for, fuser_of
from strategies.fusion.quorum import QuorumPool
from strategies.planning.plan import Branch, FusedStage
from strategies.vocabulary import inventory_of


async def run_fused(stage: FusedStage, job: Job) -> tuple[str, StageReport]:
    """A group writes together: every committed piece is said by all before the next is chosen."""
    clock, sampling = Clock(), job.sampling()
    members, gone = await _members(stage, job)
    async with AsyncExitStack() as stack:
        group = await _gather(stack, members, gone, job)
        writer = _Writer(job, clock, [*sampling.stop, *_turn_stops(stage, job)], len(stage.branches))
        reason, began, ended = "length", clock.seconds(), False
        most = sampling.max_tokens
        while most is None or group.pieces < most:
            try:
                await group.advance(None if most is None else most - group.pieces)
            except ContextTooLong:
                if not group.pieces:
                    raise
                break
            said = group.commit()
            await writer.write(said, group)
            if said.end or writer.stopped:
                reason, ended = "stop", said.end
                break
        if reason == "length":
            await writer.finish(cut=True)
        stepped = clock.seconds() - began
        await group.finish(ended=ended)
        await group.settle_down()
        closing = int(ended and len(stage.branches) == 1 and job.catalog[stage.branches[0].model].native)
        usage = {  # a server that writes by itself counts the token that ends its text, so it does where it is read through a session
            member.index: Usage(session.prompt_tokens, written + closing)
            for member, session, written in zip(members, group.members.opened, group.written(), strict=True)
            if not isinstance(session, BackendError)
        }
    seconds = {member.index: spent for member, spent in zip(members, group.members.seconds, strict=True)}
    reports = tuple(
        BranchReport(branch.model, branch.role, usage.get(index, Usage()), weight, seconds.get(index, 0.0))
        for index, (branch, weight) in enumerate(zip(stage.branches, stage.weights, strict=True))
    )
    meters = replace(group.fuser.meters, passes=group.members.passes, widened=group.widened)
    if not writer.stopped:
        reason = guiding.finish_of(writer.calls, reason)
    own = max(0.0, stepped - group.waited)
    left = tuple(group.dropped)
    report = StageReport(
        job.index, reports, clock.seconds(), clock.first, reason, meters, left, group.waited, own,
        drafts=group.drafts_report, quorum=group.quorum_report,
    )  # fmt: skip
    return "".join(writer.texts), report


@dataclass(frozen=True, slots=True)
class _Member:
    """A branch that takes part. index: its place in the stage."""

    index: int
    branch: Branch
    weight: float
    vocabulary: Vocabulary


class _Writer:
    """Makes text and tool calls of what a group says, and tells them. calls: None where it may not call any."""

    __slots__ = ("_branches", "_clock", "_job", "_out", "_tokens", "calls", "texts")

    def __init__(self, job: Job, clock: Clock, stops: Sequence[str], branches: int) -> None:
        self._branches = branches
        self._job = job
        self._clock = clock
        self._out = TextOut(stops)
        self._tokens = TokensOut(stops) if _wants_logprobs(job) else None
        self.calls = guiding.calls_of(job.options.constraint, job.options.tools) if job.last else None
        self.texts: list[str] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return (self._tokens or self._out).stopped

    async def write(self, said: Commit, group: Group) -> None:
        """The group's next piece, or its end."""
        if said.detail is not None and self._job.options.record and self._job.last:
            await self._job.emit(_recorded(self._job.index, self._branches, said, group))
        if said.end:
            await self.finish()
            return
        token = None
        if self._tokens is not None:
            assert said.detail is not None
            token = TokenLogprob(said.text, said.detail.logprob, said.detail.top)
        if self.calls is None:
            await self._say(said.text, token)
        else:
            await self._part(self.calls.feed(said.text, token), over=self.calls.calling)

    async def finish(self, *, cut: bool = False) -> None:
        """What was held back. cut: the answer did not come to an end by itself."""
        if self.calls is not None:
            await self._part(self.calls.finish(cut=cut), over=False)
        await self._flush()

    async def _part(self, parted: guiding.Parted, *, over: bool) -> None:
        """over: there is no more text, only calls."""
        for data, token in parted.text:
            await self._say(data, token)
        if over:
            await self._flush()
        if parted.calls and not self.stopped:
            self._clock.wrote()
            await self._job.emit(Delta(self._job.index, "", tool_calls=parted.calls))

    async def _say(self, data: bytes, token: TokenLogprob | None) -> None:
        if self._tokens is None or token is None:
            await self._give((self._out.feed(data), ()))
        else:
            await self._give(self._tokens.feed(replace(token, text=data)))

    async def _flush(self) -> None:
        await self._give((self._out.finish(), ()) if self._tokens is None else self._tokens.finish())

    async def _give(self, said: Said) -> None:
        text, tokens = said
        if text:
            self._clock.wrote()
            self.texts.append(text)
            await self._job.emit(Delta(self._job.index, text, tokens=tokens))


def _recorded(stage: int, branches: int, said: Commit, group: Group) -> Recorded:
    detail = said.detail
    assert detail is not None
    members: list[float | None] = [None] * branches
    for number, probability in enumerate(detail.members):
        members[group.branches[number]] = probability
    others = tuple((group.branches[number], text, p) for number, text, p in detail.others)
    piece = group.pieces - 1
    return Recorded(stage, piece, said.text, said.probability, detail.certificate, tuple(members), others)


def _wants_logprobs(job: Job) -> bool:
    return job.last and job.options.logprobs is not None


def _tell(job: Job) -> Tell | None:
    """What the fuser has to tell about each piece."""
    record = job.last and job.options.record
    if not record and not _wants_logprobs(job):
        return None
    return Tell(top=job.options.logprobs or 0 if job.last else 0, members=record)


async def _members(stage: FusedStage, job: Job) -> tuple[list[_Member], list[Dropped]]:
    """The branches whose vocabulary can be had; the others are dropped, if that is allowed, and the weights scaled to one."""
    members: list[_Member] = []
    gone: list[Dropped] = []
    for index, (branch, weight) in enumerate(zip(stage.branches, stage.weights, strict=True)):
        try:
            vocabulary = await _tokens(job.catalog, branch).vocabulary()
        except BackendError as error:
            if job.options.on_member_failure == "fail" or len(gone) + 1 == len(stage.branches):
                raise
            gone.append(dropped(error, index, 0))
        else:
            members.append(_Member(index, branch, weight, vocabulary))
    whole = sum(member.weight for member in members)
    return [replace(member, weight=member.weight / whole) for member in members] if gone else members, gone


async def _gather(stack: AsyncExitStack, members: Sequence[_Member], gone: Sequence[Dropped], job: Job) -> Group:
    """The group with its fuser and open sessions, without those that can't be opened."""
    options = job.options
    vocabularies = [member.vocabulary for member in members]
    inventory = await anyio.to_thread.run_sync(inventory_of, tuple(vocabularies))  # the first time it takes a second
    rule = guiding.rule_for(options.constraint, options.tools) if job.last else None
    guide = await guiding.guide_for(rule, inventory, members[0].branch.model) if rule is not None else None
    make, weights = fuser_of(options.fuser), [m.weight for m in members]
    chooser = chooser_for(_sampling(members, job))
    if options.quorum != "off" and may_be_early(make, weights, chooser, guide, _tell(job)):
        make = QuorumPool
    fuser = make(vocabularies, weights, chooser, guide=guide, tell=_tell(job))

    async def tell_dropped(dropped: Dropped) -> None:
        await job.emit(MemberDropped(job.index, dropped))

    opened: Sequence[Session | BackendError] = await _open(stack, members, job)
    drafts = quorum = None
    if isinstance(fuser, QuorumPool):
        quorum = Quorum(fuser, await stack.enter_async_context(following()), opened)
    if options.drafts != "off" and (ahead := _ahead(opened, members, job, plain=_plain(fuser, chooser, guide, job))):
        exact = not any(one.noise for one in ahead)
        quorum = quorum if exact else None
        pace = Pace([one.times for one in ahead], always=options.drafts == "always", exact=exact, waits=quorum is None)
        opened = [one if isinstance(one, BackendError) else each for one, each in zip(opened, ahead, strict=True)]
        lead = pace.exact and quorum is None  # who is not waited for needs nobody to run ahead of him
        drafts = Drafts(ahead, vocabularies, inventory, Copier(_sources(members, job)), pace, lead=lead)
    elif quorum is not None:
        opened = _exact(opened, members, job)
    names = [member.branch.model for member in members]
    group = Group(names, [member.index for member in members], fuser, opened, options, tell_dropped, drafts, quorum)
    await group.start(gone)
    return group


def _plain(fuser: Fuser, chooser: Chooser, guide: Guide | None, job: Job) -> bool:
    """Whether nothing but the members' likeliest piece decides what is said, and nothing is told but that."""
    greedy = chooser.certain and chooser.shaping is None and guide is None
    return greedy and getattr(fuser, "unanimous", False) and _tell(job) is None


def _ahead(
    opened: Sequence[Session | BackendError], members: Sequence[_Member], job: Job, *, plain: bool
) -> list[Ahead]:
    """The sessions as such that can read ahead; none if one of them can't, or if its last digits would matter."""
    ahead = [
        Ahead(one, job.catalog[member.branch.model].times)
        for one, member in zip(opened, members, strict=True)
        if not isinstance(one, BackendError)
    ]
    noisy_too = plain and job.options.drafts in WILLING
    if len(ahead) < len(opened) or any(one.noise is None or (one.noise and not noisy_too) for one in ahead):
        return []
    return ahead


def _exact(
    opened: Sequence[Session | BackendError], members: Sequence[_Member], job: Job
) -> list[Session | BackendError]:
    """The sessions, those as such that can read ahead whose scored drafts equal single steps."""
    exact = [not isinstance(one, BackendError) and noise_of(one) == 0.0 for one in opened]
    return [
        Ahead(one, job.catalog[member.branch.model].times) if able and not isinstance(one, BackendError) else one
        for one, able, member in zip(opened, exact, members, strict=True)
    ]


def _sources(members: Sequence[_Member], job: Job) -> list[bytes]:
    """What an answer may repeat: the answers that its members read, and what was asked."""
    read = dict.fromkeys(member.branch.reads for member in members if member.branch.reads is not None)
    asked = [message.content for message in reversed(job.messages) if message.role == "user"]
    return [text.encode() for text in (*(job.previous[index] for index in read), *asked)]


async def _open(stack: AsyncExitStack, members: Sequence[_Member], job: Job) -> list[Session | BackendError]:
    """Open the group's sessions one after another in the order of their models' names.

    With that order two groups can't each hold what the other waits for. A model that is wanted more than once is opened
    under its entry's lock, so that two groups can't each hold a part of one model's places. Where members may be dropped, an error
    stands in the place of one that could not be opened.
    """
    models = [member.branch.model for member in members]
    alone = len(members) == 1  # writes until its context is full, as it does by itself
    wanted = job.options.sampling.max_tokens if job.last and not alone else None
    sessions: list[Session | BackendError] = []
    async with AsyncExitStack() as locks:
        held = None
        for member, model in zip(members, models, strict=True):
            if model != held:
                await locks.aclose()
                held = model
                if models.count(model) > 1:
                    await locks.enter_async_context(job.catalog[model].opening)
            try:
                backend = job.readings.get(member.index) or _tokens(job.catalog, member.branch)
                opening = backend.open(job.conversation(member.branch), k=job.options.top_k, max_tokens=wanted)
                sessions.append(await stack.enter_async_context(opening))
                stack.enter_context(job.catalog[model].times.shared())
            except BackendError as error:
                if job.options.on_member_failure == "fail":
                    raise
                sessions.append(error)
    for reading in job.readings.values():  # for members that take no part
        await reading.close()
    return sessions


def _sampling(members: Sequence[_Member], job: Job) -> Sampling:
    sampling = job.sampling()
    return sampling if len(members) > 1 else alone(sampling, job.catalog[members[0].branch.model])


def _tokens(catalog: Catalog, branch: Branch) -> TokenBackend:
    entry = catalog[branch.model]
    backend = entry.token_backend()
    if backend is None:  # planning refuses this; a model may have lost the ability since
        raise CapabilityMissing(branch.model, entry.why_not_fused or f"{branch.model} opens no token sessions")
    return backend


def _turn_stops(stage: FusedStage, job: Job) -> list[str]:
    """What ends a turn in the transcripts of models without a template. A text that must match something ends where that says, and
    a raw prompt is no transcript."""
    if (job.last and job.options.constraint is not None) or raw_ids(job.messages) is not None:
        return []
    backends = [job.catalog[branch.model].backend for branch in stage.branches]
    return [stop for backend in backends for stop in getattr(backend, "turn_stops", ())]
