"""The learner's own copies, their updates, and progress."""

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys

import pytest
from sample_course import release

from mha_course import lessons


@pytest.fixture
def course(tmp_path):
    release(tmp_path, "00_start_here", "00 · Start here", checked=("add",))
    release(tmp_path, "01_one_head", "01 · One head", checked=("attend", "why_scale"))
    (tmp_path / "notebooks" / "01_one_head" / "numbers.csv").write_text("1,2")
    return tmp_path


@pytest.fixture
def work(course):
    lessons.open_workspace(course)
    return course / "work"


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_lessons_have_their_order_titles_and_exercises_from_the_folders(course):
    first, second = lessons.lessons(course)
    assert (first.number, first.title, first.checked) == ("00", "Start here", ("add",))
    assert (second.folder, second.title) == ("01_one_head", "One head")
    assert second.notebooks == ("01_one_head/01_one_head.ipynb",)


@pytest.mark.parametrize(
    "name", ["01", "1", "01_one_head", "one_head", "notebooks/01_one_head/01_one_head.ipynb"]
)
def test_a_lesson_is_found_by_each_of_its_names(course, name):
    assert lessons.find(name, course).folder == "01_one_head"


def test_a_name_that_is_no_lesson_lists_the_lessons(course):
    with pytest.raises(lessons.LessonError, match=r"no lesson 'heads'(.|\n)*00  Start here\n  01  One head"):
        lessons.find("heads", course)


def test_lessons_can_be_opened_without_importing_torch():
    code = (
        "import sys, mha_course.lessons as l; l.lessons(); assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- copies ---


def test_the_first_opening_copies_every_file_and_gives_the_first_lesson(course):
    path, messages = lessons.open_workspace(course)
    assert path == course / "work" / "00_start_here" / "00_start_here.ipynb"
    assert len(messages) == 1
    released = files(course / "notebooks")
    assert set(released) <= set(files(course / "work"))
    for name in released:
        assert (course / "work" / name).read_bytes() == (course / "notebooks" / name).read_bytes()


def test_opening_again_changes_and_says_nothing(course, work):
    before = {name: (work / name).read_bytes() for name in files(work)}
    assert lessons.open_workspace(course)[1] == []
    assert before == {name: (work / name).read_bytes() for name in files(work)}


def test_an_updated_lesson_replaces_a_copy_that_is_as_it_was_handed_out(course, work):
    released = release(course, "01_one_head", "01 · One head, better")
    messages = lessons.open_workspace(course)[1]
    assert (work / "01_one_head" / "01_one_head.ipynb").read_bytes() == released.read_bytes()
    assert len(messages) == 1
    assert "updated" in messages[0]
    assert lessons.open_workspace(course)[1] == []


def test_an_updated_lesson_is_laid_beside_changed_work_and_says_so_once(course, work):
    own = work / "01_one_head" / "01_one_head.ipynb"
    own.write_text("my work")
    released = release(course, "01_one_head", "01 · One head, better")

    messages = lessons.open_workspace(course)[1]
    assert own.read_text() == "my work"
    (beside,) = own.parent.glob("01_one_head.new *.ipynb")
    assert re.fullmatch(r"01_one_head\.new \d{4}-\d\d-\d\d\.ipynb", beside.name)
    assert sorted([beside.name, own.name])[0] == own.name, "listed after the learner's own"
    assert beside.read_bytes() == released.read_bytes()
    assert len(messages) == 1
    assert beside.name in messages[0]
    assert "You have written in yours, so it stays as it is" in messages[0]

    beside.unlink()
    assert lessons.open_workspace(course)[1] == []
    assert not beside.exists()


# --- what counts as changed ---


def opened_and_run(path):
    """What JupyterLab makes of a notebook that somebody opens, runs and saves, without a word typed."""
    notebook = json.loads(path.read_text())
    notebook["metadata"]["language_info"]["version"] = "3.99.1"
    notebook["metadata"]["widgets"] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["execution_count"] = 3
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["hello"]}]
            cell["metadata"] |= {"execution": {"iopub.status.busy": "now"}, "scrolled": True}
    path.write_text(json.dumps(notebook))


@pytest.fixture
def real(tmp_path):
    """A course with one real lesson, handed out, and a way to release it once more, changed."""
    name = "notebooks/01_one_head/01_one_head.ipynb"
    released = tmp_path / name
    released.parent.mkdir(parents=True)
    shutil.copy(lessons.ROOT / name, released)
    lessons.open_workspace(tmp_path)

    def update():
        notebook = json.loads(released.read_text())
        notebook["cells"][0]["source"] = ["# 01 · One head, better"]
        released.write_bytes(lessons.notebook_bytes(notebook))

    return tmp_path, tmp_path / "work" / "01_one_head" / "01_one_head.ipynb", update


