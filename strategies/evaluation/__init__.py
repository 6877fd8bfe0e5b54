"""Is a wiring worth it? Questions with known answers, and what the answers to them say.

    questions, generated    question sets from plain data, and made from a seed
    finding, judging        the answer in a text, and whether it is right; symbolic: up to algebra
    paths                   the wirings of the source experiment, mirrors known
    records                 what is kept of every answer, and the key under which it is found again
    statistics              intervals and paired tests
    summary, hypotheses, flow, advice      a run's numbers: tables, tests, courses through stages, the recommendation
    published               the source experiment's own numbers, recomputed

Pure: asking is the gateway's (`gateway.evaluation`), and so is everything that writes a report.
"""

from strategies.evaluation.judging import answer_in, is_right, judge
from strategies.evaluation.questions import Question, question_from
from strategies.evaluation.statistics import wilson

__all__ = ["Question", "answer_in", "is_right", "judge", "question_from", "wilson"]
