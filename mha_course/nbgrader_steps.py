"""Our own steps in nbgrader's pipelines. `nbgrader_config.py` puts them in their places.

nbgrader calls them preprocessors: each takes a notebook and gives it back changed, or raises.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell
from nbgrader.api import Gradebook
from nbgrader.preprocessors import NbGraderPreprocessor

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