def test_who_only_opened_and_ran_a_lesson_gets_the_update_in_place(real):
    root, own, update = real
    opened_and_run(own)
    update()
    assert "was updated; you had not changed it" in lessons.open_workspace(root)[1][0]
    assert "One head, better" in own.read_text()
    assert len(list(own.parent.glob("*.ipynb"))) == 1


@pytest.mark.parametrize("place", [0, 5, -1])
def test_one_typed_letter_in_any_cell_is_work_and_is_kept(real, place):
    root, own, update = real
    notebook = json.loads(own.read_text())
    notebook["cells"][place]["source"] += ["x"]
    own.write_text(json.dumps(notebook))
    update()
    assert "You have written in yours" in lessons.open_workspace(root)[1][0]
    assert json.loads(own.read_text()) == notebook


@pytest.mark.parametrize("change", ["new cell", "deleted cell", "moved cell", "pasted picture", "other kind"])
def test_whatever_else_a_learner_can_change_in_a_notebook_is_work(real, change):
    root, own, update = real
    notebook = json.loads(own.read_text())
    cells = notebook["cells"]
    if change == "new cell":
        cells.append({"cell_type": "markdown", "id": "mine", "metadata": {}, "source": []})
    elif change == "deleted cell":
        cells.pop()
    elif change == "moved cell":
        cells[2], cells[3] = cells[3], cells[2]
    elif change == "pasted picture":
        cells[0]["attachments"] = {"a.png": {"image/png": "iVBOR"}}
    else:
        cells[0]["cell_type"] = "raw"
    own.write_text(json.dumps(notebook))
    update()
    lessons.open_workspace(root)
    assert json.loads(own.read_text()) == notebook


def test_a_notebook_that_is_none_any_more_is_work_too(real):
    root, own, update = real
    for text in ("", "{", '{"cells": 3}', '{"cells": [{"source": 1}]}', "<<<<<<< HEAD"):
        own.write_text(text)
        update()
        lessons.open_workspace(root)
        assert own.read_text() == text


# Notes of earlier versions hold the hash of a file's bytes.


def old_notes(root, **more):
    path = root / "work" / lessons.HANDED_OUT
    given = lessons.hash_of(root / "notebooks" / "01_one_head" / "01_one_head.ipynb")
    path.write_text(json.dumps({"01_one_head/01_one_head.ipynb": {"given": given, **more}}))


def test_old_notes_still_tell_an_untouched_copy(real):
    root, own, update = real
    shutil.copy(root / "notebooks" / "01_one_head" / own.name, own)  # as earlier versions handed it out
    old_notes(root)
    update()
    assert "was updated" in lessons.open_workspace(root)[1][0]


def test_old_notes_still_tell_a_copy_that_was_only_opened_and_run(real):
    root, own, update = real
    old_notes(root)
    opened_and_run(own)
    notebook = json.loads(own.read_text())
    del notebook["metadata"]["widgets"]
    own.write_text(json.dumps(notebook))
    update()
    assert "was updated" in lessons.open_workspace(root)[1][0]


@pytest.mark.parametrize("updated", [False, True])
def test_old_notes_never_cost_the_learner_work(real, updated):
    root, own, update = real
    old_notes(root)
    notebook = json.loads(own.read_text())
    notebook["cells"][5]["source"] = ["my work"]
    own.write_text(json.dumps(notebook))
    if updated:
        update()
    for _ in range(2):
        lessons.open_workspace(root)
        assert json.loads(own.read_text()) == notebook
    update()
    lessons.open_workspace(root)
    assert json.loads(own.read_text()) == notebook
    assert len(list(own.parent.glob("*.new *"))) == 1


def test_old_notes_of_a_new_version_beside_do_not_lay_it_there_again(real):
    root, own, update = real
    old_notes(root)
    own.write_text("my work")
    update()
    new = root / "notebooks" / "01_one_head" / own.name
    notes = json.loads((root / "work" / lessons.HANDED_OUT).read_text())
    notes["01_one_head/01_one_head.ipynb"]["beside"] = lessons.hash_of(new)
    (root / "work" / lessons.HANDED_OUT).write_text(json.dumps(notes))
    assert lessons.open_workspace(root)[1] == []
    assert not list(own.parent.glob("*.new *"))


def test_a_copy_is_handed_out_as_jupyterlab_itself_would_save_it(real):
    _, own, _ = real
    assert json.loads(own.read_text())["metadata"]["language_info"]["version"] == platform.python_version()
    import nbformat

    assert own.read_text() == nbformat.writes(nbformat.read(own, as_version=4)) + "\n"


