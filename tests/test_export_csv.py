"""``mha-course export``: nbgrader's columns, the command's errors, what is missing and what is harmless."""

import csv
import io
import sqlite3

import export_course
import pytest

from mha_course import cli
from mha_course.grading import exporting

pytestmark = pytest.mark.filterwarnings("ignore:Object of type <Submitted")  # nbgrader's own


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return export_course.make(tmp_path_factory.mktemp("course") / "c")


def run(root, *arguments):
    return cli.main(["export", *arguments, "--root", str(root)])


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_the_file_is_the_one_that_is_shown_in_the_documentation(root, tmp_path, capsys):
    target = tmp_path / "marks.csv"
    assert run(root, "--to", str(target)) == 2  # somebody waits for manual grading
    assert target.read_bytes() == (export_course.EXPORTED / "csv.csv").read_bytes()
    out, err = capsys.readouterr()
    assert "5 learners, 2 lesson(s)" in out
    assert (
        "needs manual grading: bo (01_one_head)" in err
        and "not handed in: dee (01_one_head), cy (02_masks), " in err
    )


def test_the_columns_are_nbgraders_own_and_one_more(root, tmp_path, capsys):
    from nbgrader.api import Gradebook
    from nbgrader.plugins import CsvExportPlugin

    run(root, "--to", "-")
    ours = rows(capsys.readouterr().out)
    plugin = CsvExportPlugin(to=str(tmp_path / "theirs.csv"))
    with Gradebook(exporting_url(root)) as gradebook:
        plugin.export(gradebook)
    header = (tmp_path / "theirs.csv").read_text().splitlines()[0].split(",")
    assert [*header, "status"] == list(ours[0])


def exporting_url(root):
    from mha_course.grading.writer import course_config

    return course_config(root).CourseDirectory.db_url


def test_missing_marks_are_empty_and_an_honest_0_is_0(root, capsys):
    run(root, "01", "--to", "-")
    scores = {row["student_id"]: (row["score"], row["status"]) for row in rows(capsys.readouterr().out)}
    assert scores == {
        "ada": ("4.5", "graded"),  # one point for being late
        "bo": ("", "needs manual grading"),
        "cy": ("0", "graded"),
        "dee": ("", "not handed in"),
        "eve": ("0", "graded"),  # a penalty larger than the points: not below 0
    }


def test_lessons_and_learners_can_be_chosen(root, capsys):
    assert run(root, "02_masks", "--student", "ada", "--to", "-") == 0
    assert [row["student_id"] for row in rows(capsys.readouterr().out)] == ["ada"]


@pytest.mark.parametrize("begins", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_text_becomes_a_formula(begins):
    assert exporting.harmless(begins) == "'" + begins
    assert exporting.harmless("a=1") == "a=1"


def test_a_submission_that_was_set_aside_is_told_apart(root, tmp_path, capsys):
    import json
    import shutil

    shutil.copytree(root, tmp_path / "c")
    done = tmp_path / "c" / "grading" / "marks" / "02_masks" / "done"
    done.mkdir(parents=True)
    (done / "x.json").write_text(json.dumps({"status": "set aside", "student": "fay"}))
    (done / "broken.json").write_text("{")
    assert run(tmp_path / "c", "02", "--to", "-") == 2
    out, err = capsys.readouterr()
    assert {row["student_id"]: row["status"] for row in rows(out)}["fay"] == "set aside"
    assert "set aside: fay (02_masks)" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["99"], "There is no lesson '99'"),
        (["05"], "There is no lesson '05'"),
        (["--student", "zoe"], "no learner zoe"),
        (["--roster", "x.csv"], "--roster is for --format canvas"),
        (["--to", "no/such/folder/marks.csv"], "cannot be written"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(root, capsys, arguments, says):
    assert run(root, *arguments) == 1
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err


def test_without_a_gradebook_it_says_what_to_do_first_and_makes_none(tmp_path, capsys):
    assert run(tmp_path) == 1
    assert "grade a lesson first" in capsys.readouterr().err
    assert not (tmp_path / "grading").exists()


def test_an_empty_and_a_broken_gradebook_are_told_apart(tmp_path, capsys):
    (tmp_path / "grading").mkdir()
    path = tmp_path / "grading" / "gradebook.db"
    path.write_bytes(b"this is no database at all" * 100)
    assert run(tmp_path) == 1
    assert "cannot be opened" in capsys.readouterr().err
    path.unlink()
    sqlite3.connect(path).close()
    assert run(tmp_path) == 1
    assert "no marks yet" in capsys.readouterr().err


def test_an_older_file_stays_whole_where_the_new_one_cannot_be_written(root, tmp_path, monkeypatch, capsys):
    target = tmp_path / "marks.csv"
    target.write_text("kept")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting.os, "replace", full)
    assert run(root, "--to", str(target)) == 1
    assert target.read_text() == "kept" and list(tmp_path.iterdir()) == [target]
    assert "No space left" in capsys.readouterr().err
