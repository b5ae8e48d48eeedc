"""The engine behind ``check()``: call, compare, diagnose, report. It knows no exercise.

* `exercise`: how an exercise is declared
* `calls`: the one door to an answer
* `guards`: forbidden calls, a GPU that is not there
* `compare`: where two observations differ
* `diagnose`: which misconception explains it
* `examine`: all of it in order
* `report`: what a learner sees
* `audit`: every known wrong answer put to the test
"""

from .calls import Answer, Call, LocalAnswer, Observation
from .examine import examine
from .exercise import Case, Draw, Exercise, Lesson, Misconception, Named, Property, Question, Step, Style
from .report import Card, Report, as_html, as_text

__all__ = [
    "Answer",
    "Call",
    "Card",
    "Case",
    "Draw",
    "Exercise",
    "Lesson",
    "LocalAnswer",
    "Misconception",
    "Named",
    "Observation",
    "Property",
    "Question",
    "Report",
    "Step",
    "Style",
    "as_html",
    "as_text",
    "examine",
]
