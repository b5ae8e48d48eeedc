"""A gradebook for the tests of ``mha-course export``: two lessons, five learners, every kind of mark."""

from __future__ import annotations

import datetime
from pathlib import Path

from nbgrader.api import Gradebook

from mha_course.grading.writer import course_config

EXPORTED = Path(__file__).parent / "exported"
LEARNERS = {
    "ada": ("Lovelace", "Ada", "ada@example.org"),
    "bo": ("Ng, Jr.", 'Bo "B"', "bo@example.org"),
    "cy": ("=HYPERLINK(1)", "Čy", "cy@example.org"),
    "dee": ("", "", ""),
    "eve": ("Ö", "Eve", "eve@example.org"),
}
# lesson → learner → (points for the answer, points for the essay or None: not graded yet)
POINTS = {
    "01_one_head": {"ada": (3.5, 2), "bo": (4, None), "cy": (0, 0), "eve": (1, 1)},
    "02_masks": {"ada": (4, 2), "bo": (2.25, 1)},
}
LATE = {("01_one_head", "ada"): 1.0, ("01_one_head", "eve"): 5.0}  # eve's penalty is more than her points


def make(root: Path) -> Path:
    """Write the gradebook under ``root``; gives the root."""
    (root / "grading").mkdir(parents=True)
    with Gradebook(course_config(root).CourseDirectory.db_url) as gradebook:
        for student, (last, first, email) in LEARNERS.items():
            gradebook.add_student(student, last_name=last, first_name=first, email=email)
        for lesson, learners in POINTS.items():
            gradebook.add_assignment(lesson, duedate=datetime.datetime(2026, 11, 20, 12))
            gradebook.add_notebook(lesson, lesson)
            gradebook.add_grade_cell("check_answer", lesson, lesson, max_score=4, cell_type="code")
            gradebook.add_grade_cell("essay", lesson, lesson, max_score=2, cell_type="markdown")
            for student, (answer, essay) in learners.items():
                handed_in = gradebook.add_submission(
                    lesson, student, timestamp=datetime.datetime(2026, 11, 20, 11, 30)
                )
                for grade in handed_in.notebooks[0].grades:
                    if grade.name == "check_answer":
                        grade.auto_score, grade.needs_manual_grade = answer, False
                    else:
                        grade.manual_score, grade.needs_manual_grade = essay, essay is None
                handed_in.notebooks[0].late_submission_penalty = LATE.get((lesson, student))
        gradebook.db.commit()
    return root
