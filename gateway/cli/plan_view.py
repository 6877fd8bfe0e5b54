"""Plans and their errors in the terminal."""

from __future__ import annotations

from rich.text import Text
from rich.tree import Tree

from strategies.planning import BranchLine, Plan, outline
from strategies.planning.outline import percentage
from strategies.topology import Shape, TopologyError

_SHAPES: dict[Shape, str] = {
    "single": "one model",
    "si": "si, serial",
    "pi": "pi, parallel",
    "s2p": "s2p, serial to parallel",
    "p2s": "p2s, parallel to serial",
    "mixed": "mixed",
}
_ROLE_STYLE = {"solver": "green", "reviewer": "yellow", "verifier": "cyan"}


def plan_tree(plan: Plan, *, name: str, fuser: str) -> Tree:
    """A plan as a tree: the model name, its stages in order, and in each the models with role, weight and what they read.

    name: the model name as it was asked for. fuser: the fuser of the fused stages.
    """
    described = outline(plan, fuser=fuser)
    title = Text.assemble((name, "bold"), f"  {_SHAPES[described.shape]}")
    if described.wiring != name.partition(":")[2] and described.wiring != name:
        title.append(f"\n= {described.wiring}", "dim")
    tree = Tree(title)
    for stage in described.stages:
        how = "one model writes" if stage.fuser is None else f"fused token by token by {stage.fuser}"
        line = Text.assemble((f"stage {stage.number}", "bold"), f"  {how}")
        if stage.last:
            line.append("  → answer", "bold green")
        node = tree.add(line)
        width = max(len(branch.model) for branch in stage.branches)
        for branch in stage.branches:
            node.add(_branch(branch, width))
    return tree


def error_text(error: TopologyError) -> Text:
    """An error with the text it is about, a caret under the column."""
    line, caret = error.caret().split("\n")
    text = Text(no_wrap=True, overflow="ignore")
    text.append(f"{line}\n")
    text.append(f"{caret}\n", "bold red")
    text.append(str(error))
    return text


def _branch(branch: BranchLine, width: int) -> Text:
    line = Text.assemble((branch.model.ljust(width), "bold"), "  ", (f"{branch.role:<8}", _ROLE_STYLE[branch.role]))
    if branch.percent is not None:
        line.append(f"  {percentage(branch.percent):>5} %")
    line.append("  reads the question" if branch.reads is None else f"  reads stage {branch.reads}", "dim")
    return line
