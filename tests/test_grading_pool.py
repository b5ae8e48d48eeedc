"""Trusted processes: whatever a task does to its own, every task comes back once, and the others are done."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from mha_course.grading.pool import Bounds, Failed, Pool

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere the system does not hold these limits"
)
BOUNDS = Bounds(seconds=120, cpu=60, memory=256 << 20)


class Doing:
    """Calls the function that a task names."""

    def handed_over(self) -> None:
        pass

    def __call__(self, task: tuple) -> object:
        return globals()[task[0]](*task[1:])

    def close(self) -> None:
        pass


def double(x):
    return 2 * x


def sleep():
    time.sleep(3600)


def search():
    """Computes for years, and lets nobody in between."""
    re.match("(a+)+$", "a" * 60 + "b")


def eat(path, megabytes):
    """Says how much it has, in MB: as far as it comes. In pieces so large that none comes from what lay free before."""
    kept = []
    while 40 * len(kept) < megabytes:
        kept.append(os.urandom(40 << 20))
        Path(path).write_text(str(40 * len(kept)))
    return 40 * len(kept)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(path):
    if not os.path.exists(path):
        Path(path).touch()
        die()
    return "alive"


def stumble():
    raise ZeroDivisionError("in the grader")


def run(*tasks, bounds=BOUNDS, count=2) -> dict:
    pool = Pool(count, Doing)
    try:
        answers = list(pool.run(tasks, bounds))
    finally:
        pool.close()
    assert sorted(map(str, (task for task, _ in answers))) == sorted(map(str, tasks))
    return dict(answers)


def honest(count):
    return [("double", number) for number in range(count)]


def assert_the_others_are_done(answers, count):
    assert [answers[task] for task in honest(count)] == [2 * number for number in range(count)]


def test_every_task_gets_its_own_answer():
    assert_the_others_are_done(run(*honest(40)), 40)


@pytest.mark.parametrize("task", ["sleep", "search"])
def test_a_task_without_an_end_is_ended(task):
    answers = run((task,), *honest(6), bounds=Bounds(seconds=3, cpu=60, memory=256 << 20))
    assert isinstance(answers[(task,)], Failed) and "longer than 3 s" in str(answers[(task,)])
    assert_the_others_are_done(answers, 6)


def test_a_task_that_computes_too_much_is_ended_by_the_system():
    answers = run(("search",), *honest(6), bounds=Bounds(seconds=500, cpu=1, memory=256 << 20))
    assert "more than 1 s of computing" in str(answers[("search",)])
    assert_the_others_are_done(answers, 6)


def test_a_hungry_task_is_ended_before_it_has_more_than_it_may(tmp_path):
    told = tmp_path / "told"
    answers = run(("eat", str(told), 1500), *honest(6))
    assert "more than 256 MB of memory" in str(answers[("eat", str(told), 1500)])
    assert 120 <= int(told.read_text()) <= 256
    assert_the_others_are_done(answers, 6)


def test_a_task_that_stays_within_its_limits_is_done(tmp_path):
    task = ("eat", str(tmp_path / "told"), 120)
    assert run(task)[task] == 120


def test_a_process_that_was_killed_from_outside_is_replaced_and_its_task_tried_again(tmp_path):
    task = ("die_once", str(tmp_path / "died"))
    answers = run(task, *honest(6))
    assert answers[task] == "alive"
    assert_the_others_are_done(answers, 6)


def test_a_task_that_kills_its_process_each_time_fails_alone():
    answers = run(("die",), *honest(6))
    assert "died, twice" in str(answers[("die",)])
    assert_the_others_are_done(answers, 6)


def test_an_exception_is_told_and_the_process_goes_on():
    answers = run(("stumble",), *honest(6), count=1)
    assert "ZeroDivisionError: in the grader" in str(answers[("stumble",)])
    assert_the_others_are_done(answers, 6)


def test_closing_ends_processes_whatever_they_are_doing():
    pool = Pool(2, Doing)
    tasks = pool.run([("double", 1), ("sleep",), ("search",)], BOUNDS)
    next(tasks)
    processes = [post.process for post in pool.posts.values()]
    pool.close()
    assert not any(process.is_alive() for process in processes)


def test_a_process_ends_with_the_one_that_started_it():
    """A run that was killed leaves nobody behind who holds its locks or its gradebook."""
    import psutil

    first = os.fork()
    if first == 0:
        pool = Pool(2, Doing)
        list(zip(range(1), pool.run([("double", 1), ("sleep",)], BOUNDS), strict=False))
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(first, os.WUNTRACED)
    children = psutil.Process(first).children(recursive=True)
    assert len(children) == 2
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    gone, left = psutil.wait_procs(children, timeout=60)
    assert not left
