"""A scheduler that can take a session back: `--scheduler-cls modelnet_vllm.scheduler.RewindScheduler`.

vLLM's streaming sessions only grow. When an input says how much of the session is to be kept, the rest is cut off first: its
blocks leave the prefix cache (what they held is about to be overwritten), and the counters go back. A block that another
request reads too is not overwritten: it is given back, and its kept tokens are read again into one of our own. Where something
is gone that would be needed further back (what left a sliding window, a recurrent state), all is given back and read again, as
after a preemption.

It also keeps sessions together that step together: see `gather`.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager, SlidingWindowManager
from vllm.v1.request import RequestStatus

from modelnet_vllm import gather
from modelnet_vllm.drafts import known_version
from modelnet_vllm.tag import EVERY, tag_of


class RewindScheduler(Scheduler):
    """vLLM's own scheduler, asynchronous where that is configured, and rewinding."""

    def __new__(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> RewindScheduler:  # noqa: PYI034 - or its subclass
        if not known_version():
            raise RuntimeError("modelnet_vllm.scheduler does not know this version of vLLM: leave --scheduler-cls away")
        kind = _AsyncRewindScheduler if vllm_config.scheduler_config.async_scheduling else cls
        return object.__new__(kind)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gathering = gather.Gathering()
        self._sessions: set[str] = set()
        gather.install()

    # Sessions that step together

    def patience(self) -> float:
        """How many seconds the next pass should wait for sessions that come back."""
        gathering = self._gathering
        for session in [id for id in self._sessions if id not in self.requests]:
            self._sessions.discard(session)
            gathering.gone(session)
        others = self.get_num_unfinished_requests() - len(list(gathering.ready))
        return 0.0 if others > 0 or self.running else gathering.wait()

    def add_request(self, request: Any) -> None:
        super().add_request(request)
        if tag_of(request.sampling_params) is not None:
            self._sessions.add(request.request_id)
            here = self.requests.get(request.request_id)
            if here is not None and here.status == RequestStatus.WAITING:  # else it is in a pass still
                self._gathering.came(request.request_id)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        scheduled = super().schedule(*args, **kwargs)
        if scheduled.total_num_scheduled_tokens:
            self._gathering.scheduled(scheduled.num_scheduled_tokens)
        return scheduled

    def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = super().update_from_output(scheduler_output, *args, **kwargs)
        ours = [id for id in scheduler_output.num_scheduled_tokens if id in self._sessions and id in self.requests]
        if ours:
            status = {id: self.requests[id].status for id in ours}
            self._gathering.answered(id for id in ours if status[id] == RequestStatus.WAITING_FOR_STREAMING_REQ)
            for id in ours:
                if status[id] == RequestStatus.WAITING:  # its next input was here before its answer
                    self._gathering.came(id)
        return outputs

    # Sessions that go back

    def _update_request_as_session(self, session: Any, update: Any) -> None:
        tag = tag_of(update.sampling_params)
        if tag is not None:
            # What a draft has in it must be computed, or it has no row. (All of it may be read again: below, or after a preemption.)
            session.skip_reading_prefix_cache = tag.mode == EVERY
            if (
                tag.keep is not None or session.num_computed_tokens < tag.first
            ):  # the latter: preempted in its last pass
                self._rewind(session, update, tag.first)
        super()._update_request_as_session(session, update)

    def _rewind(self, session: Any, update: Any, keep: int) -> None:
        """Cut `session` to its first `keep` tokens; where it must be read again from further back, `update` grows."""
        manager = self.kv_cache_manager
        singles = manager.coordinator.single_type_managers
        computed = self._writable(session, singles, min(keep, session.num_computed_tokens))
        if not all(_reaches_back(single, session.request_id, computed) for single in singles):
            computed = 0
        if not computed:
            self._free_request_blocks(session)  # it then looks its prefix up again
        for single in singles if computed else ():
            first = computed // single.block_size
            held = single.req_to_blocks[session.request_id]
            if any(map(_shared, held[first:])):
                manager.block_pool.free_blocks(reversed(held[first:]))
                del held[first:]
            else:
                manager.evict_blocks({block.block_id for block in held[first:] if block.block_hash is not None})
            cached = single.num_cached_block
            if first == 0:
                cached.pop(session.request_id, None)  # as of a request that holds nothing yet
            elif session.request_id in cached:
                cached[session.request_id] = min(cached[session.request_id], first)
        kept = session._all_token_ids[computed:keep]
        if kept:
            update.prompt_token_ids = [*kept, *(update.prompt_token_ids or ())]
        session.num_computed_tokens = computed
        del session._all_token_ids[computed:], session.prompt_token_ids[computed:]
        session.num_prompt_tokens = len(session.prompt_token_ids)
        del session.block_hashes[computed // self.hash_block_size :]

    @staticmethod
    def _writable(session: Any, singles: Any, keep: int) -> int:
        """How many tokens can stay, so that no block that somebody else reads is written to."""
        for single in singles:
            size = single.block_size
            if any(map(_shared, single.req_to_blocks[session.request_id][keep // size :])):
                keep = keep // size * size
        return keep


def _reaches_back(single: Any, request: str, computed: int) -> bool:
    """Whether so many tokens are enough to go on from, as far as this group of layers is concerned."""
    if type(single) is FullAttentionManager:
        return True
    if type(single) is not SlidingWindowManager:
        return False
    first = max(0, computed - single.sliding_window + 1) // single.block_size
    held = single.req_to_blocks[request][first : -(-computed // single.block_size)]
    return not any(block.is_null for block in held)


def _shared(block: Any) -> bool:
    return not block.is_null and block.ref_cnt > 1


class _AsyncRewindScheduler(RewindScheduler, AsyncScheduler):
    pass
