"""Sequences that are free, and the beginnings of prompts that they still hold, so that the next prompt that begins so need not be read from
its start: the next turn of a conversation, another question under the same instructions.

Only whole chunks of a prompt are kept. A prompt is computed chunk by chunk from its start, each chunk alone in a pass, so what was kept
is to the last bit what would be computed again. What was written behind a prompt was computed token by token, and is not kept.
"""

from __future__ import annotations

from collections.abc import Sequence


class Kept:
    """Sequences 0 to `seats` - 1, all free at first. chunk: tokens of a prompt that are computed at a time. keep: False: nothing is kept.

    Used in the event loop only. A sequence that is taken and given back counts as the latest.
    """

    def __init__(self, seats: int, chunk: int, *, keep: bool = True) -> None:
        self._chunk = chunk
        self._keep = keep
        self._free: dict[int, Sequence[int]] = dict.fromkeys(range(seats), ())  # the one given back last stands last

    def take(self, prompt: Sequence[int]) -> tuple[int, int]:
        """A free sequence for it, and how many of the prompt's tokens that holds already: always fewer than all. Of several the one that
        holds most; where none holds any, the lowest that holds nothing at all, or the one that was given back first."""
        common = {sequence: self._common(prompt, tokens) for sequence, tokens in self._free.items()}
        sequence = max(common, key=common.__getitem__)  # the first of those that hold most
        if not common[sequence]:
            sequence = min((free for free, tokens in self._free.items() if not tokens), default=sequence)
        del self._free[sequence]
        return sequence, common[sequence]

    def worth(self, prompt: Sequence[int]) -> int:
        """How many tokens of a prompt that was read are worth keeping: the whole chunks before its last token, which is read again by
        whoever looks behind it."""
        return (len(prompt) - 1) // self._chunk * self._chunk if self._keep else 0

    def give(self, sequence: int, tokens: Sequence[int]) -> None:
        """It is free, and holds these."""
        self._free[sequence] = tuple(tokens)

    def _common(self, prompt: Sequence[int], tokens: Sequence[int]) -> int:
        most = min(len(tokens), self.worth(prompt))
        for at in range(0, most, self._chunk):
            if tuple(prompt[at : at + self._chunk]) != tokens[at : at + self._chunk]:
                return at
        return most
