"""check(): what a learner calls, and what it shows where."""

import json
import math
import subprocess
import sys
import textwrap

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from mha_course import exercises, tutor
from mha_course.checking import Case, Exercise, Misconception, Question
from mha_course.tutor import CannotCheck, CheckFailed, NotYetWritten, check


def scaled(x):
    return x / math.sqrt(x.shape[-1])


def total(x):
    return scaled(x).sum(-1)


SCALED = Exercise(
    "scaled",
    "9.1",
    scaled,
    ("y (N, E)",),
    (Case("x", lambda draw: {"x": draw.normal(3, 5)}),),
    misconceptions=(Misconception("no-scale", "Nothing was divided.", wrong=lambda x: x + 0, hint=1),),
)
TOTAL = Exercise(
    "total",
    "9.2",
    total,
    ("y (N,)",),
    (Case("x", lambda draw: {"x": draw.normal(3, 5)}),),
    builds_on=("scaled",),
)
WHY = Question("why_root", right="b", why={"a": "No: that is the mean.", "b": "Yes: variances add up."})
ITEMS = {"scaled": SCALED, "total": TOTAL, "why_root": WHY}


@pytest.fixture(autouse=True)
def small_course(monkeypatch):
    monkeypatch.setattr(exercises, "_by_name", lambda: ITEMS)


def in_notebook(source, **more):
    """Define things as a notebook does: in a namespace of their own."""
    namespace = {"torch": torch, "math": math, **more}
    exec(textwrap.dedent(source), namespace)
    return namespace


def test_a_right_answer_prints_one_line_and_gives_none(capsys):
    assert check(scaled) is None
    assert capsys.readouterr().out.startswith("✓ scaled: ")


def test_a_wrong_answer_raises_its_card_and_nothing_else():
    def scaled(x):
        return x + 0

    with pytest.raises(CheckFailed) as caught:
        check(scaled)
    assert "Nothing was divided." in str(caught.value)
    assert caught.value._render_traceback_()[0].startswith("✗ scaled")
    assert caught.value.__suppress_context__


def test_an_answer_can_be_given_by_name():
    namespace = in_notebook("def scaled(x): return x + 0", check=check)
    with pytest.raises(CheckFailed):
        exec("check('scaled')", namespace)
    with pytest.raises(NotYetWritten):
        exec("check('total')", namespace)
    with pytest.raises(CheckFailed):
        check(scaled=namespace["scaled"])


@pytest.mark.parametrize(
    ("wrong_use", "said"),
    [
        (lambda: check(), "check(attend)"),
        (lambda: check(torch.ones(3)), "without calling it"),
        (lambda: check(scalled=scaled), "Did you mean scaled?"),
        (lambda: check(math.sqrt), "no exercise called 'sqrt'"),
        (lambda: check(scaled=3), "was the name used for something else?"),
    ],
)
def test_misuse_of_check_says_what_to_write_instead(wrong_use, said):
    with pytest.raises(CannotCheck) as caught:
        wrong_use()
    assert said in str(caught.value)


def test_when_an_earlier_function_is_wrong_the_message_points_there():
    namespace = in_notebook(
        """
        def scaled(x):
            return x + 0

        def total(x):
            return scaled(x).sum(-1)
        """
    )
    with pytest.raises(CheckFailed) as caught:
        check(namespace["total"])
    text = " ".join(str(caught.value).split())
    assert "total itself is right: the fault is in scaled" in text
    assert "Nothing was divided." in text
    assert namespace["scaled"](torch.ones(4)).sum() == 4  # the learner's own is back in its place


def test_when_both_are_wrong_the_function_that_was_asked_about_is_named():
    namespace = in_notebook(
        """
        def scaled(x):
            return x + 0

        def total(x):
            return scaled(x).sum(-2)
        """
    )
    with pytest.raises(CheckFailed) as caught:
        check(namespace["total"])
    assert "wrong shape" in str(caught.value)


def test_an_earlier_function_that_is_not_written_is_named():
    namespace = in_notebook(
        """
        def scaled(x):
            raise NotImplementedError()

        def total(x):
            return scaled(x).sum(-1)
        """
    )
    with pytest.raises(NotYetWritten) as caught:
        check(namespace["total"])
    assert "the fault is in scaled" not in str(caught.value) or "not written" in str(caught.value)
    assert "scaled" in str(caught.value)


