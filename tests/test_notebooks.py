"""Every lesson's notebook, run from top to bottom: solved, and as a learner first gets it."""

import ast

import nbformat
import pytest
from nbgrader.utils import determine_grade

from mha_course import building
from mha_course import notebook_rules as rules

SOURCES = [source for folder in building.lesson_folders(building.ROOT) for source in building.sources(folder)]


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_every_solution_runs_clean_and_gets_full_marks(source):
    nb = building.execute(building.read_source(source), source.parent, source.stem)  # errors are refused
    for index, cell in enumerate(nb.cells):
        if rules.is_graded(cell):
            score, points = determine_grade(cell)
            assert score == points > 0, rules.describe(index, cell)


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_every_untouched_release_gets_nothing_and_says_only_that_it_is_not_written(source):
    release = building.release_folder(source.parent) / building.pair_of(source).name
    nb = nbformat.read(release, as_version=4)
    building.run(nb, source.parent, source.stem)
    unknown: set[str] = set()  # names that a cell would have made, had it not stopped for want of an answer
    for index, cell in enumerate(nb.cells):
        where = rules.describe(index, cell)
        if rules.is_graded(cell):
            assert determine_grade(cell)[0] == 0, where
        for output in cell.get("outputs", []):
            assert (output.output_type, output.get("name")) != ("stream", "stderr"), f"{where}: {output.text}"
            if output.output_type == "error":
                assert is_not_yet_written(output, unknown), f"{where}: {output.ename}: {output.evalue}"
                unknown |= assigned(cell.source)


def is_not_yet_written(error, unknown):
    if error.ename == "NameError":
        return any(f"name '{name}' is not defined" in error.evalue for name in unknown)
    return error.ename in ("NotYetWritten", "NotImplementedError")


def assigned(source):
    """Names that a cell assigns, imports or defines."""
    names = {
        node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name) and is_stored(node)
    }
    return names | {node.name for node in ast.parse(source).body if hasattr(node, "name")}


def is_stored(name):
    return isinstance(name.ctx, ast.Store)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"ename": "NotYetWritten", "evalue": ""}, True),
        ({"ename": "NotImplementedError", "evalue": ""}, True),
        ({"ename": "NameError", "evalue": "name 'scores' is not defined"}, True),
        ({"ename": "NameError", "evalue": "name 'typo' is not defined"}, False),
        ({"ename": "CheckFailed", "evalue": ""}, False),
    ],
)
def test_what_counts_as_not_yet_written(error, expected):
    unknown = assigned("scores = attend(q, k)")
    assert is_not_yet_written(nbformat.from_dict(error), unknown) is expected
