"""What each stage is told: role templates by shape and language, put around a whole conversation. Pure.

    told = compose(messages, branch.role, plan.shape, prompts, previous_answer)

`prompts` holds the templates, `compose` applies them, `reasoning` cuts what a model thought from what it hands on,
`partial` the same from an answer that is not whole yet.
"""

from strategies.prompting.compose import compose, language_of
from strategies.prompting.partial import partial_answer
from strategies.prompting.prompts import PASS_THROUGH, Language, PromptSet
from strategies.prompting.reasoning import cut_reasoning

__all__ = ["PASS_THROUGH", "Language", "PromptSet", "compose", "cut_reasoning", "language_of", "partial_answer"]
