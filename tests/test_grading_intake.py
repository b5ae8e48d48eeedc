"""What learners hand in, read defensively."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import grading_catalogue as catalogue
import grading_course as course
import pytest

from mha_course.grading import intake
from mha_course.grading.intake import (
    MAX_FILE,
    SetAside,
    moment,
    name_trouble,
    printable,
    read_release,
    read_submission,
)
from mha_course.grading.run import fingerprint, how_many


@pytest.fixture
def root(tmp_path):
    course.make_release(tmp_path)
    return tmp_path


def read(root, cells=None, student="ann", **how):
    path = course.hand_in(root, student, cells, **how)
    return read_submission(path.parent, read_release(root / "notebooks" / course.LESSON))


def sources(submission) -> dict[str, str]:
    """What is run of each released cell."""
    return {
        cell.cell["id"]: cell.run for cell in submission.notebooks[course.LESSON] if cell.cell and cell.run
    }


def order(submission) -> list[str]:
    return [cell.cell["id"] for cell in submission.notebooks[course.LESSON] if cell.cell]


def as_bytes(encoding: str, cells=None) -> bytes:
    return json.dumps(course.notebook(cells or course.answered()), ensure_ascii=False).encode(encoding)


def assert_all_answers_are_there(submission):
    found = sources(submission)
    assert {name: found.get(name) for name in course.RIGHT} == course.RIGHT


def test_an_ordinary_submission_needs_no_repair(root):
    submission = read(root)
    assert submission.repairs == []
    assert_all_answers_are_there(submission)


def test_tests_points_and_ids_come_from_the_release(root):
    cells = course.answered()
    for cell in cells:
        if cell["id"].startswith("check_"):
            cell["source"] = "pass"
            cell["metadata"]["nbgrader"].update(points=1000, locked=False)
    submission = read(root, cells)
    kept = {c.cell["id"]: c.cell for c in submission.notebooks[course.LESSON] if c.cell}
    assert kept["check_mix"]["source"] == "check(mix)"
    assert kept["check_mix"]["metadata"]["nbgrader"]["points"] == course.POINTS["mix"]
    assert any("check_mix was changed" in line for line in submission.repairs)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_another_encoding_is_converted(root, encoding):
    cells = course.answered()
    cells.insert(1, course.text("Größe", "mine"))
    assert_all_answers_are_there(read(root, data=as_bytes(encoding, cells)))


def test_an_old_notebook_format_is_converted(root):
    old = [{**cell, "input": cell["source"]} for cell in course.answered()]
    for cell in old:
        del cell["source"], cell["id"]
    data = json.dumps({"worksheets": [{"cells": old}], "nbformat": 3, "nbformat_minor": 0}).encode()
    submission = read(root, data=data)
    assert any("old notebook format" in line for line in submission.repairs)
    assert_all_answers_are_there(submission)


@pytest.mark.parametrize("change", [{"nbformat": 5}, {"nbformat": "4"}, {"metadata": None}])
def test_an_unusual_header_does_not_matter(root, change):
    data = json.dumps({**course.notebook(course.answered()), **change}).encode()
    assert_all_answers_are_there(read(root, data=data))


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: t + "\0\0",
        lambda t: t + "}",
        lambda t: t[:-1] + ",}",
    ],
)
def test_small_damage_to_the_file_is_repaired(root, damage):
    text = json.dumps({**course.notebook(course.answered())})
    assert_all_answers_are_there(read(root, data=damage(text).encode()))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        b"not json",
        b"[]",
        b"{}",
        b'{"cells": 3}',
        b"[" * 200_000,
        b"<<<<<<< mine\n{}\n=======\n",
        b"\x89PNG",
    ],
)
def test_what_cannot_be_read_is_set_aside_with_the_reason(root, data):
    with pytest.raises(SetAside) as caught:
        read(root, data=data)
    assert "ipynb" in str(caught.value)


def test_half_a_file_is_set_aside(root):
    data = as_bytes("utf-8")
    with pytest.raises(SetAside, match="not readable as JSON"):
        read(root, data=data[: len(data) // 2])


def test_a_large_file_is_read_and_a_huge_one_set_aside(root):
    cells = course.answered()
    cells[1]["outputs"] = [{"output_type": "stream", "text": "x" * (50 << 20)}]
    assert_all_answers_are_there(read(root, cells))
    path = course.hand_in(root, "ann")
    with path.open("r+b") as file:
        file.truncate(MAX_FILE + 1)
    with pytest.raises(SetAside, match="MB"):
        read_submission(path.parent, read_release(root / "notebooks" / course.LESSON))


def test_a_renamed_notebook_is_found(root):
    submission = read(root, name="mein Heft (1) – fertig")
    assert any("was taken for" in line for line in submission.repairs)
    assert_all_answers_are_there(submission)


def test_of_several_notebooks_the_one_with_the_right_name_is_taken(root):
    course.hand_in(root, "ann", course.answered(mix="def mix(q, k, v):\n    return 0"), name="old")
    assert_all_answers_are_there(read(root))


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_a_symbolic_link_is_not_followed(root):
    secret = root / "secret.ipynb"
    secret.write_bytes(as_bytes("utf-8"))
    folder = root / "grading" / "submitted" / "ann" / course.LESSON
    folder.mkdir(parents=True)
    (folder / f"{course.LESSON}.ipynb").symlink_to(secret)
    with pytest.raises(SetAside, match="symbolic link"):
        read_submission(folder, read_release(root / "notebooks" / course.LESSON))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_not_opened(root):
    folder = course.hand_in(root, "ann").parent
    os.mkfifo(folder / "pipe.ipynb")
    assert_all_answers_are_there(read_submission(folder, read_release(root / "notebooks" / course.LESSON)))


def test_of_a_copied_answer_cell_the_last_changed_one_counts(root):
    cells = course.answered()
    at = next(i for i, cell in enumerate(cells) if cell["id"] == "mix")
    stub = next(cell for cell in course.released_cells() if cell["id"] == "mix")
    first = {**cells[at], "source": "def mix(q, k, v):\n    return 1"}
    submission = read(root, [*cells[:at], first, cells[at], stub, *cells[at + 1 :]])
    assert_all_answers_are_there(submission)
    assert any("3 times" in line for line in submission.repairs)


def test_a_deleted_check_cell_is_put_back(root):
    cells = [cell for cell in course.answered() if cell["id"] != "check_mix"]
    submission = read(root, cells)
    assert order(submission) == [cell["id"] for cell in course.released_cells()]
    assert any("check_mix was missing" in line for line in submission.repairs)


def test_a_deleted_answer_cell_is_put_back_and_an_answer_elsewhere_is_kept(root):
    cells = [cell for cell in course.answered() if cell["id"] != "mix"]
    cells.insert(2, course.code(course.RIGHT["mix"], "another-cell"))
    submission = read(root, cells)
    assert_all_answers_are_there(submission)


def test_cells_that_lost_all_marks_and_ids_are_found(root):
    cells = course.answered()
    for cell in cells:
        cell["metadata"] = {}
        del cell["id"]
    assert_all_answers_are_there(read(root, cells))


def test_an_answer_cell_turned_into_markdown_is_turned_back(root):
    cells = course.answered()
    at = next(i for i, cell in enumerate(cells) if cell["id"] == "mix")
    cells[at] = {"cell_type": "markdown", **{k: cells[at][k] for k in ("id", "metadata", "source")}}
    assert_all_answers_are_there(read(root, cells))


def test_cells_of_the_learners_own_stay_where_they_stood(root):
    cells = course.answered()
    at = next(i for i, cell in enumerate(cells) if cell["id"] == "mix")
    cells.insert(at, course.code("helper = 1", "mine"))
    found = order(read(root, cells))
    assert found[found.index("mix") - 1].startswith("own-")


def test_the_releases_imports_are_there_even_if_their_cell_was_emptied(root):
    cells = course.answered()
    cells[1]["source"] = ""
    first = read(root, cells).notebooks[course.LESSON][0]
    assert "import torch" in first.run and not first.cell


def test_html_in_a_learners_prose_is_made_harmless(root):
    cells = course.answered()
    cells.insert(1, course.text("<script>alert(1)</script> [x](javascript:alert(1)) $a < b$", "mine"))
    text = "".join(c.cell["source"] for c in read(root, cells).notebooks[course.LESSON] if c.cell)
    assert "<script" not in text and "javascript:" not in text and "$a < b$" in text


def test_a_student_who_handed_in_nothing_readable_is_never_given_a_silent_zero(root):
    folder = root / "grading" / "submitted" / "ann" / course.LESSON
    folder.mkdir(parents=True)
    (folder / "essay.docx").write_bytes(b"x")
    with pytest.raises(SetAside, match="no notebook"):
        read_submission(folder, read_release(root / "notebooks" / course.LESSON))


# ------------------------------------------------------------------------------------ one for all


def folder_of(root, student="ann"):
    return course.hand_in(root, student).parent


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2026-11-01 10:00:00.000000 UTC", "2026-11-01 10:00:00 UTC"),  # as the exchange writes it
        ("2026-11-01 10:00:00 +0200", "2026-11-01 08:00:00 UTC"),
        ("2026-11-01T10:00:00+02:00", "2026-11-01 08:00:00 UTC"),
        ("2026-11-01T10:00:00Z", "2026-11-01 10:00:00 UTC"),
        ("2026-11-01 10:00:00", "2026-11-01 10:00:00 UTC"),
        ("13.11.2026 10:00", "2026-11-13 10:00:00 UTC"),
        ("1 November 2026, 10:00", "2026-11-01 10:00:00 UTC"),
        ("11/11/2026", "2026-11-11 00:00:00 UTC"),
    ],
)
def test_a_time_is_read_as_it_was_meant(written, read):
    assert moment(written) == read


TIMES = {
    "01.11.2026": "two ways",
    "11/01/2026 10:00": "two ways",
    "10:00": "two ways",
    "November 2026": "two ways",
    "2030-01-01 00:00:00 ../etc": "cannot be read",
    "2026-11-01 10:00:00 QQQ": "unknown time zone",
    "yesterday": "cannot be read",
    "": "cannot be read",
    "0001-01-01 00:00:00 +1400": "",
    "9999-12-31 23:59:59 -1400": "",
    "2026-11-01 10:00 \x1b[31m": "cannot be read",
    "9" * 150: "",
}


@pytest.mark.parametrize("written", TIMES)
def test_a_time_that_cannot_be_read_is_told_and_stops_nothing(root, written):
    folder = folder_of(root)
    (folder / "timestamp.txt").write_text(written)
    submission = read_submission(folder, read_release(root / "notebooks" / course.LESSON))
    (line,) = submission.repairs
    assert line.startswith("timestamp.txt") and TIMES[written] in line and line.isprintable()
    assert submission.timestamp is None
    assert_all_answers_are_there(submission)


@pytest.mark.skipif(sys.platform != "linux", reason="how long a path may be")
def test_folders_without_an_end_are_neither_walked_nor_in_the_way(root):
    paper = catalogue.Paper(course.released_cells(), course.RIGHT, "mix", "q, k, v")
    (entry,) = [entry for entry in catalogue.stopping(paper) if entry.deep]
    entry.hand_in(root / "grading" / "submitted", course.LESSON)
    folder = root / "grading" / "submitted" / entry.student / course.LESSON
    assert fingerprint(folder, "release") == fingerprint(folder, "release") != ""
    assert_all_answers_are_there(read_submission(folder, read_release(root / "notebooks" / course.LESSON)))
    subprocess.run(["rm", "-rf", folder], check=True)  # pytest's own way takes no such path


def test_a_fingerprint_changes_with_what_counts_and_not_with_the_time_of_a_copy(root):
    folder = folder_of(root)
    first = fingerprint(folder, "release")
    os.utime(folder / f"{course.LESSON}.ipynb", (1, 1))
    assert fingerprint(folder, "release") == first
    assert fingerprint(folder, "another release") != first
    (folder / "timestamp.txt").write_text("2026-11-01 10:00:00 UTC")
    second = fingerprint(folder, "release")
    course.hand_in(root, "ann", course.answered(mix="def mix(q, k, v):\n    return 0"))
    assert len({first, second, fingerprint(folder, "release")}) == 3


def test_a_folder_that_cannot_be_looked_at_now_counts_as_never_graded(root, monkeypatch):
    def gone(*_arguments):
        raise OSError("the disk does not answer")

    monkeypatch.setattr(os, "scandir", gone)
    assert fingerprint(folder_of(root), "release") == ""


@pytest.mark.parametrize("name", ["caf\udce9", "red\x1b[31m", "two\nlines", "bell\x07", "c1\x9b"])
def test_names_that_cannot_be_written_are_told_in_letters_that_can(name):
    assert name_trouble(name)
    assert printable(name).isprintable() and printable(name).encode()


@pytest.mark.parametrize(
    "name", ["ann", "Jos\u00e9", "\u5b57" * 84, "{0}", "O'Brien; DROP", "a b", "-x", "\U0001f600"]
)
def test_unusual_names_are_names(name):
    assert not name_trouble(name) and printable(name, 100) == name


def test_each_cell_is_parsed_once_however_many_answers_lost_their_marks(root, monkeypatch):
    cells = [{**cell, "metadata": {}, "id": f"x{i}"} for i, cell in enumerate(course.answered())]
    cells += [course.code(f"x = {number}", f"mine{number}") for number in range(50)]
    parsed = []
    usual = intake.ast.parse
    monkeypatch.setattr(intake.ast, "parse", lambda source: parsed.append(source) or usual(source))
    assert_all_answers_are_there(read(root, cells))
    assert sum(source.startswith("x = ") for source in parsed) == 50


def test_only_so_much_is_read_of_all_notebooks_together_and_the_expected_one_first(root, monkeypatch):
    folder = folder_of(root)
    for number in range(5):
        (folder / f"a{number}.ipynb").write_bytes((folder / f"{course.LESSON}.ipynb").read_bytes())
    monkeypatch.setattr(intake, "MAX_READ", 3 * (folder / "a0.ipynb").stat().st_size)
    submission = read_submission(folder, read_release(root / "notebooks" / course.LESSON))
    assert_all_answers_are_there(submission)
    assert sum("was not read" in line for line in submission.repairs) == 3


def test_as_many_processes_as_were_asked_for_on_every_system(monkeypatch):
    assert how_many(8, 100) == 8 and how_many(8, 3) == 3 and how_many(0, 1) == 1
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert how_many(8, 100) == 8 and how_many(0, 100) == 6 and how_many(0, 0) == 1


# ------------------------------------------------------------------- work that was not looked at


NOTEBOOK = f"{course.LESSON}.ipynb"


def handed_in(root, **files: bytes):
    """A submission of these files: ``__`` in a name stands for a dot."""
    folder = root / "grading" / "submitted" / "ann" / course.LESSON
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)
    return read_submission(folder, read_release(root / "notebooks" / course.LESSON))


def named(stem: str, data: bytes) -> dict[str, bytes]:
    return {stem.replace(".", "__"): data}


def blank() -> bytes:
    return as_bytes("utf-8", course.released_cells())


def of_another_lesson() -> bytes:
    cells = course.answered()
    for cell in cells:
        if cell["metadata"]:
            cell["id"] = cell["metadata"]["nbgrader"]["grade_id"] = f"other_{cell['id']}"
            cell["source"] = cell["source"].replace("def ", "def other_").replace("why_double", "other")
    return as_bytes("utf-8", cells)


@pytest.mark.parametrize(
    "copy", [f"{course.LESSON}-Copy1.ipynb", "final.ipynb", f"{course.LESSON}.ipynb.txt"]
)
def test_of_a_blank_notebook_and_a_filled_copy_the_copy_is_taken_and_named(root, copy):
    submission = handed_in(root, **named(NOTEBOOK, blank()), **named(copy, as_bytes("utf-8")))
    assert_all_answers_are_there(submission)
    assert any(line.startswith(f"{copy} was taken for") for line in submission.repairs)


def test_of_two_notebooks_with_answers_the_fuller_one_is_taken_and_the_other_named(root):
    fewer = as_bytes("utf-8", course.answered(mix=None, soft_rows=None))
    copy = f"{course.LESSON}-Copy1.ipynb"
    submission = handed_in(root, **named(NOTEBOOK, fewer), **named(copy, as_bytes("utf-8")))
    assert_all_answers_are_there(submission)
    assert any(NOTEBOOK in line and "was not used" in line for line in submission.repairs)


@pytest.mark.parametrize(
    "name",
    [
        f"{NOTEBOOK}.txt",
        f"{NOTEBOOK}.json",
        f"{course.LESSON}.IPYNB",
        f"{NOTEBOOK} (1)",
        f"{NOTEBOOK}.download",
    ],
)
def test_a_notebook_with_another_ending_is_taken_for_what_it_is(root, name):
    submission = handed_in(root, **named(name, as_bytes("utf-8")))
    assert_all_answers_are_there(submission)
    assert any(name in line for line in submission.repairs)


def test_another_lessons_notebook_under_this_ones_name_is_set_aside(root):
    with pytest.raises(SetAside, match=f"{NOTEBOOK}.*another lesson"):
        handed_in(root, **named(NOTEBOOK, of_another_lesson()))


def test_another_lessons_notebook_beside_the_right_one_does_no_harm(root):
    submission = handed_in(
        root, **named(NOTEBOOK, of_another_lesson()), **named("mine.ipynb", as_bytes("utf-8"))
    )
    assert_all_answers_are_there(submission)
    assert any(NOTEBOOK in line and "another lesson" in line for line in submission.repairs)


@pytest.mark.parametrize(
    "name", ["homework.zip", "homework.tar.gz", f"{course.LESSON}.py", "homework.html", "a.pdf"]
)
@pytest.mark.parametrize("beside", [None, NOTEBOOK], ids=["alone", "beside a blank one"])
def test_work_in_another_form_is_named_and_never_a_silent_zero(root, name, beside):
    files = named(name, b"x") | (named(beside, blank()) if beside else {})
    with pytest.raises(SetAside) as caught:
        handed_in(root, **files)
    assert name in str(caught.value)


def test_an_archive_beside_a_filled_notebook_is_named(root):
    submission = handed_in(root, **named(NOTEBOOK, as_bytes("utf-8")), **named("all.zip", b"x"))
    assert_all_answers_are_there(submission)
    assert any("all.zip" in line for line in submission.repairs)


def test_a_blank_notebook_alone_is_graded_as_one(root):
    files = named("timestamp.txt", b"2026-11-01 10:00:00 UTC") | named("numbers.csv", b"1,2,3\n")
    submission = handed_in(root, **named(NOTEBOOK, blank()), **files)
    assert submission.notebooks[course.LESSON] is not None and submission.repairs == []
