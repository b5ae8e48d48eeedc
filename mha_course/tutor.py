"""``check()``: what a learner calls. Finds the exercise, examines the answer, shows the outcome."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from mha_course import exercises
from mha_course.checking import Card, Exercise, LocalAnswer, Question, Report, as_html, as_text, examine
from mha_course.checking.examine import replace_name
from mha_course.checking.report import SIGNS


class CheckFailed(Exception):
    """An answer is not right yet. Shows its card and no traceback.

    Args:
        report: what was found.
        shown: the card is on the screen already.
    """

    def __init__(self, report: Report, shown: bool = False):
        super().__init__(f"{report.name}: {report.card.headline}" if shown else "\n" + as_text(report.card))
        self.report = report
        self.shown = shown

    def _render_traceback_(self) -> list[str]:
        """IPython asks for this instead of a traceback."""
        card = self.report.card
        return (
            [f"{SIGNS[card.status]} {card.title}: see the card above."]
            if self.shown
            else as_text(card).split("\n")
        )


class NotYetWritten(CheckFailed):
    """There is no answer yet. Nothing is wrong."""


class CannotCheck(TypeError):
    """`check` was called in a way that makes no sense; says what to write instead."""

    def _render_traceback_(self) -> list[str]:
        return [f"check: {self}"]


def check(*answers: Any, **named: Any) -> None:
    """Check an answer, and say within a second what is wrong with it, and why.

    ``check(attend)`` finds the exercise by the function's (or class's) name; ``check(why_scale=why_scale)``
    checks the answer to a question. Several may be given at once.

    Args:
        answers: functions or classes called as the exercise is (or that name, as a string).
        named: answers under the exercise's name: ``check(attend=my_other_attend)``.

    Raises:
        NotYetWritten: there is nothing to check yet.
        CheckFailed: the answer is wrong; the message says how.
        CannotCheck: no such exercise, or not something that can be checked.
    """
    jobs = [_identify(answer) for answer in answers] + list(named.items())
    if not jobs:
        raise CannotCheck("check() needs an answer: check(attend) checks the function attend")
    for name, answer in jobs:
        try:
            item = exercises.find(name)
        except KeyError as error:
            raise CannotCheck(error.args[0]) from None
        report = answer_question(item, answer) if isinstance(item, Question) else _examine(item, answer)
        _show(report)
        _record(report)
        graded = "NBGRADER_EXECUTION" in os.environ
        if report.status in ("wrong", "not written") or (graded and report.status == "borrowed"):
            error = NotYetWritten if report.status == "not written" else CheckFailed
            raise error(report, shown=_rich()) from None


def instructor_seed() -> int:
    """The seed of the cases: 0 for learners (the same failure twice), ``MHA_COURSE_SEED`` where it is set."""
    text = os.environ.get("MHA_COURSE_SEED", "0") or "0"
    try:
        return int(text)
    except ValueError:
        import zlib

        return zlib.crc32(text.encode())


def _identify(answer: Any) -> tuple[str, Any]:
    if isinstance(answer, str):
        namespace = sys._getframe(2).f_globals
        return answer, namespace.get(answer, NotImplemented)
    name = getattr(answer, "__name__", None)
    if isinstance(name, str) and callable(answer):
        return name, answer
    kind = type(answer).__name__
    try:
        exercises.find(kind)
    except KeyError:
        raise CannotCheck(
            f"check() was given {'an' if kind[0] in 'aeiou' else 'a'} {kind}. Give it the function itself, "
            "without calling it: check(attend), not check(attend(q, k, v))."
        ) from None
    raise CannotCheck(
        f"check() was given an object of class {kind}. Give it the class itself: check({kind})."
    )


def _examine(exercise: Exercise, answer: Any) -> Report:
    if answer is NotImplemented or answer is Ellipsis or answer is None:
        card = Card(
            "not written",
            exercise.name,
            "not written yet.",
            (f"Run the cell that defines {exercise.name} first.",),
        )
        return Report(exercise.name, "not written", card, "not written")
    if not callable(answer):
        raise CannotCheck(
            f"{exercise.name} is a {type(answer).__name__}, not a function: was the name used for something else?"
        )
    if _module(answer).startswith("mha_course.reference"):
        line = (
            "That is the course's own: good to go on with. It is not counted as yours; come back to it later."
        )
        return Report(
            exercise.name,
            "borrowed",
            Card("borrowed", exercise.name, "borrowed from the reference.", (line,)),
        )
    seed = instructor_seed()
    report = examine(exercise, LocalAnswer(answer), seed)
    if report.status != "right" and exercise.builds_on:
        return _look_below(exercise, answer, report, seed)
    return report


def _module(answer: Any) -> str:
    return getattr(answer, "__module__", None) or ""


def _look_below(exercise: Exercise, answer: Callable[..., Any], report: Report, seed: int) -> Report:
    """If the fault is in an earlier function of the learner's that this one calls, say so."""
    for name in exercise.builds_on:
        with replace_name(answer, name, exercises.find(name).reference) as own:
            if own is None or _module(own).startswith("mha_course."):
                continue
            with_reference = examine(exercise, LocalAnswer(answer), seed, reference_allowed=True)
        below = examine(exercises.find(name), LocalAnswer(own), seed)
        if with_reference.status != "right" or below.status == "right":
            continue
        first = f"{exercise.name} itself is right: the fault is in {name}, which it calls."
        card = Card(
            "not written" if below.status == "not written" else "wrong",
            exercise.name,
            first,
            (f"What check({name}) says: {below.card.headline}",),
            below.card.grids,
            below.card.grid_note,
            below.card.cause,
            below.card.hint,
            below.card.code,
        )
        return Report(exercise.name, report.status, card, f"{name}: {below.cause}", named=below.named)
    return report


