"""What a request's options ask of a plan, looked at before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

import anyio.to_thread

from backends.catalog import Catalog, Entry
from backends.errors import RequestRejected
from backends.types import Message, Sampling
from strategies.engine import guiding
from strategies.engine.options import WILLING, Options
from strategies.engine.stages import alone
from strategies.fusion import fuser_of
from strategies.planning.plan import FusedStage, Plan, Stage, TextStage, branches


def asked_of_tokens(options: Options) -> tuple[str, ...]:
    """Request fields that take a say in every token, so that a model's stream of text can't honour them."""
    sampling = options.sampling
    asked = {
        "logprobs": options.logprobs is not None,
        "response_format": options.constraint is not None,
        "tools": options.tools is not None,
        "logit_bias": bool(sampling.logit_bias),
        "min_p": bool(sampling.min_p),
    }
    return tuple(field for field, is_asked in asked.items() if is_asked)


def by_session(
    stage: Stage, options: Options, catalog: Catalog, *, last: bool, messages: Sequence[Message] = ()
) -> FusedStage | None:
    """The stage as a group, if its text comes out of token sessions: it is a group, or it writes the answer with its single model, whose
    server does not itself honour what is asked, or it is to read ahead, as only sessions can. messages: the request's."""
    if isinstance(stage, FusedStage):
        return stage
    entry = catalog[stage.branch.model]
    if (last and asked_of_tokens(options) and not entry.native) or _by_drafts(entry, options, messages, last=last):
        return FusedStage((stage.branch,), (1.0,))
    return None


def _by_drafts(entry: Entry, options: Options, messages: Sequence[Message], *, last: bool) -> bool:
    """Whether a model that writes by itself is to read ahead: that is asked for, its text is its likeliest tokens, and nothing is asked
    or told that only its own server knows."""
    if options.drafts not in WILLING or entry.token_backend() is None or not _is_greedy(options.sampling, entry):
        return False
    beyond = options.extra or asked_of_tokens(options) or (entry.native and any(message.extra for message in messages))
    return not (last and beyond)


def _is_greedy(sampling: Sampling, entry: Entry) -> bool:
    """Whether a model that writes by itself says its likeliest token, whatever was said before. What a server does where the request says
    nothing is not known."""
    if sampling.frequency_penalty or sampling.presence_penalty or (sampling.temperature is None and entry.native):
        return False
    return not alone(sampling, entry).temperature


async def check(plan: Plan, options: Options, catalog: Catalog) -> None:
    """Raises RequestRejected for what can't be had from this plan, FuserError for a fuser that there is not, and guiding.BadConstraint
    for a form that we are to hold the answer to and that can't be used. Asks backends for their vocabularies only, and that only where
    ids of tokens have to be understood."""
    fuser_of(options.fuser)
    stage = plan.stages[-1]
    asked = asked_of_tokens(options)
    if isinstance(stage, TextStage) and asked:
        model, entry = stage.branch.model, catalog[stage.branch.model]
        if not entry.native and entry.token_backend() is None:
            reason = entry.why_not_fused or "its backend opens no token sessions"
            raise RequestRejected(model, f"{asked[0]} can't be honoured by model {model!r}: {reason}.", param=asked[0])
    group = by_session(stage, options, catalog, last=True)
    if group is not None and (options.constraint is not None or options.tools is not None):
        await anyio.to_thread.run_sync(guiding.check, options.constraint, options.tools)
    if group is not None and options.sampling.logit_bias:
        await _check_ids(group, options, catalog)


async def _check_ids(stage: FusedStage, options: Options, catalog: Catalog) -> None:
    """Ids mean something only where all members read them alike."""
    backends = [backend for b in branches(stage) if (backend := catalog[b.model].token_backend()) is not None]
    vocabularies = [await backend.vocabulary() for backend in backends]
    if not vocabularies:
        return
    names = ", ".join(dict.fromkeys(branch.model for branch in stage.branches))
    if len({vocabulary.fingerprint for vocabulary in vocabularies}) > 1:
        message = f"logit_bias names tokens by id, and the models {names} have different tokenizers: their ids have no common meaning."
        raise RequestRejected(backends[0].name, message, param="logit_bias")
    size = len(vocabularies[0])
    for token in options.sampling.logit_bias:
        if not 0 <= token < size:
            message = f"logit_bias names token {token}, and the ids of {names} are 0 to {size - 1}."
            raise RequestRejected(backends[0].name, message, param="logit_bias")
