"""From a wiring and a catalogue to a plan, or to the reason why it can't run. Pure: nothing is called.

`plan` holds the values, `planner` makes them, `outline` describes one for people.
"""

from strategies.planning.outline import BranchLine, Outline, StageLine, outline
from strategies.planning.plan import Branch, FusedStage, Plan, Role, Stage, TextStage, branches
from strategies.planning.planner import PlanError, plan

__all__ = [
    "Branch",
    "BranchLine",
    "FusedStage",
    "Outline",
    "Plan",
    "PlanError",
    "Role",
    "Stage",
    "StageLine",
    "TextStage",
    "branches",
    "outline",
    "plan",
]
