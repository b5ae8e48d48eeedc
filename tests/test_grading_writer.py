"""The one writer: nbgrader's gradebook and files, and what an interruption leaves."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import grading_course as course
import pytest
from sqlalchemy.exc import DatabaseError, DataError, OperationalError

from mha_course.grading import pages
from mha_course.grading import writer as writing
from mha_course.grading.intake import read_release, read_submission
from mha_course.grading.pool import Failed
from mha_course.grading.records import Records, only_writer
from mha_course.grading.run import Job, settle


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
    cells = json.loads((writer.autograded("ann") / f"{course.LESSON}.ipynb").read_text())["cells"]
    assert "set aside" in str(cells) and "<script" not in str(cells)
    (page,) = pages.FeedbackMaker(course.LESSON, writing.course_config(root)).make("ann")
    shown = page.read_text()
    assert "hand in that very file again" in shown and "is &lt;script&gt;empty" in shown
    assert "<script" not in shown and "0 of" not in shown


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


def a_job(root, student: str, fingerprint: str = "first") -> Job:
    return Job(student, root / "grading" / "submitted" / student / course.LESSON, fingerprint, {})


def kinds_of_record(writer, student: str) -> list[str]:
    return [kind for kind in ("pending", "done", "again") if writer.path_of(kind, student).exists()]


ABOUT_ONE = [
    OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG)),
    UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates not allowed"),
    DataError("INSERT", {}, Exception("value too long")),
    UserWarning("a warning that is raised"),
    RecursionError("too deep"),
    MemoryError(),
    KeyError("cells"),
]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", ABOUT_ONE, ids=lambda error: type(error).__name__)
def test_an_error_about_one_submission_sets_that_one_aside_and_the_next_run_tries_again(
    writer, root, step, error, monkeypatch
):
    owner = {"keep": writing}.get(step, writing.Writer)
    usual = getattr(owner, step)

    def stumbling(*arguments):
        if any("ann" in str(getattr(argument, "student", argument)) for argument in arguments):
            raise error
        return usual(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, stumbling)
        failed = settle(a_job(root, "ann"), result_of(root, "ann"), writer, set())
        other = settle(a_job(root, "bob"), result_of(root, "bob", wrong=("mix",)), writer, set())
    assert failed.status == "failed" and type(error).__name__ in failed.reason
    assert other.scores == {course.LESSON: [6.0, 11.0]} and kinds_of_record(writer, "bob") == ["done"]
    assert kinds_of_record(writer, "ann") == []
    again = settle(a_job(root, "ann"), result_of(root, "ann"), writer, set())
    assert again.scores == {course.LESSON: [9.0, 11.0]} and kinds_of_record(writer, "ann") == ["done"]


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("UPDATE", {}, Exception("database is locked")),
        DatabaseError("UPDATE", {}, Exception("database disk image is malformed")),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EROFS, os.strerror(errno.EROFS)),
    ],
    ids=["locked", "malformed", "full", "read only"],
)
def test_a_full_disk_and_a_broken_gradebook_stop_the_run_and_nothing_is_lost(
    writer, root, error, monkeypatch
):
    def stumbling(*_arguments):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(writing.Writer, "_enter", stumbling)
        with pytest.raises(writing.CannotWrite, match="marks of ann"):
            settle(a_job(root, "ann"), result_of(root, "ann"), writer, set())
    assert kinds_of_record(writer, "ann") == ["pending"]


def test_what_failed_is_noted_as_to_be_tried_again_and_waits_for_a_person(writer, root):
    answer = Failed("it took the grader longer than 900 s")
    result = settle(a_job(root, "ann"), answer, writer, set())
    assert (result.status, result.reason) == ("failed", "it took the grader longer than 900 s")
    assert kinds_of_record(writer, "ann") == ["again"]
    assert writer.gradebook.find_submission(course.LESSON, "ann").needs_manual_grade


def test_a_fault_of_the_grader_takes_no_marks_from_the_same_submission(writer, root):
    writer.write(result_of(root, "ann", fingerprint="first"))
    answer = Failed("the grader's own process died, twice")
    result = settle(a_job(root, "ann"), answer, writer, {("ann", "first")})
    assert result.status == "failed" and score(writer, "ann") == 9.0
    assert kinds_of_record(writer, "ann") == ["done"]


def test_an_exercise_that_the_grader_stumbled_over_is_tried_again(writer, root):
    result = result_of(root, "ann", trouble=("check_mix",))
    card = {"name": "mix", "status": "trouble", "html": ""}
    result.notebooks[course.LESSON]["outcomes"] = {"check_mix": [card]}
    writer.write(result)
    assert kinds_of_record(writer, "ann") == ["again"]
    writer.write(result_of(root, "ann"))
    assert kinds_of_record(writer, "ann") == ["done"]


def test_a_gradebook_that_is_none_is_said_plainly(root):
    (root / "grading" / "gradebook.db").write_bytes(b"this is no database at all" * 100)
    with pytest.raises(writing.CannotWrite, match="gradebook cannot be opened"):
        writing.Writer(root, read_release(root / "notebooks" / course.LESSON), writing.course_config(root))


def test_a_page_is_missing_until_it_is_made_and_after_new_marks(writer, root):
    def make():
        pages.FeedbackMaker(course.LESSON, writing.course_config(root)).make("ann")

    writer.write(result_of(root, "ann"))
    assert writer.pages_missing(["ann", "nobody"]) == ["ann"]
    make()
    assert writer.pages_missing(["ann"]) == []
    page = root / "grading" / "feedback" / "ann" / course.LESSON / f"{course.LESSON}.html"
    os.utime(page, (1, 1))  # older than the marks
    assert writer.pages_missing(["ann"]) == ["ann"]


def test_a_page_is_made_again_when_a_person_gave_points_or_wrote_a_comment(writer, root):
    def make():
        (page,) = pages.FeedbackMaker(course.LESSON, writing.course_config(root)).make("ann")
        return page.read_text()

    writer.write(result_of(root, "ann", wrong=("mix",)))
    assert "0 of 3 points" in make() and not writer.pages_missing(["ann"])
    writer.gradebook.find_grade("check_mix", course.LESSON, course.LESSON, "ann").manual_score = 2.5
    writer.gradebook.db.commit()
    assert writer.pages_missing(["ann"]) == ["ann"]
    assert "2.5 of 3 points" in make() and not writer.pages_missing(["ann"])
    comment = writer.gradebook.find_comment("mix", course.LESSON, course.LESSON, "ann")
    comment.manual_comment = "Nearly: look at <b>dim</b>."
    writer.gradebook.db.commit()
    assert writer.pages_missing(["ann"]) == ["ann"]
    assert "Nearly: look at <b>dim</b>." in make()


@pytest.mark.parametrize("kind", ["code", "text"])
def test_long_texts_are_on_the_page_uncoloured_or_cut(writer, root, kind):
    result = result_of(root, "ann")
    long = {
        "code": course.code("x" + ".y" * 30_000 + "\n# <the end>", "mine"),
        "text": course.text("- a\n" * 20_000 + "<the end>", "mine"),
    }
    result.notebooks[course.LESSON]["cells"].append(long[kind])
    writer.write(result)
    (page,) = pages.FeedbackMaker(course.LESSON, writing.course_config(root)).make("ann")
    shown = page.read_text()
    assert "<the end>" not in shown
    assert "more characters" in shown and shown.count("<li>") < 100


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: json.dumps({**kept, "a_field_of_a_newer_version": 1}),
        lambda kept: json.dumps({**kept, "student": 7}),
        lambda kept: json.dumps({"student": "ann"}),
        lambda kept: json.dumps([kept]),
        lambda kept: json.dumps(kept)[:-20],
        lambda kept: "",
        lambda kept: "[" * 100_000,
    ],
    ids=["unknown field", "no text", "fields missing", "a list", "half", "empty", "deep"],
)
def test_a_record_that_is_not_understood_is_kept_and_told(writer, root, damage):
    for student in ("ann", "bob"):
        writer.write(result_of(root, student))
    path = writer.path_of("done", "ann")
    for times in (1, 2):  # what is kept does not take the place of what was kept before
        text = damage(json.loads(writer.path_of("done", "bob").read_text()) | {"student": "ann"})
        path.write_text(text)
        records = Records(root, course.LESSON)
        assert [result.student for result in records.results("done")] == ["bob"]
        assert len(records.unreadable) == times
        assert text in [Path(kept).read_text() for kept in records.unreadable]
        writer.write(result_of(root, "ann"))


def test_names_are_measured_in_bytes(writer, root):
    name = "\u5b57" * 84
    writer.write(result_of(root, name, wrong=("mix",)))
    assert score(writer, name) == 6.0
    assert [result.student for result in writer.results("done")] == [name]


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
