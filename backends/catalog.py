"""The models that exist, by name: what planning looks at and what the engine calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import anyio

from backends.passtimes import PassTimes
from backends.protocol import TextBackend, TokenBackend


@dataclass(frozen=True, slots=True)
class Entry:
    """A model in the catalogue.

    seats: how many token sessions the backend can hold open at once, None if that is not known here.
    opening: held while a group opens several sessions of this one model, so that two groups can't each wait for the other's.
    why_not_fused: None if the backend opens token sessions, else the reason, to be shown to whoever wires it in a group.
    native: whether its own server honours OpenAI's tools, response_format, logprobs and logit_bias: request fields are then passed to
        it as they came. Where not, we honour them ourselves, over a token session.
    times: how long passes of its token sessions take, learned from them.
    reasoning: the pair of marks around text that is cut before an answer is handed on, e.g. ("<think>", "</think>").
    """

    backend: TextBackend
    why_not_fused: str | None = None
    reasoning: tuple[str, str] | None = None
    owned_by: str = "modelnet"
    seats: int | None = None
    native: bool = False
    opening: anyio.Lock = field(default_factory=anyio.Lock, compare=False, repr=False)
    times: PassTimes = field(default_factory=PassTimes, compare=False, repr=False)

    def token_backend(self) -> TokenBackend | None:
        """The backend as one that opens sessions, if it does."""
        backend = self.backend
        return backend if self.why_not_fused is None and isinstance(backend, TokenBackend) else None


@dataclass(frozen=True, slots=True)
class Catalog(Mapping[str, Entry]):
    """Model name → entry."""

    entries: Mapping[str, Entry]

    def __getitem__(self, name: str) -> Entry:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)
