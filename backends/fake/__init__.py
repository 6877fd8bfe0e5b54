"""The scripted backend: a model without weights, for tests, demonstrations of failure and measuring the rest of the system.

`FakeModel` is a small but real language model: a vocabulary of bytes and words, and a rule that gives every token history a
full probability vector. It is biased to follow a scripted text and then to end, so what a text stream says and what greedy
token sessions say agree. `FakeBackend` puts it behind the contract of every backend, with delays, faults, bounded seats and
counters that let a test assert that nothing leaked. `backends.fake.server` serves it over HTTP as vLLM or llama.cpp would.
"""

from backends.fake.backend import Counters, FakeBackend
from backends.fake.model import FakeModel, cut
from backends.fake.settings import FakeSettings, Fault, Rule

__all__ = ["Counters", "FakeBackend", "FakeModel", "FakeSettings", "Fault", "Rule", "cut"]