def answer_question(question: Question, answer: Any) -> Report:
    """The outcome for a multiple-choice answer: the letter of an option."""
    if answer is ... or answer is None or answer is NotImplemented or answer == "":
        card = Card(
            "not written", question.name, "not answered yet.", (f"Options: {', '.join(question.why)}.",)
        )
        return Report(question.name, "not written", card, "not written")
    letter = answer.strip().strip("().").lower() if isinstance(answer, str) else answer
    if letter not in question.why:
        options = ", ".join(f'"{option}"' for option in question.why)
        card = Card(
            "wrong",
            question.name,
            f"{answer!r} is not one of the options.",
            (f"Answer with one of {options}.",),
        )
        return Report(question.name, "wrong", card, "no such option")
    right = letter == question.right
    status = "right" if right else "wrong"
    headline = f"({letter}) is right." if right else f"({letter}) is not it."
    card = Card(status, question.name, headline, (question.why[letter],))
    return Report(
        question.name, status, card, "" if right else f"option {letter}", checked=1, named=not right
    )


# ------------------------------------------------------------------------------------- showing


def _shell() -> Any:
    module = sys.modules.get("IPython")
    return module.get_ipython() if module is not None else None


def _rich() -> bool:
    """In a notebook a card is drawn. For nbgrader and in a terminal it is text: both read that better."""
    shell = _shell()
    return shell is not None and hasattr(shell, "kernel") and "NBGRADER_EXECUTION" not in os.environ


class _Shown:
    def __init__(self, card: Card):
        self.card = card

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/plain": as_text(self.card), "text/html": as_html(self.card)}


def _show(report: Report) -> None:
    if _rich():
        from IPython.display import display

        display(_Shown(report.card))
    elif report.status == "right" or (report.status == "borrowed" and "NBGRADER_EXECUTION" not in os.environ):
        print(as_text(report.card))


def _record(report: Report) -> None:
    if report.status in ("right", "borrowed") and "NBGRADER_EXECUTION" not in os.environ:
        from mha_course import lessons

        lessons.record(report.name, "passed" if report.status == "right" else "borrowed")


def _kind_about_missing_names(
    shell: Any, kind: type, error: BaseException, trace: Any, tb_offset: Any = None
) -> list[str]:
    """A NameError for an exercise's name means: that cell has not been run."""
    name = getattr(error, "name", None)
    try:
        item = exercises.find(name) if name else None
    except KeyError:
        item = None
    if item is None:
        lines = shell.InteractiveTB.structured_traceback(kind, error, trace, tb_offset=tb_offset)
        shell._showtraceback(kind, error, lines)
        return lines
    what = "answered" if isinstance(item, Question) else "written"
    card = Card(
        "not written",
        name,
        f"not {what} yet.",
        (f"Run the cell that defines {name} first (Shift+Enter), then this one.",),
    )
    failed = NotYetWritten(Report(name, "not written", card, "not written"))
    lines = failed._render_traceback_()
    shell._showtraceback(NotYetWritten, failed, lines)
    return lines


def _warm_up() -> None:
    """What the first check would otherwise wait for: torch's fake tensors import its compiler (1 to 2 s)."""
    with contextlib.suppress(Exception):
        import torch._dynamo
        import torch._subclasses.fake_tensor  # noqa: F401


def greet_notebook() -> None:
    """Once, on import in a notebook: be kind about names that are not defined yet, and get ready."""
    shell = _shell()
    if shell is None:
        return
    if not shell.custom_exceptions:
        shell.set_custom_exc((NameError,), _kind_about_missing_names)
    if _rich():
        threading.Thread(target=_warm_up, name="mha_course warm-up").start()


greet_notebook()
