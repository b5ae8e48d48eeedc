"""The example in docs/writing-a-lesson.md is run as it stands there."""

import re
from pathlib import Path

import pytest

from mha_course.checking import LocalAnswer, as_text, examine
from mha_course.checking.audit import audit
from mha_course.exercises import find

PAGE = Path(__file__).parents[1] / "docs" / "writing-a-lesson.md"


def blocks():
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def example():
    namespace = {"__name__": "spread"}
    exec(blocks()[0], namespace)
    return namespace


def test_the_examples_exercise_passes_its_own_audit():
    lesson = example()["LESSON"]
    result = audit(lesson.exercises[0])
    assert result.clean, result.problems
    assert result.wrong >= 5
    assert result.styles >= 3


def test_the_examples_misconception_is_said_to_the_learner():
    namespace = example()
    report = examine(
        namespace["ROW_ENTROPY"], LocalAnswer(namespace["no_care_for_zero"]), reference_allowed=True
    )
    assert report.cause == "log-of-zero"
    assert "log 0 is −∞" in as_text(report.card)


def test_the_examples_notebook_cells_solve_the_examples_exercise():
    namespace = example()
    checked = []
    exec("import torch\n" + blocks()[1], {"check": checked.append})
    report = examine(namespace["ROW_ENTROPY"], LocalAnswer(checked[0]))
    assert report.status == "right"


def test_the_example_is_found_when_it_is_put_beside_the_others(tmp_path, monkeypatch):
    from mha_course import exercises

    (tmp_path / "spread.py").write_text(blocks()[0], encoding="utf-8")
    monkeypatch.setattr(exercises, "__path__", [*exercises.__path__, str(tmp_path)])
    exercises.forget()
    try:
        assert find("row_entropy").number == "s.1"
        assert find("most_spread").right == "b"
    finally:
        monkeypatch.undo()
        exercises.forget()


def test_a_file_that_cannot_be_loaded_does_not_stop_the_other_lessons(tmp_path, monkeypatch):
    from mha_course import exercises

    assert exercises.broken() == {}
    (tmp_path / "half_written.py").write_text("LESSON = not_there_yet", encoding="utf-8")
    monkeypatch.setattr(exercises, "__path__", [*exercises.__path__, str(tmp_path)])
    exercises.forget()
    try:
        assert find("attend").number == "1.3"
        assert list(exercises.broken()) == ["half_written"]
        with pytest.raises(KeyError, match=r"half_written.py cannot be loaded: NameError"):
            find("something_in_there")
    finally:
        monkeypatch.undo()
        exercises.forget()
