"""Past one machine: a Dask cluster whose workers are killed, and a gradebook on PostgreSQL."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import grading_course as course
import pytest

from mha_course.grading import sandbox

pytestmark = [
    pytest.mark.xdist_group("grading"),
    pytest.mark.slow,
    pytest.mark.skipif(not sandbox.available()[0], reason=sandbox.available()[1]),
]
HERE = Path(__file__).parent
SECONDS = 240


def grade_with(root: Path, **how):
    from mha_course.grading.run import Options, grade

    with course.declared():
        return grade(course.LESSON, Options(root, **how))


def hand_in(root: Path, count: int) -> dict[str, float]:
    """Submissions of a small class; gives what each deserves."""
    course.make_release(root)
    deserved = {}
    for number in range(count):
        wrong = {"mix": "def mix(q, k, v):\n    return q"} if number % 3 == 0 else {}
        course.hand_in(root, f"s{number:02}", course.answered(**wrong))
        deserved[f"s{number:02}"] = 6.0 if wrong else 9.0
    return deserved


DECLARE = """
import grading_course
declared = grading_course.declared()
declared.__enter__()
"""


@pytest.fixture
def cluster(tmp_path):
    """Two Dask workers in processes of their own, on loopback."""
    distributed = pytest.importorskip("distributed", reason="Dask is not installed (the extra cluster)")
    preload = tmp_path / "preload.py"
    preload.write_text(DECLARE)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, [before])])
    try:
        with distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            preload=str(preload),
            silence_logs=50,
        ) as made:
            yield made
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def test_lost_workers_are_survived_and_each_submission_is_scored_once(tmp_path, cluster):
    from nbgrader.api import Gradebook

    deserved = hand_in(tmp_path, 10)
    done = tmp_path / "grading" / "marks" / course.LESSON / "done"
    killed = []

    def kill_one():
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            if len(list(done.glob("*.json"))) >= 2:
                pid = next(iter(cluster.workers.values())).pid
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one)
    killer.start()
    summary = grade_with(tmp_path, scheduler=cluster.scheduler_address)
    killer.join()
    assert killed and not summary.unfinished
    assert {r.student: r.scores[course.LESSON][0] for r in summary.results} == deserved
    with Gradebook(f"sqlite:///{tmp_path}/grading/gradebook.db", "mha_course") as gradebook:
        assert len(gradebook.assignment_submissions(course.LESSON)) == len(deserved)


def test_a_scheduler_that_is_not_there_is_said_plainly(tmp_path):
    pytest.importorskip("distributed", reason="Dask is not installed (the extra cluster)")
    from mha_course.grading import cluster as clustering
    from mha_course.grading.intake import read_release
    from mha_course.grading.run import GradingError, Options

    course.make_release(tmp_path)
    release = read_release(tmp_path / "notebooks" / course.LESSON)
    with pytest.raises(GradingError, match="no Dask scheduler answers"):
        clustering.ClusterPool("tcp://127.0.0.1:9", release, Options(tmp_path), None, seconds=1)


# ------------------------------------------------------------------------------------ PostgreSQL


def programs() -> Path | None:
    """Debian's folder of PostgreSQL's programs, the newest."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@pytest.fixture
def postgres(tmp_path_factory):
    """A PostgreSQL server on a Unix socket; gives its URL."""
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed")
    if programs() is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    folder = tmp_path_factory.mktemp("pg")
    user = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        if subprocess.run(["id", "postgres"], capture_output=True).returncode:
            pytest.skip("there is no user postgres to run the server as")
        for path in (folder, *folder.parents):
            if path == Path("/tmp"):
                break
            path.chmod(0o755)
        shutil.chown(folder, "postgres", "postgres")
        user = {"user": "postgres", "group": "postgres"}
    data = folder / "data"

    def call(*command):
        subprocess.run(
            [str(programs() / command[0]), *command[1:]],
            check=True,
            capture_output=True,
            timeout=120,
            cwd=folder,
            **user,
        )

    call("initdb", "-D", str(data), "-A", "trust", "-U", "grader", "-N")
    options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
    call("pg_ctl", "-D", str(data), "-w", "-o", options, "-l", str(folder / "log"), "start")
    try:
        call("createdb", "-h", str(folder), "-U", "grader", "gradebook")
        yield f"postgresql+psycopg2://grader@/gradebook?host={folder}"
    finally:
        call("pg_ctl", "-D", str(data), "-m", "immediate", "stop")


def test_the_gradebook_may_be_on_postgresql(tmp_path, postgres):
    from nbgrader.api import Gradebook

    deserved = hand_in(tmp_path, 4)
    for _ in range(2):
        grade_with(tmp_path, db_url=postgres, jobs=2, force=True)
    with Gradebook(postgres, "mha_course") as gradebook:
        found = {s.student.id: s.score for s in gradebook.assignment_submissions(course.LESSON)}
    assert found == deserved
    assert not (tmp_path / "grading" / "gradebook.db").exists()
