"""What the first answer of a wiring would have to wait for, worked out before anybody asks.

Two things are built once per set of tokenizers and then kept: the pieces that they have in common, and llguidance's view of these, for
answers that must match something. The second holds Python up while it is built (`guiding.tokenizers`), and with it every other answer.
"""

from __future__ import annotations

from collections.abc import Iterable

import anyio.to_thread

from backends.catalog import Catalog
from backends.errors import BackendError
from backends.protocol import TokenBackend
from strategies.engine.guiding.tokenizers import MOST_PIECES, tokenizer_of
from strategies.planning import FusedStage, Plan
from strategies.planning.plan import Stage, branches
from strategies.vocabulary import inventory_of


async def warm(plans: Iterable[Plan], catalog: Catalog) -> int:
    """For these wirings, in this order, as far as it would all be kept. Returns how many sets of tokenizers are ready.

    Blocks threads, not the loop, for some tenths of a second per set; what can't be had (a server that is away) is left for later.
    """
    seen: set[tuple[str, ...]] = set()
    pieces = 0
    for plan in plans:
        for stage in plan.stages:
            last = stage is plan.stages[-1]
            members = _members(stage, catalog, last=last)
            try:
                vocabularies = tuple([await member.vocabulary() for member in members])
            except BackendError:
                continue
            key = tuple(sorted({vocabulary.fingerprint for vocabulary in vocabularies}))
            if not key or key in seen:
                continue
            inventory = await anyio.to_thread.run_sync(inventory_of, vocabularies)
            if last:
                pieces += len(inventory.pieces)
                if pieces > MOST_PIECES:
                    return len(seen)
                seen.add(key)
                await anyio.to_thread.run_sync(tokenizer_of, inventory)
    return len(seen)


def _members(stage: Stage, catalog: Catalog, *, last: bool) -> list[TokenBackend]:
    """Those whose sessions a stage opens; none where one model writes by itself."""
    if not isinstance(stage, FusedStage) and (not last or catalog[stage.branch.model].native):
        return []
    found = [catalog[branch.model].token_backend() for branch in branches(stage)]
    return [backend for backend in found if backend is not None]
