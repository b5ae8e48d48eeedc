"""A class graded in one run: hostile, broken and unusual submissions beside honest ones."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import grading_catalogue as catalogue
import grading_course as course
import pytest

from mha_course.grading import sandbox
from mha_course.grading.intake import printable

needs_sandbox = pytest.mark.skipif(not sandbox.available()[0], reason=sandbox.available()[1])
pytestmark = [pytest.mark.xdist_group("grading"), pytest.mark.slow, needs_sandbox]

TARGET = "mix"  # the exercise that hostile submissions do not solve
MARK = "mha-course-grading-test"
PAPER = catalogue.Paper(course.released_cells(), course.RIGHT, TARGET, course.PARAMETERS[TARGET])


def entries(root="ROOT", port=0):
    """Everything in the catalogue, for this lesson."""
    places = {"root": str(root), "port": str(port), "mark": MARK}
    found = [*catalogue.hostile(PAPER, places), *catalogue.stopping(PAPER)]
    return [*found, *catalogue.broken(PAPER), *catalogue.unusual(PAPER)]


NAMES = [entry.student for entry in entries()]
HARM = [f"hostile_{name.replace(' ', '_')}" for name in catalogue.HARM]
# These end or confuse their own process: what they wrote honestly may be lost with it.
MAY_LOSE = {
    "hostile_observation_forged",
    "hostile_memory",
    "hostile_frames_forged",
    "hostile_garbage_on_every_file",
    "hostile_shell_patched",
}


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """Everybody graded in one run: by student the result, and the folder."""
    import socket

    from mha_course.grading.run import Options, grade

    root = tmp_path_factory.mktemp("class")
    course.make_release(root)
    (root / "solutions").mkdir()
    (root / "solutions" / "answers.py").write_text("secret")
    submitted = root / "grading" / "submitted"
    with socket.create_server(("127.0.0.1", 0)) as server:
        for entry in entries(root, server.getsockname()[1]):
            entry.hand_in(submitted, course.LESSON)
            if entry.student in HARM:
                course.hand_in(root, f"{entry.student}_next")
        limits = sandbox.Limits(cell_seconds=3, notebook_seconds=60, scratch=32 << 20, memory=1 << 30)
        with course.declared():
            summary = grade(course.LESSON, Options(root, jobs=2, limits=limits))
        server.setblocking(False)
        try:
            server.accept()
            connected = True
        except BlockingIOError:
            connected = False
    return {result.student: result for result in summary.results}, root, connected


def statuses(result) -> dict[str, str]:
    outcomes = result.notebooks[course.LESSON]["outcomes"]
    return {each["name"]: each["status"] for listed in outcomes.values() for each in listed}


def printed(root: Path, student: str) -> str:
    path = root / "grading" / "autograded" / student / course.LESSON / f"{course.LESSON}.ipynb"
    cells = json.loads(path.read_text())["cells"]
    texts = [output.get("text", "") for cell in cells for output in cell.get("outputs", [])]
    return "".join("".join(text) for text in texts)


def points(result) -> float:
    return sum(course.POINTS[name] for name, status in statuses(result).items() if status == "right")


DESERVED = {
    catalogue.ALL: sum(course.POINTS.values()),
    catalogue.REST: sum(course.POINTS.values()) - course.POINTS[TARGET],
    catalogue.NOTHING: 0,
}


def test_the_catalogue_is_large_enough():
    kinds = [entry.kind for entry in entries()]
    assert kinds.count("hostile") >= 40 and kinds.count("broken") >= 25 and kinds.count("unusual") >= 15
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)
def test_everybody_gets_what_they_deserve(graded, entry):
    result = graded[0][printable(entry.student, 200)]
    if entry.deserves == catalogue.ASIDE:
        assert result.status == "set aside" and result.reason
        return
    assert result.status == "graded", result.reason
    if entry.student in MAY_LOSE:
        assert points(result) <= DESERVED[entry.deserves]
    else:
        assert points(result) == DESERVED[entry.deserves], statuses(result)
    if entry.deserves == catalogue.REST:
        assert statuses(result)[TARGET] != "right"


@pytest.mark.parametrize("name", HARM)
def test_the_next_learner_is_graded_whatever_the_one_before_did(graded, name):
    result = graded[0][f"{name}_next"]
    assert set(statuses(result).values()) == {"right"}
    assert result.scores == {course.LESSON: [9.0, 11.0]}


def test_scripts_on_a_page_are_made_harmless(graded):
    name = "hostile_script_on_the_page"
    page = (graded[1] / "grading" / "feedback" / name / course.LESSON / f"{course.LESSON}.html").read_text()
    assert f'<script>document.title = "{MARK}"' not in page and "<img src=x" not in page
    saved = (
        graded[1] / "grading" / "autograded" / name / course.LESSON / f"{course.LESSON}.ipynb"
    ).read_text()
    outputs = [o for cell in json.loads(saved)["cells"] for o in cell.get("outputs", [])]
    kinds = {kind for o in outputs for kind in o.get("data", {})}
    assert "application/javascript" not in kinds
    assert not any("alert(1)" in "".join(o.get("data", {}).get("text/html", "")) for o in outputs)


def test_there_is_no_network(graded):
    assert not graded[2]
    assert "CONNECTED" not in printed(graded[1], "hostile_network")


def test_neither_solutions_nor_other_learners_nor_home_can_be_read(graded):
    text = printed(graded[1], "hostile_reads")
    assert "SEEN []" in text, text


def test_nothing_can_be_written_outside_the_private_folder(graded):
    text = printed(graded[1], "hostile_writes")
    assert "WROTE" not in text.replace("WROTE /dev", ""), text
    assert (
        not list(graded[1].glob(MARK))
        and not Path("/var/tmp", MARK).exists()
        and not Path("/usr", MARK).exists()
    )


def test_no_process_is_left_afterwards(graded):
    left = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            left += [path] if path.read_bytes().strip() == MARK.encode()[:15] else []
    assert not left


def test_no_namespaces_are_made_inside(graded):
    assert "MADE A USER NAMESPACE False" in printed(graded[1], "hostile_makes_namespaces")


def test_nothing_of_one_learner_is_seen_by_the_next(graded):
    left = printed(graded[1], "hostile_looks_around").split("LEFT ")[1].splitlines()[0]
    under_tmp = Path(sys.prefix).is_relative_to(
        "/tmp"
    )  # then the environment, to be read only, is there as well
    environment = [Path(sys.prefix).relative_to("/tmp").parts[0]] if under_tmp else []
    listed = ast.literal_eval(left.partition("]")[0] + "]")
    assert sorted(listed) == sorted(["work", *environment])
    assert left.endswith("] [] False")


def test_processes_and_disk_are_bounded(graded):
    made = int(printed(graded[1], "hostile_forks").split("MADE ")[1].split()[0])
    assert 5 < made < 60
    assert "FULL" in printed(graded[1], "hostile_disk")


def test_what_is_printed_is_bounded(graded):
    assert len(printed(graded[1], "hostile_prints")) < 200_000


def test_marks_are_where_nbgraders_tools_look_for_them(graded):
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{graded[1]}/grading/gradebook.db", "mha_course") as gradebook:
        submission = gradebook.find_submission(course.LESSON, "hostile_exits_next")
        assert (submission.score, submission.max_score) == (9.0, 11.0)
    page = graded[1] / "grading" / "feedback" / "hostile_ready_made" / course.LESSON / f"{course.LESSON}.html"
    assert "uses a ready-made part" in page.read_text()


def test_without_a_sandbox_the_same_cells_do_what_they_try(tmp_path):
    """What the sandbox stops is really there to be stopped."""
    import socket

    (tmp_path / "solutions").mkdir()
    (tmp_path / "solutions" / "answers.py").write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        places = {"root": str(tmp_path), "port": str(server.getsockname()[1]), "mark": MARK}
        cells = "\n".join(catalogue.fill(catalogue.HARM[name], places) for name in ("network", "reads"))
        done = subprocess.run([sys.executable, "-c", cells], capture_output=True, text=True, timeout=60)
    assert "CONNECTED" in done.stdout and "answers.py" in done.stdout


def test_seeds_are_logged_and_differ_between_learners(graded):
    results = graded[0]
    one, other = (results[name].seeds for name in ("hostile_exits_next", "hostile_stops_next"))
    assert one.keys() == other.keys() == course.RIGHT.keys()
    assert not set(one.values()) & set(other.values())
    secret = graded[1] / "grading" / "marks" / "secret"
    assert sys.platform == "win32" or secret.stat().st_mode & 0o777 == 0o600


def test_the_staged_course_has_no_answers_in_it():
    with sandbox.staged_course() as folder:
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}
        assert not [
            name for name in names if "reference" in name or "exercises" in name or "diagnose" in name
        ]
        assert os.access(folder, os.R_OK) and shutil.which("bwrap")
