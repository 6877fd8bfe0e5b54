"""Every fuser of ours keeps the contract that others can inherit."""

from __future__ import annotations

from functools import partial

from strategies.fusion import FUSERS
from strategies.fusion.testing import FuserContract


class TestLinear(FuserContract):
    factory = FUSERS["linear"]


class TestGeometric(FuserContract):
    factory = FUSERS["geometric"]


class TestEntropyWeighted(FuserContract):
    factory = FUSERS["entropy-weighted"]


class TestGated(FuserContract):
    factory = staticmethod(partial(FUSERS["gated"], threshold=0.4))


class TestUnionTopK(FuserContract):
    factory = FUSERS["union-top-k"]
    copies = False  # it adds up a model's several ends, and the model alone does not
