"""nbgrader's configuration, for every nbgrader command started in this folder, JupyterLab included.

solutions/ is what nbgrader calls source, notebooks/ what it calls release. Everything that belongs to one
run of the course (submissions, autograded copies, feedback, gradebook, exchange) is in grading/, which git
ignores. docs/instructor.md says how to work with it.
"""

import contextlib
import os
import sys
from pathlib import Path

c = get_config()  # noqa: F821  (given by traitlets)

root = Path(__file__).absolute().parent
if str(root) not in sys.path:
    sys.path.insert(0, str(root))
with contextlib.suppress(OSError):  # a read-only checkout can still validate
    (root / "grading" / "exchange").mkdir(parents=True, exist_ok=True)


def put_first(variable, folder):
    """Make a folder the first one of a search path, once."""
    others = [entry for entry in os.environ.get(variable, "").split(os.pathsep) if entry not in ("", folder)]
    os.environ[variable] = os.pathsep.join([folder, *others])


with contextlib.suppress(ImportError):  # the course's package is not in this environment
    from mha_course.quiet import TALKATIVE

    for name in TALKATIVE:  # set in somebody's shell for other work
        os.environ.pop(name, None)
put_first("PATH", str(Path(sys.executable).parent))  # nbgrader calls `alembic` by its name
put_first("PYTHONPATH", str(root))  # kernels find mha_course from wherever they run

c.CourseDirectory.course_id = "mha_course"
c.CourseDirectory.root = str(root)
c.CourseDirectory.source_directory = "solutions"
c.CourseDirectory.release_directory = "notebooks"
c.CourseDirectory.submitted_directory = "grading/submitted"
c.CourseDirectory.autograded_directory = "grading/autograded"
c.CourseDirectory.feedback_directory = "grading/feedback"
c.CourseDirectory.solution_directory = "grading/solution"
c.CourseDirectory.source_with_tests_directory = "grading/source_with_tests"
c.CourseDirectory.db_url = f"sqlite:///{(root / 'grading' / 'gradebook.db').as_posix()}"
# Never copied along. *.py: in a release it would be the solutions' source text, in a submission it could
# stand for a real module (mha_course.py); the same for compiled modules.
c.CourseDirectory.ignore = [
    *("*.py", "*.pyc", "*.so", "*.pyd", "__pycache__"),
    *(".ipynb_checkpoints", "feedback", ".DS_Store"),
]

c.Exchange.root = str(root / "grading" / "exchange")
c.Exchange.cache = str(root / "grading" / "cache")
c.Exchange.assignment_dir = str(root / "work")

# zip_collect: grading/downloaded/01_one_head/archive/ holds, for each learner, alice.zip, or a folder alice/,
# or alice__01_one_head.ipynb. A notebook with another name than the released one is skipped, with a warning.
c.ZipCollectApp.downloaded_directory = "grading/downloaded"
c.ZipCollectApp.strict = True
c.FileNameCollectorPlugin.named_regexp = (
    r".*[/\\]extracted[/\\](?P<student_id>[^/\\]+?)(?:__|[/\\](?:.*[/\\])?)(?P<file_id>[^/\\]+)$"
)

# Release. The last of our steps gives the same bytes on every machine.
c.ClearSolutions.code_stub = {"python": "raise NotImplementedError()"}
c.GenerateAssignment.preprocessors = [
    "mha_course.nbgrader_steps.RefuseBadSource",
    "nbgrader.preprocessors.LockCells",
    "nbgrader.preprocessors.ClearSolutions",
    "nbgrader.preprocessors.ClearOutput",
    "nbgrader.preprocessors.CheckCellMetadata",
    "nbgrader.preprocessors.ComputeChecksums",
    "nbgrader.preprocessors.SaveCells",
    "nbgrader.preprocessors.ClearHiddenTests",
    "nbgrader.preprocessors.ClearMarkScheme",
    "nbgrader.preprocessors.ComputeChecksums",
    "nbgrader.preprocessors.CheckCellMetadata",
    "mha_course.nbgrader_steps.Settle",
]

# Autograde. An instructor's MHA_COURSE_SEED in the environment reaches the kernels and gives the checks
# numbers that no learner has seen.
c.Autograde.sanitize_preprocessors = [
    "nbgrader.preprocessors.ClearOutput",
    "nbgrader.preprocessors.OverwriteKernelspec",
    "mha_course.nbgrader_steps.RestoreCells",
    "nbgrader.preprocessors.CheckCellMetadata",
]
c.Autograde.autograde_preprocessors = [
    "nbgrader.preprocessors.Execute",
    "mha_course.nbgrader_steps.KeepNoiseOutOfMarks",
    "nbgrader.preprocessors.IgnorePattern",
    "nbconvert.preprocessors.ClearMetadataPreprocessor",
    "nbgrader.preprocessors.LimitOutput",
    "nbgrader.preprocessors.SaveAutoGrades",
    "nbgrader.preprocessors.AssignLatePenalties",
    "nbgrader.preprocessors.CheckCellMetadata",
]
c.Execute.timeout = 300  # seconds for one cell; a learner's Validate uses it too
c.Execute.skip_cells_with_tag = "not-when-graded"  # measurements: long, and no answer
c.Execute.extra_arguments = ["--log-level=ERROR"]  # no word about each kernel's transport

# Validate: a count first, and what is not written yet is not told as failed.
c.Validator.failed_warning = "Not everything is done yet."
with contextlib.suppress(ImportError):  # the course's package is not in this environment
    from mha_course.nbgrader_steps import grade_confined, summarise_validation

    summarise_validation()
    grade_confined()  # formgrader's ⚡
    # Pages that nbgrader itself makes of submissions (formgrader, generate_feedback): what learners wrote is made
    # harmless there, too, and what another notebook program left in the file does not end in an error.
    c.HTMLExporter.sanitize_html = True
    c.HTMLExporter.filters = {
        "clean_html": "mha_course.grading.safe_html.clean",
        "markdown2html": "mha_course.grading.safe_html.markdown",
    }
    c.HTMLExporter.preprocessors = ["mha_course.nbgrader_steps.LeaveOutWidgets"]
