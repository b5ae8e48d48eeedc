"""Plain nbgrader with the committed config: release, submit, autograde, scores, feedback, export."""

import copy
import csv
import html
import os
import re
import shutil
import subprocess
import sys
import zipfile

import nbformat
import pytest
import sample_course

from mha_course import building, nbgrader_steps

LESSON_01 = "01_one_head"
NO_PATH = {"PATH": os.pathsep.join(["/usr/bin", "/bin"])}  # alembic is not on it: the config must see to that


def nbgrader(root, *words, succeeds=True, **environment):
    """Run one nbgrader command, as an instructor would from the repository's root. Gives what it printed."""
    kept = {name: os.environ[name] for name in ("HOME", "SYSTEMROOT", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *words],
        cwd=root,
        env={**kept, **NO_PATH, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    printed = done.stdout + done.stderr
    assert (done.returncode == 0) is succeeds, printed
    return printed


def released(root, lesson):
    return nbformat.read(root / "notebooks" / lesson / f"{lesson}.ipynb", as_version=4)


def answers(root, lesson):
    """The right answers, by grade id, without their markers."""
    nb = nbformat.read(root / "solutions" / lesson / f"{lesson}.ipynb", as_version=4)
    marked = {cell.id: cell.source for cell in nb.cells if cell.metadata.get("nbgrader", {}).get("solution")}
    return {name: re.sub(r" *### (BEGIN|END) SOLUTION\n?", "", text) for name, text in marked.items()}


def find(nb, cell_id):
    return next(cell for cell in nb.cells if cell.id == cell_id)


def solve(nb, given):
    nb = copy.deepcopy(nb)
    for cell in nb.cells:
        cell.source = given.get(cell.id, cell.source)
    return nb


def submit(root, lesson, learner, nb):
    folder = root / "grading" / "submitted" / learner / lesson
    folder.mkdir(parents=True)
    nbformat.write(nb, folder / f"{lesson}.ipynb")
    return folder


def scores(root):
    """Score and maximum of each learner, from nbgrader's export."""
    nbgrader(root, "export", "--to", "grading/grades.csv")
    with (root / "grading" / "grades.csv").open() as file:
        return {
            row["student_id"]: (float(row["score"]), float(row["max_score"])) for row in csv.DictReader(file)
        }


def text_of(page):
    """What a reader sees of an HTML file."""
    source = re.sub(r"<(style|script).*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", source)).split())


# --- submissions that something happened to, on a lesson that needs no torch ---


@pytest.fixture(scope="module")
def by_accident(tmp_path_factory):
    """A graded course: its root, its scores, and what autograde printed."""
    root = sample_course.make_whole(tmp_path_factory.mktemp("accidents"))
    nbgrader(root, "generate_assignment", "01_doubling", "--force")
    nb, right = released(root, "01_doubling"), answers(root, "01_doubling")

    submit(root, "01_doubling", "right", solve(nb, right))
    submit(root, "01_doubling", "untouched", nb)

    copied = solve(nb, right)
    for name in ("check_double", "double"):
        twin = copy.deepcopy(find(copied, name))
        twin["id"] = f"{name}-copy"
        copied.cells.insert(copied.cells.index(find(copied, name)) + 1, twin)
    submit(root, "01_doubling", "copied", copied)

    deleted = solve(nb, right)
    deleted.cells = [cell for cell in deleted.cells if cell.id not in ("double", "check_double")]
    deleted.cells.append(nbformat.v4.new_code_cell(right["double"]))
    submit(root, "01_doubling", "deleted", deleted)

    tampered = copy.deepcopy(nb)
    check = find(tampered, "check_double")
    check.source = "pass"
    check.metadata.nbgrader.update(points=50, grade=False)
    submit(root, "01_doubling", "tampered", tampered)

    marks = solve(nb, right)
    find(marks, "double").metadata.nbgrader = {"schema_version": 1}
    foreign = {"grade": True, "grade_id": "alien", "locked": True, "points": 9, "solution": False}
    marks.cells.append(
        nbformat.v4.new_code_cell("1", metadata={"nbgrader": {"schema_version": 2, **foreign}})
    )
    submit(root, "01_doubling", "marks", marks)

    turned = solve(nb, right)
    cell = find(turned, "double")
    cell.cell_type = "markdown"
    del cell["outputs"], cell["execution_count"]
    submit(root, "01_doubling", "turned", turned)

    shadow = submit(root, "01_doubling", "shadow", solve(nb, {"double": "import random"}))
    for name in ("ipykernel_launcher", "random", "traitlets"):
        (shadow / f"{name}.py").write_text("import os\nos._exit(0)")

    garbage = submit(root, "01_doubling", "garbage", nb)
    (garbage / "01_doubling.ipynb").write_text("{nope")

    printed = nbgrader(root, "autograde", "01_doubling", succeeds=False)
    return root, scores(root), printed


