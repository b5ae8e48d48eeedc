"""``check()``: what a learner calls. Finds the exercise, examines the answer, shows the outcome."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mha_course import exercises, quiet
from mha_course.checking import Card, Exercise, LocalAnswer, Question, Report, as_html, as_text, examine
from mha_course.checking.calls import Answer, Limited
from mha_course.checking.examine import replace_name
from mha_course.checking.kinds import DifferenceKind, Status
from mha_course.checking.plain import clean, with_article
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


class CheckBroken(CheckFailed):
    """The check itself stumbled. Nothing is known about the answer."""


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
        CheckBroken: the check itself stumbled; the reason is kept in the learner's folder.
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
        with quiet.nothing_on_stderr():
            report = answer_question(item, answer) if isinstance(item, Question) else _examine(item, answer)
        report = _kept(report)
        _show(report)
        _record(report)
        if report.status == Status.RIGHT or (report.status == Status.BORROWED and not _graded()):
            continue
        error = {Status.NOT_WRITTEN: NotYetWritten, Status.BROKEN: CheckBroken}.get(
            report.status, CheckFailed
        )
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
            f"check() was given {with_article(kind)}. Give it the function itself, "
            "without calling it: check(attend), not check(attend(q, k, v))."
        ) from None
    raise CannotCheck(
        f"check() was given an object of class {kind}. Give it the class itself: check({kind})."
    )


def _examine(exercise: Exercise, answer: Any) -> Report:
    if answer is NotImplemented or answer is Ellipsis or answer is None:
        return _not_there(exercise)
    if not callable(answer):
        raise CannotCheck(
            f"{exercise.name} is a {type(answer).__name__}, not a function: was the name used for something else?"
        )
    if _module(answer).startswith("mha_course.reference"):
        line = "That is the course's own, and fine to carry on with. It does not count as yours: come back to it later."
        card = Card(Status.BORROWED, exercise.name, "borrowed from the reference.", (line,))
        return Report(exercise.name, Status.BORROWED, card)
    seed = instructor_seed()
    asked = Limited(LocalAnswer(answer), exercise.seconds)
    report = examine(exercise, asked, seed)
    if report.status in (Status.WRONG, Status.NOT_WRITTEN) and report.cause != DifferenceKind.TOO_SLOW:
        report = _look_below(exercise, answer, asked, report, seed)
    if (failed := cells.failed.get(exercise.name)) is not None:
        note = f"this is about an earlier version of yours: the cell with the newest one did not run ({failed.short})."
        report = replace(report, card=replace(report.card, notes=(note, *report.card.notes)))
    return report


def _module(answer: Any) -> str:
    name = getattr(answer, "__module__", None)
    return name if isinstance(name, str) else ""


def _look_below(
    exercise: Exercise, answer: Callable[..., Any], asked: Answer, report: Report, seed: int
) -> Report:
    """If the fault is in earlier functions of the learner's that this one calls, say so.

    All of them are replaced together: a fault in one must not hide that this answer is right.
    """
    with contextlib.ExitStack() as stack:
        own = {}
        for name in exercise.builds_on:
            found = stack.enter_context(replace_name(answer, name, exercises.find(name).reference))
            if found is not None and not _module(found).startswith("mha_course."):
                own[name] = found
        alone = examine(exercise, asked, seed, reference_allowed=True) if own else report
    if not own or alone.cause == DifferenceKind.TOO_SLOW:
        return report
    below = {
        name: examine(exercises.find(name), LocalAnswer(function), seed) for name, function in own.items()
    }
    wrong = {
        name: found for name, found in below.items() if found.status in (Status.WRONG, Status.NOT_WRITTEN)
    }
    if not wrong:
        return report
    names = " and ".join(wrong)
    one = len(wrong) == 1
    if alone.status != Status.RIGHT:
        line = f"{names}, which it calls, {'is' if one else 'are'} not right either."
        return replace(alone, card=replace(alone.card, lines=(*alone.card.lines, line)))
    name, first = next(iter(wrong.items()))
    card = replace(
        first.card,
        status=Status.NOT_WRITTEN if first.status == Status.NOT_WRITTEN else Status.WRONG,
        title=exercise.name,
        headline=f"{exercise.name} itself is right: the fault is in {names}, which it calls.",
        lines=(f"What check({name}) says: {first.card.headline}", *first.card.lines),
    )
    return Report(exercise.name, report.status, card, f"{name}: {first.cause}", named=first.named)


def answer_question(question: Question, answer: Any) -> Report:
    """The outcome for a multiple-choice answer: the letter of an option."""
    if (
        answer is ...
        or answer is None
        or answer is NotImplemented
        or (isinstance(answer, str) and not answer)
    ):
        return _not_there(question)
    letter = answer.strip().strip("().").lower() if isinstance(answer, str) else None
    if letter not in question.why:
        options = ", ".join(f'"{option}"' for option in question.why)
        given = repr(answer[:20]) if isinstance(answer, str) else with_article(type(answer).__name__)
        headline = f"{given} is not one of the options."
        card = Card(Status.WRONG, question.name, headline, (f"Answer with one of {options}.",))
        return Report(question.name, Status.WRONG, card, "no such option")
    right = letter == question.right
    status = Status.RIGHT if right else Status.WRONG
    headline = f"({letter}) is right." if right else f"({letter}) is not it."
    card = Card(status, question.name, headline, (question.why[letter],))
    return Report(
        question.name, status, card, "" if right else f"option {letter}", checked=1, named=not right
    )


# ------------------------------------------------------------------------- answers that are not there


@dataclass(frozen=True)
class DidNotRun:
    """A cell that raised before, or while, it defined something.

    Args:
        error: the exception's class ("SyntaxError").
        says: what it says.
        line: the number of the line in the cell, 0 where that is not known.
        code: that line.
        when: the how many-th cell it was that was run.
    """

    error: str
    says: str
    line: int = 0
    code: str = ""
    when: int = 0

    @property
    def short(self) -> str:
        return f"{self.error}, line {self.line}" if self.line else self.error


class Cells:
    """What became of the notebook's cells that define something, by the names they define.

    Attributes:
        failed: by name, why the last cell that would have defined it did not run to its end.
        defined: by name, the how many-th cell it was that defined it.
        letter: the last cell was nothing but a letter in quotes: an answer that goes nowhere.
    """

    def __init__(self):
        self.failed: dict[str, DidNotRun] = {}
        self.defined: dict[str, int] = {}
        self.count = 0
        self.letter = False

    def note(self, source: str, error: BaseException | None) -> None:
        """Take note of a cell that was run."""
        source = source if isinstance(source, str) else ""
        failed = None if error is None or isinstance(error, CheckFailed) else _did_not_run(error, source)
        self.note_fault(source, failed)

    def note_fault(self, source: str, failed: DidNotRun | None) -> None:
        """The same, where it is known already what the cell raised."""
        self.count += 1
        self.letter = bool(re.fullmatch(r"""(\s*#[^\n]*\n|\s)*["'][A-Za-z]["']\s*""", source))
        for found in re.finditer(_DEFINES, source, re.MULTILINE):
            name, line = found[1] or found[2], source.count("\n", 0, found.start()) + 1
            self.failed.pop(name, None)
            nothing_ran = failed is not None and failed.error in (
                "SyntaxError",
                "IndentationError",
                "TabError",
            )
            if failed is not None and (nothing_ran or line >= failed.line):
                self.failed[name] = replace(failed, when=self.count)
            else:
                self.defined[name] = self.count


# The name that a line without indentation defines: def attend(…, class SingleHead:, why_scale = …
_DEFINES = r"^(?:(?:async\s+)?def|class)\s+([^\W\d]\w*)|^([^\W\d]\w*)\s*(?::[^=\n]+)?=(?!=)"


def _did_not_run(error: BaseException, source: str) -> DidNotRun:
    lines = source.splitlines()
    number = error.lineno or 0 if isinstance(error, SyntaxError) else 0
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "<module>" and line <= len(lines):
            number = line
    says = error.msg if isinstance(error, SyntaxError) else str(error)
    code = lines[number - 1].strip() if 0 < number <= len(lines) else ""
    return DidNotRun(type(error).__name__, " ".join(clean(says or "", 200).split()), number, clean(code, 100))


cells = Cells()


def _not_there(item: Exercise | Question) -> Report:
    """There is no answer of that name. Why, as far as the notebook's cells tell."""
    name, question = item.name, isinstance(item, Question)
    code: tuple[tuple[str, int, str], ...] = ()
    headline = f"not {'answered' if question else 'written'} yet."
    failed, close = cells.failed.get(name), _sounds_like(name)
    corrected = failed is not None and cells.defined.get(close, 0) > failed.when
    if failed is not None and not corrected and failed.error != "NotImplementedError":
        headline = "the cell above did not run."
        lines = (f"{failed.error}: {failed.says}" if failed.says else failed.error,)
        code = ((f"the cell of {name}", failed.line, failed.code),) if failed.line else ()
        hint = "Put that line right, run the cell again, then this one."
    elif question:
        one = next(iter(item.why))
        lines = (
            f'Options: {", ".join(item.why)}. Write  {name} = "{one}"  (or another letter) in the cell above.',
        )
        if cells.letter:
            lines = (
                f'A letter alone is kept nowhere: give it the name, {name} = "{one}" (or another letter).',
            )
        hint = "Run that cell (Shift+Enter), then this one."
    elif close:
        lines = (f"There is `{close}`: is that your answer? This exercise wants the name {name}.",)
        hint = "Correct the name, run its cell again, then this one."
    else:
        lines = (f"Run the cell that defines {name} first (Shift+Enter), then this one.",)
        hint = ""
    card = Card(Status.NOT_WRITTEN, name, headline, lines, hint=hint, code=code)
    return Report(name, Status.NOT_WRITTEN, card, "did not run" if code else "not written")


def _sounds_like(name: str) -> str:
    """A function or class of the notebook's whose name is nearly this one; "" if there is none."""
    shell = _shell()
    own = getattr(shell, "user_ns", {})
    names = [n for n, x in own.items() if isinstance(n, str) and callable(x) and not n.startswith("_")]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.8)
    return next((n for n in near if _item(n) is None), "")


