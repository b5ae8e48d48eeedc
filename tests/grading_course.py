"""A course for the tests of grading: one released lesson, submissions made by hand, everything in a scratch folder."""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from mha_course import exercises

SAMPLE = Path(__file__).parent / "grading_sample"
LESSON = "90_sample"

RIGHT = {
    "double_it": "def double_it(x):\n    return x + x",
    "mix": (
        "def mix(q, k, v):\n"
        "    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])\n"
        "    return scores.softmax(-1) @ v"
    ),
    "soft_rows": "def soft_rows(x):\n    e = torch.exp(x - x.amax(-1, keepdim=True))\n    return e / e.sum(-1, keepdim=True)",
    "double_twice": "def double_twice(x):\n    return double_it(double_it(x))",
    "why_double": 'why_double = "b"',
}
PARAMETERS = {"double_it": "x", "mix": "q, k, v", "soft_rows": "x", "double_twice": "x"}
POINTS = {"double_it": 2, "mix": 3, "soft_rows": 2, "double_twice": 1, "why_double": 1}
FULL = sum(POINTS.values())


@contextlib.contextmanager
def declared() -> Iterator[None]:
    """Inside the block the sample lesson's exercises are the only ones."""
    before = exercises.__path__
    exercises.__path__ = [str(SAMPLE)]
    exercises.forget()
    try:
        yield
    finally:
        exercises.__path__ = before
        exercises.forget()
        sys.modules.pop("mha_course.exercises.doubling_and_mixing", None)


def code(source: str, identity: str, **marks) -> dict:
    metadata = {}
    if marks:
        metadata = {"nbgrader": {"grade_id": identity, "schema_version": 3, "task": False, **marks}}
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": identity,
        "metadata": metadata,
        "outputs": [],
        "source": source,
    }


def text(source: str, identity: str, **marks) -> dict:
    cell = code(source, identity, **marks)
    return {**{key: cell[key] for key in ("id", "metadata", "source")}, "cell_type": "markdown"}


def released_cells() -> list[dict]:
    cells = [
        text("# 90 · Sample", "title"),
        code("import math\n\nimport torch\n\nfrom mha_course import check", "imports"),
    ]
    for name in RIGHT:
        stub = (
            "# your answer"
            if name == "why_double"
            else f"def {name}({PARAMETERS[name]}):\n    raise NotImplementedError()"
        )
        source = f"{name}" if name != "why_double" else "why_double=why_double"
        cells.append(code(stub, name, solution=True, grade=False, locked=False))
        cells.append(
            code(
                f"check({source})",
                f"check_{name}",
                solution=False,
                grade=True,
                locked=True,
                points=POINTS[name],
            )
        )
    cells.append(code("print(double_it(torch.ones(2)))", "explore"))
    essay = {"solution": True, "grade": True, "locked": False, "points": 2}
    cells.append(text("YOUR ANSWER HERE", "essay", **essay))
    return cells


def notebook(cells: list[dict]) -> dict:
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def make_release(root: Path) -> Path:
    """Write the sample lesson's release under ``root``; gives its folder."""
    folder = root / "notebooks" / LESSON
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{LESSON}.ipynb").write_text(json.dumps(notebook(released_cells())))
    (folder / "numbers.csv").write_text("1,2,3\n")
    return folder


def answered(**answers: str | None) -> list[dict]:
    """The released cells with right answers, or with those given; ``None`` leaves the stub."""
    cells = copy.deepcopy(released_cells())
    for cell in cells:
        answer = answers.get(cell["id"], RIGHT.get(cell["id"]))
        if answer is not None:
            cell["source"] = answer
    return cells


def hand_in(
    root: Path, student: str, cells: list[dict] | None = None, data: bytes | None = None, name: str = LESSON
) -> Path:
    """Put a submission where nbgrader's exchange would; gives the notebook's path."""
    folder = root / "grading" / "submitted" / student / LESSON
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ipynb"
    path.write_bytes(
        json.dumps(notebook(answered() if cells is None else cells)).encode() if data is None else data
    )
    return path
