"""Is a wiring worth it? Questions with known answers, and how to judge what a wiring said to them.

Pure: reading question sets from plain data, finding the answer in a text, and what a count of right ones says (with its
confidence interval). Running wirings is the engine's, reporting is the gateway's.
"""

from strategies.evaluation.judging import answer_in, is_right
from strategies.evaluation.questions import Question, question_from
from strategies.evaluation.statistics import wilson

__all__ = ["Question", "answer_in", "is_right", "question_from", "wilson"]
