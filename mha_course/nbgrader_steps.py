"""Our own steps in nbgrader's pipelines. `nbgrader_config.py` puts them in their places.

nbgrader calls them preprocessors: each takes a notebook and gives it back changed, or raises.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from nbgrader.api import Gradebook
from nbgrader.apps.api import NbGraderAPI
from nbgrader.preprocessors import NbGraderPreprocessor
from nbgrader.validator import Validator

from . import notebook_rules as rules


class RefuseBadSource(NbGraderPreprocessor):
    """Before a release is made: refuse what ``mha-course build`` refuses, a stale pair included."""

    def preprocess(self, nb, resources):
        from . import building  # not at the top: building imports jupytext, which is only needed here

        stem = resources["nbgrader"]["notebook"]
        pair = Path(resources["metadata"]["path"], stem + ".ipynb")
        problems = rules.problems_in_source(nb, str(pair), building.find_exercise)
        if building.source_of(pair).exists() and not building.pair_is_fresh(building.source_of(pair)):
            problems.append(rules.Problem(str(pair), "", "older than its .py; run: mha-course build"))
        if problems:
            raise rules.Refused(problems)
        resources["mha_course_source"] = nbformat.from_dict(nb)
        return nb, resources


class Settle(NbGraderPreprocessor):
    """At the end of a release: the form that does not depend on the machine, and no answer left in it."""

    def preprocess(self, nb, resources):
        stem = resources["nbgrader"]["notebook"]
        nb.metadata.pop("mha_course", None)
        rules.settle(nb, stem)
        source = resources.pop("mha_course_source", None)
        problems = rules.problems_in_release(source, nb, stem + ".ipynb") if source else []
        if problems:
            raise rules.Refused(problems)
        return nb, resources


class LeaveOutWidgets(NbGraderPreprocessor):
    """Before a page is made: leave out what only a running kernel can show.

    Colab writes ``metadata.widgets`` in a form of its own, over which nbconvert stumbles (``KeyError: 'state'``).
    """

    def preprocess(self, nb, resources):
        nb.metadata.pop("widgets", None)
        for cell in nb.cells:
            for output in cell.get("outputs", []):
                for kind in [kind for kind in output.get("data", {}) if "widget" in kind]:
                    del output["data"][kind]
        return nb, resources


class RestoreCells(NbGraderPreprocessor):
    """Bring a submission's marked cells back to what was released, whatever happened to them.

    Stands for nbgrader's DeduplicateIds and OverwriteCells, with which one copied check cell, or one cell
    with broken marks, ends the grading of *everybody* (nbgrader#1083), and a deleted check cell lowers the
    maximum. A cell that was not released keeps its text and is the learner's own.
    """

    def preprocess(self, nb, resources):
        here = resources["nbgrader"]
        with Gradebook(here["db_url"]) as gradebook:
            released = released_cells(gradebook.find_notebook(here["notebook"], here["assignment"]))
        restored = set()
        for index in reversed(range(len(nb.cells))):  # of two copies the last one counts, as in nbgrader
            cell, name = nb.cells[index], rules.grade_id(nb.cells[index])
            if name in released and name not in restored:
                nb.cells[index] = self.restore(cell, released[name])
                restored.add(name)
            elif "nbgrader" in cell.metadata:
                self.log.warning("Cell %r is a copy or was not released: taken for the learner's own", name)
                del cell.metadata["nbgrader"]
        for name, cell in released.items():
            if name not in restored and rules.is_graded(cell):
                self.log.warning("Graded cell %r is missing: put back at the end", name)
                nb.cells.append(cell)  # it finds the answer by its name, wherever that stands
        return nb, resources

    def restore(self, cell, released):
        """The released cell; with the learner's text where the learner may write."""
        name = rules.grade_id(released)
        if cell.cell_type != released.cell_type:
            self.log.warning("Cell %r was turned into %s: turned back", name, cell.cell_type)
        if rules.is_answer(released):
            released.source = cell.source
        elif cell.source != released.source:
            self.log.warning("Cell %r was changed: the released text is used", name)
        released.metadata = {**cell.metadata, **released.metadata}
        released["id"] = cell.get("id", released["id"])
        return released


class KeepNoiseOutOfMarks(NbGraderPreprocessor):
    """After a submission was run: what a graded check cell has on stderr goes to its stdout.

    There nbgrader gives no points for anything on stderr, and only libraries write there: a check raises where an
    answer is wrong, and keeps what the answer prints.
    """

    def preprocess_cell(self, cell, resources, index):
        if cell.cell_type == "code" and rules.is_graded(cell) and not rules.is_answer(cell):
            for output in cell.outputs:
                if output.output_type == "stream":
                    output.name = "stdout"
        return cell, resources


def released_cells(notebook) -> dict:
    """The marked cells of a notebook as the gradebook has them, by grade id, in their order."""
    points = {cell.name: cell.max_score for cell in (*notebook.grade_cells, *notebook.task_cells)}
    grade = {cell.name for cell in notebook.grade_cells}
    solution = {cell.name for cell in notebook.solution_cells}
    task = {cell.name for cell in notebook.task_cells}
    cells = {}
    for known in notebook.source_cells:
        marks = {
            "cell_type": known.cell_type,
            "checksum": known.checksum,
            "grade": known.name in grade,
            "grade_id": known.name,
            "locked": known.locked,
            "schema_version": 3,
            "solution": known.name in solution,
            "task": known.name in task,
        }
        if known.name in points:
            marks["points"] = points[known.name]
        new = new_code_cell if known.cell_type == "code" else new_markdown_cell
        cells[known.name] = new(known.source, metadata={"nbgrader": marks})
    return cells


# --- Validate: the learner's button, and ``nbgrader validate`` --------------------------------------


def summarise_validation() -> None:
    """Let nbgrader's validator begin with a count, and list only what is wrong.

    By itself it tells whatever is not written yet as "The following cell failed". It has no setting for that, so its
    step is wrapped here, once.
    """
    plain = Validator._preprocess
    if getattr(plain, "summarises", False):
        return

    def preprocess(self, nb):
        return with_summary(plain(self, nb))

    preprocess.summarises = True
    Validator._preprocess = preprocess


def with_summary(nb):
    """An executed notebook, as the validator is to see it.

    Check cells of what is not written yet lose their outputs, so that they do not count as failed. Before all others
    stands a cell that "fails" with the count; none, where everything is done.
    """
    checks = [cell for cell in nb.cells if rules.is_graded(cell) and cell.cell_type == "code"]
    errors = {id(cell): [out.ename for out in cell.outputs if out.output_type == "error"] for cell in checks}
    still_open = [cell for cell in checks if "NotYetWritten" in errors[id(cell)]]
    wrong = [cell for cell in checks if errors[id(cell)] and cell not in still_open]
    if not still_open and not wrong:
        return nb
    lines = [f"{len(checks) - len(still_open) - len(wrong)} of {len(checks)} done."]
    if still_open:
        lines.append(f"Not written yet: {', '.join(map(checked, still_open))}.")
    if wrong:
        lines.append(f"Not right yet: {', '.join(map(checked, wrong))}. The reasons are below.")
    for cell in still_open:
        cell.outputs = []
    count = new_code_cell(
        "How far you are", metadata={"nbgrader": {"grade": True, "points": 1, "locked": False}}
    )
    count.outputs = [
        new_output(
            "error",
            ename="NotDoneYet",
            evalue=lines[0],
            traceback=["\n".join(textwrap.fill(line, 80) for line in lines)],
        ),
    ]
    nb.cells.insert(0, count)
    return nb


def checked(cell) -> str:
    """What a check cell is about."""
    return rules.grade_id(cell).removeprefix("check_")


# --- formgrader's ⚡ --------------------------------------------------------------------------------


def grade_confined() -> None:
    """Let formgrader's ⚡ run ``mha-course grade``, once set up.

    By itself it runs nbgrader's own autograding: a stranger's code, as you, and over the marks that are there. nbgrader
    has no setting for that, so its function is replaced. The command ``nbgrader autograde`` stays what it is.
    """
    NbGraderAPI.autograde = _autograde


def _autograde(self, assignment_id, student_id, force=True, create=True):
    """Grade one submission again, confined. What formgrader shows: "success", and the "log" of what was printed."""
    command = [sys.executable, "-m", "mha_course", "grade", assignment_id, "--student", student_id]
    command += ["--root", self.coursedir.root, "--db", self.coursedir.db_url, *(["--force"] if force else [])]
    done = subprocess.run(command, cwd=self.coursedir.root, capture_output=True, text=True, errors="replace")
    return {"success": done.returncode == 0, "log": f"mha-course grade:\n{done.stderr}{done.stdout}"}
