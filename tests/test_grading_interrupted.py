"""A run of grading that is killed, and the one after it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grading_course as course
import psutil  # comes with ipykernel
import pytest

from mha_course.grading import sandbox

pytestmark = [
    pytest.mark.xdist_group("grading"),
    pytest.mark.slow,
    pytest.mark.skipif(not sandbox.available()[0], reason=sandbox.available()[1]),
]
HERE = Path(__file__).parent
WRONG = "def double_it(x):\n    return x * x"
SCRIPT = """
import argparse, sys
import grading_course as course
from mha_course.grading import command
parser = argparse.ArgumentParser()
command.add_arguments(parser)
with course.declared():
    sys.exit(command.main(parser.parse_args(sys.argv[1:])))
"""


def start(root: Path, *arguments: str) -> subprocess.Popen:
    """``mha-course grade`` of the sample lesson, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        course.LESSON,
        "--root",
        str(root),
        "--jobs",
        "2",
        "--json",
        *arguments,
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def done(root: Path) -> set[str]:
    folder = root / "grading" / "marks" / course.LESSON / "done"
    return {path.name for path in folder.glob("*.json")}


def wait_until(condition, seconds: float = 120) -> None:
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def descendants_left(root: Path) -> list[str]:
    """Processes that still have this course's folder in their arguments."""
    left = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(root) in text and str(os.getpid()) != path.parent.name:
            left.append(text)
    return left


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_after_an_interruption_the_next_run_goes_on(tmp_path, kind):
    from nbgrader.api import Gradebook

    course.make_release(tmp_path)
    students = [f"s{number:02}" for number in range(12)]
    for number, student in enumerate(students):
        course.hand_in(
            tmp_path, student, course.answered(**({"double_it": WRONG} if number % 3 == 0 else {}))
        )
    for after in (2, 6):
        running = start(tmp_path)
        wait_until(lambda: len(done(tmp_path)) >= after or running.poll() is not None)  # noqa: B023
        os.kill(running.pid, kind)
        running.communicate(timeout=240)
        assert len(done(tmp_path)) >= after
        wait_until(lambda: not descendants_left(tmp_path))
    before = done(tmp_path)
    running = start(tmp_path)
    text, errors = running.communicate(timeout=240)
    assert running.returncode == 0, errors
    told = json.loads(text)
    assert told["graded"] + len(told["up_to_date"]) == 12
    assert len(told["up_to_date"]) >= len(before)
    with Gradebook(f"sqlite:///{tmp_path}/grading/gradebook.db", "mha_course") as gradebook:
        scores = {student: gradebook.find_submission(course.LESSON, student).score for student in students}
        assert len(gradebook.assignment_submissions(course.LESSON)) == 12
    assert scores == {student: 6.0 if n % 3 == 0 else 9.0 for n, student in enumerate(students)}


def test_a_worker_that_is_killed_is_replaced(tmp_path):
    course.make_release(tmp_path)
    for number in range(8):
        course.hand_in(tmp_path, f"s{number:02}")
    running = start(tmp_path)
    wait_until(lambda: len(done(tmp_path)) >= 1 or running.poll() is not None)
    workers = [child for child in psutil.Process(running.pid).children() if "bwrap" not in child.name()]
    workers[0].kill()
    text, errors = running.communicate(timeout=240)
    assert running.returncode == 0, errors
    told = json.loads(text)
    assert told["graded"] == 8 and not told["set_aside"]
    assert all(scores == {course.LESSON: [9.0, 11.0]} for scores in told["scores"].values())
