"""The one writer: marks into nbgrader's gradebook, autograded/ and feedback/, where its own tools expect them.

For every submission: first the result is kept in a file of its own (`pending`), then the autograded folder is
put in place, then the gradebook is changed in one transaction, then the result becomes the log (`done`). Each
step can be done again without harm, so a run that was interrupted anywhere is carried on by the next one.
Where results are kept: see `records`. Feedback pages are made afterwards, by other processes (`pages`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import nbformat
from nbgrader import utils
from nbgrader.api import Gradebook, MissingEntry
from nbgrader.coursedir import CourseDirectory
from nbgrader.preprocessors import AssignLatePenalties, SaveAutoGrades, SaveCells
from sqlalchemy.exc import (
    DatabaseError,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)
from traitlets.config import Config, PyFileConfigLoader

from mha_course.building import quiet_log

from .intake import (
    Release,
    SetAside,
    handed_in_at,
    is_answer,
    is_graded,
    is_task,
    marks,
    printable,
    read_file,
)
from .records import CannotWrite, Records, Result, keep

HERE = Path(__file__).resolve().parents[2]


# ------------------------------------------------------------------------------------ course folders


def course_config(root: Path, db_url: str | None = None) -> Config:
    """nbgrader's configuration of a course folder.

    Args:
        root: the course's folder.
        db_url: a gradebook elsewhere; by default the configuration's (a relative path there is one in the course's folder).
    """
    folder = root if (root / "nbgrader_config.py").exists() else HERE
    config = PyFileConfigLoader("nbgrader_config.py", path=str(folder)).load_config()
    if folder != root:
        config.CourseDirectory.db_url = f"sqlite:///{(root / 'grading' / 'gradebook.db').as_posix()}"
    config.CourseDirectory.root = str(root)
    given = config.CourseDirectory.get("db_url", "")
    if given.startswith("sqlite:///") and given != "sqlite:///":  # relative to the course, wherever we are
        config.CourseDirectory.db_url = f"sqlite:///{(root / given.removeprefix('sqlite:///')).as_posix()}"
    if db_url:
        config.CourseDirectory.db_url = db_url
    return config


# ------------------------------------------------------------------------------------- the writer


def schema_version() -> str:
    """The version of the gradebook's tables that this nbgrader makes. Its own way to ask starts a process."""
    from alembic.config import Config as AlembicConfig
    from alembic.script import ScriptDirectory
    from nbgrader.dbutil import _temp_alembic_ini

    with _temp_alembic_ini("sqlite://") as path:
        return ScriptDirectory.from_config(AlembicConfig(path)).get_current_head()


