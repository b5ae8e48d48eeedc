"""A mistake costs its own points, once: who is right but for an earlier answer of theirs is right."""

from __future__ import annotations

import argparse
import json
import shutil

import pytest

from mha_course import exercises, lessons
from mha_course.grading import command, lending, run, sandbox
from mha_course.grading.run import Options, grade

LESSON = "01_one_head"
POINTS = 18
UNSCALED = "def attention_scores(q, k):\n    return q @ k.mT"
OWN_MISTAKE = (
    "def attend(q, k, v):\n    weights = stable_softmax(attention_scores(q, k), dim=1)\n"
    "    return weights @ v, weights"
)
CAPTURED = (
    "def attend(q, k, v, scores=attention_scores):\n    weights = stable_softmax(scores(q, k), dim=-1)\n"
    "    return weights @ v, weights"
)
CLASS = {  # answers that are not the solution's, by learner
    "unscaled": {"attention_scores": UNSCALED},
    "captured": {"attention_scores": UNSCALED, "attend": CAPTURED},
    "unfinished": {"attention_scores": "def attention_scores(q, k):\n    raise NotImplementedError()"},
    "slipped": {"attention_scores": "def attention_scores(q, k):\n    return (q @ k.mT"},
    "endless": {"attention_scores": "def attention_scores(q, k):\n    while True:\n        pass"},
    "two_mistakes": {"attention_scores": UNSCALED, "attend": OWN_MISTAKE},
    "borrower": {"attention_scores": "from mha_course.reference import attention_scores"},
    "greedy": {"attention_scores": UNSCALED, "attend": "from mha_course.reference import attend"},
    "searching": {
        "attention_scores": UNSCALED,
        "attend": (
            "import gc, sys, types\n"
            "def attend(q, k, v):\n"
            "    for name, module in list(sys.modules.items()):\n"
            "        if name.startswith('mha_course.reference') and callable(getattr(module, 'attend', None)):\n"
            "            try:\n                return module.attend(q, k, v)\n"
            "            except Exception:\n                pass\n"
            "    for thing in gc.get_objects():\n"
            "        if isinstance(thing, types.FunctionType) and thing.__name__ == 'attend' and thing is not attend:\n"
            "            return thing(q, k, v)\n"
            "    return attention_scores(q, k) @ v, attention_scores(q, k)"
        ),
    },
    "pretending": {
        "attention_scores": UNSCALED,
        "attend": (
            "def attend(q, k, v):\n"
            "    if attention_scores.__module__ != '__main__':\n        return 'right'\n"
            "    return q, k"
        ),
    },
}
LOST = {  # points, and what is not right
    "unscaled": (2, {"attention_scores"}),
    "captured": (2, {"attention_scores"}),
    "unfinished": (2, {"attention_scores"}),
    "slipped": (2, {"attention_scores"}),
    "endless": (2, {"attention_scores"}),
    "two_mistakes": (5, {"attention_scores", "attend"}),
    "borrower": (2, {"attention_scores"}),
    "greedy": (5, {"attention_scores", "attend"}),
    "searching": (5, {"attention_scores", "attend"}),
    "pretending": (5, {"attention_scores", "attend"}),
}


def hand_in(root, student: str, answers: dict[str, str]) -> None:
    book = json.loads((lessons.ROOT / "solutions" / LESSON / f"{LESSON}.ipynb").read_text())
    for cell in book["cells"]:
        marks = cell["metadata"].get("nbgrader", {})
        if marks.get("solution") and marks.get("grade_id") in answers:
            cell["source"] = answers[marks["grade_id"]]
    folder = root / "grading" / "submitted" / student / LESSON
    folder.mkdir(parents=True)
    (folder / f"{LESSON}.ipynb").write_text(json.dumps(book))


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """The class graded: the summary, its results by student, and the folder."""
    root = tmp_path_factory.mktemp("follow")
    shutil.copytree(lessons.ROOT / "notebooks" / LESSON, root / "notebooks" / LESSON)
    for student, answers in CLASS.items():
        hand_in(root, student, answers)
    limits = sandbox.Limits(cell_seconds=20)
    summary = grade(LESSON, Options(root, jobs=2, limits=limits))
    return summary, {result.student: result for result in summary.results}, root


def outcomes(result) -> dict[str, dict]:
    listed = result.notebooks[LESSON]["outcomes"].values()
    return {outcome["name"]: outcome for each in listed for outcome in each}


pytestmark = pytest.mark.xdist_group("grading")
sandboxed = [
    pytest.mark.slow,
    pytest.mark.skipif(not sandbox.available()[0], reason=sandbox.available()[1]),
]


