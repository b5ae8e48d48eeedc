"""docs/instructor.md, word for word: what it tells to type is typed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile

import grading_course as course
import pytest

from mha_course import building
from mha_course.grading.writer import course_config

TEXT = (building.ROOT / "docs" / "instructor.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]


def told(start: str) -> list[str]:
    """The commands in the text that begin like this."""
    found = [re.split(r" {3,}", line)[0] for line in LINES if line.startswith(start)]
    assert found, start
    return found


@pytest.mark.skipif(not (building.ROOT / ".git").exists() or not shutil.which("git"), reason="no checkout")
def test_the_archive_for_learners_has_no_solutions_and_works(tmp_path):
    (command,) = told("git archive")
    target = tmp_path / "mha_course.zip"
    words = [str(target) if word == "mha_course.zip" else word for word in shlex.split(command)]
    subprocess.run(words, cwd=building.ROOT, check=True)
    with zipfile.ZipFile(target) as archive:
        archive.extractall(tmp_path)
    root = tmp_path / "mha_course"
    assert not (root / "solutions").exists() and not (root / "tests").exists()
    assert "### BEGIN SOLUTION" not in "".join(p.read_text() for p in root.glob("notebooks/*/*.ipynb"))
    script = "from mha_course import lessons; print(lessons.open_workspace(lessons.ROOT)[0])"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True
    )
    assert str(root / "work") in done.stdout, done.stderr


def test_due_dates_and_learners_are_entered_as_it_is_told(tmp_path):
    from nbgrader.api import Gradebook

    (tmp_path / "nbgrader_config.py").symlink_to(building.ROOT / "nbgrader_config.py")
    (tmp_path / "students.csv").write_text("id,first_name,last_name,email\nbob,Bob,B,bob@example.org\n")
    (tmp_path / "grading").mkdir()
    for command in told("nbgrader db"):
        words = [sys.executable, "-m", *shlex.split(command)]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    with Gradebook(course_config(tmp_path).CourseDirectory.db_url) as gradebook:
        assert str(gradebook.find_assignment("01_one_head").duedate) == "2026-12-01 23:59:00"
        assert sorted(student.id for student in gradebook.students) == ["alice", "bob"]


def test_a_due_date_that_was_entered_before_is_kept_by_grading(tmp_path):
    from nbgrader.api import Gradebook
    from nbgrader.utils import parse_utc

    from mha_course.grading import writer as writing
    from mha_course.grading.intake import read_release

    course.make_release(tmp_path)
    (tmp_path / "grading").mkdir()
    config = course_config(tmp_path)
    with Gradebook(config.CourseDirectory.db_url) as gradebook:
        gradebook.add_assignment(course.LESSON, duedate=parse_utc("2026-01-01 00:00:00 UTC"))
    made = writing.Writer(tmp_path, read_release(tmp_path / "notebooks" / course.LESSON), config)
    made.prepare()
    assert made.look_around([])[1] == "2026-01-01 00:00:00 UTC"
    made.close()