def _item(name: str) -> Exercise | Question | None:
    """The exercise or question of that name; ``None`` if there is none."""
    try:
        return exercises.find(name)
    except KeyError:
        return None


# ------------------------------------------------------------------------------------- showing


def _shell() -> Any:
    module = sys.modules.get("IPython")
    return module.get_ipython() if module is not None else None


def _rich() -> bool:
    """In a notebook a card is drawn. For nbgrader and in a terminal it is text: both read that better."""
    shell = _shell()
    return shell is not None and hasattr(shell, "kernel") and not _graded()


def _graded() -> bool:
    return "NBGRADER_EXECUTION" in os.environ


class _Shown:
    def __init__(self, card: Card):
        self.card = card

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/plain": as_text(self.card), "text/html": as_html(self.card)}


def _show(report: Report) -> None:
    if _rich():
        from IPython.display import display

        display(_Shown(report.card))
    elif report.status == Status.RIGHT or (report.status == Status.BORROWED and not _graded()):
        print(as_text(report.card))


def _record(report: Report) -> None:
    if report.status in (Status.RIGHT, Status.BORROWED) and not _graded():
        from mha_course import lessons

        lessons.record(report.name, "passed" if report.status == Status.RIGHT else "borrowed")


def _kept(report: Report) -> Report:
    """Where the check itself stumbled, write down why, for whoever is to mend it, and say where that is."""
    if report.status != Status.BROKEN:
        return report
    from mha_course import lessons

    where = lessons.keep_problem(f"check({report.name})\n{report.details['why']}")
    if where is None:
        return report
    line = f"What happened is written down in {where}: send that along with your report."
    return replace(report, card=replace(report.card, lines=(*report.card.lines, line)))


