"""From logits to what is sent. torch is imported when the first batch comes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 64
MARGIN = 8
"""Tokens looked at beyond k, so that among equal ones the smaller ids are listed (bfloat16 makes many equal ones)."""


class Distributions:
    """The top of some rows, in one batched pass over the vocabulary.

    logits: float [n, V], on any device; kept for exact look-ups. lse: float32 [n, 1], log of the sum of exponentials (nats).
    On an accelerator nothing here waits for it: the copies to the host are under way, `arrays` waits for them.
    """

    def __init__(self, logits: Any, k: int) -> None:
        import torch

        logits = logits.float()
        self._k = min(k, logits.shape[-1])
        self._size = logits.shape[-1]
        values, ids = _top(logits, min(self._k + MARGIN, self._size))
        greatest = values[:, :1]
        weights = torch.exp(logits - greatest)
        total = weights.sum(-1, keepdim=True)
        # Summed without the listed ones, not subtracted from 1: small masses keep their digits.
        outside = weights.scatter_(1, ids, 0.0).sum(-1) / total[:, 0]
        self.logits = logits
        self.lse = greatest + torch.log(total)
        self._device = (ids.to(torch.int32), values - self.lse, outside)
        self.event: Any = None
        if logits.device.type != "cpu":
            self._device = tuple(part.to("cpu", non_blocking=True) for part in self._device)
            self.event = torch.Event(logits.device)
            self.event.record()

    def arrays(self) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
        """ids int32 [n, k], log-probabilities float32 [n, k] (nats, descending, ties by id), mass outside float32 [n].

        The mass is 0 exactly where k is the whole vocabulary. NaN in the logits is NaN here.
        """
        if self.event is not None:
            self.event.synchronize()
        ids, logprobs, outside = (part.numpy() for part in self._device)
        order = np.lexsort((ids, -logprobs), axis=-1)
        ids = np.take_along_axis(ids, order, -1)
        logprobs = np.take_along_axis(logprobs, order, -1)
        k = self._k
        if k < self._size:
            outside = outside + np.exp(logprobs[:, k:]).sum(-1)
            outside = np.clip(outside, 1e-30, 1.0)
        return ids[:, :k], logprobs[:, :k], outside.astype(np.float32)


def _top(logits: Any, k: int) -> tuple[Any, Any]:
    """The k greatest of each row, values and indices, as `torch.topk` but about three times as fast on a large vocabulary.

    They lie in the k blocks with the greatest maxima, or in the rest behind the last whole block.
    """
    import torch

    rows, size = logits.shape
    count = size // BLOCK
    if count < 4 * k:
        values, ids = torch.topk(logits, k, dim=-1)
        return values, ids
    blocks = logits[:, : count * BLOCK].view(rows, count, BLOCK)
    best = torch.topk(blocks.amax(-1), k, dim=-1).indices
    offsets = torch.arange(BLOCK, device=logits.device)
    ids = (best[:, :, None] * BLOCK + offsets).view(rows, -1)
    rest = torch.arange(count * BLOCK, size, device=logits.device).expand(rows, -1)
    ids = torch.cat((ids, rest), -1)
    values, order = torch.topk(logits.gather(-1, ids), k, dim=-1)
    return values, ids.gather(-1, order)
