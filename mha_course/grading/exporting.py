"""The command ``mha-course export``: marks as a CSV file, in the columns that learning platforms import.

- ``csv``: one row for each learner and lesson, in the columns of nbgrader's own export and one more, the status.
- ``canvas``: one row for each learner, one column for each lesson, and Canvas's second row with the points possible.
  Source: Canvas Instructor Guide, "How do I import grades in the Gradebook?".
- ``moodle``: one row for each learner, with every field by which Moodle can recognise somebody.
  Source: Moodle documentation, "Grade import", section "CSV import".

A mark that is not there is an empty field, never a 0: who handed in nothing, whose submission was set aside, who waits
for a part to be graded by hand. Those are listed, too.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mha_course import lessons

from .intake import printable

if TYPE_CHECKING:
    from nbgrader.api import Gradebook

FORMATS = ("csv", "canvas", "moodle")
NBGRADER = (
    *("assignment", "duedate", "timestamp", "student_id", "last_name", "first_name", "email"),
    *("raw_score", "late_submission_penalty", "score", "max_score"),
)
NEEDED = ("Student", "ID")  # columns without which a file is none of Canvas's
CANVAS = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")
MOODLE = ("Username", "First name", "Last name", "ID number", "Email address")
POINTS = "    Points Possible"  # with four spaces: so Canvas writes it


class ExportError(Exception):
    """Nothing can be exported; the text says what to do."""


@dataclass(frozen=True)
class Learner:
    """Who gets marks: nbgrader's student."""

    id: str
    last_name: str = ""
    first_name: str = ""
    email: str = ""

    @property
    def name(self) -> str:
        """ "Lovelace, Ada", as Canvas writes names; the id where there is none."""
        return ", ".join(part for part in (self.last_name, self.first_name) if part) or self.id


@dataclass(frozen=True)
class Mark:
    """What one learner has for one lesson.

    Args:
        status: "graded", "needs manual grading", "not handed in", or "set aside".
        raw: points before the penalty; ``None``: there are none.
        penalty: taken off for being late, in points.
    """

    lesson: str
    learner: Learner
    status: str
    most: float
    raw: float | None = None
    penalty: float = 0.0
    due: str = ""
    handed_in: str = ""

    @property
    def score(self) -> float | None:
        """Points, the penalty taken off and never below 0; ``None`` unless all of it is graded."""
        return max(0.0, self.raw - self.penalty) if self.status == "graded" and self.raw is not None else None


# -------------------------------------------------------------------------------------- reading


def marks_in(
    gradebook: Gradebook, names: Sequence[str] = (), students: Sequence[str] = (), root: Path | None = None
) -> list[Mark]:
    """All marks in a gradebook, by lesson, then by learner.

    Args:
        gradebook: nbgrader's.
        names: only these lessons; empty: all.
        students: only these learners; empty: all.
        root: the course's folder; submissions that were set aside are found there.

    Raises:
        ExportError: a lesson or a learner is not in the gradebook.
    """
    from nbgrader.api import MissingEntry

    known = {assignment.name: assignment for assignment in gradebook.assignments}
    _all_known(names, known, "lesson")
    learners = {
        s.id: Learner(s.id, s.last_name or "", s.first_name or "", s.email or "") for s in gradebook.students
    }
    found = []
    aside = {name: _set_aside(root, name) for name in names or known}
    for student in sorted({s for those in aside.values() for s in those} - set(learners)):
        learners[student] = Learner(student)
    _all_known(students, learners, "learner")
    for name in names or sorted(known):
        assignment = known[name]
        due = str(assignment.duedate or "")
        for learner in sorted(learners.values(), key=lambda one: one.id):
            if students and learner.id not in students:
                continue
            mark = Mark(name, learner, "not handed in", assignment.max_score, due=due)
            try:
                handed_in = gradebook.find_submission(name, learner.id)
            except MissingEntry:
                if learner.id in aside[name]:
                    mark = Mark(name, learner, "set aside", assignment.max_score, due=due)
            else:
                waits = "set aside" if learner.id in aside[name] else "needs manual grading"
                mark = Mark(
                    name,
                    learner,
                    waits if handed_in.needs_manual_grade else "graded",
                    assignment.max_score,
                    raw=handed_in.score,
                    penalty=handed_in.late_submission_penalty or 0.0,
                    due=due,
                    handed_in=str(handed_in.timestamp or ""),
                )
            found.append(mark)
    return found


def _all_known(asked: Iterable[str], known: Iterable[str], what: str) -> None:
    missing = [name for name in asked if name not in known]
    if missing:
        there = ", ".join(sorted(known)) or "none"
        raise ExportError(f"the gradebook has no {what} {', '.join(missing)}. It has: {there}")


