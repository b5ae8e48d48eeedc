"""From a rebuilt notebook to marks: cells run over there, answers are called from here and compared here.

A notebook's cells are run with ready-made attention switched off before the first of them, where an exercise asks
for that. As long as nothing that is switched off is called, that run is as good as one with everything in place;
otherwise the other exercises, and the outputs, come from a run of their own. What the release only shows is left out,
unless that changes something. When a process dies, the next one runs the cells again without the one that killed it.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from mha_course import exercises
from mha_course import notebook_rules as rules
from mha_course.checking import Card, Exercise, Question, Report, as_html, as_text, examine
from mha_course.checking.kinds import DifferenceKind, Status
from mha_course.tutor import answer_question

from . import lending
from .intake import RebuiltCell, Release, Submission, grade_id, is_answer, is_graded, marks
from .remote import Died, Process, RemoteAnswer
from .sandbox import Nursery

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
    """

    cells: list[dict]
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    trouble: list[str] = field(default_factory=list)
    late: int = 0
    deaths: int = 0


class Marker:
    """Marks notebooks of one lesson, one after the other.

    Args:
        nursery: where learners' processes come from.
        outputs: keep what cells print and draw; without, only the checks' cards are in the notebook.
        pictures: run and draw what the release only shows, too.
    """

    def __init__(self, nursery: Nursery, outputs: bool = True, pictures: bool = False):
        self.nursery, self.outputs, self.pictures = nursery, outputs, pictures and outputs

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