# --- which lesson ---


def test_the_lesson_that_comes_next_is_opened_or_the_one_that_is_asked_for(course, work, monkeypatch):
    monkeypatch.chdir(work)
    monkeypatch.delenv("NBGRADER_EXECUTION", raising=False)
    assert lessons.open_workspace(course)[0].stem == "00_start_here"
    assert lessons.open_workspace(course, "1")[0].stem == "01_one_head"
    lessons.record("add", "borrowed")  # gone on with
    assert lessons.open_workspace(course)[0].stem == "01_one_head"
    lessons.record("attend", "passed")
    lessons.record("why_scale", "quiz")
    assert lessons.open_workspace(course)[0].stem == "00_start_here", "what was borrowed is left to do"
    lessons.record("add", "passed")
    assert lessons.open_workspace(course)[0].stem == "01_one_head", "all done"


def test_an_unknown_lesson_is_refused_before_anything_is_handed_out(course):
    with pytest.raises(lessons.LessonError, match="no lesson 'heads'"):
        lessons.open_workspace(course, "heads")
    assert not (course / "work").exists()


# --- at the wrong place ---


def test_a_notebook_in_the_release_is_told_where_to_work_and_the_learners_own_is_not(course, work):
    (course / "nbgrader_config.py").write_text("")
    (course / "notebooks" / "01_one_head" / "deeper").mkdir()
    for folder in ("01_one_head", "01_one_head/deeper"):
        says = lessons.where_it_belongs(course / "notebooks" / folder)
        assert "work/01_one_head" in says
        assert "mha_course lab 01" in says
    for folder in (work / "01_one_head", course, course / "notebooks", course.parent):
        assert lessons.where_it_belongs(folder) == ""


def test_a_second_update_on_the_same_day_gets_a_name_of_its_own(course, work):
    own = work / "01_one_head" / "01_one_head.ipynb"
    own.write_text("my work")
    for title in ("better", "better still"):
        release(course, "01_one_head", title)
        lessons.open_workspace(course)
    assert len(list(own.parent.glob("01_one_head.new *"))) == 2
    assert own.read_text() == "my work"


def test_a_deleted_copy_is_handed_out_again(course, work):
    own = work / "01_one_head" / "01_one_head.ipynb"
    own.unlink()
    assert "gone" in lessons.open_workspace(course)[1][0]
    assert own.exists()


@pytest.mark.parametrize("notes", ["{", "[]", '{"a": 1}', "\udcff"])
def test_lost_or_damaged_notes_never_cost_the_learner_work(course, work, notes):
    own = work / "01_one_head" / "01_one_head.ipynb"
    own.write_text("my work")
    (work / lessons.HANDED_OUT).write_text(notes, errors="surrogateescape")
    release(course, "01_one_head", "better")
    lessons.open_workspace(course)
    assert own.read_text() == "my work"
    assert list(work.glob(".handed_out (damaged)*"))
    assert not list(own.parent.glob("*.new *"))  # nobody knows what was handed out: no clutter


def test_a_work_folder_that_cannot_be_made_is_one_clear_sentence(course):
    (course / "work").write_text("a file where the folder should be")
    with pytest.raises(lessons.LessonError, match="Cannot write your lessons into"):
        lessons.open_workspace(course)


# --- reset ---


def test_reset_gives_the_released_lesson_back_and_keeps_a_backup(course, work):
    own = work / "01_one_head" / "01_one_head.ipynb"
    own.write_text("my work")
    (own.parent / "sketch.txt").write_text("mine too")
    messages = lessons.reset("01", course)
    assert own.read_bytes() == (course / "notebooks" / "01_one_head" / own.name).read_bytes()
    assert (own.parent / "sketch.txt").read_text() == "mine too"
    (backup,) = (work / "backups").iterdir()
    assert (backup / own.name).read_text() == "my work"
    assert f"work/backups/{backup.name}" in messages[0]
    assert lessons.open_workspace(course)[1] == []


def test_every_reset_has_a_backup_of_its_own(course, work):
    own = work / "01_one_head" / "01_one_head.ipynb"
    for text in ("first", "second", "third"):
        own.write_text(text)
        lessons.reset("01", course)
    kept = {(backup / own.name).read_text() for backup in (work / "backups").iterdir()}
    assert kept == {"first", "second", "third"}


