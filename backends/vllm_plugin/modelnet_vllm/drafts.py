"""The hook into Model Runner V1: which rows are only a part of their input, and the logits of a whole draft in one pass.

The engine computes logits for the last position of an input only. The hidden states of all positions are there, though, when
`_get_prompt_logprobs_dict` is called after the sampling: that call is wrapped, and the output layer run over a draft's rows.
Versions that are not known are left alone; then the door steps through a draft, and waits for the engine's own output.
"""

from __future__ import annotations

import inspect
import logging
import weakref
from typing import Any

from modelnet_vllm.tag import EVERY
from modelnet_vllm.tap import tap

log = logging.getLogger("vllm.modelnet")

KNOWN = ("0.32.",)
"""Versions of vLLM whose inner workings this and `scheduler` were tested with."""

_EXPECTED = {
    "_get_prompt_logprobs_dict": ["self", "hidden_states", "num_scheduled_tokens"],
    "_update_states": ["self", "scheduler_output"],
}

_runner: Any = None
_processor: Any = None


def known_version(version: str | None = None) -> bool:
    """If this vLLM is one whose inner workings are known."""
    if version is None:
        import vllm

        version = str(vllm.__version__)
    return version.startswith(KNOWN)


def as_expected(kind: Any, methods: dict[str, list[str]], otherwise: str) -> bool:
    """If a class of vLLM has these methods with these parameters; says in the log what happens otherwise."""
    for name, expected in methods.items():
        method = getattr(kind, name, None)
        if method is None or list(inspect.signature(method).parameters) != expected:
            log.warning("modelnet: %s.%s is not as expected: %s", kind.__name__, name, otherwise)
            return False
    return True


def install(processor: Any) -> bool:
    """Put the hook in place, once a process, for the processor that has `rows`. False where vLLM is not as expected."""
    global _processor  # noqa: PLW0603 - one model runner a process
    _processor = weakref.ref(processor)
    if not known_version():
        log.warning("modelnet: this version of vLLM is not known: drafts are scored step by step")
        return False
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    if getattr(GPUModelRunner, "_modelnet", False):
        return True
    if not as_expected(GPUModelRunner, _EXPECTED, "drafts are scored step by step"):
        return False
    _wrap(GPUModelRunner)
    return True


def _wrap(runner_class: Any) -> None:
    update, prompt_logprobs = runner_class._update_states, runner_class._get_prompt_logprobs_dict

    def update_states(self: Any, scheduler_output: Any) -> Any:
        global _runner  # noqa: PLW0603
        _runner = self
        return update(self, scheduler_output)

    def with_drafts(self: Any, hidden_states: Any, num_scheduled_tokens: dict[str, int]) -> Any:
        processor = _processor() if _processor is not None else None
        if processor is not None and processor.rows:
            try:
                _score(self, processor, hidden_states, num_scheduled_tokens)
            except Exception:  # the door notices that nothing came; everybody else's tokens are more important
                log.exception("modelnet: a draft could not be scored")
        return prompt_logprobs(self, hidden_states, num_scheduled_tokens)

    runner_class._update_states = update_states
    runner_class._get_prompt_logprobs_dict = with_drafts
    runner_class._modelnet = True


def unfinished_rows() -> Any:
    """bool [batch]: rows whose input is not read to its end in this pass. None: not known."""
    return None if _runner is None else _runner.discard_request_mask.np


def _score(runner: Any, processor: Any, hidden_states: Any, num_scheduled_tokens: dict[str, int]) -> None:
    for row, tag in processor.rows.items():
        if tag.mode != EVERY:
            continue
        request_id = runner.input_batch.req_ids[row]
        count = num_scheduled_tokens.get(request_id, 0)
        begin = int(runner.requests[request_id].num_computed_tokens)
        first = max(begin, tag.first)
        if first >= begin + count:
            continue
        offset = int(runner.query_start_loc.np[row])
        wanted = hidden_states[offset + first - begin : offset + count]
        tap().send_rows(runner.model.compute_logits(wanted), tag, first)
