"""The tap for Model Runner V2: `--logits-processors modelnet_vllm.v2:LogitsTap`.

This module is imported by the front end too, so neither it nor what it imports may import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor

from modelnet_vllm.tag import LAST, Tag, tag_of
from modelnet_vllm.tap import tap

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcRequestState


class LogitsTap(LogitsProcessor):
    """Reads the logits of our rows and changes none. Rows are not requests here: requests live in slots."""

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        self._slots: dict[int, Tag] = {}
        self._states = req_states
        self._tap = tap()
        self._tap.hooks = False  # drafts have no hook in this runner yet: the door scores them step by step

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        tag = tag_of(sampling_params)
        if tag is None:
            self._slots.pop(req_idx, None)
            return False
        self._slots[req_idx] = tag
        return True  # it changes nothing, but a batch in which nobody does is not shown to us

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        if self._slots:
            self._look(logits, ctx)
        return logits

    def _look(self, logits: Any, ctx: Any) -> None:
        """Without speculative decoding (which excludes custom processors) a request has one row, in the batch's order."""
        rows: list[int] = []
        tags: list[Tag] = []
        prefill = getattr(self._states.prefill_len, "np", None)
        for row, slot in enumerate(ctx.idx_mapping_np.tolist()):
            tag = self._slots.get(slot)
            if tag is None or tag.mode != LAST or row >= len(logits):
                continue
            if prefill is not None and int(ctx.seq_lens_upper_bound_np[row]) < int(prefill[slot]):
                continue  # a part of the input: the rest follows
            rows.append(row)
            tags.append(tag)
        if rows:
            self._tap.send(logits[rows], tags)
