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
        yield lab.Notebook(page, address, f"{LESSON_01}/{LESSON_01}.ipynb")


@pytest.fixture(scope="module")
def teaching(course, notebook):
    """The address of an instructor's JupyterLab on the same course, and a page for it."""
    root, _ = course
    with lab.server(root, teach=True) as address:
        page = notebook.page.context.new_page()
        yield address, page
        page.close()


def plain(text):
    return " ".join(text.split())


def menus(page):
    return page.locator(".lm-MenuBar-itemLabel").all_inner_texts()


def is_unsaved(page):
    return page.evaluate("() => jupyterapp.shell.currentWidget.context.model.dirty")


def test_a_lesson_that_was_only_opened_is_not_unsaved_and_its_file_is_as_handed_out(course, notebook):
    root, _ = course
    own = root / "work" / LESSON_01 / f"{LESSON_01}.ipynb"
    before = own.read_bytes()
    notebook.page.wait_for_timeout(1000)
    assert not is_unsaved(notebook.page)
    notebook.save()
    notebook.page.wait_for_timeout(1000)
    assert own.read_bytes() == before


def test_a_learner_sees_their_own_folder_and_none_of_the_instructors_tools(course, notebook):
    page = notebook.page.context.new_page()
    page.goto(f"{course[1]}/lab?token={lab.TOKEN}&reset")
    page.wait_for_selector(".jp-DirListing-itemText")
    shown = page.locator(".jp-DirListing-itemText").all_inner_texts()
    assert LESSON_01 in shown
    assert not {"solutions", "notebooks", "mha_course", "grading"} & set(shown)
    assert "Nbgrader" not in menus(page)
    assert page.get_by_text("Create Assignment").count() == 0
    page.close()


def test_the_next_lesson_and_the_map_are_a_click_away(course, notebook):
    page = notebook.page.context.new_page()
    for link, opened in (("lesson 02, Masks", "02_masks.ipynb"), ("All lessons", "00_start_here.ipynb")):
        lab.Notebook(page, course[1], f"{LESSON_01}/{LESSON_01}.ipynb")
        place = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) a", has_text=link).first
        place.scroll_into_view_if_needed()
        place.click()
        page.wait_for_function(
            "name => window.jupyterapp.shell.currentWidget?.title.label === name", arg=opened
        )
    heading = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) h2", has_text="All lessons")
    heading.wait_for()
    page.wait_for_timeout(500)
    assert heading.bounding_box()["y"] < 900, "the map itself is in sight"
    page.close()


@pytest.mark.parametrize(
    ("theme", "seen"), [("JupyterLab Light", "mha-light"), ("JupyterLab Dark", "mha-dark")]
)
def test_of_a_pictures_two_versions_the_one_for_the_theme_is_seen(course, notebook, theme, seen):
    page = notebook.page.context.new_page()
    opened = lab.Notebook(page, course[1], "00_start_here/00_start_here.ipynb")
    first = [cell for cell in opened.cells() if opened.is_code(cell)][:3]
    for cell in first:
        opened.run(cell)
    page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
    page.locator(f".{seen}").first.wait_for(state="visible")
    assert page.locator(".mha-light:visible, .mha-dark:visible").count() == 1
    page.close()


def test_a_notebook_of_the_release_says_where_ones_own_copy_is(teaching):
    address, page = teaching
    opened = lab.Notebook(page, address, f"notebooks/{LESSON_01}/{LESSON_01}.ipynb")
    first = next(cell for cell in opened.cells() if opened.is_code(cell))
    told = plain(opened.run(first))
    assert f"Your copy is in work/{LESSON_01}" in told
    assert "python3 -m mha_course lab 01" in told
    own = lab.Notebook(page, address, f"work/{LESSON_01}/{LESSON_01}.ipynb")
    assert "Your copy is in" not in own.run(first)


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
    assert "1 of 10 done. Not written yet: stable_softmax, attend" in validated
    assert "check(stable_softmax)" not in validated
    assert "check(attention_scores)" not in validated


def test_the_check_cells_cannot_be_edited_or_deleted(notebook):
    notebook.locate("check_attention_scores").locator(".cm-content").click()
    notebook.page.keyboard.type("pass")
    assert notebook.source("check_attention_scores") == "check(attention_scores)"
    notebook.page.keyboard.press("Escape")
    notebook.page.keyboard.type("dd")
    assert "check_attention_scores" in notebook.cells()


def test_formgrader_lists_the_lesson(teaching):
    address, page = teaching
    page.goto(f"{address}/formgrader/manage_assignments?token={lab.TOKEN}")
    row = page.locator("tr", has_text=LESSON_01)
    row.first.wait_for()
    assert row.count() == 1


def test_create_assignment_shows_the_points_of_a_solution(teaching):
    address, page = teaching
    solution = lab.Notebook(page, address, f"solutions/{LESSON_01}/{LESSON_01}.ipynb")
    assert "Nbgrader" in menus(page)
    page.get_by_text("Nbgrader", exact=True).first.click()
    page.get_by_text("Create Assignment").first.click()
    points = page.locator(".nbgrader-TotalPointsInput")
    points.wait_for()
    declared = exercises.lessons()[1]
    assert float(points.input_value()) >= len(declared.exercises) + len(declared.questions)
    assert "attention_scores" in solution.cells()
