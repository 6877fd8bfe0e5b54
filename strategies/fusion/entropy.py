"""The entropy-weighted pool: at every piece those who are sure count for more.

Formula. P(v) = Σ_m u_m · P_m(v) with u_m ∝ w_m · exp(−H_m), H_m the entropy (nats) of member m's distribution of the next
piece: w_m divided by the number of pieces among which the member is, so to speak, undecided (its perplexity). Weighting by
entropy: Misra, Bourlard & Tyagi, "New entropy based combination rules in HMM/ANN multi-stream ASR", ICASSP 2003; by perplexity,
per prompt: Mavromatis, Karypis & Karypis, "Pack of LLMs", arXiv 2404.11531. H_m is taken over the member's list as it came, all
that is unlisted being one class: a lower bound of the true entropy that is a function of what the member said, so look-ups do
not change the weights; but another k may.
When to use it: members that are good at different things and know it. Models that are sure of what is wrong do harm here; and
one that is in the middle of a token of its own is always sure.
Cost: as the linear pool, without its shortest way.
Guarantee: given these weights, that of the linear pool. Several copies of one model are that model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from backends.types import TopK
from strategies.fusion.base import Commit, Lookup, Node
from strategies.fusion.linear import LinearPool
from strategies.fusion.readings import View


class EntropyPool(LinearPool):
    """See the module."""

    _weighed = False

    def feed(self, member: int, node: Node, top: TopK) -> None:
        super().feed(member, node, top)
        self._weighed = False

    def drop(self, member: int) -> None:
        super().drop(member)
        self._weighed = False

    def commit(self) -> Commit:
        said = super().commit()
        self._weighed = False
        return said

    def _decide(self) -> Sequence[Lookup]:
        if not self._weighed:
            self._weighed = True
            given = [self._given[number] for number in self.numbers]
            raw = [w * math.exp(-entropy(m.view())) for w, m in zip(given, self.members, strict=True)]
            whole = sum(raw)
            self.weights = tuple([weight / whole for weight in raw])
        return super()._decide()


def entropy(view: View) -> float:
    """Of a member's listed pieces and all that is unlisted as one, nats."""
    total = view.seen + view.unseen
    if total <= 0.0:
        return 0.0
    parts = [mass / total for mass in (*view.masses.values(), view.unseen) if mass > 0.0]
    return max(0.0, -sum([p * math.log(p) for p in parts]))
