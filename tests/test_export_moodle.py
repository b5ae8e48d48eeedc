"""``mha-course export --format moodle``: every field by which Moodle can recognise somebody, a column for each lesson."""

import csv
import io

import export_course
import pytest

from mha_course import cli

pytestmark = pytest.mark.filterwarnings("ignore:Object of type <Submitted")  # nbgrader's own


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return export_course.make(tmp_path_factory.mktemp("course") / "c")


def rows(root, capsys, *arguments):
    cli.main(["export", "--format", "moodle", "--to", "-", "--root", str(root), *arguments])
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_the_file_is_the_one_that_is_shown_in_the_documentation(root, tmp_path):
    target = tmp_path / "moodle.csv"
    cli.main(["export", "--format", "moodle", "--to", str(target), "--root", str(root)])
    assert target.read_bytes() == (export_course.EXPORTED / "moodle.csv").read_bytes()


def test_everybody_can_be_found_by_user_name_id_number_or_address(root, capsys):
    ada = rows(root, capsys)[0]
    assert ada["Username"] == ada["ID number"] == "ada" and ada["Email address"] == "ada@example.org"
    assert (ada["First name"], ada["Last name"]) == ("Ada", "Lovelace")


def test_each_lesson_is_a_column_and_a_missing_mark_is_empty(root, capsys):
    scores = {row["Username"]: (row["01_one_head"], row["02_masks"]) for row in rows(root, capsys)}
    assert scores == {
        "ada": ("4.5", "6"),
        "bo": ("", "3.25"),
        "cy": ("0", ""),
        "dee": ("", ""),
        "eve": ("0", ""),
    }


def test_one_lesson_alone_is_one_column(root, capsys):
    assert "02_masks" in rows(root, capsys, "02")[0]
    assert "01_one_head" not in rows(root, capsys, "02")[0]


def test_no_name_becomes_a_formula(root, capsys):
    assert {row["Username"]: row["Last name"] for row in rows(root, capsys)}["cy"] == "'=HYPERLINK(1)"
