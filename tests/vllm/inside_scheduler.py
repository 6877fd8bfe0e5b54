"""Checks of the scheduler inside vLLM's environment, against vLLM's own cache manager. Run by test_tap.py; fails by assertion."""

from __future__ import annotations

import sys
from types import SimpleNamespace


def rewinding() -> None:
    """Where a sliding window has dropped what would be needed further back, or a state can't go back, all is read again."""
    import torch
    from modelnet_vllm.scheduler import RewindScheduler
    from vllm import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.kv_cache_interface import (
        ChunkedLocalAttentionSpec,
        FullAttentionSpec,
        KVCacheConfig,
        KVCacheGroupSpec,
        SlidingWindowSpec,
    )  # fmt: skip
    from vllm.v1.request import Request, StreamingUpdate

    init_none_hash(sha256)
    block, window, size = 16, 64, 600
    full, sliding, chunked = (FullAttentionSpec, {}), (SlidingWindowSpec, {"sliding_window": window}), (
        ChunkedLocalAttentionSpec, {"attention_chunk_size": 128},
    )  # fmt: skip
    for kinds, keep, expected in (
        ((full,), 500, 500),
        ((full, sliding), 500, 0),
        ((full, sliding), 598, 598),
        ((full, chunked), 598, 0),
    ):
        groups = [
            KVCacheGroupSpec(
                [str(at)], kind(block_size=block, num_kv_heads=1, head_size=8, dtype=torch.float32, **more)
            )
            for at, (kind, more) in enumerate(kinds)
        ]
        manager = KVCacheManager(
            KVCacheConfig(num_blocks=200, kv_cache_tensors=[], kv_cache_groups=groups), max_model_len=2048,
            scheduler_block_size=block, hash_block_size=block, enable_caching=True,
            max_in_flight_tokens=4096,
        )  # fmt: skip
        free = manager.block_pool.get_num_free_blocks()
        hasher = get_request_block_hasher(block, sha256)
        session = Request(
            "a", list(range(size)), SamplingParams(max_tokens=1), None, block_hasher=hasher, resumable=True
        )
        for begin, end in ((0, 300), (300, size)):
            assert manager.allocate_slots(session, end - begin) is not None
            session.num_computed_tokens = end
        manager.coordinator.remove_skipped_blocks("a", size)
        update = StreamingUpdate(None, [7] * 50, 1, 0.0, None)
        scheduler = SimpleNamespace(
            kv_cache_manager=manager, hash_block_size=block, _writable=RewindScheduler._writable,
            _free_request_blocks=manager.free,
        )  # fmt: skip
        RewindScheduler._rewind(scheduler, session, update, keep)  # type: ignore[arg-type]
        assert session.num_computed_tokens == expected, (kinds, keep, session.num_computed_tokens)
        assert update.prompt_token_ids == [*range(expected, keep), *[7] * 50]
        assert list(session.prompt_token_ids) == list(range(expected))
        if not expected:
            assert manager.block_pool.get_num_free_blocks() == free


if __name__ == "__main__":
    rewinding()
    sys.stdout.write("checked\n")
