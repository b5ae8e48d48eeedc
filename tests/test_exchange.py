"""nbgrader's exchange and back, with `mha-course grade` in the middle: what was handed in, and its feedback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import grading_course as course
import pytest

from mha_course import building
from mha_course.grading.run import Options, grade

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("grading"),
    pytest.mark.skipif(os.name == "nt", reason="nbgrader has no exchange on Windows"),
]


def nbgrader(root, *words: str) -> str:
    """Run one of nbgrader's own commands in the course's folder; gives what it printed."""
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR", "PATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *words], cwd=root, env=kept, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def gone_round(tmp_path_factory):
    """A course in which one learner used the exchange and one handed in by hand: its root."""
    root = tmp_path_factory.mktemp("exchange")
    for part in ("nbgrader_config.py", "mha_course"):
        (root / part).symlink_to(building.ROOT / part)
    course.make_release(root)
    nbgrader(root, "release_assignment", course.LESSON)
    nbgrader(root, "fetch_assignment", course.LESSON)
    own = root / "work" / course.LESSON / f"{course.LESSON}.ipynb"
    own.write_text(json.dumps(course.notebook(course.answered(mix="def mix(q, k, v):\n    return v"))))
    nbgrader(root, "submit", course.LESSON)
    nbgrader(root, "collect", course.LESSON)
    course.hand_in(root, "by_hand")
    aside = course.hand_in(root, "aside", data=b"{half a no")
    shutil.copy(next((root / "grading" / "submitted").glob("*/*/timestamp.txt")), aside.parent)
    with course.declared():
        grade(course.LESSON, Options(root, jobs=1))
    return root


def test_feedback_goes_back_through_the_exchange_to_who_handed_in(gone_round):
    root = gone_round
    nbgrader(root, "release_feedback", course.LESSON)
    nbgrader(root, "fetch_feedback", course.LESSON)
    (page,) = (root / "work" / course.LESSON / "feedback").glob(f"*/{course.LESSON}.html")
    assert "✗" in page.read_text(encoding="utf-8")
    when = next((root / "grading" / "submitted").glob("*/*/submission_secret.txt")).with_name("timestamp.txt")
    assert re.sub(r"\D", "", page.parent.name)[:14] == re.sub(r"\D", "", when.read_text())[:14]


def test_when_a_submission_was_handed_in_is_known_of_one_that_was_set_aside_too(gone_round):
    told = gone_round / "grading" / "autograded" / "aside" / course.LESSON / "timestamp.txt"
    assert told.read_text().strip()


def test_plain_nbgrader_can_make_the_pages_again_and_release_them(gone_round):
    nbgrader(gone_round, "generate_feedback", course.LESSON, "--force")
    nbgrader(gone_round, "release_feedback", course.LESSON)


def test_the_secret_of_a_submission_is_no_link_to_somewhere_else(gone_round, tmp_path):
    root = gone_round
    (tmp_path / "private").write_text("what nobody else may read")
    folder = course.hand_in(root, "linked").parent
    (folder / "submission_secret.txt").symlink_to(tmp_path / "private")
    with course.declared():
        grade(course.LESSON, Options(root, jobs=1, students=("linked",)))
    copies = [
        path.read_text()
        for path in (root / "grading").glob("*d*/linked/*/submission_secret.txt")
        if not path.is_symlink()
    ]
    assert copies and "what nobody else may read" not in copies
