"""A tiny course for the tests of building and of the learner's copies: one lesson, no torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mha_course import building

ANSWER = (
    '{"grade": false, "grade_id": "double", "locked": false, '
    '"schema_version": 3, "solution": true, "task": false}'
)
CHECK = (
    '{"grade": true, "grade_id": "check_double", "locked": true, "points": 2, '
    '"schema_version": 3, "solution": false, "task": false}'
)

LESSON = f'''\
# %% [markdown]
# # 01 · Doubling
#
# Ten minutes.

# %%
from pathlib import Path


def check(answer):
    assert answer(3) == 6


# %% nbgrader={ANSWER}
def double(x):
    """Twice x."""
    ### BEGIN SOLUTION
    twice = 2 * x
    return twice
    ### END SOLUTION


# %% nbgrader={CHECK}
check(double)

# %%
print(Path("numbers.csv").read_text())
print(object())
'''

KNOWN = {"double": "an exercise"}


def make(root: Path, lesson: str = LESSON) -> Path:
    """Write the sample course's sources under ``root``. Gives the lesson's folder."""
    folder = root / "solutions" / "01_doubling"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "01_doubling.py").write_text(lesson, encoding="utf-8")
    (folder / "numbers.csv").write_text("1,2,3\n", encoding="utf-8")
    return folder


EXERCISES = """
from mha_course.checking import Case, Exercise, Lesson

DOUBLE = Exercise("double", "1.1", lambda x: 2 * x, ("y (N,)",), (Case("x", lambda d: {"x": d.normal(5)}),))
LESSON = Lesson("01_doubling", "Doubling", exercises=(DOUBLE,))
"""


def make_whole(root: Path) -> Path:
    """The sample course as a checkout of its own: package, config, sources, pair and release."""
    (root / "nbgrader_config.py").symlink_to(building.ROOT / "nbgrader_config.py")
    package = root / "mha_course"
    (package / "exercises").mkdir(parents=True)
    for part in (building.ROOT / "mha_course").iterdir():
        if part.name not in ("exercises", "__pycache__"):
            (package / part.name).symlink_to(part)
    shutil.copy(building.ROOT / "mha_course" / "exercises" / "__init__.py", package / "exercises")
    (package / "exercises" / "doubling.py").write_text(EXERCISES, encoding="utf-8")
    folder = make(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "find_exercise", KNOWN.__getitem__)
        list(building.build(folder))
    return root


def release(root: Path, name: str, title: str, text: str = "", checked: tuple[str, ...] = ()) -> Path:
    """Write a released notebook as small as can be: a heading, and a check cell for each name."""
    cells = [{"cell_type": "markdown", "id": "title", "metadata": {}, "source": [f"# {title}\n", text]}]
    for exercise in checked:
        marks = {"grade": True, "grade_id": f"check_{exercise}", "points": 1, "locked": True}
        cells.append({"cell_type": "code", "metadata": {"nbgrader": marks}, "source": [f"check({exercise})"]})
    path = root / "notebooks" / name / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path
