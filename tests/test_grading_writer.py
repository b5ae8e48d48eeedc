"""The one writer: nbgrader's gradebook and files, and what an interruption leaves."""

from __future__ import annotations

import errno
import json
import os
import shutil

import grading_course as course
import pytest

from mha_course.grading import writer as writing
from mha_course.grading.intake import read_release, read_submission
from mha_course.grading.records import only_writer


def check_cell(cell: dict, right: bool) -> dict:
    error = {"output_type": "error", "ename": "CheckFailed", "evalue": "no", "traceback": ["no"]}
    return {**cell, "outputs": [] if right else [error]}


def result_of(root, student: str, wrong: tuple[str, ...] = (), trouble=(), **told) -> writing.Result:
    """A result as a run would give it, without running anything."""
    path = course.hand_in(root, student)
    submission = read_submission(path.parent, read_release(root / "notebooks" / course.LESSON))
    cells = []
    for rebuilt in submission.notebooks[course.LESSON]:
        if rebuilt.cell:
            name = rebuilt.cell["id"].removeprefix("check_")
            graded = rebuilt.cell["id"].startswith("check_")
            cells.append(check_cell(rebuilt.cell, name not in wrong) if graded else rebuilt.cell)
    marked = {"cells": cells, "outcomes": {}, "trouble": list(trouble), "late": 0, "deaths": 0}
    return writing.Result(student, course.LESSON, "graded", notebooks={course.LESSON: marked}, **told)


@pytest.fixture(scope="module")
def empty_gradebook(tmp_path_factory):
    """A new gradebook's file: making one takes nbgrader seconds."""
    root = tmp_path_factory.mktemp("new")
    course.make_release(root)
    release = read_release(root / "notebooks" / course.LESSON)
    made = writing.Writer(root, release, writing.course_config(root))
    made.prepare()
    made.close()
    return root / "grading" / "gradebook.db"


@pytest.fixture
def root(tmp_path, empty_gradebook):
    course.make_release(tmp_path)
    (tmp_path / "grading").mkdir()
    shutil.copyfile(empty_gradebook, tmp_path / "grading" / "gradebook.db")
    return tmp_path


@pytest.fixture
def writer(root):
    config = writing.course_config(root)
    made = writing.Writer(root, read_release(root / "notebooks" / course.LESSON), config)
    made.prepare()
    yield made
    made.close()


def score(writer, student: str) -> float:
    writer.gradebook.db.expire_all()
    return writer.gradebook.find_submission(course.LESSON, student).score


def test_scores_are_those_that_nbgrader_determines(writer, root):
    result = writer.write(result_of(root, "ann", wrong=("mix",)))
    assert result.scores == {course.LESSON: [6.0, 11.0]}
    assert score(writer, "ann") == 6.0


def test_writing_twice_gives_no_mark_twice(writer, root):
    for _ in range(2):
        writer.write(result_of(root, "ann"))
    assert score(writer, "ann") == 9.0
    assert len(writer.gradebook.students) == 1


def test_what_a_grader_gave_by_hand_stays(writer, root):
    writer.write(result_of(root, "ann"))
    grade = writer.gradebook.find_grade("check_mix", course.LESSON, course.LESSON, "ann")
    grade.manual_score, grade.extra_credit = 1.5, 0.5
    writer.gradebook.db.commit()
    writer.write(result_of(root, "ann"))
    grade = writer.gradebook.find_grade("check_mix", course.LESSON, course.LESSON, "ann")
    assert (grade.manual_score, grade.extra_credit, grade.needs_manual_grade) == (1.5, 0.5, True)
    assert score(writer, "ann") == 9.0 - 3 + 1.5 + 0.5


def test_a_written_answer_waits_for_a_person(writer, root):
    cells = course.answered()
    cells[-1]["source"] = "Because of the scale."
    course.hand_in(root, "ann", cells)
    submission = read_submission(root / "grading" / "submitted" / "ann" / course.LESSON, writer.release)
    result = result_of(root, "bob")
    result.student = "ann"
    result.notebooks[course.LESSON]["cells"][-1] = submission.notebooks[course.LESSON][-1].cell
    writer.write(result)
    grade = writer.gradebook.find_grade("essay", course.LESSON, course.LESSON, "ann")
    assert grade.auto_score is None and grade.needs_manual_grade


