"""Run with pytest. The contract brings its own models and some hundred random groups."""

from __future__ import annotations

from modelnet_loudest import LoudestPool

from strategies.fusion.testing import FuserContract


class TestLoudest(FuserContract):
    """The loudest member, on its own."""

    factory = LoudestPool
