"""What a request may spend, told before it runs: what is held of a key's limits until the real numbers are there.

Every branch of every stage reads the conversation (and the answer it is handed) and may write its stage's whole budget. A prompt's
tokens are estimated (`backends.estimate`): what was really spent is charged in the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.ledger.prices import Prices
from gateway.limits.verdict import Ask
from strategies.planning import Plan
from strategies.planning.plan import branches


@dataclass(frozen=True, slots=True)
class Budgets:
    """Tokens that each stage but the last may write, and the last."""

    stage: int
    answer: int


def estimate(plan: Plan, prompt: int, budgets: Budgets, n: int, prices: Prices) -> Ask:
    """prompt: tokens. n: answers, each of which runs the whole plan."""
    tokens = nano = 0
    last = len(plan.stages) - 1
    for index, stage in enumerate(plan.stages):
        written = budgets.answer if index == last else budgets.stage
        for branch in branches(stage):
            read = prompt + (budgets.stage if branch.reads is not None else 0)
            tokens += read + written
            nano += prices.nano(branch.model, read, written)
    return Ask(tokens * n, nano * n)


def of_models(models: Mapping[str, int], prices: Prices) -> Ask:
    """Where nothing is written (embeddings): model → tokens that it reads."""
    return Ask(sum(models.values()), sum(prices.nano(model, read, 0) for model, read in models.items()))
