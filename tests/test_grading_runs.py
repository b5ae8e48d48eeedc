"""What of a notebook is run, in which processes, and what its checks say: a small class, with and without pictures."""

from __future__ import annotations

import copy
import json

import grading_course as course
import pytest

from mha_course import exercises
from mha_course.checking import LocalAnswer, as_text, examine
from mha_course.checking.examine import prepare
from mha_course.grading import run, sandbox
from mha_course.grading.run import Options, grade

needs_sandbox = pytest.mark.skipif(not sandbox.available()[0], reason=sandbox.available()[1])
pytestmark = [pytest.mark.xdist_group("grading"), pytest.mark.slow, needs_sandbox]

SHOWN = "factor = 2\nprint('shown by the lesson')"
READY_MADE = """import torch.nn.functional as F
x = torch.ones(1, 3, 4)
print("compared with", F.scaled_dot_product_attention(x, x, x).shape)"""
IN_PYTORCH = """import torch.nn.functional as F
x = torch.ones(1, 3, 4)
print("the same as", F.scaled_dot_product_attention(x, x, x).shape)"""
WITH_SOFTMAX = "def double_it(x):\n    return x + x * torch.softmax(x, -1).sum(-1, keepdim=True)"
UNSCALED = "def mix(q, k, v):\n    return torch.softmax(q @ k.mT, -1) @ v"
ODD = "def soft_rows(x):\n    e = torch.exp(x)\n    return e / e.sum(-1, keepdim=True) + 0.25"


def released() -> list[dict]:
    cells = course.released_cells()
    return [
        *cells[:2],
        course.code(SHOWN, "shown"),
        *cells[2:],
        course.code(IN_PYTORCH, "in_pytorch"),
    ]


def answered(**answers: str) -> list[dict]:
    cells = released()
    for cell in cells:
        cell["source"] = answers.get(cell["id"], course.RIGHT.get(cell["id"], cell["source"]))
    return cells


def with_own_cell(cells: list[dict], source: str) -> list[dict]:
    return [*cells[:3], course.code(source, "mine"), *cells[3:]]


def guessing() -> list[dict]:
    """One option after the other, and a cell that fails: once, each run of the notebook asked for another option."""
    cells = answered(why_double='why_double = "a"')
    return [
        *cells,
        course.code('why_double = "c"', "second"),
        course.code('why_double = "b"\n1 / 0', "third"),
    ]


def practice_inputs() -> set[float]:
    """First numbers of what `double_it` is practised on: a learner can print them."""
    trials = prepare(exercises.find("double_it"), 0)
    return {round(float(trial.call.inputs["x"].flatten()[0]), 4) for trial in trials}


def class_of(known: set[float]) -> dict[str, list[dict]]:
    peeking = (
        "def double_it(x):\n"
        f"    known = x.is_cuda or round(float(x.detach().flatten()[0]), 4) in {known}\n"
        "    return x + x if known else x + x + 1"
    )
    return {
        "right": answered(),
        "compares": with_own_cell(answered(), READY_MADE),
        "compares_inside": answered(double_it=WITH_SOFTMAX),
        "shown_name": answered(double_it="def double_it(x):\n    return factor * x"),
        "shown_name_wrong": answered(mix=UNSCALED.replace("k.mT", "k.mT * factor / 2")),
        "unscaled": answered(mix=UNSCALED),
        "unscaled_too": answered(mix=UNSCALED),
        "odd": answered(soft_rows=ODD),
        "practised": answered(double_it=peeking),
        "guessing": guessing(),
        "slipped": answered(
            soft_rows="# mine\ndef soft_rows(x):\n    return (x\n", why_double="why_double = b'"
        ),
        "slipped_later": with_own_cell(answered(mix="def mix(q, k, v:\n    return v"), course.RIGHT["mix"]),
        "missing": answered(mix="import not_here_at_all as n\ndef mix(q, k, v):\n    return n.mix(q, k, v)"),
        "missing_inside": answered(mix="def mix(q, k, v):\n    import not_here_at_all\n    return q"),
        "odd_too": answered(double_it="def double_it(x):\n    return x + x + 0.25"),
        "odd_and_stumbles": with_own_cell(
            answered(double_it="def double_it(x):\n    return x + x + 0.25"), "print(1 / 0)"
        ),
        "odd_and_needs_the_shown": answered(soft_rows=ODD, explore="print(factor, 'is known')"),
    }


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """Results and printed text by student, for a plain run (False) and one with pictures (True)."""
    root = tmp_path_factory.mktemp("runs")
    course.make_release(root)
    path = root / "notebooks" / course.LESSON / f"{course.LESSON}.ipynb"
    path.write_text(json.dumps(course.notebook(released())))
    found = {}
    with course.declared():
        for student, cells in class_of(practice_inputs()).items():
            course.hand_in(root, student, copy.deepcopy(cells))
        for pictures in (False, True):
            options = Options(root, jobs=2, pictures=pictures, force=True, feedback=False)
            results = {r.student: r for r in grade(course.LESSON, options).results}
            found[pictures] = {student: (results[student], printed(root, student)) for student in results}
            found[pictures, "outputs"] = {student: outputs_of(root, student) for student in results}
    return found