class Writer(Records):
    """Writes results of one lesson.

    Args:
        root: the course's folder.
        release: the lesson.
        config: from `course_config`.

    Raises:
        CannotWrite: the gradebook is locked, or is none.
    """

    def __init__(self, root: Path, release: Release, config: Config):
        super().__init__(root, release.lesson)
        self.release, self.config = release, config
        self.log, _ = quiet_log()
        warnings.filterwarnings("ignore", message="Object of type <Submitted.* not in session")  # nbgrader's
        self.course = CourseDirectory(config=config, log=self.log)
        if self.course.db_url.startswith("sqlite:///"):
            Path(self.course.db_url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        try:
            with mock.patch("nbgrader.api.get_alembic_version", schema_version):
                self.gradebook = Gradebook(self.course.db_url, self.course.course_id)
        except SQLAlchemyError as error:
            raise CannotWrite(f"the gradebook cannot be opened: {_line(error)}") from None

    def close(self) -> None:
        self.gradebook.close()

    def prepare(self) -> None:
        """Make sure that the gradebook knows the lesson as it was released.

        Raises:
            CannotWrite: it knows another version of it, with submissions, or it is locked or broken.
        """
        try:
            self._prepare()
        except (SQLAlchemyError, OSError) as error:
            raise CannotWrite(f"the gradebook cannot be changed: {_line(error)}") from None

    def _prepare(self) -> None:
        lesson = self.release.lesson
        self.gradebook.update_or_create_assignment(lesson)
        for stem, notebook in self.release.notebooks.items():
            wanted = {
                name for cell in notebook.cells if is_graded(cell) and (name := marks(cell).get("grade_id"))
            }
            try:
                known = {cell.name for cell in self.gradebook.find_notebook(stem, lesson).grade_cells}
            except MissingEntry:
                known = None
            if known == wanted:
                continue
            node = nbformat.from_dict(
                {
                    "cells": list(notebook.cells),
                    "metadata": notebook.metadata,
                    "nbformat": 4,
                    "nbformat_minor": 5,
                }
            )
            where = {"notebook": stem, "assignment": lesson, "db_url": self.course.db_url}
            try:
                SaveCells(config=self.config, log=self.log).preprocess(node, {"nbgrader": where})
            except RuntimeError as error:
                raise CannotWrite(f"the gradebook knows another version of {stem}: {error}") from None
            self.gradebook.db.expire_all()

    def write(self, result: Result) -> Result:
        """Write one result, all of it. Gives it back with the scores that the gradebook has now.

        Raises:
            CannotWrite: the disk is full, the gradebook is locked or broken; nothing of it is lost.
            Exception: anything else is about this result alone, and nothing of it is left.
        """
        pending = self.path_of("pending", result.student)
        try:
            keep(pending, asdict(result))
            self._put_autograded(result)
            result.scores = self._enter(result)
            kind, other = ("again", "done") if result.faulty() else ("done", "again")
            result.shed()
            keep(self.path_of(kind, result.student), asdict(result))
            self.path_of(other, result.student).unlink(missing_ok=True)
            pending.unlink(missing_ok=True)
        except Exception as error:
            with contextlib.suppress(SQLAlchemyError):
                self.gradebook.db.rollback()
            if stops(error):
                says = f"cannot write the marks of {result.student}: {_line(error)}"
                raise CannotWrite(says) from error
            with contextlib.suppress(OSError):
                pending.unlink(missing_ok=True)
            raise
        return result

    def still_there(self, result: Result) -> bool:
        """Whether the gradebook and autograded/ have what was written, whatever a person added to it since."""
        try:
            with reading():
                has = _entered(self.gradebook.find_submission(self.release.lesson, result.student))
        except MissingEntry:
            return False
        # a record of an earlier version does not say what was entered
        return self._notebooks_kept(result) and result.entered in ({}, has)

    def with_cells(self, result: Result) -> Result | None:
        """A record with the cells that it has shed; ``None`` if they are not in autograded/ any more."""
        if not self._notebooks_kept(result):
            return None if result.notebooks else result
        for stem, marked in result.notebooks.items():
            path = self.autograded(result.student) / f"{stem}.ipynb"
            marked["cells"] = nbformat.read(path, as_version=4)["cells"]
        return result

    def _notebooks_kept(self, result: Result) -> bool:
        folder = self.autograded(result.student)
        try:
            kept = {
                stem: (folder / f"{stem}.ipynb").read_bytes() for stem in result.written or result.notebooks
            }
        except OSError:
            return False
        return not result.written or result.written == {
            stem: hashlib.sha256(text).hexdigest() for stem, text in kept.items()
        }

    def look_around(self, results: list[Result]) -> tuple[list[str], str, dict[str, dict[str, float]]]:
        """What the gradebook says of a class. The results get the scores that are there now.

        Returns:
            everybody who is in it; when the lesson is due ("": it is not said); who was late, by how many "seconds",
            and the "penalty".
        """
        with reading():
            self.gradebook.db.expire_all()
            assignment = self.gradebook.find_assignment(self.release.lesson)
            submissions = {submission.student.id: submission for submission in assignment.submissions}
            for result in results:
                if result.student in submissions:
                    result.scores = _scores(submissions[result.student])
            late = {
                student: {
                    "seconds": one.total_seconds_late,
                    "penalty": float(one.late_submission_penalty or 0),
                }
                for student, one in submissions.items()
                if one.total_seconds_late > 0
            }
            due = f"{assignment.duedate} UTC" if assignment.duedate else ""
            return sorted(student.id for student in self.gradebook.students), due, late

    def pages_missing(self, students: Iterable[str]) -> list[str]:
        """Who has no feedback page of the marks that are written."""
        return [student for student in students if self._pages_missing(student)]

    def _pages_missing(self, student: str) -> bool:
        pages = Path(self.course.format_path(self.course.feedback_directory, student, self.release.lesson))
        with contextlib.suppress(OSError):  # what cannot be looked at cannot be made
            if not all((pages / name).exists() for name in EXCHANGE):
                return self.autograded(student).is_dir()
            for notebook in self.autograded(student).glob("*.ipynb"):
                page = pages / f"{notebook.stem}.html"
                if not page.exists() or page.stat().st_mtime < notebook.stat().st_mtime:
                    return True
                with page.open(encoding="utf-8", errors="replace") as file, contextlib.suppress(MissingEntry):
                    told = marks_told(self.gradebook, self.release.lesson, student, notebook.stem)
                    if told["version"] not in file.read(4_000):
                        return True
        return False

    # ------------------------------------------------------------------------------ autograded/

    def submitted(self, student: str) -> Path:
        return Path(self.course.format_path(self.course.submitted_directory, student, self.release.lesson))

    def autograded(self, student: str) -> Path:
        return Path(self.course.format_path(self.course.autograded_directory, student, self.release.lesson))

    def _put_autograded(self, result: Result) -> None:
        target = self.autograded(result.student)
        work = self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        made = work / "made"
        made.mkdir(parents=True)
        for stem, notebook in self.release.notebooks.items():
            if stem in result.notebooks:
                content = {"cells": result.notebooks[stem]["cells"], "metadata": notebook.metadata}
            elif result.status != "graded":
                mark = {"status": result.status, "reason": printable(result.reason, 500)}
                content = {
                    "cells": [_reason_cell(result), *_plain(notebook.cells)],
                    "metadata": {**notebook.metadata, "mha_course": mark},
                }
            else:
                continue
            node = nbformat.from_dict({**content, "nbformat": 4, "nbformat_minor": 5})
            path = made / f"{stem}.ipynb"
            text = (nbformat.writes(node) + "\n").encode()
            path.write_bytes(text)
            path.chmod(0o444)
            result.written[stem] = hashlib.sha256(text).hexdigest()
        released = self.root / "notebooks" / self.release.lesson
        for name in self.release.files:
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(released / name, made / name)
        for name, text in exchange_files(self.submitted(result.student)).items():
            (made / name).write_text(text)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            os.replace(target, work / "old")
        os.replace(made, target)
        shutil.rmtree(work, ignore_errors=True)

    # ----------------------------------------------------------------------------- the gradebook

    def _enter(self, result: Result) -> dict[str, list[float]]:
        """Everything about one submission in one transaction. By notebook: score, maximum."""
        gradebook, lesson, student = self.gradebook, self.release.lesson, result.student
        session = gradebook.db
        commit, session.commit = session.commit, session.flush  # nbgrader commits after every step
        try:
            gradebook.update_or_create_student(student)
            told = {}
            with contextlib.suppress(ValueError, OverflowError):
                if result.timestamp:
                    told["timestamp"] = utils.parse_utc(result.timestamp)
            submission = gradebook.update_or_create_submission(lesson, student, **told)
            for stem in self.release.notebooks:
                if stem in result.notebooks:
                    self._enter_notebook(stem, student, result.notebooks[stem])
                else:
                    for grade in gradebook.find_submission_notebook(stem, lesson, student).grades:
                        by_hand = result.status != "graded"
                        grade.auto_score = None if by_hand else 0  # a missing file: as nbgrader does
                        grade.needs_manual_grade = by_hand or grade.manual_score is not None
            session.flush()
            session.expire_all()
            for notebook in submission.notebooks:
                self._penalise(submission, notebook)
            scores = _scores(submission)
            result.entered = _entered(submission)
            commit()
            return scores
        finally:
            session.commit = commit

    def _enter_notebook(self, stem: str, student: str, marked: dict) -> None:
        """What nbgrader's SaveAutoGrades does with an executed notebook."""
        saver = SaveAutoGrades(config=self.config, log=self.log)
        saver.gradebook, saver.notebook_id = self.gradebook, stem
        saver.assignment_id, saver.student_id = self.release.lesson, student
        for index, cell in enumerate(marked["cells"]):
            if is_graded(cell) or is_answer(cell) or is_task(cell):
                saver.preprocess_cell(nbformat.from_dict(cell), {}, index)
        for name in marked["trouble"]:
            grade = self.gradebook.find_grade(name, stem, self.release.lesson, student)
            grade.auto_score, grade.needs_manual_grade = None, True
        self.gradebook.db.flush()

    def _penalise(self, submission: Any, notebook: Any) -> None:
        """What nbgrader's AssignLatePenalties does, with the same plugin."""
        notebook.late_submission_penalty = None
        late = submission.total_seconds_late
        if late > 0:
            assigner = AssignLatePenalties(config=self.config, log=self.log)
            assigner.init_plugin()
            penalty = assigner.plugin_inst.late_submission_penalty(
                submission.student.id, notebook.score, late
            )
            if penalty is not None:
                notebook.late_submission_penalty = assigner._check_late_penalty(notebook, penalty)


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Inside, a gradebook that cannot be read is said plainly."""
    try:
        yield
    except SQLAlchemyError as error:
        raise CannotWrite(f"the gradebook cannot be read: {_line(error)}") from None


def _scores(submission: Any) -> dict[str, list[float]]:
    """By notebook: score, the penalty taken off, and maximum."""
    return {
        notebook.name: [
            float(notebook.score - (notebook.late_submission_penalty or 0)),
            float(notebook.max_score),
        ]
        for notebook in submission.notebooks
    }


def _entered(submission: Any) -> dict[str, float | None]:
    return {
        f"{notebook.name} {grade.name}": grade.auto_score
        for notebook in submission.notebooks
        for grade in notebook.grades
    }


def marks_told(gradebook: Gradebook, lesson: str, student: str, stem: str) -> dict[str, Any]:
    """All that the gradebook says of one notebook and a page shows: it is made again when any of this changes.

    Returns:
        "scores": by grade id, the score (``None``: a person has to give it) and the points; "comments": by grade id;
        "score", "most", "penalty" of the whole; "version": changes with all of these.
    """
    with reading():
        notebook = gradebook.find_submission_notebook(stem, lesson, student)
        penalty = float(notebook.late_submission_penalty or 0)
        told = {
            "scores": {
                grade.name: (
                    None if grade.needs_manual_grade and grade.manual_score is None else float(grade.score),
                    float(grade.max_score),
                )
                for grade in notebook.grades
            },
            "comments": {comment.name: comment.comment for comment in notebook.comments if comment.comment},
            "score": float(notebook.score) - penalty,
            "most": float(notebook.max_score),
            "penalty": penalty,
        }
    return {**told, "version": hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()}


def exchange_files(folder: Path) -> dict[str, str]:
    """What nbgrader's exchange left beside a submission, and needs to give feedback back: texts by file name.

    A submission that came another way has neither; it gets a secret that nobody knows, because
    `nbgrader release_feedback` stops for everybody where one is missing.

    Args:
        folder: where the submission is.
    """
    when, secret = None, ""
    with contextlib.suppress(OSError):
        when = handed_in_at(folder, [])
    with contextlib.suppress(OSError, SetAside):
        secret = read_file(folder / "submission_secret.txt", 1_000).decode("ascii", "replace")
    if not re.fullmatch(r"[0-9a-f]{32,}\s*", secret):
        secret = secrets.token_hex(64)
    return {"timestamp.txt": when or "", "submission_secret.txt": secret}


REASON = "set-aside"  # the id of the cell that says why there are no marks
EXCHANGE = ("timestamp.txt", "submission_secret.txt")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def stops(error: Exception) -> bool:
    """Whether an error is about the disk or the gradebook itself, and not about what was to be written."""
    if isinstance(error, OSError):
        return error.errno in FULL
    broken = (OperationalError, InternalError, InterfaceError, ProgrammingError)
    return isinstance(error, broken) or type(error) is DatabaseError


def _line(error: Exception) -> str:
    """The first line of what an error says."""
    says = getattr(error, "strerror", None) or str(getattr(error, "orig", None) or error)
    return (says.strip().splitlines() or [type(error).__name__])[0]


def _plain(cells: tuple[dict, ...]) -> list[dict]:
    return [
        {**cell, "outputs": [], "execution_count": None} if cell["cell_type"] == "code" else dict(cell)
        for cell in cells
    ]


def _reason_cell(result: Result) -> dict:
    from .intake import harmless_markdown

    what = (
        "was set aside"
        if result.status == "set aside"
        else "could not be graded yet, and will be tried again"
    )
    says = f"**This submission {what}.** {harmless_markdown(result.reason)}\n\nThe cells below are those that were handed out."
    return {"cell_type": "markdown", "id": REASON, "metadata": {}, "source": says}