def _kind_about_missing_names(
    shell: Any, kind: type, error: BaseException, trace: Any, tb_offset: Any = None
) -> list[str]:
    """A NameError for an exercise's name means: there is no answer yet."""
    name = getattr(error, "name", None)
    item = _item(name) if name else None
    if item is None:
        lines = shell.InteractiveTB.structured_traceback(kind, error, trace, tb_offset=tb_offset)
        shell._showtraceback(kind, error, lines)
        return lines
    failed = NotYetWritten(_not_there(item))
    lines = failed._render_traceback_()
    shell._showtraceback(NotYetWritten, failed, lines)
    return lines


def _warm_up() -> None:
    """What the first check would otherwise wait for: torch's fake tensors import its compiler (1 to 2 s)."""
    with contextlib.suppress(Exception):
        import torch._dynamo
        import torch._subclasses.fake_tensor  # noqa: F401


def _note_cell(result: Any) -> None:
    with contextlib.suppress(Exception):  # never in the way of a learner's own cell
        cells.note(result.info.raw_cell, result.error_before_exec or result.error_in_exec)


def _say_where_it_belongs() -> None:
    """In a notebook of the release, which is no place to work in: where the learner's own copy is."""
    from IPython.display import display

    from mha_course import lessons

    if says := lessons.where_it_belongs():
        display({"text/markdown": says, "text/plain": says.replace("*", "").replace("`", "")}, raw=True)


def greet_notebook() -> None:
    """Once, on import in a notebook: be kind about names that are not defined yet, and get ready."""
    quiet.mend_caches()
    shell = _shell()
    if shell is None:
        return
    shell.events.register("post_run_cell", _note_cell)
    quiet.keep_libraries_off_stderr()
    if not shell.custom_exceptions:
        shell.set_custom_exc((NameError,), _kind_about_missing_names)
    if _rich():
        _say_where_it_belongs()
        warming = threading.Thread(target=_warm_up, name="mha_course warm-up")
        warming.start()
        # Two threads that import parts of one package at a time can each get half a module: the next cell waits.
        shell.events.register("pre_execute", lambda: warming.join(60))


greet_notebook()
