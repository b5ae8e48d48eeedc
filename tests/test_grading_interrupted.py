"""A run of grading that is killed, and the one after it."""

from __future__ import annotations

import json
import os
import re
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
ONE_BY_ONE = {
    **course.RIGHT,
    "double_twice": "def double_twice(x):\n    return 4 * x",
}  # none builds on another
WRONG = {"why_double": 'why_double = "a"'}
SCRIPT = """
import argparse, sys
import grading_course as course
from mha_course.grading import command
parser = argparse.ArgumentParser()
command.add_arguments(parser)
with course.declared():
    sys.exit(command.main(parser.parse_args(sys.argv[1:])))
"""


def start(root: Path, *arguments: str, script: str = SCRIPT) -> subprocess.Popen:
    """``mha-course grade`` of the sample lesson, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    command = [
        sys.executable,
        "-c",
        script,
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


def hand_in_class(root: Path, count: int, sleeping: int = 0) -> dict[str, dict[str, float]]:
    """Submissions of which no two are alike; gives what each deserves, by check cell.

    Args:
        sleeping: how long a cell of the first one sleeps, seconds.
    """
    course.make_release(root)
    deserved = {}
    for number in range(count):
        student = f"s{number:02}"
        wrong = [name for bit, name in enumerate(ONE_BY_ONE) if number & 1 << bit]
        answers = {name: WRONG.get(name, f"def {name}(*_):\n    return 0") for name in wrong}
        own = [course.code(f"import time\ntime.sleep({sleeping})", "own")] if sleeping and number == 0 else []
        course.hand_in(root, student, [*course.answered(**{**ONE_BY_ONE, **answers}), *own])
        deserved[student] = {
            f"check_{name}": float(name not in wrong) * course.POINTS[name] for name in ONE_BY_ONE
        }
    return deserved


def given(root: Path) -> dict[str, dict[str, float]]:
    """What the gradebook has: by learner, the points of every check cell."""
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{root}/grading/gradebook.db", "mha_course") as gradebook:
        return {
            submission.student.id: {
                grade.name: grade.auto_score
                for grade in submission.notebooks[0].grades
                if grade.name != "essay"
            }
            for submission in gradebook.assignment_submissions(course.LESSON)
        }


def pages(root: Path) -> dict[str, str]:
    """The score that each learner's page shows."""
    found = (root / "grading" / "feedback").glob(f"*/{course.LESSON}/{course.LESSON}.html")
    return {path.parent.parent.name: re.search(r"<strong>([\d.]+) of", path.read_text())[1] for path in found}


def finish(running: subprocess.Popen, code: int = 0) -> dict:
    """Wait for the end of a run; gives what it told."""
    text, errors = running.communicate(timeout=400)
    assert running.returncode == code, errors
    return json.loads(text) if text else {}


def assert_everybody_has_their_own_marks(root: Path, deserved: dict[str, dict[str, float]]) -> None:
    assert given(root) == deserved
    assert {name: float(shown) for name, shown in pages(root).items()} == {
        student: sum(points.values()) for student, points in deserved.items()
    }


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_after_an_interruption_the_next_run_goes_on_at_once(tmp_path, kind):
    deserved = hand_in_class(tmp_path, 12, sleeping=30)  # a process is busy whenever the run is ended
    for after in (2, 6):
        running = start(tmp_path)  # the second one at once after the first was ended: it is not refused
        wait_until(lambda: len(done(tmp_path)) >= after or running.poll() is not None)  # noqa: B023
        assert running.poll() is None, running.stderr.read()
        os.kill(running.pid, kind)
        running.wait(60)  # its output is not waited for: that would be for all that it has started, too
        running.stdout.close()
        running.stderr.close()
        assert len(done(tmp_path)) >= after
    before = done(tmp_path)
    told = finish(start(tmp_path))
    assert told["graded_now"] + len(told["up_to_date"]) == 12
    assert len(told["up_to_date"]) >= len(before)
    assert_everybody_has_their_own_marks(tmp_path, deserved)
    wait_until(lambda: not descendants_left(tmp_path))


