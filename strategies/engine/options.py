"""What one request asks of a plan's run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from backends.types import Sampling
from strategies.prompting import PromptSet


@dataclass(frozen=True, slots=True)
class Options:
    """
    sampling: of the answer. Temperature, top_p and seed hold for every stage; max_tokens and stop for the last one only.
        A fused stage is greedy when the temperature is None.
    extra: request fields unknown to us, passed on to the last stage where it is a single model.
    stage_max_tokens: budget of every stage but the last, tokens.
    answer_max_tokens: budget of the last stage where the request names none, tokens; None: what the context leaves.
    fuser: name in `strategies.fusion.FUSERS`.
    top_k: how many tokens each member lists per step.
    """

    prompts: PromptSet
    sampling: Sampling = Sampling()
    extra: Mapping[str, Any] = field(default_factory=dict)
    stage_max_tokens: int = 512
    answer_max_tokens: int | None = 1024
    fuser: str = "linear"
    top_k: int = 64
