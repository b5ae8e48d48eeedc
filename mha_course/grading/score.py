"""From a rebuilt notebook to marks: cells run over there, answers are called from here and compared here.

A notebook's cells are run with ready-made attention switched off before the first of them, where an exercise asks
for that. As long as nothing that is switched off is called, that run is as good as one with everything in place;
otherwise the other exercises, and the outputs, come from a run of their own. What the release only shows is left out,
unless that changes something. When a process dies, the next one runs the cells again without the one that killed it.
Who fails only because an earlier answer does is right: that is tried with the reference in place of the earlier one.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import math
import re
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from mha_course import exercises
from mha_course import notebook_rules as rules
from mha_course.checking import Card, Exercise, Question, Report, as_html, as_text, examine
from mha_course.checking.kinds import DifferenceKind, Status
from mha_course.tutor import Cells, DidNotRun, answer_question

from . import lending
from .intake import RebuiltCell, Release, Submission, grade_id, is_answer, is_graded, marks
from .remote import Died, Process, RemoteAnswer
from .sandbox import Nursery

NO_ANSWER = ("not written", "did not run")  # causes
MAX_DEATHS = 8  # of one run of a notebook
SECOND_LATE = 20.0  # seconds for a cell, once something was stopped
PRACTICE_SEED = (
    0  # what a learner's own check() uses; cards are made with it, so that no hidden input is shown
)


def seed_for(secret: bytes, student: str, exercise: str) -> int:
    """The seed of one learner's inputs for one exercise: the same whenever it is asked for, 63 bits."""
    digest = hmac.new(secret, f"{student}\0{exercise}".encode(), hashlib.sha256).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def checked_in(release: Release) -> list[str]:
    """Names of all exercises and questions that a lesson checks."""
    cells = [cell for notebook in release.notebooks.values() for cell in notebook.cells if is_graded(cell)]
    return list(dict.fromkeys(name for cell in cells for name in rules.checked_names(cell["source"]) or ()))


@dataclass
class Outcome:
    """What became of one exercise or question.

    Args:
        status: "right", "wrong", "not written", or "trouble": a fault of the grading, for a person to look at.
        cause: the misconception's id or the kind of difference.
        named: whether the cause is a known misconception.
        seed: of the inputs, from `seed_for`.
        text, html: the card.
        why: for "trouble", what happened, for whoever mends it.
        after: earlier answers that it fails because of: with the reference in their place it is right.
        says: what the card says of a cause that is no known misconception, in a sentence.
    """

    name: str
    status: str
    cause: str
    named: bool
    seed: int
    text: str
    html: str
    headline: str
    why: str = ""
    after: list[str] = field(default_factory=list)
    says: str = ""


@dataclass
class Marks:
    """What became of one notebook.

    Args:
        cells: nbformat cells with outputs, checks included.
        outcomes: by grade id of the check cell.
        trouble: grade ids that a person must look at.
        late: how many cells and checks were stopped because their time was up.
        deaths: how often the process died.
        missing: packages that the notebook imports and that are not installed here.
    """

    cells: list[dict]
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    trouble: list[str] = field(default_factory=list)
    late: int = 0
    deaths: int = 0
    missing: list[str] = field(default_factory=list)


class Marker:
    """Marks notebooks of one lesson, one after the other.

    Args:
        nursery: where learners' processes come from.
        outputs: keep what cells print and draw; without, only the checks' cards are in the notebook.
        pictures: run and draw what the release only shows, too.
        follow_on: the share of its points that an answer gets that fails only because an earlier one does, 0 to 1.
    """

    def __init__(
        self, nursery: Nursery, outputs: bool = True, pictures: bool = False, follow_on: float = 1.0
    ):
        self.nursery, self.outputs, self.pictures = nursery, outputs, pictures and outputs
        self.follow_on = follow_on

    def mark(self, release: Release, submission: Submission, seeds: dict[str, int]) -> dict[str, Marks]:
        """Marks of every notebook of a submission, by stem; those not handed in are left out.

        Args:
            release: the lesson.
            submission: from `intake.read_submission`.
            seeds: for every exercise of the lesson, from `seed_for`.
        """
        return {
            stem: _Run(self, release, cells, seeds).marks()
            for stem, cells in submission.notebooks.items()
            if cells is not None
        }


