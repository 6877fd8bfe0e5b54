"""Runs a plan and yields events.

    async with run(plan, messages, options, catalog) as events:
        async for event in events: ...

Model: a plan is a graph of stages; each stage is one task that starts when the answers it reads are complete, so what does
not depend on each other runs side by side. Leaving the block cancels every task and frees every session. An error in any
stage ends the run and is raised from the iterator as that stage's own exception (never as an ExceptionGroup).
"""

from strategies.engine.options import Options
from strategies.engine.run import run

__all__ = ["Options", "run"]