def _set_aside(root: Path | None, lesson: str) -> set[str]:
    """Whose submissions of a lesson could not be read, by what ``mha-course grade`` noted."""
    import json

    found = set()
    for path in (root / "grading" / "marks" / lesson).glob("[da]*/*.json") if root else ():  # done, again
        with contextlib.suppress(ValueError, TypeError, KeyError, OSError):
            noted = json.loads(path.read_text(encoding="utf-8"))
            if noted["status"] != "graded":
                found.add(noted["student"])
    return found


# -------------------------------------------------------------------------------------- writing


def harmless(text: str) -> str:
    """A text that no spreadsheet takes for a formula: those that begin like one get an apostrophe in front."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r", "\n") else text


def number(value: float | None) -> str:
    """12.5, 7, or nothing where there is no number."""
    return "" if value is None else f"{round(value, 4):.10g}"


def as_csv(marks: Sequence[Mark]) -> list[list[str]]:
    """Rows for ``csv``: nbgrader's columns, and the status."""
    rows = [[*NBGRADER, "status"]]
    for m in marks:
        who = m.learner
        names = map(harmless, (who.id, who.last_name, who.first_name, who.email))
        numbers = map(number, (m.raw, None if m.raw is None else m.penalty, m.score, m.most))
        rows.append([m.lesson, m.due, m.handed_in, *names, *numbers, m.status])
    return rows


def as_moodle(marks: Sequence[Mark]) -> list[list[str]]:
    """Rows for ``moodle``."""
    by_learner, names = _table(marks)
    rows = [[*MOODLE, *names]]
    for who, scores in by_learner.items():
        texts = map(harmless, (who.id, who.first_name, who.last_name, who.id, who.email))
        rows.append([*texts, *(number(scores.get(name)) for name in names)])
    return rows


def as_canvas(marks: Sequence[Mark], roster: Roster | None = None) -> list[list[str]]:
    """Rows for ``canvas``.

    Args:
        roster: what Canvas itself exported; its learners, in its order, with its ids.
    """
    by_learner, names = _table(marks)
    most = {m.lesson: number(m.most) for m in marks}
    titles = [roster.title_of(name) if roster else name for name in names]
    rows = [[*CANVAS, *titles], [POINTS, "", "", "", "", *(most[name] for name in names)]]
    if roster is None:
        for who, scores in by_learner.items():
            texts = map(harmless, (who.name, "", who.id, who.id, ""))
            rows.append([*texts, *(number(scores.get(name)) for name in names)])
        return rows
    theirs = {row: who for who in by_learner if (row := roster.row_of(who)) is not None}
    for row, cells in enumerate(roster.rows):
        scores = by_learner.get(theirs.get(row), {})
        rows.append([*(cells.get(column, "") for column in CANVAS), *(number(scores.get(n)) for n in names)])
    return rows


def _table(marks: Sequence[Mark]) -> tuple[dict[Any, dict[str, float | None]], list[str]]:
    """Scores by learner and lesson, and the lessons in order."""
    table: dict[Any, dict[str, float | None]] = {}
    for mark in marks:
        table.setdefault(mark.learner, {})[mark.lesson] = mark.score
    return table, list(dict.fromkeys(mark.lesson for mark in marks))


class Roster:
    """A file that Canvas exported: who is there, with Canvas's own ids.

    Canvas separates by commas or by semicolons, as is set in somebody's account there; `separator` is what it did.

    Args:
        path: "Export" in Canvas's gradebook writes it.

    Raises:
        ExportError: it is not such a file.
    """

    def __init__(self, path: Path):
        try:
            text = path.read_bytes().decode("utf-8-sig")
            self.separator = next((sign for sign in ",;\t" if _has_columns(text, sign)), ",")
            rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=self.separator))
        except OSError as error:
            raise ExportError(f"{path} cannot be read: {error.strerror}") from None
        except (UnicodeDecodeError, csv.Error):
            raise ExportError(f"{path} is not a CSV file in UTF-8") from None
        self.columns = list(rows[0]) if rows else []
        missing = [name for name in NEEDED if name not in self.columns]
        if missing:
            raise ExportError(
                f"{path} has no column {' and no column '.join(missing)}. "
                "Take the file that Canvas's gradebook exports: Export → Export Current Gradebook View."
            )
        # below the header stand rows that are nobody: points possible, manual posting
        self.rows = [
            row
            for row in rows
            if (row["ID"] or "").strip() and "Points Possible" not in (row["Student"] or "")
        ]
        self.places: dict[str, int] = {}
        for column in ("SIS Login ID", "SIS User ID", "ID"):
            for place, row in enumerate(self.rows):
                if value := (row.get(column) or "").strip().casefold():
                    self.places.setdefault(value, place)

    def row_of(self, who: Learner) -> int | None:
        """Which row is this learner's: by login, by SIS id, by Canvas's id, or by the e-mail address."""
        for name in (who.id, who.email, who.email.partition("@")[0]):
            if name and (place := self.places.get(name.casefold())) is not None:
                return place
        return None

    def title_of(self, lesson: str) -> str:
        """The lesson's column as Canvas calls it, "01_one_head (4711)", so that it is filled and not made twice."""
        return next((c for c in self.columns if c == lesson or c.startswith(f"{lesson} (")), lesson)