def test_a_question_explains_the_option_that_was_chosen(capsys):
    check(why_root="(B)")
    assert "variances add up" in capsys.readouterr().out
    with pytest.raises(CheckFailed, match="that is the mean"):
        check(why_root="a")
    with pytest.raises(CheckFailed, match="not one of the options"):
        check(why_root="z")
    with pytest.raises(NotYetWritten):
        check(why_root=...)


def test_the_reference_is_good_to_go_on_with_but_not_counted(capsys, monkeypatch):
    def scaled(x):
        return x

    scaled.__module__ = "mha_course.reference.one_head"
    recorded = []
    monkeypatch.setattr("mha_course.lessons.record", lambda name, status: recorded.append((name, status)))
    check(scaled)
    assert "borrowed" in capsys.readouterr().out
    assert recorded == [("scaled", "borrowed")]


def test_an_instructors_seed_changes_the_inputs(monkeypatch):
    def scaled(x):
        return x + 0

    texts = []
    for seed in ("", "1", "1", "spring term"):
        monkeypatch.setenv("MHA_COURSE_SEED", seed)
        with pytest.raises(CheckFailed) as caught:
            check(scaled)
        texts.append(str(caught.value))
    assert texts[1] == texts[2]
    assert len(set(texts)) == 3


SETUP = f"""
import sys
sys.path[:0] = {json.dumps(sys.path)}
from mha_course import exercises
sys.path.insert(0, {str(__file__.rsplit("/", 1)[0])!r})
import test_tutor
exercises._by_name = lambda: test_tutor.ITEMS
from mha_course import check
"""


def executed(*sources, **environment):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in (SETUP, *sources)])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        NotebookClient(notebook, allow_errors=True, timeout=60).execute()
    return [cell.outputs for cell in notebook.cells[1:]]


@pytest.mark.xdist_group("kernels")
def test_in_a_notebook_a_card_is_drawn_and_there_is_no_page_of_traceback():
    wrong, missing, endless, misuse = executed(
        "def scaled(x):\n    return x + 0\ncheck(scaled)",
        "del scaled\ncheck(scaled)",
        "def scaled(x):\n    while True: pass\n"
        "import dataclasses; test_tutor.ITEMS['scaled'] = dataclasses.replace(test_tutor.SCALED, seconds=0.5)\n"
        "check(scaled)",
        "check(7)",
    )
    assert [output.output_type for output in wrong] == ["display_data", "error"]
    assert "Nothing was divided." in wrong[0].data["text/html"]
    assert wrong[1].traceback == ["✗ scaled: see the card above."]
    assert "not written yet" in "".join(missing[0].traceback)
    assert "Run the cell that defines scaled" in "".join(missing[0].traceback)
    assert "stopped after 0.5 s" in endless[0].data["text/plain"]
    assert len(misuse[0].traceback) == 1
    for outputs in (wrong, missing, endless, misuse):
        assert all(output.get("name") != "stderr" for output in outputs)


@pytest.mark.xdist_group("kernels")
def test_for_nbgrader_the_whole_card_is_text_and_stderr_stays_empty():
    wrong, right = executed(
        "def scaled(x):\n    return x + 0\ncheck(scaled)",
        "import warnings\ndef scaled(x):\n    warnings.warn('careful')\n    return x / 5**0.5\ncheck(scaled)",
        NBGRADER_EXECUTION="autograde",
    )
    assert [output.output_type for output in wrong] == ["error"]
    assert "Nothing was divided." in "\n".join(wrong[0].traceback)
    assert [(output.output_type, output.name) for output in right] == [("stream", "stdout")]
    assert "your code warned: careful" in right[0].text


def test_in_a_plain_terminal_the_error_is_the_card():
    script = SETUP + "\ndef scaled(x):\n    return x + 0\ncheck(scaled)\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "Nothing was divided." in done.stderr


def test_names_of_tutor_are_public():
    import mha_course

    assert mha_course.check is tutor.check
    assert mha_course.CheckFailed is CheckFailed
