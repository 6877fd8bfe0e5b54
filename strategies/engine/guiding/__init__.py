"""Answers that must match something: a JSON schema, a regular expression, a grammar, or our form of tool calls.

Model. What must be matched is written as one grammar (`grammars`), and the library llguidance says which pieces may come next. Its
"tokens" are the pieces of the group's own inventory (`tokenizers`), so the rule holds for the bytes of the answer, whatever the
members' tokenizers are, and also for a piece that is half a character. The virtual END is its end of the text: it may come only where
the grammar is complete.

    check(constraint, tools)                              # pure: before anything runs; raises BadConstraint
    guide = await guide_for(rule, inventory, model)       # per answer; strategies.fusion.Guide
    calls = CallsOut(); calls.feed(piece)                 # bytes of such an answer → text, and parts of tool calls

Invariants. Every text of pieces that a guide allowed and ended is matched by the grammar. Every byte string that the grammar matches can
be said, however it is cut into pieces: nothing is forced that the grammar does not force.

Cost. A tokenizer is built once per inventory and kept: 0.1 s for 38 thousand pieces, 0.4 s for 152 thousand, 1.1 s for 262 thousand, and up
to 40 MB. It holds Python up meanwhile, so those of aliases and models are built while models load (`strategies.engine.warming`); that of
another wiring when it is first asked for a form. A grammar takes 1–2 ms. A mask takes 0.02–0.1 ms for 38 thousand pieces, 0.05–0.3 ms for
152 thousand.

What strangers send is bounded before the library sees it (`bounds`): its compiler recurses.
"""

from strategies.engine.guiding.bounds import BadConstraint
from strategies.engine.guiding.calls import CallsOut, Parted, calls_of, finish_of
from strategies.engine.guiding.grammars import CALL_BEGIN, CALL_END, check, rule_for
from strategies.engine.guiding.guide import GrammarGuide, guide_for

__all__ = [
    "CALL_BEGIN",
    "CALL_END",
    "BadConstraint",
    "CallsOut",
    "GrammarGuide",
    "Parted",
    "calls_of",
    "check",
    "finish_of",
    "guide_for",
    "rule_for",
]