class TestAClass:
    pytestmark = sandboxed

    @pytest.mark.parametrize("student", CLASS)
    def test_a_mistake_costs_its_own_points_and_no_others(self, graded, student):
        lost, wrong = LOST[student]
        result = graded[1][student]
        told = {name: outcome["status"] for name, outcome in outcomes(result).items()}
        assert {name for name, status in told.items() if status != "right"} == wrong
        assert result.scores == {LESSON: [POINTS - lost, POINTS]}

    def test_the_card_says_whose_fault_it_is(self, graded):
        told = outcomes(graded[1]["unscaled"])
        assert told["attend"]["after"] == ["attention_scores"]
        assert "right; it fails because your attention_scores (1.1) does" in told["attend"]["text"]
        assert told["attention_scores"]["cause"] == "no-scale"
        page = graded[2] / "grading" / "feedback" / "unscaled" / LESSON / f"{LESSON}.html"
        assert "right; it fails because your attention_scores (1.1) does" in page.read_text()

    def test_what_is_wrong_by_itself_is_told_as_if_the_rest_were_right(self, graded):
        told = outcomes(graded[1]["two_mistakes"])["attend"]
        assert (told["cause"], told["named"]) == ("softmax-over-queries", True)
        assert "attention_scores, which it calls, is not right either" in " ".join(told["text"].split())
        assert outcomes(graded[1]["two_mistakes"])["SingleHead"]["after"] == ["attention_scores", "attend"]

    def test_who_imports_the_very_answer_has_borrowed_it(self, graded):
        assert outcomes(graded[1]["greedy"])["attend"]["cause"] == "borrowed"

    def test_the_class_table_counts_a_mistake_once(self, graded):
        told = run.numbers(graded[0])["exercises"]
        assert told["weight_sharpness"]["right"] == told["weight_sharpness"]["asked"] == len(CLASS)
        assert told["weight_sharpness"]["causes"] == {}
        row = next(
            line for line in run.table(graded[0]).splitlines() if line.strip().startswith("SingleHead")
        )
        assert "0%" in row and "right but for attention_scores" in row


@pytest.mark.slow
@pytest.mark.skipif(not sandbox.available()[0], reason=sandbox.available()[1])
@pytest.mark.parametrize("share", [0.5, 0])
def test_a_course_may_give_a_share_of_the_points(tmp_path, share):
    shutil.copytree(lessons.ROOT / "notebooks" / LESSON, tmp_path / "notebooks" / LESSON)
    hand_in(tmp_path, "unscaled", CLASS["unscaled"])
    result = grade(LESSON, Options(tmp_path, jobs=1, feedback=False, follow_on=share)).results[0]
    assert result.scores == {LESSON: [POINTS - 2 - (1 - share) * 8, POINTS]}


@pytest.mark.parametrize("text", ["1.5", "-0.1", "half", "nan", "inf"])
def test_a_share_is_a_number_from_0_to_1(text):
    with pytest.raises(argparse.ArgumentTypeError, match="from 0 to 1"):
        command.share(text)
    assert command.share("0.5") == 0.5


@pytest.mark.parametrize("name", [e.name for lesson in exercises.lessons() for e in lesson.exercises])
def test_no_answer_comes_along_with_what_it_builds_on(name):
    exercise = exercises.find(name)
    if exercise.builds_on:
        assert name not in lending.comes_along(exercise.builds_on)


WHOLE = """
def flash_forward(q, k, v, block_size, may_attend=None):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if may_attend is not None:
        scores = scores.masked_fill(~may_attend, -torch.inf)
    lse = torch.logsumexp(scores, -1)
    weights = (scores - lse.masked_fill(lse == -torch.inf, 0.0).unsqueeze(-1)).exp()
    return weights @ v, lse
"""
SHARED = """
import mmap
def flash_forward(q, k, v, block_size, may_attend=None):
    shape = (*q.shape[:-1], k.shape[-2])
    if q.is_cuda:
        scores = q.new_empty(shape)
    else:
        room = mmap.mmap(-1, torch.Size(shape).numel() * q.element_size())
        scores = torch.frombuffer(room, dtype=q.dtype).reshape(shape)
    scores.copy_(q / q.shape[-1] ** 0.5 @ k.mT) if q.is_cuda else torch.matmul(q / q.shape[-1] ** 0.5, k.mT, out=scores)
    if may_attend is not None:
        scores.masked_fill_(~may_attend, -torch.inf)
    largest = scores.amax(-1)
    safe = largest.masked_fill(largest == -torch.inf, 0.0)
    scores.sub_(safe.unsqueeze(-1)).exp_()
    total = scores.sum(-1)
    return scores @ v / total.masked_fill(total == 0, 1.0).unsqueeze(-1), safe + total.log()
"""
NOTHING_IS_TOO_LARGE = """
from mha_course.checking import guards
def seen(self, func, types, args=(), kwargs=None):
    return func(*args, **(kwargs or {}))
guards.Sizes.__torch_dispatch__ = seen

"""


@pytest.mark.slow
@pytest.mark.skipif(not sandbox.available()[0], reason=sandbox.available()[1])
def test_who_makes_the_whole_matrix_and_says_otherwise_is_found_out(tmp_path):
    """How large a tensor was is a claim of a learner's process. That there was no room for it is not."""
    lesson = "08_without_the_matrix"
    shutil.copytree(lessons.ROOT / "notebooks" / lesson, tmp_path / "notebooks" / lesson)
    answers = {
        "forged": NOTHING_IS_TOO_LARGE + WHOLE,
        "shared": NOTHING_IS_TOO_LARGE + SHARED,
        "honest": None,
    }
    for student, answer in answers.items():
        book = json.loads((lessons.ROOT / "solutions" / lesson / f"{lesson}.ipynb").read_text())
        for cell in book["cells"]:
            marks = cell["metadata"].get("nbgrader", {})
            if answer and marks.get("solution") and marks.get("grade_id") == "flash_forward":
                cell["source"] = answer
        folder = tmp_path / "grading" / "submitted" / student / lesson
        folder.mkdir(parents=True)
        (folder / f"{lesson}.ipynb").write_text(json.dumps(book))
    results = {r.student: r for r in grade(lesson, Options(tmp_path, jobs=2, feedback=False)).results}
    for student, result in results.items():
        listed = [outcome for each in result.notebooks[lesson]["outcomes"].values() for outcome in each]
        failed = {outcome["name"]: outcome["cause"] for outcome in listed if outcome["status"] != "right"}
        assert failed == ({} if student == "honest" else {"flash_forward": "too large"}), student