@pytest.mark.xdist_group("accidents")
@pytest.mark.parametrize(
    ("learner", "score"),
    [
        ("right", 2),
        ("untouched", 0),
        ("copied", 2),  # a cell duplicated by hand
        ("deleted", 2),  # the check cell gone, the answer written in a new cell
        ("tampered", 0),  # the check cell rewritten, its points raised
        ("marks", 2),  # the marks of another schema, a graded cell of another course
        ("turned", 2),  # the answer cell turned into text by a slip of the keyboard
        ("shadow", 0),  # files beside the notebook that are called like real modules
        ("garbage", 0),  # not a notebook
    ],
)
def test_what_happens_to_a_notebook_by_accident_costs_nobody_a_point(by_accident, learner, score):
    _, found, printed = by_accident
    assert found[learner] == (score, 2), printed


@pytest.mark.xdist_group("accidents")
def test_the_one_that_could_not_be_read_is_named_and_stops_nobody_else(by_accident):
    _, found, printed = by_accident
    assert "There was an error processing assignment '01_doubling' for student 'garbage'" in printed
    assert printed.count("for student '") == 1
    assert len(found) == 9


@pytest.mark.xdist_group("accidents")
def test_submitted_modules_are_not_copied_to_where_they_would_be_imported(by_accident):
    root, _, _ = by_accident
    assert not list((root / "grading" / "autograded").rglob("*.py"))


@pytest.mark.xdist_group("accidents")
def test_zip_collect_finds_the_learner_by_archive_folder_or_file_name(by_accident):
    root, _, _ = by_accident
    archive = root / "grading" / "downloaded" / "01_doubling" / "archive"
    release = root / "notebooks" / "01_doubling" / "01_doubling.ipynb"
    (archive / "bob").mkdir(parents=True)
    shutil.copy(release, archive / "bob")
    shutil.copy(release, archive / "bob" / "01_doubling (1).ipynb")
    shutil.copy(release, archive / "carla__01_doubling.ipynb")
    for learner, inside in (("alice", "01_doubling.ipynb"), ("dora", "01_doubling/01_doubling.ipynb")):
        with zipfile.ZipFile(archive / f"{learner}.zip", "w") as file:
            file.write(release, inside)
    printed = nbgrader(root, "zip_collect", "01_doubling")
    submitted = root / "grading" / "submitted"
    for learner in ("alice", "bob", "carla", "dora"):
        names = [path.name for path in (submitted / learner / "01_doubling").iterdir()]
        assert names == ["01_doubling.ipynb"]
    assert "Skipped notebook with invalid name '01_doubling (1).ipynb'" in printed


@pytest.mark.xdist_group("accidents")
@pytest.mark.skipif(os.name == "nt", reason="nbgrader has no exchange on Windows")
def test_the_exchange_takes_a_lesson_there_and_back(by_accident):
    root, _, _ = by_accident
    nbgrader(root, "release_assignment", "01_doubling")
    assert "mha_course 01_doubling" in nbgrader(root, "list")
    nbgrader(root, "fetch_assignment", "01_doubling")
    assert (root / "work" / "01_doubling" / "01_doubling.ipynb").exists()
    nbgrader(root, "submit", "01_doubling")
    assert "Collecting submission" in nbgrader(root, "collect", "01_doubling")


@pytest.mark.xdist_group("accidents")
def test_plain_generate_assignment_refuses_what_the_builder_refuses(by_accident, tmp_path):
    root = shutil.copytree(by_accident[0], tmp_path / "course", symlinks=True)
    pair = root / "solutions" / "01_doubling" / "01_doubling.ipynb"
    text = pair.read_text().replace("### BEGIN SOLUTION", "### BEGIN SOLUTON")
    pair.write_text(text.replace("check(double)", "check(triple)"))
    printed = nbgrader(root, "generate_assignment", "01_doubling", "--force", succeeds=False)
    assert "looks like a marker" in printed
    assert "checks 'triple', which no file" in printed
    assert "older than its .py; run: mha-course build" in printed
    assert not (root / "notebooks" / "01_doubling").exists()


