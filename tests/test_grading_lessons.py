"""Every lesson of this course goes through ``mha-course grade``: its solution gets all points, its release none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from mha_course import lessons
from mha_course.grading import lending, sandbox

LESSONS = sorted(path.name for path in (lessons.ROOT / "solutions").glob("[0-9]*"))
needs_sandbox = pytest.mark.skipif(not sandbox.available()[0], reason=sandbox.available()[1])


@pytest.mark.slow
@needs_sandbox
@pytest.mark.parametrize("lesson", LESSONS)
def test_a_solution_gets_all_points_without_an_error_and_an_empty_notebook_none(tmp_path, lesson):
    from mha_course.grading.run import Options, grade

    shutil.copytree(lessons.ROOT / "notebooks" / lesson, tmp_path / "notebooks" / lesson)
    for student, home in (("ada", "solutions"), ("empty", "notebooks")):
        folder = tmp_path / "grading" / "submitted" / student / lesson
        folder.mkdir(parents=True)
        shutil.copyfile(lessons.ROOT / home / lesson / f"{lesson}.ipynb", folder / f"{lesson}.ipynb")
    options = Options(tmp_path, jobs=1, feedback=False, pictures=True)  # so that all cells are run
    results = {r.student: r for r in grade(lesson, options).results}
    given, most = results["ada"].scores[lesson]
    assert given == most > 0
    assert results["empty"].scores[lesson] == [0, most]
    graded = tmp_path / "grading" / "autograded" / "ada" / lesson / f"{lesson}.ipynb"
    outputs = [
        output
        for cell in json.loads(graded.read_text())["cells"]
        for output in cell.get("outputs", [])
        if output["output_type"] == "error" or output.get("name") == "stderr"
    ]
    assert outputs == []


@pytest.mark.slow
@needs_sandbox
def test_who_borrows_one_answer_loses_that_one_and_keeps_the_others(tmp_path):
    from mha_course.grading.run import Options, grade

    lesson = "01_one_head"
    shutil.copytree(lessons.ROOT / "notebooks" / lesson, tmp_path / "notebooks" / lesson)
    book = json.loads((lessons.ROOT / "solutions" / lesson / f"{lesson}.ipynb").read_text())
    for cell in book["cells"]:
        if "def attention_scores(" in "".join(cell["source"]):
            cell["source"] = "from mha_course.reference import attention_scores"
    folder = tmp_path / "grading" / "submitted" / "borrower" / lesson
    folder.mkdir(parents=True)
    (folder / f"{lesson}.ipynb").write_text(json.dumps(book))
    result = grade(lesson, Options(tmp_path, jobs=1, feedback=False)).results[0]
    listed = result.notebooks[lesson]["outcomes"].values()
    causes = {outcome["name"]: (outcome["status"], outcome["cause"]) for each in listed for outcome in each}
    assert causes.pop("attention_scores") == ("wrong", "borrowed")
    assert "attend" in causes and {status for status, _ in causes.values()} == {"right"}


def test_everything_staged_can_be_imported_and_no_answer_is_there():
    with sandbox.staged_course() as course:
        parts = {path.relative_to(course).as_posix() for path in course.rglob("*.py")}
        modules = sorted(p.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for p in parts)
        imports = "\n".join(f"import {module}" for module in modules)
        environment = {**os.environ, "PYTHONPATH": str(course), "MPLBACKEND": "agg"}
        done = subprocess.run(
            [sys.executable, "-c", f"{imports}\nprint(mha_course.__file__)"],
            env=environment,
            cwd=course,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(str(course))
    assert "mha_course.devices" in modules
    assert not [name for name in modules if "reference" in name or "exercises" in name or "examine" in name]


def test_what_a_lesson_imports_from_the_reference_is_found():
    sources = ["from mha_course.reference import attend, causal_mask as c", "x = (", "from math import pi"]
    assert lending.imported(sources) == {"attend", "causal_mask"}