def test_trouble_is_never_a_silent_zero(writer, root):
    writer.write(result_of(root, "ann", wrong=("mix",), trouble=("check_mix",)))
    grade = writer.gradebook.find_grade("check_mix", course.LESSON, course.LESSON, "ann")
    assert grade.auto_score is None and grade.needs_manual_grade


def test_what_was_set_aside_waits_for_a_person(writer, root):
    course.hand_in(root, "ann", data=b"")
    writer.write(writing.Result("ann", course.LESSON, "set aside", reason="is <script>empty"))
    submission = writer.gradebook.find_submission(course.LESSON, "ann")
    assert submission.needs_manual_grade
    page = (writer.autograded("ann") / f"{course.LESSON}.ipynb").read_text()
    assert "set aside" in page and "<script" not in page


def test_late_penalties_are_those_of_nbgraders_plugin(writer, root):
    from nbgrader.utils import parse_utc

    writer.config.LateSubmissionPlugin.penalty_method = "zero"
    writer.gradebook.update_or_create_assignment(course.LESSON, duedate=parse_utc("2026-01-01 00:00:00 UTC"))
    late = writer.write(result_of(root, "ann", timestamp="2026-01-02 00:00:00 UTC"))
    early = writer.write(result_of(root, "bob", timestamp="2025-12-31 00:00:00 UTC"))
    assert late.scores[course.LESSON][0] == 0.0
    assert early.scores[course.LESSON][0] == 9.0


STEPS = ["keep", "_put_autograded", "_enter"]


@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_at_any_step_loses_nothing_and_the_next_run_goes_on(root, step, monkeypatch):
    config = writing.course_config(root)
    release = read_release(root / "notebooks" / course.LESSON)
    writer = writing.Writer(root, release, config)
    writer.prepare()
    writer.write(result_of(root, "ann", wrong=("mix",)))

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        owner = {"keep": writing}.get(step, writing.Writer)
        patch.setattr(owner, step, full)
        with pytest.raises(writing.CannotWrite, match="No space left"):
            writer.write(result_of(root, "ann"))
        before = score(writer, "ann")
    assert before in (6.0, 9.0)
    waiting = list(writer.results("pending"))
    assert len(waiting) == (step != "keep")
    for result in waiting or [result_of(root, "ann")]:
        writer.write(result)
    assert score(writer, "ann") == 9.0
    assert not list(writer.results("pending")) and len(list(writer.results("done"))) == 1
    writer.close()


def test_an_interruption_inside_the_transaction_changes_no_mark(writer, root, monkeypatch):
    writer.write(result_of(root, "ann", wrong=("mix",)))

    def interrupted(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writing.Writer, "_penalise", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.write(result_of(root, "ann"))
    writer.gradebook.db.rollback()
    assert score(writer, "ann") == 6.0


def test_a_half_written_file_counts_as_none(writer, root):
    path = writer.path_of("pending", "ann")
    path.parent.mkdir(parents=True)
    path.write_text('{"student": "an')
    assert list(writer.results("pending")) == []


def test_another_run_at_the_same_time_is_refused(root):
    with (
        only_writer(root),
        pytest.raises(writing.CannotWrite, match="under way"),
        only_writer(root),
    ):
        pass


def test_the_log_says_what_was_given_for_what(writer, root):
    writer.write(result_of(root, "ann", seeds={"mix": 5}, repairs=["turned back"]))
    kept = json.loads(writer.path_of("done", "ann").read_text())
    assert kept["seeds"] == {"mix": 5} and kept["repairs"] == ["turned back"]
    assert "cells" not in kept["notebooks"][course.LESSON]


@pytest.mark.parametrize("configured", ["grading/gradebook.db", "elsewhere.db", None])
def test_a_gradebook_named_relative_to_the_course_is_found_from_anywhere(tmp_path, configured):
    if configured:
        text = f"c = get_config()\nc.CourseDirectory.db_url = 'sqlite:///{configured}'\n"
        (tmp_path / "nbgrader_config.py").write_text(text)
    meant = tmp_path / (configured or "grading/gradebook.db")
    assert writing.course_config(tmp_path).CourseDirectory.db_url == f"sqlite:///{meant.as_posix()}"


def test_a_gradebook_on_another_server_or_at_an_absolute_place_is_left_where_it_is(tmp_path):
    for url in ("postgresql+psycopg2://127.0.0.1/marks", f"sqlite:///{tmp_path.as_posix()}/there.db"):
        assert writing.course_config(tmp_path, url).CourseDirectory.db_url == url
