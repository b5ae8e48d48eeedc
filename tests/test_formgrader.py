"""What formgrader does here that it does not do by itself."""

from __future__ import annotations

import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from nbgrader.apps.api import NbGraderAPI
from nbgrader.coursedir import CourseDirectory

from mha_course import nbgrader_steps
from mha_course.building import ROOT
from mha_course.grading.writer import course_config


@pytest.mark.parametrize(("code", "well"), [(0, True), (2, False), (1, False)])
def test_its_lightning_grades_confined_and_says_what_came_of_it(tmp_path, monkeypatch, code, well):
    asked = []

    def run(command, **_named):
        asked.append(command)
        return subprocess.CompletedProcess(command, code, "01_one_head: 1 graded", "a warning\n")

    config = course_config(ROOT)  # as JupyterLab's server loads it
    config.CourseDirectory.root = str(tmp_path)
    config.CourseDirectory.db_url = f"sqlite:///{tmp_path}/gradebook.db"
    monkeypatch.setattr(nbgrader_steps.subprocess, "run", run)
    api = NbGraderAPI(coursedir=CourseDirectory(config=config), config=config)
    told = api.autograde("01_one_head", "ada")
    assert told["success"] is well and "a warning" in told["log"] and "1 graded" in told["log"]
    (command,) = asked
    assert command[:5] == [sys.executable, "-m", "mha_course", "grade", "01_one_head"]
    for option, value in {"--student": "ada", "--root": str(tmp_path), "--db": api.coursedir.db_url}.items():
        assert command[command.index(option) + 1] == value
    assert "--force" in command


@pytest.mark.parametrize(
    "widgets",
    [
        {"application/vnd.jupyter.widget-state+json": {"0123": {"model_name": "HTMLModel"}}},  # Colab's form
        {"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2}},
        {"application/vnd.jupyter.widget-state+json": "nonsense"},
        [],
    ],
)
def test_what_colab_writes_into_a_notebook_does_not_break_a_page(widgets):
    from nbconvert import HTMLExporter

    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "0123"}, "text/plain": "a slider"}
    notebook = new_notebook(cells=[new_code_cell("1", outputs=[new_output("display_data", view)])])
    notebook.metadata["widgets"] = widgets
    page, _ = HTMLExporter(config=course_config(ROOT)).from_notebook_node(nbformat.from_dict(notebook))
    assert "a slider" in page
