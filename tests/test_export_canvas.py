"""``mha-course export --format canvas``: Canvas's columns, its second row, and its own ids from a roster."""

import csv
import io

import export_course
import pytest

from mha_course import cli
from mha_course.grading import exporting

pytestmark = pytest.mark.filterwarnings("ignore:Object of type <Submitted")  # nbgrader's own

ROSTER = """\
Student,ID,SIS User ID,SIS Login ID,Section,Homework 0 (11),01_one_head (4711),Current Score
    Points Possible,,,,,10,6,(read only)
"Ö, Eve",105,u5,EVE@example.org,Group 2,3,,
"Lovelace, Ada",101,u1,ada,Group 1,9,2,
"Student, Test",199,,,Group 1,,,
"Čy",103,cy,someone.else,Group 1,1,,
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return export_course.make(tmp_path_factory.mktemp("course") / "c")


def export(root, capsys, *arguments):
    code = cli.main(["export", "--format", "canvas", "--to", "-", "--root", str(root), *arguments])
    out, err = capsys.readouterr()
    return code, list(csv.reader(io.StringIO(out))), err


def test_the_file_is_the_one_that_is_shown_in_the_documentation(root, tmp_path):
    target = tmp_path / "canvas.csv"
    cli.main(["export", "--format", "canvas", "--to", str(target), "--root", str(root)])
    assert target.read_bytes() == (export_course.EXPORTED / "canvas.csv").read_bytes()


def test_the_columns_and_the_second_row_are_canvass(root, capsys):
    _, rows, _ = export(root, capsys)
    assert rows[0] == ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", "01_one_head", "02_masks"]
    assert rows[1] == ["    Points Possible", "", "", "", "", "6", "6"]
    assert all(len(row) == len(rows[0]) for row in rows)


def test_a_mark_that_is_not_there_is_empty_never_0(root, capsys):
    _, rows, _ = export(root, capsys)
    by_login = {row[3]: row[5:] for row in rows[2:]}
    assert by_login["bo"] == ["", "3.25"] and by_login["dee"] == ["", ""] and by_login["cy"] == ["0", ""]


def test_with_canvass_own_file_its_ids_its_order_and_its_columns_are_kept(root, capsys, tmp_path):
    (tmp_path / "roster.csv").write_text("\ufeff" + ROSTER, encoding="utf-8")
    code, rows, err = export(root, capsys, "--roster", str(tmp_path / "roster.csv"))
    assert rows[0][5:] == [
        "01_one_head (4711)",
        "02_masks",
    ]  # the column that exists is filled, not made twice
    assert [row[:2] for row in rows[2:]] == [
        ["Ö, Eve", "105"],
        ["Lovelace, Ada", "101"],
        ["Student, Test", "199"],
        ["Čy", "103"],
    ]
    # by e-mail as login, by login, not at all, by SIS id
    assert [row[5:] for row in rows[2:]] == [["0", ""], ["4.5", "6"], ["", ""], ["0", ""]]
    assert code == 2 and "Not in the roster, so not in the file: bo, dee" in err


@pytest.mark.parametrize("separator", [";", "\t"])
def test_the_separator_is_the_one_that_canvas_used(root, capsys, tmp_path, separator):
    text = io.StringIO()
    csv.writer(text, delimiter=separator).writerows(csv.reader(io.StringIO(ROSTER)))
    (tmp_path / "roster.csv").write_text("\ufeff" + text.getvalue(), encoding="utf-8", newline="")
    target = tmp_path / "marks.csv"
    given = ["--roster", str(tmp_path / "roster.csv"), "--to", str(target), "--root", str(root)]
    assert cli.main(["export", "--format", "canvas", *given]) == 2
    rows = list(csv.reader(io.StringIO(target.read_text()), delimiter=separator))
    assert rows[0][5:] == ["01_one_head (4711)", "02_masks"] and rows[2][:2] == ["Ö, Eve", "105"]
    assert all(len(row) == 7 for row in rows)


def test_who_handed_in_nothing_is_named_and_control_characters_are_spelled_out(root, capsys):
    _, _, err = export(root, capsys)
    assert "Left empty, not handed in: dee (01_one_head), " in err
    assert exporting._some(["a\x1b[31mb\x9b0m"]) == "a\\x1b[31mb\\x9b0m"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "has no column Student and no column ID"),
        (b"Name,Number\nAda,1\n", "has no column Student and no column ID"),
        (b"Student,Login\nAda,ada\n", "has no column ID"),
        (b"\xff\xfe\x00S", "is not a CSV file in UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_another_file_in_the_rosters_place_is_refused(root, capsys, tmp_path, content, says):
    path = tmp_path / "roster.csv"
    if content is not None:
        path.write_bytes(content)
    code, rows, err = export(root, capsys, "--roster", str(path))
    assert code == 1 and rows == [] and says in err
