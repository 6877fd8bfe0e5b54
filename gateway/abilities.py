"""What a request asks of whoever writes the answer, and whether a wiring can do it. Nothing is ever silently left out.

The last stage of a wiring decides:
    native      one model whose own server honours OpenAI's fields: they are handed on as they came
    by us       one model that opens token sessions, or a group: we tell log-probabilities, hold formats and tools by ourselves
    text only   one model that does neither: refused, with the reason
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from backends.catalog import Catalog, Entry
from backends.fake import FakeBackend
from backends.types import Sampling
from backends.wrappers import inner
from strategies.engine import Constraint, Drafting, EarlyPrefilling, Options, Tools, Waiting
from strategies.fusion import FuserError, fuser_of
from strategies.planning import FusedStage, Plan, TextStage

Reasons = Mapping[str, str]
"""Field of a request → why only some wirings can honour it, in words for the client."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks beyond messages and sampling.

    native: known fields as they came, for a server that honours them. The same, read: logprobs, constraint, tools (as in
    `Options`). constraint_param: the field that the constraint came in. fuser: in place of the alias' or the default one.
    record: what each member said about each piece is wanted. prompts, stage_max_tokens, drafts, early_prefill, quorum: in place of
    the alias' or the default ones. only_single, only_native, only_ours: what only a wiring of one
    native model, only one whose last stage is native, or only one whose last stage is not, can honour.
    """

    native: Mapping[str, Any] = field(default_factory=dict)
    logprobs: int | None = None
    constraint: Constraint | None = None
    constraint_param: str = "response_format"
    tools: Tools | None = None
    fuser: str | None = None
    record: bool = False
    prompts: str | None = None
    stage_max_tokens: int | None = None
    drafts: Drafting | None = None
    early_prefill: EarlyPrefilling | None = None
    quorum: Waiting | None = None
    only_single: Reasons = field(default_factory=dict)
    only_native: Reasons = field(default_factory=dict)
    only_ours: Reasons = field(default_factory=dict)


NOTHING = Asked()


class CantHonour(Exception):
    """A wiring can't do what a field asks. param: the field; the message is for the client."""

    def __init__(self, param: str, reason: str) -> None:
        super().__init__(reason)
        self.param = param


def writes_natively(plan: Plan, catalog: Catalog) -> bool:
    """Whether the answer is written by a model whose own server honours OpenAI's fields."""
    last = plan.stages[-1]
    return isinstance(last, TextStage) and catalog[last.branch.model].native


def fit(options: Options, asked: Asked, plan: Plan, catalog: Catalog) -> Options:
    """The options with what is asked, each part where it will be honoured. options: with the request's sampling and the fields
    that we do not know. Raises CantHonour."""
    native = writes_natively(plan, catalog)
    for param, reason in _refusals(asked, plan, native):
        raise CantHonour(param, reason)
    last = plan.stages[-1]
    if not native and isinstance(last, TextStage):
        for param, reason in _beyond_text(options.sampling, asked, catalog[last.branch.model]):
            raise CantHonour(param, reason)
    options = replace(options, fuser=asked.fuser or options.fuser, record=asked.record)
    if native:
        # Of the tools, the models before the last one are still told by us.
        tools = asked.tools if len(plan.stages) > 1 else None
        return replace(options, extra={**options.extra, **asked.native}, tools=tools)
    return replace(options, extra={}, logprobs=asked.logprobs, constraint=asked.constraint, tools=asked.tools)


def _refusals(asked: Asked, plan: Plan, native: bool) -> Iterator[tuple[str, str]]:
    if not (native and plan.shape == "single"):
        yield from asked.only_single.items()
    yield from (asked.only_ours if native else asked.only_native).items()
    if asked.fuser is not None:
        if not any(isinstance(stage, FusedStage) for stage in plan.stages):
            yield "modelnet.fuser", "There is no group in this wiring, so nothing is fused."
        try:
            fuser_of(asked.fuser)
        except FuserError as error:
            yield "modelnet.fuser", f"{error}."
    if asked.record and isinstance(plan.stages[-1], TextStage):
        yield "modelnet.record", "The answer is not written by a group, so there is nothing to record."


def _beyond_text(sampling: Sampling, asked: Asked, writer: Entry) -> Iterator[tuple[str, str]]:
    """What a model that we have no say in can't do."""
    if isinstance(inner(writer.backend), FakeBackend):
        for param in ("frequency_penalty", "presence_penalty"):
            if getattr(sampling, param):
                yield param, f"{param} is not supported by this wiring: a scripted model has no sampler."
    if writer.token_backend() is not None:
        return
    name = writer.backend.name
    wanted = {
        "logprobs": asked.logprobs is not None,
        asked.constraint_param: asked.constraint is not None,
        "tools": asked.tools is not None,
        "logit_bias": bool(sampling.logit_bias),
        "min_p": sampling.min_p is not None,
    }
    why = writer.why_not_fused or "its backend streams text only"
    for param, is_wanted in wanted.items():
        if is_wanted:
            yield param, f"{param} is not supported by this wiring: model {name!r} opens no token sessions ({why})."