def test_reset_takes_away_the_new_version_that_was_laid_beside(course, work):
    own = work / "01_one_head" / "01_one_head.ipynb"
    own.write_text("my work")
    release(course, "01_one_head", "better")
    lessons.open_workspace(course)
    (beside,) = own.parent.glob("*.new *")
    older = own.with_name("01_one_head (updated 2026-01-01).ipynb")  # as earlier versions called it
    older.write_bytes(beside.read_bytes())
    other = own.with_name("01_one_head.new 2026-01-01.ipynb")
    other.write_text("not the same")
    lessons.reset("01", course)
    assert not beside.exists() and not older.exists()
    assert other.exists()


def test_reset_of_an_unchanged_lesson_makes_no_backup(course, work):
    assert "already" in lessons.reset("01", course)[0]
    assert not (work / "backups").exists()


def test_reset_of_an_unknown_lesson_lists_the_lessons(course, work):
    with pytest.raises(lessons.LessonError, match="01  One head"):
        lessons.reset("one", course)


def test_the_reset_command_says_what_it_did_or_what_there_is(course, work, monkeypatch, capsys):
    monkeypatch.setattr(lessons, "ROOT", course)
    (work / "01_one_head" / "01_one_head.ipynb").write_text("my work")
    assert lessons.main_reset(argparse.Namespace(lesson="01")) == 0
    said = capsys.readouterr().out
    assert "work/backups/01_one_head" in said
    assert "your progress stays" in said
    assert "Reload Notebook from Disk" in said
    assert lessons.main_reset(argparse.Namespace(lesson="7")) == 1
    assert "There is no lesson '7'" in capsys.readouterr().err


# --- progress ---


def notes(work):
    return {name: note["status"] for name, note in json.loads((work / "progress.json").read_text()).items()}


def test_progress_is_noted_only_in_a_workspace(course, work, monkeypatch, tmp_path):
    monkeypatch.delenv("NBGRADER_EXECUTION", raising=False)
    monkeypatch.chdir(course)
    assert not lessons.record("attend", "passed")
    other = tmp_path / "other" / "work"  # called work, but nothing was handed out there
    other.mkdir(parents=True)
    monkeypatch.chdir(other)
    assert not lessons.record("attend", "passed")
    monkeypatch.chdir(work / "01_one_head")
    assert lessons.record("attend", "passed")
    assert notes(work) == {"attend": "passed"}


@pytest.mark.parametrize("step", ["validate", "autograde"])
def test_nothing_is_noted_while_nbgrader_runs_a_notebook(work, monkeypatch, step):
    monkeypatch.chdir(work)
    monkeypatch.setenv("NBGRADER_EXECUTION", step)
    assert not lessons.record("attend", "passed")
    assert not (work / "progress.json").exists()


def test_what_was_passed_stays_passed(work, monkeypatch):
    monkeypatch.chdir(work)
    monkeypatch.delenv("NBGRADER_EXECUTION", raising=False)
    for status in ("borrowed", "passed", "borrowed"):
        lessons.record("attend", status)
    assert notes(work) == {"attend": "passed"}


def test_a_damaged_progress_file_is_set_aside(work, monkeypatch):
    monkeypatch.chdir(work)
    monkeypatch.delenv("NBGRADER_EXECUTION", raising=False)
    (work / "progress.json").write_text('{"attend": ')
    assert lessons.record("attend", "passed")
    assert notes(work) == {"attend": "passed"}
    assert (work / "progress (damaged).json").read_text() == '{"attend": '


def test_a_note_that_cannot_be_written_is_no_error(work, monkeypatch):
    monkeypatch.chdir(work)
    monkeypatch.delenv("NBGRADER_EXECUTION", raising=False)
    (work / "progress.json").mkdir()
    assert not lessons.record("attend", "passed")


def test_an_unknown_status_is_refused():
    with pytest.raises(ValueError, match="one of borrowed, quiz, passed"):
        lessons.record("attend", "done")


def test_the_progress_table_counts_and_says_what_comes_next(course, work, monkeypatch):
    monkeypatch.chdir(work)
    monkeypatch.delenv("NBGRADER_EXECUTION", raising=False)
    lessons.record("add", "passed")
    lessons.record("attend", "borrowed")
    table = lessons.progress_table(course)
    assert re.search(r"00  Start here +1 of 1  ●\n", table)
    assert re.search(r"01  One head +0 of 2  ○·  \(1 borrowed", table)
    assert "Next: attend, in lesson 01" in table
    assert "● done   ○ borrowed   · to do" in table
    lessons.record("attend", "passed")
    lessons.record("why_scale", "quiz")
    assert "All done." in lessons.progress_table(course)


def test_a_learner_s_work_is_ignored_by_git():
    if not (lessons.ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    for path in ("work/01_one_head/01_one_head.ipynb", "work/progress.json", "grading/gradebook.db"):
        subprocess.run(["git", "check-ignore", "-q", path], cwd=lessons.ROOT, check=True)
