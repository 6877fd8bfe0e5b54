"""The tap for Model Runner V1: `--logits-processors modelnet_vllm.v1:LogitsTap`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality

from modelnet_vllm import drafts
from modelnet_vllm.tag import LAST, Tag, tag_of
from modelnet_vllm.tap import tap

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor import BatchUpdate


class LogitsTap(LogitsProcessor):
    """Reads the logits of our rows and changes none. rows: row of the batch → mark of the input it belongs to."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.rows: dict[int, Tag] = {}
        self._tap = tap()
        self._tap.hooks = drafts.install(self)

    def is_argmax_invariant(self) -> bool:
        # It is; but processors that say so are skipped where all requests are greedy, and ours are.
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        rows = self.rows
        for row in batch_update.removed:
            rows.pop(row, None)
        for row, params, _prompt, _output in batch_update.added:
            tag = tag_of(params)
            if tag is None:
                rows.pop(row, None)
            else:
                rows[row] = tag
        for one, other, direction in batch_update.moved:
            first, second = rows.pop(one, None), rows.pop(other, None)
            if first is not None:
                rows[other] = first
            if second is not None and direction == MoveDirectionality.SWAP:
                rows[one] = second

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if self.rows:
            self._look(logits)
        return logits

    def _look(self, logits: Any) -> None:
        unfinished = drafts.unfinished_rows()
        ours = [
            (row, tag)
            for row, tag in self.rows.items()
            if tag.mode == LAST and row < len(logits) and (unfinished is None or not unfinished[row])
        ]
        if ours:
            self._tap.send(logits[[row for row, _ in ours]], [tag for _, tag in ours])
