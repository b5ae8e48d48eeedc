"""How a class stands: the gradebook and the folders are the truth, and every run shows the last state."""

from __future__ import annotations

import csv
import io
import json
import shutil

import grading_course as course
import pytest
from nbgrader.api import Gradebook
from nbgrader.utils import parse_utc

from mha_course.grading import command, exporting, run
from mha_course.grading.run import Options, grade, numbers, table

pytestmark = [pytest.mark.xdist_group("grading"), pytest.mark.slow]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A class that was graded once: its root, and the summary."""
    root = tmp_path_factory.mktemp("standing")
    course.make_release(root)
    course.hand_in(root, "ann")
    course.hand_in(root, "bob", course.answered(mix="def mix(q, k, v):\n    return v"))
    course.hand_in(root, "dave", data=b"{half a no")
    (root / "grading" / "submitted" / "eve" / "another_lesson").mkdir(parents=True)
    with course.declared():
        return root, grade(course.LESSON, Options(root, jobs=1))


@pytest.fixture
def root(first, tmp_path):
    return shutil.copytree(first[0], tmp_path / "course")


@pytest.fixture
def idle(monkeypatch):
    """No learner's process may be started: everything is there already."""

    def refused(*_arguments):
        raise AssertionError("somebody was graded again")

    monkeypatch.setattr(run, "House", refused)


def again(root, **options):
    with course.declared():
        return grade(course.LESSON, Options(root, jobs=1, **options))


def scores(url: str) -> dict[str, float]:
    with Gradebook(url) as gradebook:
        return {s.student.id: s.score for s in gradebook.assignment_submissions(course.LESSON)}


def url_of(root, name: str = "gradebook.db") -> str:
    return f"sqlite:///{root / 'grading' / name}"


GIVEN = {"ann": 9.0, "bob": 6.0, "dave": 0.0}


def test_a_lost_gradebook_is_written_again_from_the_records(root, idle):
    (root / "grading" / "gradebook.db").unlink()
    summary = again(root)
    assert scores(url_of(root)) == GIVEN
    assert summary.restored == ["ann", "bob", "dave"]
    assert "was missing in the gradebook, written there again: 3" in table(summary)


def test_another_gradebook_gets_everybody(root, idle):
    again(root, db_url=url_of(root, "new.db"))
    assert scores(url_of(root, "new.db")) == GIVEN == scores(url_of(root))


def test_nobody_is_missing_in_an_export_after_the_gradebook_was_lost(root, idle, capsys):
    arguments = exporting.argparse.ArgumentParser()
    exporting.add_arguments(arguments)

    def exported() -> dict[str, tuple[str, str]]:
        exporting.main(arguments.parse_args(["--root", str(root), "--to", "-"]))
        rows = csv.DictReader(io.StringIO(capsys.readouterr().out))
        return {row["student_id"]: (row["raw_score"], row["status"]) for row in rows}

    before = exported()
    (root / "grading" / "gradebook.db").unlink()
    again(root)
    assert exported() == before and set(before) == set(GIVEN)


def test_marks_that_something_else_wrote_over_are_put_right(root, idle):
    with Gradebook(url_of(root)) as gradebook:
        gradebook.find_grade("check_mix", course.LESSON, course.LESSON, "bob").auto_score = 3.0
        gradebook.db.commit()
    assert again(root).restored == ["bob"]
    assert scores(url_of(root)) == GIVEN


def test_points_that_a_person_gave_are_left_and_counted(root, idle):
    with Gradebook(url_of(root)) as gradebook:
        gradebook.find_grade("check_mix", course.LESSON, course.LESSON, "bob").manual_score = 2.5
        gradebook.db.commit()
    summary = again(root)
    assert summary.restored == []
    assert numbers(summary)["scores"]["bob"][course.LESSON][0] == 8.5


def test_deleted_feedback_is_made_again(root, idle):
    shutil.rmtree(root / "grading" / "feedback")
    again(root)
    assert len(list((root / "grading" / "feedback").glob("*/*/*.html"))) == 3


@pytest.mark.parametrize("damage", ["deleted", "changed"])
def test_whose_autograded_notebook_is_not_there_is_graded_again(root, damage):
    folder = root / "grading" / "autograded" / "bob"
    if damage == "deleted":
        shutil.rmtree(folder)
    else:
        path = folder / course.LESSON / f"{course.LESSON}.ipynb"
        path.chmod(0o644)
        path.write_text(path.read_text().replace("return v", "return w"))
    summary = again(root)
    assert [result.student for result in summary.results] == ["bob"]
    assert "return v" in (folder / course.LESSON / f"{course.LESSON}.ipynb").read_text()


def test_a_run_with_nothing_new_shows_the_table_and_who_is_set_aside(first, root, idle):
    before, after = numbers(first[1]), numbers(again(root))
    changed = {"seconds", "graded_now", "up_to_date", "sandbox"}
    assert {k: v for k, v in before.items() if k not in changed} == {
        k: v for k, v in after.items() if k not in changed
    }
    assert (before["graded_now"], after["graded_now"], after["graded"]) == (2, 0, 2)
    assert "dave" in after["set_aside"] and after["exercises"]["mix"]["asked"] == 2
    text = table(again(root))
    assert "dave: " in text and "not right" in text and "mean 7.5 of 11" in text


def test_the_exit_code_is_about_the_class_and_not_about_the_run(root, idle, capsys):
    arguments = command.argparse.ArgumentParser()
    command.add_arguments(arguments)

    def code(*more):
        given = arguments.parse_args([course.LESSON, "--root", str(root), "--json", *more])
        with course.declared():
            return command.main(given), json.loads(capsys.readouterr().out)

    assert code()[0] == 2  # dave is set aside, still
    assert code("--student", "ann")[0] == 0


def test_who_has_handed_in_nothing_is_named(root, idle):
    with Gradebook(url_of(root)) as gradebook:
        gradebook.add_student("fay", first_name="Fay")
    summary = again(root)
    assert numbers(summary)["not_handed_in"] == ["eve", "fay"]
    assert "nothing handed in: 2\n    eve\n    fay" in table(summary)
    assert again(root, students=("ann",)).missing == []


def test_who_was_late_is_said_with_the_penalty(root):
    with Gradebook(url_of(root)) as gradebook:
        gradebook.update_or_create_assignment(course.LESSON, duedate=parse_utc("2026-01-01 00:00:00 UTC"))
    when = root / "grading" / "submitted" / "ann" / course.LESSON / "timestamp.txt"
    when.write_text("2026-01-03 03:00:00 UTC")
    summary = again(root)
    assert numbers(summary)["late"] == {"ann": {"seconds": 51 * 3600, "penalty": 0.0}}
    assert "late (due 2026-01-01 00:00:00 UTC): 1\n    ann: 2 days 3 h, no penalty" in table(summary)
