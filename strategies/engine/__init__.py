"""Runs a plan and yields events.

    async with run(plan, messages, options, catalog) as events:
        async for event in events: ...

Model: a plan is a graph of stages; each stage is one task that starts when the answers it reads are complete, so what does
not depend on each other runs side by side. Leaving the block cancels every task and frees every session. An error in any
stage ends the run and is raised from the iterator as that stage's own exception (never as an ExceptionGroup).

`check` refuses what a plan can't give before anything runs. `stages` runs a model's own stream of text, `fused` all text that comes out of
token sessions: a group's, and that of a single model where a request has a say in its every token. `group` holds the sessions and
drops members that fail, `drafting` has them read ahead, `quorum` goes on without those who are late, `tokens` gives text and its
log-probabilities out together. `early_prefill` lets models read what a stage writes while it still does.
"""

from strategies.engine.options import Constraint, Drafting, EarlyPrefilling, Options, Tool, Tools, Waiting
from strategies.engine.run import run

__all__ = ["Constraint", "Drafting", "EarlyPrefilling", "Options", "Tool", "Tools", "Waiting", "run"]