def outputs_of(root, student: str) -> dict[str, list]:
    """By cell what stands below it; of errors what is said, for tracebacks count lines of another notebook run."""
    path = root / "grading" / "autograded" / student / course.LESSON / f"{course.LESSON}.ipynb"
    cells = json.loads(path.read_text())["cells"]
    return {
        cell["id"]: [(o.get("ename"), o.get("evalue"), o.get("text")) for o in cell["outputs"]]
        for cell in cells
        if cell.get("outputs") and not cell["id"].startswith("check_")
    }


def printed(root, student: str) -> str:
    path = root / "grading" / "autograded" / student / course.LESSON / f"{course.LESSON}.ipynb"
    outputs = [o for cell in json.loads(path.read_text())["cells"] for o in cell.get("outputs", [])]
    return "".join("".join(output.get("text", "")) for output in outputs)


def outcomes(result) -> dict[str, dict]:
    listed = result.notebooks[course.LESSON]["outcomes"].values()
    return {outcome["name"]: outcome for each in listed for outcome in each}


def wrong(result) -> list[str]:
    return sorted(name for name, outcome in outcomes(result).items() if outcome["status"] != "right")


@pytest.mark.parametrize("student", ["right", "compares", "compares_inside", "shown_name"])
@pytest.mark.parametrize("pictures", [False, True], ids=["plain", "pictures"])
def test_what_is_right_is_right_however_little_is_run(graded, student, pictures):
    assert wrong(graded[pictures][student][0]) == []


def test_what_a_lesson_only_shows_is_run_where_it_is_needed_or_asked_for(graded):
    shown = "shown by the lesson"
    assert shown not in graded[False]["right"][1]
    assert shown in graded[True]["right"][1]
    assert shown in graded[False]["odd_and_needs_the_shown"][1]


@pytest.mark.parametrize("pictures", [False, True], ids=["plain", "pictures"])
def test_a_ready_made_function_beside_an_exercise_keeps_its_output(graded, pictures):
    result, text = graded[pictures]["compares"]
    assert "compared with torch.Size([1, 3, 4])" in text
    assert "switched off" not in text


def test_what_stands_below_a_cell_is_what_a_run_with_everything_in_place_gives(graded):
    for student, plain in graded[False, "outputs"].items():
        whole = graded[True, "outputs"][student]
        assert plain == {name: whole.get(name) for name in plain}, student
        assert "SwitchedOff" not in str(plain) and "SwitchedOff" not in str(whole)
    assert "is known" in str(graded[False, "outputs"]["odd_and_needs_the_shown"])


def test_marks_and_causes_do_not_depend_on_pictures(graded):
    for student, (result, _) in graded[False].items():
        with_pictures = outcomes(graded[True][student][0])
        for name, outcome in outcomes(result).items():
            told = {key: outcome[key] for key in ("status", "cause", "named", "text")}
            assert told == {key: with_pictures[name][key] for key in told}, (student, name)


@pytest.mark.parametrize("student", ["unscaled", "unscaled_too", "shown_name_wrong"])
def test_a_card_is_the_one_that_the_learners_own_check_shows(graded, student):
    def unscaled(q, k, v):
        import torch

        return torch.softmax(q @ k.mT, -1) @ v

    outcome = outcomes(graded[False][student][0])["mix"]
    with course.declared():
        report = examine(exercises.find("mix"), LocalAnswer(unscaled), 0)
    assert (outcome["cause"], outcome["named"]) == ("no-scale", True)
    assert outcome["text"] == as_text(report.card)


def test_a_mistake_without_a_name_stays_one(graded):
    outcome = outcomes(graded[False]["odd"][0])["soft_rows"]
    assert outcome["status"] == "wrong" and not outcome["named"]


def test_right_on_the_practice_inputs_alone_is_wrong_and_shows_no_hidden_input(graded):
    outcome = outcomes(graded[False]["practised"][0])["double_it"]
    assert outcome["status"] == "wrong"
    assert "right on the practice inputs, wrong on others" in outcome["text"]
    assert "Tried with" not in outcome["text"] and "Yours:" not in outcome["text"]


def test_a_question_is_asked_once_and_the_first_answer_counts(graded):
    outcome = outcomes(graded[False]["guessing"][0])["why_double"]
    assert (outcome["status"], outcome["cause"]) == ("wrong", "option a")
    assert wrong(graded[False]["guessing"][0]) == ["why_double"]


def test_a_slip_of_the_pen_is_told_as_one_with_its_line(graded):
    told = outcomes(graded[False]["slipped"][0])
    for name, line in (("soft_rows", 3), ("why_double", 1)):
        assert told[name]["status"] == "wrong" and told[name]["cause"] == "did not run: SyntaxError"
        assert f"did not run: SyntaxError, line {line}" in told[name]["text"]
    assert set(wrong(graded[False]["slipped"][0])) == {"soft_rows", "why_double"}


def test_an_earlier_version_counts_and_the_card_says_that_a_newer_one_did_not_run(graded):
    assert wrong(graded[False]["slipped_later"][0]) == []


@pytest.mark.parametrize("student", ["missing", "missing_inside"])
def test_a_package_that_is_not_installed_is_named_to_the_learner_and_to_the_instructor(graded, student):
    result = graded[False][student][0]
    text = " ".join(outcomes(result)["mix"]["text"].split())
    assert "not_here_at_all is not installed where this was graded" in text
    assert result.notebooks[course.LESSON]["missing"] == ["not_here_at_all"]
    summary = run.Summary(course.LESSON, [result])
    assert "pip install not_here_at_all" in run.table(summary)
    assert run.numbers(summary)["not_installed"] == {"not_here_at_all": 1}