class _Run:
    def __init__(self, marker: Marker, release: Release, cells: list[RebuiltCell], seeds: dict[str, int]):
        self.marker, self.cells, self.seeds = marker, cells, seeds
        self.lesson = set(checked_in(release))
        given = [c["source"] for n in release.notebooks.values() for c in n.cells if c["cell_type"] == "code"]
        self.imported = lending.imported(given) - self.lesson
        self.until = time.monotonic() + marker.nursery.limits.notebook_seconds
        self.outputs: dict[int, list[dict]] = {}
        self.deadly: set[int] = set()  # cells that are not run again
        self.late = self.deaths = 0
        self.found: dict[str, tuple[Report, int]] = {}

    def marks(self) -> Marks:
        wanted = [name for cell in self.cells for name in cell.check]
        items = {name: _find(name) for name in wanted}
        plans: dict[tuple[str, ...], list[str]] = {}
        for name, item in items.items():
            off = _off(item) if isinstance(item, Exercise) else ()
            plans.setdefault(off, []).append(name)
        loan = self._loan(items.values())
        free = plans.pop((), [])
        first = min(plans, key=len, default=())
        self._play_for_outputs(first, plans.pop(first, []), free, loan)
        for off, names in plans.items():
            self._play(off, set(names), loan, keep=False, given=False)
            if left := {name for name in names if self._open(name)}:
                self._play(off, left, loan, keep=False)
        self._play_with_borrowed(items)
        return self._written_up(items)

    def _play_for_outputs(
        self, off: tuple[str, ...], strict: list[str], free: list[str], loan: dict[str, Any]
    ) -> None:
        """The run whose outputs are kept, and which asks most exercises.

        Args:
            off: the fewest things that exercises of the notebook forbid.
            strict: exercises that forbid these.
            free: exercises that forbid nothing; they are asked again if what is switched off was called.
        """
        given = self.marker.pictures
        noticed, stumbled = self._play(off, {*strict, *free}, loan, keep=True, given=given)
        left = {name for name in (*strict, *free) if self._open(name) or (stumbled and not self._right(name))}
        if noticed:
            if left & set(strict) and not given:
                self._play(off, left & set(strict), loan, keep=False)
            self._play((), {name for name in free if not self._right(name)}, loan, keep=True)
        elif not given:
            if left:
                self._play(off, left, loan, keep=False)
            if stumbled:  # for want of something that the lesson shows, perhaps: in these outputs it is there
                self._play((), set(), loan, keep=True)

    def _loan(self, items: Iterable[Any], also: tuple[str, ...] = ()) -> dict[str, Any]:
        built_on = {n for item in items if isinstance(item, Exercise) for n in item.builds_on}
        return lending.loan(sorted(built_on - self.lesson | self.imported | set(also)))

    def _play_with_borrowed(self, items: dict[str, Any]) -> None:
        """Who borrowed an earlier answer of this very lesson is asked again, with just that one lent."""
        if not any("reference" in (cell.run or "") for cell in self.cells if cell.own):
            return
        for name, item in items.items():
            report = self.found.get(name)
            own = tuple(n for n in getattr(item, "builds_on", ()) if n in self.lesson)
            if report is not None and report[0].status == "wrong" and own:
                self._play(_off(item), {name}, self._loan(items.values(), own), keep=False)

    def _slow(self) -> bool:
        """Whether something was stopped already because its time was up: then the rest gets less."""
        return self.late > 0 or any(report.cause == "too slow" for report, _ in self.found.values())

    def _right(self, name: str) -> bool:
        return name in self.found and self.found[name][0].status == "right"

    def _open(self, name: str) -> bool:
        """Whether more of the notebook could change what was found: a name was missing, or nothing explains it."""
        if name not in self.found:
            return True
        report = self.found[name][0]
        if report.status in ("right", "not written") or report.named or report.cause == "too slow":
            return False
        return report.cause == "raised" or not self._below(_find(name), report)

    def _play(
        self, off: tuple[str, ...], wanted: set[str], loan: dict[str, Any], keep: bool, given: bool = True
    ) -> tuple[bool, bool]:
        """One run of the notebook, started again after each death.

        Args:
            off: groups to switch off.
            wanted: exercises to examine.
            loan: from `lending.loan`.
            keep: keep what cells print and draw.
            given: run the release's own cells, too, that stand as they were handed out and are no imports.

        Returns:
            whether something that is switched off was called, and whether a cell stumbled.
        """
        limits = self.marker.nursery.limits
        done: set[str] = set()
        which: dict[str, Any] = {}
        stumbled = False
        reached = 0  # cells before this one have been run before: their outputs are known
        last = (
            len(self.cells)
            if keep
            else 1 + max((i for i, cell in enumerate(self.cells) if set(cell.check) & wanted), default=-1)
        )
        for attempt in range(MAX_DEATHS + 1):
            if time.monotonic() > self.until or attempt == MAX_DEATHS:
                break
            process = Process(self.marker.nursery, self.until)
            at = 0
            which.clear()
            try:
                quiet = not keep or not self.marker.outputs
                process.begin(off, loan, quiet, self.marker.pictures)
                for at, cell in enumerate(self.cells[:last]):
                    shown_only = not given and cell.cell and not cell.own and not is_answer(cell.cell)
                    if shown_only:
                        pass
                    elif cell.run is not None and at not in self.deadly and time.monotonic() < self.until:
                        if cell.unless and process.which((cell.unless,)) != process.which(
                            ("a name nobody has",)
                        ):
                            continue
                        seconds = min(limits.cell_seconds, SECOND_LATE if self._slow() else math.inf)
                        outputs, late = process.run(cell.run, at + 1, seconds)
                        stumbled |= not late and any(o["output_type"] == "error" for o in outputs)
                        if keep and at >= reached:
                            says = f"Stopped: this cell was still running after {seconds:g} s."
                            self.outputs[at] = [*outputs, _error("TooSlow", says)] if late else outputs
                        if late:
                            self.late += at >= reached
                            self.deadly.add(at)
                    reached = max(reached, at)
                    for name in cell.check:
                        if name in wanted - done:
                            done.add(name)
                            self._ask(process, name)
                        which[name] = process.which((name,))
                for name in wanted & done:  # whoever wrote the answer below its check has written it
                    if self.found[name][0].status != "right" and process.which((name,)) != which[name]:
                        self._ask(process, name)
                return bool(off) and process.noticed(), stumbled
            except Died as death:
                self.deaths += 1
                stumbled |= not death.late
                self.late += death.late
                examined = bool(set(self.cells[at].check) & done)
                if self.cells[at].run is not None and at not in self.deadly and not examined:
                    self.deadly.add(at)
                    if keep:
                        says = f"The process ended in this cell: {death}. It was started again without it."
                        self.outputs[at] = [_error("Stopped", says)]
                reached = at
            finally:
                process.end()
        for name in wanted - done:
            self.found.setdefault(name, (_gave_up(name), self.seeds[name]))
        return bool(off), stumbled

    def _ask(self, process: Process, name: str) -> None:
        """Examine one answer and keep the better of this and an earlier report.

        Raises:
            Died: the process is gone; the report is kept.
        """
        item, seed = _find(name), self.seeds[name]
        answer = None
        if isinstance(item, Question):
            report = answer_question(item, process.value(name))
        elif item is None:
            report = _trouble(name, "no exercise of this name is declared")
        else:
            answer = RemoteAnswer(process, name)
            report = _examined(item, answer, seed)
        before = self.found.get(name)
        if before is None or before[0].status != "right":
            self.found[name] = (report, seed)
        if answer is not None and answer.death is not None:
            raise answer.death

    # ----------------------------------------------------------------------------- writing it up

    def _written_up(self, items: dict[str, Any]) -> Marks:
        marks_ = Marks([], late=self.late, deaths=self.deaths)
        for index, cell in enumerate(self.cells):
            if not cell.cell:
                continue  # the release's imports, run on their own
            shown = dict(cell.cell)
            if shown["cell_type"] == "code":
                shown["outputs"] = self.outputs.get(index, [])
                shown["execution_count"] = index + 1 if index in self.outputs or cell.check else None
            if is_graded(shown) and not marks(shown).get("solution"):
                self._write_check(marks_, shown, cell, items)
            marks_.cells.append(shown)
        return marks_

    def _write_check(self, marks_: Marks, shown: dict, cell: RebuiltCell, items: dict[str, Any]) -> None:
        name = grade_id(shown)
        if not cell.check:
            if shown["cell_type"] == "code":  # graded by code that only the learner's process could run
                marks_.trouble.append(name)
                shown["outputs"] = [_stream("This cell is no check(…): please grade it by hand.\n")]
            return
        outcomes = []
        for exercise in cell.check:
            report, seed = self.found.get(exercise) or (_gave_up(exercise), self.seeds[exercise])
            outcomes.append(_outcome(report, seed, self._below(items.get(exercise), report)))
        marks_.outcomes[name] = outcomes
        shown["outputs"] = [output for outcome in outcomes for output in _check_output(outcome)]
        if any(outcome.status == "trouble" for outcome in outcomes):
            marks_.trouble.append(name)

    def _below(self, item: Any, report: Report) -> str:
        """An earlier answer of the same notebook that this one calls, if that is not right."""
        if report.status == "right" or not isinstance(item, Exercise):
            return ""
        for name in item.builds_on:
            if name in self.found and self.found[name][0].status in ("wrong", "not written"):
                return f"It builds on {name}, which is not right yet: put that one right first."
        return ""