# ------------------------------------------------------------------------------------- one notebook


@dataclass(frozen=True)
class _Play:
    """One run of a notebook.

    Args:
        off: groups to switch off.
        wanted: exercises and questions to ask.
        keep: keep what cells print and draw.
        shown: run the release's own cells, too, that stand as they were handed out and are no imports.
        lent: earlier answers in whose place the reference stands.
        lean: with hardly any memory, by `Exercise.large`: those that are right so far.
    """

    off: tuple[str, ...]
    wanted: tuple[str, ...]
    keep: bool = False
    shown: bool = True
    lent: tuple[str, ...] = ()
    lean: bool = False


class _Run:
    def __init__(self, marker: Marker, release: Release, cells: list[RebuiltCell], seeds: dict[str, int]):
        self.marker, self.cells, self.seeds = marker, cells, seeds
        lesson = set(checked_in(release))
        self.items = {name: _find(name) for cell in cells for name in cell.check}
        self.blank = {cell.unless for cell in cells if cell.unless}  # answers in which nothing was written
        given = [c["source"] for n in release.notebooks.values() for c in n.cells if c["cell_type"] == "code"]
        built_on = {name for item in self.items.values() for name in getattr(item, "builds_on", ())}
        self.borrowable = (built_on | lending.imported(given)) - lesson
        self.until = time.monotonic() + marker.nursery.limits.notebook_seconds
        self.outputs: dict[int, list[dict]] = {}
        self.deadly: set[int] = set()  # cells that are not run again
        self.late = self.deaths = 0
        self.noticed = self.stumbled = False  # something that is switched off was called; a cell raised
        self.found: dict[str, Report] = {}
        self.asked_with: dict[str, tuple[str, ...]] = {}  # earlier answers in whose place the reference stood
        self.missing: set[str] = set()  # packages that cells import and that are not here

    def marks(self) -> Marks:
        for play in self._plan():
            self._play(play)
        return self._written_up()

    def _plan(self) -> Iterator[_Play]:
        """The runs of this notebook, each planned when it is known what came of those before it."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for name, item in self.items.items():
            groups.setdefault(_off(item), []).append(name)
        free, pictures = groups.pop((), []), self.marker.pictures
        first = min(groups, key=len, default=())  # what is forbidden most often
        strict = groups.pop(first, [])
        yield _Play(first, (*strict, *free), keep=True, shown=pictures)
        if called := self.noticed:  # then what forbids nothing, and the outputs, need a run in which it works
            yield _Play((), tuple(name for name in free if not self._settled(name)), keep=True)
        stumbled, left = self.stumbled, self._left(strict if called else [*strict, *free])
        if left and not pictures:
            yield _Play(first, left)
        if stumbled and not called and not pictures:
            yield _Play((), (), keep=True)  # perhaps for want of what the lesson shows: here it is there
        for off, names in groups.items():
            yield _Play(off, tuple(names), shown=False)
            if left := self._left(names):
                yield _Play(off, left)
        yield from self._with_earlier_ones_lent()
        lean: dict[tuple, list[str]] = {}
        for name, item in self.items.items():
            if self._right(name) and getattr(item, "large", None) is not None:
                lent = tuple(self.found[name].details.get("after", ()))
                lean.setdefault((_off(item), lent), []).append(name)
        for (off, lent), names in lean.items():
            yield _Play(off, tuple(names), lent=lent, lean=True)

    def _with_earlier_ones_lent(self) -> Iterator[_Play]:
        """Who fails is asked again with the reference in place of the earlier answers that are wrong in themselves.

        Of those who fail, the first builds on nothing that fails: it is wrong in itself. It is lent to all that build
        on it. Who then still fails, with everything lent that it builds on and that fails, is wrong in itself, too.
        """
        while True:
            failing = {n for n, x in self.items.items() if isinstance(x, Exercise) and self._fails(n)}
            needs = {name: self._earlier(name) & failing for name in failing}
            own = {n for n in failing if n in self.blank or needs[n] <= set(self.asked_with.get(n, ()))}
            plays: dict[tuple, list[str]] = {}
            for name in (name for name in self.items if name in failing - own):
                lent = tuple(n for n in self.items if n in needs[name] & own)
                if lent != self.asked_with.get(name, ()) and name not in lending.comes_along(lent):
                    plays.setdefault((_off(self.items[name]), lent), []).append(name)
            if not plays or time.monotonic() > self.until:
                return
            for (off, lent), names in plays.items():
                yield _Play(off, tuple(names), lent=lent)
                self.asked_with |= dict.fromkeys(names, lent)

    def _earlier(self, name: str) -> set[str]:
        """Exercises of this notebook that one builds on, and those that they build on; only what can be lent."""
        found: set[str] = set()
        look = [name]
        while look:
            builds_on = getattr(self.items.get(look.pop()), "builds_on", ())
            new = {n for n in builds_on if n in self.items and lending.has(n)} - found
            found |= new
            look += new
        return found - {name}

    def _slow(self) -> bool:
        """Whether something was stopped already because its time was up: then the rest gets less."""
        return self.late > 0 or any(report.cause == "too slow" for report in self.found.values())

    def _right(self, name: str) -> bool:
        return name in self.found and self.found[name].status == Status.RIGHT

    def _fails(self, name: str) -> bool:
        """Whether it is wrong or not there; not so where the fault was the grader's."""
        return name in self.found and self.found[name].status in (Status.WRONG, Status.NOT_WRITTEN)

    def _settled(self, name: str) -> bool:
        """Whether nothing more is to be asked: it is right, or a question that has an answer. That one counts."""
        answered = isinstance(self.items[name], Question) and name in self.found
        return self._right(name) or (answered and not self.found[name].cause.startswith(NO_ANSWER))

    def _left(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of which more of the notebook could change what was found."""
        return tuple(n for n in names if not self._settled(n) and (self.stumbled or self._open(n)))

    def _open(self, name: str) -> bool:
        """Whether it was not reached, a name was missing, or nothing explains what was found."""
        if name not in self.found:
            return True
        report = self.found[name]
        if report.status == Status.NOT_WRITTEN or report.named or report.cause == "too slow":
            return False
        return report.cause == "raised" or not self._failing_below(name)

    def _play(self, play: _Play) -> None:
        """Run the notebook, again after each death, and ask what is wanted."""
        limits = self.marker.nursery.limits
        wanted, done = {name for name in play.wanted if play.lean or not self._settled(name)}, set()
        which: dict[str, Any] = {}
        reached = 0  # cells before this one have been run before: their outputs are known
        last = len(self.cells)
        if not play.keep:
            last = 1 + max((i for i, cell in enumerate(self.cells) if set(cell.check) & wanted), default=-1)
        loan = lending.loan(sorted(self.borrowable | set(play.lent)))
        quiet = not play.keep or not self.marker.outputs
        for attempt in range(MAX_DEATHS + 1):
            if time.monotonic() > self.until or attempt == MAX_DEATHS:
                break
            process, self.ran = Process(self.marker.nursery, self.until), Cells()
            at = 0
            which.clear()
            try:
                process.begin(play.off, loan, quiet, self.marker.pictures, play.lent, play.lean)
                for at, cell in enumerate(self.cells[:last]):
                    shown_only = not play.shown and cell.cell and not cell.own and not is_answer(cell.cell)
                    if shown_only:
                        pass
                    elif cell.run is not None and at not in self.deadly and time.monotonic() < self.until:
                        if cell.unless and process.which((cell.unless,)) != process.which(
                            ("a name nobody has",)
                        ):
                            continue
                        seconds = min(limits.cell_seconds, SECOND_LATE if self._slow() else math.inf)
                        outputs, late, fault = process.run(cell.run, at + 1, seconds)
                        self.ran.note_fault(cell.run, fault)
                        self.missing |= _not_installed(fault.says if fault else "")
                        self.stumbled |= not late and any(o["output_type"] == "error" for o in outputs)
                        if play.keep and at >= reached:
                            says = f"Stopped: this cell was still running after {seconds:g} s."
                            self.outputs[at] = [*outputs, _error("TooSlow", says)] if late else outputs
                        if late:
                            self.late += at >= reached
                            self.deadly.add(at)
                    reached = max(reached, at)
                    for name in cell.check:
                        if name in wanted - done:
                            done.add(name)
                            self._ask(process, name, play)
                        which[name] = process.which((name,))
                for name in wanted & done:  # whoever wrote the answer below its check has written it
                    if not self._settled(name) and process.which((name,)) != which[name]:
                        self._ask(process, name, play)
                self.noticed = bool(play.off) and process.noticed()
                return
            except Died as death:
                self.deaths += 1
                self.stumbled |= not death.late
                self.late += death.late
                examined = bool(set(self.cells[at].check) & done)
                if self.cells[at].run is not None and at not in self.deadly and not examined:
                    self.deadly.add(at)
                    if play.keep:
                        says = f"The process ended in this cell: {death}. It was started again without it."
                        self.outputs[at] = [_error("Stopped", says)]
                reached = at
            finally:
                process.end()
        for name in wanted - done:
            if play.lean:
                self.found.pop(name)  # whether it takes too much was never seen
            self.found.setdefault(name, _gave_up(name))
        self.noticed = bool(play.off)

    def _ask(self, process: Process, name: str, play: _Play) -> None:
        """Examine one answer and keep the better of this and an earlier report.

        Raises:
            Died: the process is gone; the report is kept.
        """
        item, seed = self.items[name], self.seeds[name]
        answer = None
        if isinstance(item, Question):
            report = answer_question(item, process.value(name))
        elif item is None:
            report = _trouble(name, "no exercise of this name is declared")
        else:
            answer = RemoteAnswer(process, name, play.lent)
            report = (_examined_for_memory if play.lean else _examined)(item, answer, seed)
            self.missing |= _not_installed(report.card.headline)
        report = _about_its_cell(report, self.ran.failed.get(name))
        if play.lean:
            if report.status != Status.RIGHT:
                self.found[name] = report
        elif play.lent:
            self._note_with_lent(name, report, play.lent)
        elif not self._right(name):
            self.found[name] = report
        if answer is not None and answer.death is not None:
            raise answer.death

    def _note_with_lent(self, name: str, report: Report, lent: tuple[str, ...]) -> None:
        """What became of an answer with the reference in place of earlier ones that are wrong in themselves."""
        if report.status == Status.RIGHT:
            self.found[name] = replace(report, details={"after": list(lent)})
        elif report.status != Status.WRONG or report.cause in ("borrowed", "too slow"):
            return
        elif report.card != self.found[name].card:  # else it does not call them
            line = (
                f"{' and '.join(lent)}, which it calls, {'is' if len(lent) == 1 else 'are'} not right either."
            )
            self.found[name] = replace(report, card=replace(report.card, lines=(*report.card.lines, line)))

    # ----------------------------------------------------------------------------- writing it up

    def _written_up(self) -> Marks:
        marks_ = Marks([], late=self.late, deaths=self.deaths, missing=sorted(self.missing))
        for index, cell in enumerate(self.cells):
            if not cell.cell:
                continue  # the release's imports, run on their own
            shown = dict(cell.cell)
            if shown["cell_type"] == "code":
                shown["outputs"] = self.outputs.get(index, [])
                shown["execution_count"] = index + 1 if index in self.outputs or cell.check else None
            if is_graded(shown) and not marks(shown).get("solution"):
                self._write_check(marks_, shown, cell)
            marks_.cells.append(shown)
        return marks_

    def _write_check(self, marks_: Marks, shown: dict, cell: RebuiltCell) -> None:
        name = grade_id(shown)
        if not cell.check:
            if shown["cell_type"] == "code":  # graded by code that only the learner's process could run
                marks_.trouble.append(name)
                shown["outputs"] = [_stream("This cell is no check(…): please grade it by hand.\n")]
            return
        outcomes = []
        for exercise in cell.check:
            report = self.found.get(exercise) or _gave_up(exercise)
            outcomes.append(_outcome(report, self.seeds[exercise], self._below(exercise, report)))
        marks_.outcomes[name] = outcomes
        shown["outputs"] = [output for outcome in outcomes for output in _check_output(outcome)]
        share = sum(self.marker.follow_on if outcome.after else 1 for outcome in outcomes) / len(outcomes)
        if share < 1 and all(outcome.status == "right" for outcome in outcomes):
            shown["outputs"].append(_partial_credit(share * marks(shown)["points"], shown["execution_count"]))
        if any(outcome.status == "trouble" for outcome in outcomes):
            marks_.trouble.append(name)

    def _failing_below(self, name: str) -> str:
        """An earlier answer of the same notebook that this one builds on and that is not right; "" if all are."""
        return next(filter(self._fails, getattr(self.items[name], "builds_on", ())), "")

    def _below(self, name: str, report: Report) -> str:
        """What the card adds where it was not tried what becomes of an answer once the earlier ones are right."""
        earlier = self._failing_below(name)
        if report.status == "right" or not earlier or name in self.asked_with:
            return ""
        return f"It builds on {earlier}, which is not right yet: put that one right first."


# ------------------------------------------------------------------------------------- one answer


def _find(name: str) -> Exercise | Question | None:
    try:
        return exercises.find(name)
    except KeyError:
        return None


def _off(item: Any) -> tuple[str, ...]:
    """Groups to switch off for an exercise. Attention contains a softmax, so that one takes the other along."""
    groups = set(getattr(item, "forbidden", ()))
    if "ready-made softmax" in groups:
        groups.add("ready-made attention")
    return tuple(sorted(groups))


_practice: dict = {}  # what the practice inputs give, for right and for known wrong answers: the same for every learner


def _examined(exercise: Exercise, answer: RemoteAnswer, seed: int) -> Report:
    """The report: right or wrong by hidden inputs, and if wrong what the learner's own check says about it."""
    try:
        report = examine(exercise, answer, seed, diagnosing=False)
        if report.status == Status.BROKEN:
            return _trouble(exercise.name, report.details["why"])
        if report.status != Status.WRONG or report.cause == "borrowed":
            return report
        if answer.death is None and report.cause != DifferenceKind.TOO_SLOW:
            practice = examine(exercise, answer, PRACTICE_SEED, memory=_practice)
            if practice.status == "wrong" and answer.death is None:
                return replace(report, card=practice.card, cause=practice.cause, named=practice.named)
            if practice.status == "right":
                report = examine(exercise, answer, seed)
                headline = "right on the practice inputs, wrong on others."
                line = "Your own check() always uses the same inputs; here it was tried on fresh ones."
                return replace(
                    report, card=replace(_without_inputs(report.card), headline=headline, lines=(line,))
                )
    except Exception:  # the engine stumbled over a claim, or over itself: a person must look
        return _trouble(exercise.name, traceback.format_exc(limit=-3))
    return replace(report, card=_without_inputs(report.card))


def _examined_for_memory(exercise: Exercise, answer: RemoteAnswer, seed: int) -> Report:
    """The report on `Exercise.large`, asked of a process that has no memory to do it all at once."""
    large = replace(exercise, cases=(exercise.large,), device_safe=False, seconds=60)
    report = examine(large, answer, seed, diagnosing=False)
    if report.status == Status.BROKEN:
        return _trouble(exercise.name, report.details["why"])
    if report.status == Status.RIGHT:
        return report
    lines = (
        f"It was tried with {exercise.large.name}, in a process with no memory for all scores at once:",
        report.card.headline,
    )
    card = Card(
        Status.WRONG, exercise.name, "right numbers, and more memory than there should be need of.", lines
    )
    return Report(exercise.name, Status.WRONG, card, DifferenceKind.TOO_LARGE)


def _about_its_cell(report: Report, fault: DidNotRun | None) -> Report:
    """A report that knows that the last cell that should have defined the answer did not run to its end."""
    if fault is None or fault.error == "NotImplementedError":
        return report
    if report.status != Status.NOT_WRITTEN:
        note = f"this is about an earlier version: the cell with the newest one did not run ({fault.short})."
        return replace(report, card=replace(report.card, notes=(note, *report.card.notes)))
    lines = (
        f"{fault.error}: {fault.says}" if fault.says else fault.error,
        *_install(_not_installed(fault.says)),
    )
    code = ((f"the cell of {report.name}", fault.line, fault.code),) if fault.line else ()
    headline = f"did not run: {fault.short}."
    card = Card(Status.WRONG, report.name, headline, lines, code=code, hint="Put that line right first.")
    return Report(report.name, Status.WRONG, card, f"did not run: {fault.error}", named=True)


def _not_installed(says: str) -> set[str]:
    """The package that an error is about that is not installed here: none, or one."""
    found = re.search(r"No module named '(\w+)", says)
    return {found[1]} if found and importlib.util.find_spec(found[1]) is None else set()


def _install(packages: set[str]) -> tuple[str, ...]:
    return tuple(
        f"{name} is not installed where this was graded: ask your instructor for it, or do without."
        for name in packages
    )


def _without_inputs(card: Card) -> Card:
    """A card without what it says about the inputs: those are hidden."""
    return replace(card, numbers="", tried="", grids=(), grid_note="")


def _trouble(name: str, why: str) -> Report:
    line = "Something went wrong in the grading, not in your answer. Your instructor will look at it."
    card = Card("not written", name, "not marked yet.", (line,))
    return Report(name, "trouble", card, "trouble", details={"why": why})


def _gave_up(name: str) -> Report:
    line = "The notebook's process ended again and again, or its time was up, before this could be tried."
    return Report(name, "wrong", Card("wrong", name, "could not be tried.", (line,)), "never reached")


def _outcome(report: Report, seed: int, below: str) -> Outcome:
    more = (*([below] if below else ()), *_install(_not_installed(report.card.headline)))
    card = replace(report.card, lines=(*report.card.lines, *more))
    after = report.details.get("after", [])
    if report.status == "right":
        card = replace(
            card, headline=f"{report.checked} thing{'s' * (report.checked != 1)} checked"
        )  # the same each time
    if after:
        faulty = " and ".join(f"{name} ({exercises.find(name).number})" for name in after)
        headline = f"right; it fails because your {faulty} {'does' if len(after) == 1 else 'do'}."
        line = f"With the course's own {' and '.join(after)} in place of yours it gives what it should."
        card = replace(card, headline=headline, lines=(line,))
    return Outcome(
        report.name,
        report.status,
        report.cause,
        report.named,
        seed,
        as_text(card),
        as_html(card),
        card.headline,
        str(report.details.get("why", ""))[-4000:],
        after,
        "" if report.named else (card.cause.splitlines() or [""])[0],
    )


def _check_output(outcome: Outcome) -> list[dict]:
    """What stands below a check cell: nbgrader gives full points unless there is an error."""
    drawn = {"text/plain": outcome.text, "text/html": outcome.html}
    if outcome.after:
        return [{"output_type": "display_data", "data": drawn, "metadata": {}}]
    if outcome.status == "right":
        return [_stream(outcome.text + "\n")]
    kind = "NotYetWritten" if outcome.status == "not written" else "CheckFailed"
    return [
        {"output_type": "display_data", "data": drawn, "metadata": {}},
        _error(
            kind,
            f"{outcome.name}: {outcome.headline}",
            f"{outcome.name}: {outcome.headline} (the card above says more)",
        ),
    ]


def _partial_credit(points: float, number: int | None) -> dict:
    """What nbgrader takes for a share of a check's points."""
    shown = {"text/plain": f"{points:g}"}
    return {"output_type": "execute_result", "data": shown, "metadata": {}, "execution_count": number}


def _stream(text: str) -> dict:
    return {"output_type": "stream", "name": "stdout", "text": text}


def _error(kind: str, says: str, shown: str = "") -> dict:
    return {"output_type": "error", "ename": kind, "evalue": says, "traceback": [shown or says]}
