"""Every lesson's notebook, run from top to bottom: solved, and as a learner first gets it."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

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


# --- the way through the course ---


NOTEBOOKS = {source.stem: building.read_source(source) for source in SOURCES}
ORDER = sorted(NOTEBOOKS)


def prose(stem):
    return [cell.source for cell in NOTEBOOKS[stem].cells if cell.cell_type == "markdown"]


def links(text):
    return re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("stem", ORDER)
def test_every_lesson_begins_with_a_link_to_the_map_and_ends_with_one_to_the_next(stem):
    first, last = prose(stem)[0], prose(stem)[-1]
    if stem != ORDER[0]:
        assert any(link.endswith("#All-lessons") for link in links(first))
    following = ORDER[ORDER.index(stem) + 1 :]
    wanted = f"../{following[0]}/{following[0]}.ipynb" if following else "#All-lessons"
    assert links(last)[-1].endswith(wanted)


def test_the_map_has_a_link_to_every_other_lesson():
    course_map = prose(ORDER[0])[1]  # on the first screen: JupyterLab opens another notebook at its top
    assert course_map.startswith("## All lessons\n")
    assert links(course_map) == [f"../{stem}/{stem}.ipynb" for stem in ORDER[1:]]


@pytest.mark.parametrize("stem", ORDER)
def test_every_relative_link_leads_somewhere_in_the_release_as_in_work(stem):
    folder = building.ROOT / "notebooks" / stem
    for link in links("\n".join(prose(stem))):
        if link.startswith(("https://", "#")):
            continue
        path, _, heading = link.partition("#")
        assert (folder / unquote(path)).resolve().is_relative_to(building.ROOT / "notebooks")
        assert (folder / unquote(path)).exists(), link
        if heading:
            headings = re.findall(r"^#+ (.+)$", "\n".join(prose(Path(path).stem)), re.MULTILINE)
            assert heading in [text.replace(" ", "-") for text in headings]


@pytest.mark.parametrize("stem", ORDER)
def test_what_is_recommended_for_reading_can_be_clicked(stem):
    (read_more,) = [text for text in prose(stem) if text.startswith("## Read more")]
    entries = re.split(r"^[-*] ", read_more.split("**Next:**")[0], flags=re.MULTILINE)[1:]
    assert entries
    assert [entry for entry in entries if "https://" not in entry and "mha_course/" not in entry] == []


# --- without the course ---


BARE = """
import sys
sys.modules["mha_course"] = None  # as where it is not installed
from IPython.core.interactiveshell import InteractiveShell
InteractiveShell.instance().run_cell(sys.stdin.read())
"""


@pytest.mark.parametrize("stem", ORDER)
def test_without_the_course_the_first_cell_says_what_to_do_in_one_sentence(stem, tmp_path):
    first = next(cell.source for cell in NOTEBOOKS[stem].cells if cell.cell_type == "code")
    told = subprocess.run(
        [sys.executable, "-c", BARE], input=first, cwd=tmp_path, capture_output=True, text=True
    )
    said = told.stdout + told.stderr
    assert said.strip() == "The course is not installed here. In its folder: python3 -m mha_course lab"