def _has_columns(text: str, separator: str) -> bool:
    header = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])
    return set(NEEDED) <= set(header)


def text_of(rows: Iterable[Sequence[str]], separator: str = ",") -> str:
    """Rows as CSV text."""
    file = io.StringIO()
    csv.writer(file, delimiter=separator, lineterminator="\n").writerows(rows)
    return file.getvalue()


# ---------------------------------------------------------------------------------- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lessons", nargs="*", help="lessons (01, 01_one_head); all of them by default")
    parser.add_argument("--format", choices=FORMATS, default="csv", help="columns for what; csv by default")
    parser.add_argument("--to", metavar="FILE", help="the file to write; - is the terminal")
    parser.add_argument(
        "--roster", type=Path, metavar="FILE", help="canvas: the file Canvas exported, for its ids"
    )
    parser.add_argument("--student", action="append", default=[], help="only this one (may be given again)")
    parser.add_argument("--db", help="URL of the gradebook; by default the one in nbgrader_config.py")
    parser.add_argument("--root", type=Path, default=None, help="the course's folder")


def main(args: argparse.Namespace) -> int:
    """Runs ``mha-course export``. Exit code 0: written; 1: nothing could be; 2: written, and somebody is left out."""
    root = (args.root or lessons.ROOT).resolve()
    try:
        if args.roster and args.format != "canvas":
            raise ExportError("--roster is for --format canvas")
        roster = Roster(args.roster) if args.roster else None
        marks = _read(root, args)
        rows = {"csv": as_csv, "moodle": as_moodle}.get(args.format, lambda m: as_canvas(m, roster))(marks)
        target = args.to or root / "grading" / f"marks-{args.format}.csv"
        _write(target, text_of(rows, roster.separator if roster else ","))
    except (ExportError, lessons.LessonError) as error:
        print(error, file=sys.stderr)
        return 1
    if args.to != "-":
        people = len({mark.learner for mark in marks})
        print(f"{target}: {people} learner{'s' * (people != 1)}, {len({m.lesson for m in marks})} lesson(s).")
    return _what_is_missing(marks, roster)


def _read(root: Path, args: argparse.Namespace) -> list[Mark]:
    from nbgrader.api import Gradebook

    from .writer import course_config

    config = course_config(root, args.db)
    url = config.CourseDirectory.db_url
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        raise ExportError(
            f"there is no gradebook at {url.removeprefix('sqlite:///')}: grade a lesson first (mha-course grade 01)"
        )
    try:
        gradebook = Gradebook(url, config.CourseDirectory.course_id or "")
    except Exception as error:  # SQLAlchemy has a class for everything
        raise ExportError(f"the gradebook {url} cannot be opened: {str(error).splitlines()[0]}") from None
    try:
        known = [assignment.name for assignment in gradebook.assignments]
        names = [_named(name, known, root) for name in args.lessons]
        found = marks_in(gradebook, names, args.student, root)
    finally:
        gradebook.close()
    if not found:
        raise ExportError("the gradebook has no marks yet: grade a lesson first (mha-course grade 01)")
    return found


def _named(name: str, known: Sequence[str], root: Path) -> str:
    """The lesson's name in the gradebook: itself, or found by its number."""
    fits = [other for other in known if other == name or other.partition("_")[0] == name]
    return fits[0] if len(fits) == 1 else lessons.find(name, root).folder


def _write(target: str | Path, text: str) -> None:
    if target == "-":
        sys.stdout.write(text)
        return
    path = Path(target)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="")
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise ExportError(f"{path} cannot be written: {error.strerror}") from None


def _what_is_missing(marks: Sequence[Mark], roster: Roster | None) -> int:
    """Say for whom there is no mark, and why. Gives the exit code."""
    left_out = 0
    for status in ("needs manual grading", "set aside", "not handed in"):
        those = [f"{m.learner.id} ({m.lesson})" for m in marks if m.status == status]
        if those:
            left_out = left_out if status == "not handed in" else 2
            print(f"Left empty, {status}: {_some(those)}", file=sys.stderr)
    strangers = (
        [] if roster is None else sorted({m.learner.id for m in marks if roster.row_of(m.learner) is None})
    )
    if strangers:
        left_out = 2
        print(f"Not in the roster, so not in the file: {_some(strangers)}", file=sys.stderr)
    return left_out


def _some(names: Sequence[str]) -> str:
    return ", ".join(printable(name, 200) for name in names[:20]) + (
        f", and {len(names) - 20} more" if len(names) > 20 else ""
    )
