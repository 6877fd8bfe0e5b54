"""What one request asks of a plan's run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from backends.types import Sampling
from strategies.prompting import PromptSet

FIRST_STEP = 10.0
"""How much longer than any other step a member's first one may take."""


Drafting = Literal["off", "auto", "on", "always"]
WILLING = frozenset[Drafting]({"on", "always"})
"""With these, drafts also go to models whose last digits they may change, and models that write by themselves read ahead."""
EarlyPrefilling = Literal["off", "auto"]
Waiting = Literal["off", "auto"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the text of an answer must match. source: a JSON schema (as JSON text), a regular expression, or a grammar (Lark's form).

    A `json_object` is any JSON object; its source is empty.
    """

    kind: Literal["json_object", "json_schema", "regex", "grammar"]
    source: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the client offers. parameters: JSON schema of its arguments (an object), as the client sent it."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tools:
    """The functions that an answer may call. choice: "auto", "none", "required", or the name of the one that must be called
    (as `named`). parallel: whether there may be more than one call."""

    tools: tuple[Tool, ...]
    choice: Literal["auto", "none", "required", "named"] = "auto"
    named: str | None = None
    parallel: bool = True


def _always(model: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Options:
    """
    sampling: of the answer. Temperature, top_p and seed hold for every stage; max_tokens and stop for the last one only.
        A fused stage is greedy when the temperature is None.
    extra: request fields unknown to us, passed on to the last stage where it is a single model.
    stage_max_tokens: budget of every stage but the last, tokens.
    answer_max_tokens: budget of the last stage where the request names none, tokens; None: what the context leaves.
    fuser: name of a fuser, with settings behind a colon where it has any (`strategies.fusion.fuser_of`).
    top_k: how many tokens each member lists per step.
    logprobs: how many of the likeliest pieces to tell beside each piece of the answer; None: tell no log-probabilities.
    record: whether to tell how a group came to every piece of the answer (`events.Recorded`).
    on_member_failure: whether a group goes on without a member that fails. member_seconds: a member that takes longer for a step counts
        as failed; for its first step, which reads the prompt, it may take `FIRST_STEP` times as long. None: no limit.
    reruns: how often a stage that nobody has seen is run again when its model fails. may_rerun: asked each time, with the model's name.
    drafts: whether to read ahead (`strategies.engine.drafting`) where that pays: "auto" in groups, where it can't change a digit; "on"
        wherever there is a session, models that write by themselves included; "always" as "on", and whether it pays or not.
    early_prefill: whether models read while the stage that they will read still writes (`strategies.engine.early_prefill`): "auto" where
        their backends can, and they have nothing else to do for this request.
    quorum: whether a group may go on without members that can't change the next piece (`strategies.engine.quorum`): "auto" where that
        changes nothing but the time it takes, "off" never.
    constraint: what the answer must match. tools: what it may call. Both bind the last stage only, and are enforced by us where its
        model's server does not do so itself.
    """

    prompts: PromptSet
    sampling: Sampling = Sampling()
    extra: Mapping[str, Any] = field(default_factory=dict)
    stage_max_tokens: int = 512
    answer_max_tokens: int | None = 1024
    fuser: str = "linear"
    top_k: int = 64
    logprobs: int | None = None
    record: bool = False
    on_member_failure: Literal["fail", "drop"] = "fail"
    member_seconds: float | None = None
    reruns: int = 0
    may_rerun: Callable[[str], bool] = _always
    drafts: Drafting = "off"
    early_prefill: EarlyPrefilling = "off"
    quorum: Waiting = "off"
    constraint: Constraint | None = None
    tools: Tools | None = None
