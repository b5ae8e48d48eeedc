"""From solutions/ to notebooks/: what is built, what is stale, what is refused."""

import argparse
import base64
import io
import json
import shutil
import struct
import subprocess
import sys
import zlib

import nbformat
import pytest
from sample_course import ANSWER, CHECK, KNOWN, LESSON, make

from mha_course import building
from mha_course import notebook_rules as rules


@pytest.fixture(autouse=True)
def known_exercises(monkeypatch):
    """The sample's exercise is declared nowhere; without torch these tests are fast."""
    monkeypatch.setattr(building, "find_exercise", KNOWN.__getitem__)


@pytest.fixture
def not_run(monkeypatch):
    """Build without a kernel, where outputs do not matter."""
    monkeypatch.setattr(building, "execute", lambda nb, folder, stem: nb)


@pytest.fixture(scope="module")
def built_once(tmp_path_factory):
    """A course whose lesson was really executed and released."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "find_exercise", KNOWN.__getitem__)
        root = tmp_path_factory.mktemp("course")
        list(building.build(make(root)))
    return root


@pytest.fixture
def course(built_once, tmp_path):
    """A copy of it, to change."""
    return shutil.copytree(built_once, tmp_path / "course")


def lesson_in(root):
    return root / "solutions" / "01_doubling"


def build(root):
    return list(building.build(lesson_in(root)))


def says(problems):
    return "\n".join(map(str, problems))


def refusal(root):
    with pytest.raises(rules.Refused) as refused:
        build(root)
    return str(refused.value)


def rewrite(root, *changes, lesson=LESSON):
    for old, new in changes:
        assert old in lesson
        lesson = lesson.replace(old, new)
    return make(root, lesson)


# --- what is built ---


def test_the_pair_has_answers_and_outputs(course):
    nb = nbformat.read(lesson_in(course) / "01_doubling.ipynb", as_version=4)
    nbformat.validate(nb)
    assert "return twice" in says(cell.source for cell in nb.cells)
    assert nb.cells[-1].outputs[0].text == "1,2,3\n\n<object object at 0x…>\n"


def test_the_release_has_stubs_and_neither_answers_nor_outputs_nor_sources(course):
    release = course / "notebooks" / "01_doubling"
    assert sorted(path.name for path in release.iterdir()) == ["01_doubling.ipynb", "numbers.csv"]
    nb = nbformat.read(release / "01_doubling.ipynb", as_version=4)
    assert nb.cells[2].source == 'def double(x):\n    """Twice x."""\n    raise NotImplementedError()'
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in nb.cells)


def test_cell_ids_come_from_the_grade_id_or_the_position(course):
    for folder in ("solutions", "notebooks"):
        nb = nbformat.read(course / folder / "01_doubling" / "01_doubling.ipynb", as_version=4)
        expected = ["01_doubling-001", "01_doubling-002", "double", "check_double", "01_doubling-005"]
        assert [cell.id for cell in nb.cells] == expected


def test_nothing_in_a_build_names_this_machine_or_its_python(course):
    for path in course.glob("*/01_doubling/*.ipynb"):
        text = path.read_text()
        assert str(course) not in text
        assert "nbgrader_version" not in text
        assert f"{sys.version_info.major}.{sys.version_info.minor}" not in json.dumps(
            json.loads(text)["metadata"]
        )
        assert '"execution"' not in text


def test_executing_and_releasing_again_gives_the_same_bytes(course):
    before = building.contents(course)
    list(building.build(lesson_in(course), force=True))
    assert building.contents(course) == before


def test_nothing_changed_means_nothing_is_executed(course, monkeypatch):
    monkeypatch.setattr(building, "execute", lambda *_: pytest.fail("executed"))
    assert build(course) == ["notebooks/01_doubling: up to date"]
    assert building.check(lesson_in(course)) == []


def test_a_touched_source_is_not_stale_but_a_reworded_one_is(course):
    source = lesson_in(course) / "01_doubling.py"
    source.touch()
    assert building.check(lesson_in(course)) == []
    rewrite(course, ("Ten minutes", "Nine minutes"))
    assert "01_doubling.ipynb: not made from this 01_doubling.py" in says(building.check(lesson_in(course)))


def test_a_changed_data_file_makes_the_pair_stale(course):
    (lesson_in(course) / "numbers.csv").write_text("4\n")
    assert "not made from this" in says(building.check(lesson_in(course)))


def test_a_pair_edited_by_hand_is_stale(course):
    pair = lesson_in(course) / "01_doubling.ipynb"
    pair.write_text(pair.read_text().replace("Ten minutes", "Two minutes"))
    assert "not made from this" in says(building.check(lesson_in(course)))


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"cells": 3}'])
def test_a_broken_pair_is_stale(course, text):
    (lesson_in(course) / "01_doubling.ipynb").write_text(text)
    assert "not made from this" in says(building.check(lesson_in(course)))


@pytest.mark.parametrize("name", ["01_doubling.ipynb", "numbers.csv"])
def test_a_release_that_was_edited_or_lost_is_stale_and_built_again(course, name):
    path = course / "notebooks" / "01_doubling" / name
    fresh = path.read_bytes()
    path.write_text("edited")
    assert f"{name}: not what the solution gives" in says(building.check(lesson_in(course)))
    path.unlink()
    assert f"{name}: missing" in says(building.check(lesson_in(course)))
    assert build(course) == ["notebooks/01_doubling: released"]
    assert path.read_bytes() == fresh


def test_a_file_that_left_the_lesson_leaves_the_release(course, not_run):
    (lesson_in(course) / "numbers.csv").unlink()
    extra = course / "notebooks" / "01_doubling" / "numbers.csv"
    build(course)
    assert not extra.exists()
    extra.write_text("back")
    assert "numbers.csv: no longer part" in says(building.check(lesson_in(course)))


def test_a_released_lesson_without_a_source_is_named(course):
    (course / "notebooks" / "02_gone").mkdir()
    assert "notebooks/02_gone: has no source" in says(building.orphans(course))


def test_a_solution_that_nobody_wrote_as_text_is_refused(course):
    shutil.copy(lesson_in(course) / "01_doubling.ipynb", lesson_in(course) / "copy.ipynb")
    assert "copy.ipynb: has no .py beside it" in refusal(course)


def test_the_config_keeps_the_solutions_source_out_of_a_release(course, tmp_path, not_run):
    """Take *.py out of CourseDirectory.ignore, and nbgrader hands out the answers: the builder sees it."""
    config = (building.ROOT / "nbgrader_config.py").read_text()
    assert '"*.py"' in config
    (course / "nbgrader_config.py").write_text(config.replace('"*.py", ', ""))
    assert "notebooks/01_doubling/01_doubling.py: is a source" in refusal(course)


# --- what is refused ---


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (', "points": 2', "", "cell 4 (check_double): is graded but has no points"),
        ('"points": 2', '"points": 0', "cell 4 (check_double): is graded but has no points"),
        ('"points": 2', '"points": true', "cell 4 (check_double): is graded but has no points"),
        ('"check_double"', '"double"', "cell 4 (double): the grade_id 'double' is already used by cell 3"),
        ('"grade_id": "double", ', "", "cell 3: has nbgrader marks but no grade_id"),
        ("check(double)", "check(triple)", "cell 4 (check_double): checks 'triple', which no file"),
        ("check(double)", "check(triple)", "checks 'triple', but no answer cell before it"),
        ("check(double)", "check(why=why)", "checks 'why', which no file"),
        (f"# %% nbgrader={CHECK}", "# %%", "cell 4: calls check() but is no graded cell"),
        ("### BEGIN SOLUTION", "### BEGIN SOLUTON", "looks like a marker"),
        ("### BEGIN SOLUTION", "# begin solution", "looks like a marker"),
        ("### BEGIN SOLUTION", "###BEGIN SOLUTION", "looks like a marker"),
        ("    ### END SOLUTION\n", "", "cell 3 (double): '### BEGIN SOLUTION' without '### END SOLUTION'"),
        ("    ### BEGIN SOLUTION\n", "", "'### END SOLUTION' without '### BEGIN SOLUTION'"),
        ("    twice = 2 * x", "    ### BEGIN SOLUTION\n    twice = 2 * x", "inside another one"),
        ("    ### BEGIN SOLUTION\n    twice", "    twice", "without"),
        (
            f"# %% nbgrader={ANSWER}",
            "# %%",
            "cell 3: an answer between markers, in a cell that is no nbgrader",
        ),
        ("# Ten minutes.", "# Ten minutes.\n#\n# ### BEGIN SOLUTION", "cell 1: '### BEGIN SOLUTION' without"),
        ("print(object())", f"print('{'x' * 81}')", "cell 5: line 2 has 90 characters, 88 can be read"),
        ("Twice x.", f"Twice x{'.' * 70}", "cell 3 (double): line 2 has 87 characters, 80 can be read"),
        (
            "# Ten minutes.",
            f"# ```text\n# {'─' * 81}\n# ```",
            "cell 1: line 4 has 81 characters, 80 can be read",
        ),
    ],
)
def test_a_source_that_cannot_be_graded_is_refused_with_file_and_cell(tmp_path, not_run, old, new, expected):
    rewrite(tmp_path, (old, new))
    refused = refusal(tmp_path)
    assert expected in refused
    assert refused.startswith("solutions/01_doubling/01_doubling.py, cell ")
    assert not (tmp_path / "notebooks").exists()
    assert expected in says(building.check(lesson_in(tmp_path)))


def test_an_answer_cell_that_does_not_name_what_it_is_about_is_refused(tmp_path, not_run):
    head, tail = LESSON.split("def double(x):", 1)
    tail = tail.split("### END SOLUTION", 1)[1]
    lesson = f"{head}### BEGIN SOLUTION\ndouble = 'b'\n### END SOLUTION{tail}"
    make(tmp_path, lesson)
    assert "checks 'double', which the answer cell does not name outside its markers" in refusal(tmp_path)
    named = lesson.replace("### BEGIN", '# Your answer: double = "a" or "b"\n### BEGIN')
    make(tmp_path, named)
    build(tmp_path)


def test_alt_text_may_be_wide(tmp_path, not_run):
    rewrite(tmp_path, ("print(object())", f"dict(\n    alt='{'word ' * 30}'\n)"))
    build(tmp_path)


def test_an_answer_cell_without_markers_is_refused(tmp_path, not_run):
    rewrite(tmp_path, ("    ### BEGIN SOLUTION\n", ""), ("    ### END SOLUTION\n", ""))
    assert "nbgrader would turn all of it into a stub" in refusal(tmp_path)


def test_a_cell_may_call_check_ungraded_when_it_says_so(tmp_path, not_run):
    rewrite(tmp_path, ("print(object())", '# %% tags=["ungraded"]\ncheck(double)'))
    build(tmp_path)


@pytest.mark.parametrize(
    "leak",
    [
        "# %%\ndef spare(x):\n    twice = 2 * x\n    return twice\n",
        "# %% [markdown]\n# Hint 3: `twice = 2 * x`, then\n#\n#     twice = 2 * x\n#     return twice\n",
    ],
)
def test_an_answer_left_elsewhere_in_the_release_is_refused(tmp_path, not_run, leak):
    make(tmp_path, LESSON + "\n\n" + leak)
    refused = refusal(tmp_path)
    assert "cell 6: the answer to 'double' is left in the release" in refused
    assert not (tmp_path / "notebooks").exists()


def test_a_release_that_nbgrader_left_as_it_was_is_noticed(course, not_run, monkeypatch):
    """What nbgrader does without --force: it skips, and says nothing that anybody reads."""
    rewrite(course, ("Ten minutes", "Nine minutes"))
    real = building.generate_release

    def skipping(folder, scratch):
        made = real(folder, scratch)
        shutil.rmtree(made)
        made.mkdir()
        return made

    monkeypatch.setattr(building, "generate_release", skipping)
    assert "01_doubling.ipynb: nbgrader did not make it" in refusal(course)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("1 / 0", "cell 5: raises ZeroDivisionError: division by zero"),
        ("import sys; print('careful', file=sys.stderr)", "cell 5: writes to stderr: careful"),
    ],
)
def test_a_solution_that_does_not_run_clean_is_refused_with_file_cell_and_error(course, code, expected):
    before = building.contents(course / "notebooks")
    rewrite(course, ("print(object())", code))
    assert f"solutions/01_doubling/01_doubling.py, {expected}" in refusal(course)
    assert building.contents(course / "notebooks") == before


def outputs_of(*, tags=(), graded=False, **output):
    nb = nbformat.v4.new_notebook()
    marks = {"nbgrader": {"grade": graded, "grade_id": "check_double"}} if graded else {}
    cell = nbformat.v4.new_code_cell("x", metadata={"tags": list(tags), **marks})
    cell.outputs = [nbformat.v4.new_output(**output)]
    nb.cells = [cell]
    return nb


def test_an_announced_error_is_fine_unless_it_is_graded():
    error = {"output_type": "error", "ename": "E", "evalue": "", "traceback": []}
    announced = {"tags": ["raises-exception"], **error}
    assert rules.problems_in_outputs(outputs_of(**error), "f")
    assert not rules.problems_in_outputs(outputs_of(**announced), "f")
    assert rules.problems_in_outputs(outputs_of(graded=True, **announced), "f")


def test_a_graded_cell_that_ends_in_a_value_is_refused():
    value = {"output_type": "execute_result", "data": {"text/plain": "0.5"}}
    assert "takes for the score" in says(rules.problems_in_outputs(outputs_of(graded=True, **value), "f"))
    assert not rules.problems_in_outputs(outputs_of(**value), "f")


# --- one fixed form ---


def test_a_png_loses_its_comments_and_stays_a_picture():
    from PIL import Image

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    file = io.BytesIO()
    Image.new("RGB", (3, 2), "teal").save(file, "PNG")
    plain = file.getvalue()
    marked = plain[:33] + chunk(b"tEXt", b"Software\0Matplotlib version 3.11") + plain[33:]  # 33: after IHDR
    settled = rules.settle_png(base64.b64encode(marked).decode())
    assert base64.b64decode(settled) == plain
    assert Image.open(io.BytesIO(base64.b64decode(settled))).size == (3, 2)


@pytest.mark.parametrize(
    ("text", "settled"),
    [
        ("<object at 0x7f3a91c0>", "<object at 0x…>"),
        ("0xff stays, so does 0.5 s", "0xff stays, so does 0.5 s"),
        ("File /tmp/ipykernel_4211/318.py:2", "File ipykernel:2"),
        ("✓ attend: 31 things checked in 0.12 s", "✓ attend: 31 things checked in … s"),
    ],
)
def test_text_loses_what_differs_from_run_to_run(text, settled):
    assert rules.settle_text(text) == settled


# --- the command ---


def run(*words):
    parser = argparse.ArgumentParser()
    building.add_arguments(parser)
    return building.main(parser.parse_args(words))


def test_the_command_builds_then_checks_then_names_what_is_stale(tmp_path, not_run, monkeypatch, capsys):
    monkeypatch.setattr(building, "ROOT", tmp_path)
    shutil.copy(building.__file__.replace("building.py", "../nbgrader_config.py"), tmp_path)
    make(tmp_path)
    assert run("--check") == 1
    assert "01_doubling.ipynb: not made from this" in capsys.readouterr().err
    assert run() == 0
    assert "released" in capsys.readouterr().out
    assert run("--check", "01") == 0
    assert run("07") == 1
    assert "There is no lesson '07' in solutions/. There are: 01_doubling." in capsys.readouterr().err
    rewrite(tmp_path, ("check(double)", "check(triple)"))
    assert run() == 1
    assert "checks 'triple'" in capsys.readouterr().err


# --- the course itself ---


@pytest.mark.parametrize("folder", building.lesson_folders(building.ROOT), ids=lambda folder: folder.name)
def test_the_build_is_up_to_date(folder, monkeypatch):
    monkeypatch.undo()  # the real exercises
    assert building.check(folder) == [], "run: mha-course build"


def test_no_release_is_left_without_a_source():
    assert building.orphans(building.ROOT) == []


def test_building_leaves_no_trace_in_the_checkout(tmp_path):
    """Executed in a copy of the lesson's folder: a notebook that writes files does not dirty the checkout."""
    folder = rewrite(tmp_path, ("print(object())", "Path('new.txt').write_text('x');"))
    build(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [
        "01_doubling.ipynb",
        "01_doubling.py",
        "numbers.csv",
    ]


def test_plain_nbgrader_gives_the_builder_s_bytes(tmp_path):
    """The same steps from the committed config, in nbgrader's own command, database included."""
    folders = building.lesson_folders(building.ROOT)
    if not folders:
        pytest.skip("there is no lesson yet")
    name = folders[-1].name
    for part in ("nbgrader_config.py", "mha_course"):
        (tmp_path / part).symlink_to(building.ROOT / part)
    shutil.copytree(folders[-1], tmp_path / "solutions" / name)
    command = [sys.executable, "-m", "nbgrader", "generate_assignment", name, "--force"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 0, done.stderr
    assert building.contents(tmp_path / "notebooks" / name) == building.contents(
        building.ROOT / "notebooks" / name
    )
    assert (tmp_path / "grading" / "gradebook.db").exists()