def test_interrupting_twice_ends_the_run_as_once_does(tmp_path):
    deserved = hand_in_class(tmp_path, 8)
    running = start(tmp_path)
    wait_until(lambda: len(done(tmp_path)) >= 2 or running.poll() is not None)
    below = psutil.Process(running.pid).children(recursive=True)
    for _ in range(10):
        os.kill(running.pid, signal.SIGINT)
        time.sleep(0.02)
    assert finish(running, 130)["stopped"] == "interrupted"
    assert not psutil.wait_procs(below, timeout=20)[1]
    finish(start(tmp_path))
    assert_everybody_has_their_own_marks(tmp_path, deserved)


@pytest.mark.parametrize("whose", ["the grader's", "the learners'"])
def test_a_process_that_is_killed_is_replaced(tmp_path, whose):
    """As the system does it that runs out of memory: nobody loses a point, and nobody is left for the next run."""
    deserved = hand_in_class(tmp_path, 10)
    running = start(tmp_path)
    for after in (1, 4):
        wait_until(lambda: len(done(tmp_path)) >= after or running.poll() is not None)  # noqa: B023
        below = psutil.Process(running.pid).children(recursive=True)
        confined = [child for child in below if "bwrap" in child.name()]
        graders = [child for child in psutil.Process(running.pid).children() if "bwrap" not in child.name()]
        for process in graders[:1] if whose == "the grader's" else confined:
            process.kill()
    told = finish(running)
    assert told["graded_now"] == 10 and not told["set_aside"] and not told["failed"]
    assert_everybody_has_their_own_marks(tmp_path, deserved)
    assert not descendants_left(tmp_path)


def test_pages_that_a_run_did_not_make_the_next_one_makes(tmp_path):
    deserved = hand_in_class(tmp_path, 3)
    assert finish(start(tmp_path, "--no-feedback"))["graded_now"] == 3
    assert pages(tmp_path) == {}
    told = finish(start(tmp_path))
    assert told["graded_now"] == 0 and len(told["up_to_date"]) == 3
    assert_everybody_has_their_own_marks(tmp_path, deserved)


def test_what_belongs_to_one_submission_stops_no_other(tmp_path):
    """Hangs, hunger and errors of the grader's own over one submission: told, not noted as done, and tried again."""
    deserved = hand_in_class(tmp_path, 8)
    running = start(tmp_path, script=STUMBLING + SCRIPT)
    told = finish(running, 2)
    assert set(told["failed"]) == {"s01", "s03", "s05", "s06"} and told["graded_now"] == 4
    assert (
        "more than 25 s of computing" in told["failed"]["s01"]
        and "ZeroDivisionError" in told["failed"]["s03"]
    )
    assert "MB of memory" in told["failed"]["s05"] and "died, twice" in told["failed"]["s06"]
    others = {student: points for student, points in given(tmp_path).items() if student not in told["failed"]}
    assert others == {student: points for student, points in deserved.items() if student in others}
    assert all(set(given(tmp_path)[student].values()) == {None} for student in told["failed"])
    told = finish(start(tmp_path))
    assert told["graded_now"] == 4 and not told["failed"]
    assert_everybody_has_their_own_marks(tmp_path, deserved)


STUMBLING = """
import os
from mha_course.grading import run
from mha_course.grading.pool import Bounds

usual = run.read_one
def read_one(job, release):
    if job.student == "s01":
        while True:
            pass
    if job.student == "s03":
        1 / 0
    if job.student == "s05":
        kept = [os.urandom(1 << 20) for _ in range(2000)]
    if job.student == "s06":
        os.abort()
    return usual(job, release)
run.read_one = read_one
run.bounds_of = lambda release, limits: Bounds(seconds=900, cpu=25, memory=400 << 20)
"""
