"""The course in JupyterLab, in a real browser: what a learner and an instructor see and press."""

import json

import lab
import pytest

from mha_course import building, exercises, lessons

LESSON_01 = "01_one_head"
WRONG = """\
def attention_scores(q, k):
    return q @ k.mT
"""
RIGHT = """\
def attention_scores(q, k):
    return q @ k.mT / q.shape[-1] ** 0.5
"""

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A checkout to study in, its lessons handed out, and the address of JupyterLab started there."""
    pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if lab.find_chromium() is None:
        pytest.skip("there is no Chromium here")
    if not (building.ROOT / "notebooks" / LESSON_01).exists():
        pytest.skip(f"{LESSON_01} is not released yet")
    root = lab.make_root(tmp_path_factory.mktemp("course"), "notebooks", f"solutions/{LESSON_01}")
    lessons.open_workspace(root)
    released = building.contents(root / "notebooks")
    with lab.server(root) as address:
        yield root, address
    assert building.contents(root / "notebooks") == released, "studying changed what git follows"


@pytest.fixture(scope="module")
def notebook(course):
    """The learner's copy of lesson 01, open."""
    _, address = course
    with lab.browser() as page:
        yield lab.Notebook(page, address, f"work/{LESSON_01}/{LESSON_01}.ipynb")


def plain(text):
    return " ".join(text.split())


def test_a_learner_is_told_the_cause_then_sees_the_tick_then_validates(course, notebook):
    root, _ = course
    for cell in notebook.cells():
        if cell == "attention_scores":
            break
        if notebook.is_code(cell):
            notebook.run(cell)

    notebook.run("attention_scores")
    assert "not written yet" in notebook.run("check_attention_scores")

    notebook.write("attention_scores", WRONG)
    notebook.run("attention_scores")
    told = notebook.run("check_attention_scores")
    (no_scale,) = (m for m in exercises.find("attention_scores").misconceptions if m.id == "no-scale")
    assert plain(no_scale.says) in plain(told)
    assert "✗" in told
    assert "Traceback" not in told

    notebook.write("attention_scores", RIGHT)
    notebook.run("attention_scores")
    told = notebook.run("check_attention_scores")
    assert "✓" in told
    assert "✗" not in told
    assert json.loads((root / "work" / "progress.json").read_text())["attention_scores"]["status"] == "passed"

    validated = plain(notebook.validate())
    assert "check(stable_softmax) ○ stable_softmax: not written yet" in validated
    assert "check(attention_scores)" not in validated


def test_the_check_cells_cannot_be_edited_or_deleted(notebook):
    notebook.locate("check_attention_scores").locator(".cm-content").click()
    notebook.page.keyboard.type("pass")
    assert notebook.source("check_attention_scores") == "check(attention_scores)"
    notebook.page.keyboard.press("Escape")
    notebook.page.keyboard.type("dd")
    assert "check_attention_scores" in notebook.cells()


def test_formgrader_lists_the_lesson(course, notebook):
    _, address = course
    page = notebook.page.context.new_page()
    page.goto(f"{address}/formgrader/manage_assignments?token={lab.TOKEN}")
    row = page.locator("tr", has_text=LESSON_01)
    row.first.wait_for()
    assert row.count() == 1
    page.close()


def test_create_assignment_shows_the_points_of_a_solution(course, notebook):
    _, address = course
    page = notebook.page.context.new_page()
    solution = lab.Notebook(page, address, f"solutions/{LESSON_01}/{LESSON_01}.ipynb")
    page.get_by_text("Nbgrader", exact=True).first.click()
    page.get_by_text("Create Assignment").first.click()
    points = page.locator(".nbgrader-TotalPointsInput")
    points.wait_for()
    declared = exercises.lessons()[1]
    assert float(points.input_value()) >= len(declared.exercises) + len(declared.questions)
    assert "attention_scores" in solution.cells()
    page.close()