# ------------------------------------------------------------------------------------- one answer


def _find(name: str) -> Exercise | Question | None:
    try:
        return exercises.find(name)
    except KeyError:
        return None


def _off(exercise: Exercise) -> tuple[str, ...]:
    """Groups to switch off for an exercise. Attention contains a softmax, so that one takes the other along."""
    groups = set(exercise.forbidden)
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
    card = replace(report.card, lines=(*report.card.lines, below)) if below else report.card
    if report.status == "right":
        card = replace(
            card, headline=f"{report.checked} thing{'s' * (report.checked != 1)} checked"
        )  # the same text each time
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
        "" if report.named else (card.cause.splitlines() or [""])[0],
    )


def _check_output(outcome: Outcome) -> list[dict]:
    """What stands below a check cell: nbgrader gives full points unless there is an error."""
    if outcome.status == "right":
        return [_stream(outcome.text + "\n")]
    drawn = {"text/plain": outcome.text, "text/html": outcome.html}
    kind = "NotYetWritten" if outcome.status == "not written" else "CheckFailed"
    return [
        {"output_type": "display_data", "data": drawn, "metadata": {}},
        _error(
            kind,
            f"{outcome.name}: {outcome.headline}",
            f"{outcome.name}: {outcome.headline} (the card above says more)",
        ),
    ]


def _stream(text: str) -> dict:
    return {"output_type": "stream", "name": "stdout", "text": text}


def _error(kind: str, says: str, shown: str = "") -> dict:
    return {"output_type": "error", "ename": kind, "evalue": says, "traceback": [shown or says]}