# --- a real lesson, from its release to the learner's feedback ---


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """Lesson 01, graded: its root, its points, and the learners' scores."""
    if not (building.ROOT / "notebooks" / LESSON_01).exists():
        pytest.skip(f"{LESSON_01} is not released yet")
    root = tmp_path_factory.mktemp("lesson")
    for part in ("nbgrader_config.py", "mha_course"):
        (root / part).symlink_to(building.ROOT / part)
    for part in ("solutions", "notebooks"):
        shutil.copytree(building.ROOT / part / LESSON_01, root / part / LESSON_01)
    nbgrader(root, "generate_assignment", LESSON_01, "--force")
    nb, right = released(root, LESSON_01), answers(root, LESSON_01)
    points = {
        cell.id.removeprefix("check_"): cell.metadata.nbgrader.points
        for cell in nb.cells
        if cell.metadata.get("nbgrader", {}).get("grade")
    }
    submit(root, LESSON_01, "right", solve(nb, right))
    submit(root, LESSON_01, "wrong", solve(nb, {name: wrong(text) for name, text in right.items()}))
    half = dict(list(right.items())[: len(right) // 2])
    submit(root, LESSON_01, "half", solve(nb, half))
    last = list(right)[-1]
    submit(root, LESSON_01, "broken", solve(nb, {**right, last: "this is ( no Python"}))
    printed = nbgrader(root, "autograde", LESSON_01, MHA_COURSE_SEED="a secret")
    assert "ERROR" not in printed, printed
    nbgrader(root, "generate_feedback", LESSON_01)
    return root, points, {"half": half, "broken": [name for name in right if name != last]}, scores(root)


def wrong(answer):
    """An answer of the right kind that is wrong: a function that gives its first argument back, option "z"."""
    if answer.lstrip().startswith("class "):
        return answer.replace("super().__init__()", "super().__init__(); self.surprise = None; return")
    if not answer.lstrip().startswith("def "):
        return re.sub(r'= *"\w"', '= "z"', answer)
    return re.sub(r"(?m)^    return .*", "    return None", answer)


@pytest.mark.slow
@pytest.mark.xdist_group("graded")
@pytest.mark.parametrize("learner", ["right", "wrong", "half", "broken"])
def test_lesson_01_gives_each_learner_exactly_the_points_that_are_due(graded, learner):
    _, points, solved, found = graded
    total = sum(points.values())
    due = {"right": total, "wrong": 0}
    due |= {name: sum(points[exercise] for exercise in known) for name, known in solved.items()}
    assert found[learner] == (due[learner], total)


@pytest.mark.slow
@pytest.mark.xdist_group("graded")
def test_the_feedback_says_what_is_wrong(graded):
    root, _, _, _ = graded
    pages = {page.parent.parent.name: text_of(page) for page in root.glob("grading/feedback/*/*/*.html")}
    assert set(pages) == {"right", "wrong", "half", "broken"}
    assert "✗" in pages["wrong"]
    assert "not written yet" in pages["half"]
    assert "SyntaxError" in pages["broken"]
    assert "✗" not in pages["right"]
    assert "✓" in pages["right"]


@pytest.mark.slow
def test_validate_counts_first_and_does_not_call_failed_what_is_not_written(tmp_path):
    for part in ("nbgrader_config.py", "mha_course"):
        (tmp_path / part).symlink_to(building.ROOT / part)
    own = tmp_path / "work" / LESSON_01 / f"{LESSON_01}.ipynb"
    right = answers(building.ROOT, LESSON_01)["attention_scores"]
    nb = solve(released(building.ROOT, LESSON_01), {"attention_scores": right})
    find(nb, "stable_softmax").source = "def stable_softmax(x, dim):\n    return x.exp() / x.exp().sum(dim)"
    own.parent.mkdir(parents=True)
    nbformat.write(nb, own)
    said = " ".join(nbgrader(tmp_path, "validate", str(own)).split())
    checks = [cell for cell in nb.cells if cell.metadata.get("nbgrader", {}).get("grade")]
    assert f"1 of {len(checks)} done. Not written yet: attend, " in said
    assert "Not right yet: stable_softmax." in said
    assert said.count("The following cell failed") == 2  # the count, and what is wrong
    assert "check(attend)" not in said


def test_a_check_cell_that_was_changed_is_still_told_by_validate(tmp_path):
    """The summary must not hide it: nbgrader compares the cell's checksum."""
    nb = released(building.ROOT, LESSON_01)
    cell = find(nb, "check_attend")
    cell.source = "pass"
    cell.outputs = [nbformat.v4.new_output("error", ename="NotYetWritten", evalue="", traceback=[])]
    before = copy.deepcopy(cell.metadata)
    after = find(nbgrader_steps.with_summary(nb), "check_attend")
    assert (after.source, after.metadata) == ("pass", before)


def test_where_everything_is_done_validate_has_nothing_to_count():
    nb = released(building.ROOT, LESSON_01)
    assert nbgrader_steps.with_summary(copy.deepcopy(nb)) == nb


@pytest.mark.slow
@pytest.mark.xdist_group("graded")
def test_validate_tells_a_learner_what_an_instructor_would_find(graded):
    root, _, _, _ = graded
    own = root / "work" / LESSON_01 / f"{LESSON_01}.ipynb"
    own.parent.mkdir(parents=True)
    shutil.copy(root / "grading" / "submitted" / "right" / LESSON_01 / own.name, own)
    assert "Success! Your notebook passes all the tests." in nbgrader(root, "validate", str(own))
