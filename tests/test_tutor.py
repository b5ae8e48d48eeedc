"""check(): what a learner calls, and what it shows where."""

import dataclasses
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
from mha_course.tutor import CannotCheck, CheckBroken, CheckFailed, NotYetWritten, check


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


# ------------------------------------------------------------- what a learner has not got, and why


def noted(*cells):
    """`tutor.Cells` after these cells were run, each in the same namespace."""
    notes, namespace = tutor.Cells(), {}
    for source in cells:
        try:
            exec(compile(source, "<cell>", "exec"), namespace)
        except Exception as error:
            notes.note(source, error)
        else:
            notes.note(source, None)
    return notes


@pytest.mark.parametrize(
    ("source", "short"),
    [
        ("def scaled(x)\n    return x", "SyntaxError, line 1"),
        ("def scaled(x):\n  return (x", "SyntaxError, line 2"),
        ("import math\nundefined\ndef scaled(x):\n    return x", "NameError, line 2"),
        ("scaled = undefined", "NameError, line 1"),
        ("scaled: int = undefined", "NameError, line 1"),
        ("class scaled(undefined):\n    pass", "NameError, line 1"),
        ("async def scaled(x):\nreturn x", "IndentationError, line 2"),
    ],
)
def test_why_a_cell_did_not_define_its_answer_is_remembered(source, short):
    assert noted(source).failed["scaled"].short == short
    assert "scaled" not in noted(source, "def scaled(x):\n    return x").failed


def test_a_cell_that_stumbles_after_its_definition_has_defined_it():
    assert not noted("def scaled(x):\n    return x\nscaled(undefined)").failed
    notes = tutor.Cells()
    notes.note("def scaled(x):\n    return x\ncheck(scaled)", CheckFailed(tutor._not_there(SCALED)))
    assert not notes.failed


@pytest.mark.parametrize(
    ("source", "alone"), [('"b"', True), ("# Your answer\n'b'\n", True), ('x = "b"', False)]
)
def test_a_letter_alone_in_a_cell_is_noticed(source, alone):
    assert noted(source).letter is alone


@pytest.mark.xdist_group("kernels")
def test_an_answer_that_is_not_there_is_told_why():
    cells = (
        (
            "def scaled(x)\n    return x",
            "check(scaled)",
            "did not run. SyntaxError: expected ':'",
            "line 1:  def scaled(x)",
        ),
        (
            "def sclaed(x):\n    return x",
            "check(scaled)",
            "There is `sclaed`",
            "wants the name scaled",
        ),
        ("'b'", "check(why_root=None)", "A letter alone is kept nowhere", 'why_root = "a"'),
        ("x = 1", "check(why_root=None)", "Options: a, b.", 'Write why_root = "a"'),
    )
    sources = [
        "def scaled(x):\n    return x / 5**0.5",
        "def scaled(x):\n    return (x",
        "check(scaled)",
        "del scaled",
    ]
    sources += [source for pair in cells for source in pair[:2]]
    _, _, older, _, *outputs = executed(*sources)
    assert "✓ scaled" in older[0].data["text/plain"]
    assert "note: this is about an earlier version of yours" in " ".join(older[0].data["text/plain"].split())
    for (_, _, *said), output in zip(cells, outputs[1::2], strict=True):
        text = output[0].get("data", {}).get("text/plain") or "\n".join(output[0].traceback)
        assert "○" in text
        for words in said:
            assert words in " ".join(text.split()) or words in text


def test_an_earlier_function_that_never_ends_stops_the_check_once(monkeypatch):
    namespace = in_notebook(
        """
        def scaled(x):
            while True:
                pass

        def total(x):
            return scaled(x).sum(-1)
        """
    )
    calls = []
    observe = tutor.LocalAnswer.observe
    monkeypatch.setattr(
        tutor.LocalAnswer, "observe", lambda self, call: calls.append(self.target) or observe(self, call)
    )
    monkeypatch.setitem(ITEMS, "total", dataclasses.replace(TOTAL, seconds=0.3))
    with pytest.raises(CheckFailed) as caught:
        check(namespace["total"])
    text = " ".join(str(caught.value).split())
    assert "stopped after 0.3 s" in text and "scaled, line" in text
    assert calls.count(namespace["total"]) == 1 and namespace["scaled"] not in calls


def test_two_earlier_functions_wrong_at_once_leave_a_right_answer_unblamed():
    namespace = in_notebook(
        """
        def scaled(x):
            return x + 0

        def total(x):
            return scaled(x).sum(0)

        def both(x):
            return total(scaled(x))
        """
    )
    both = Exercise(
        "both",
        "9.3",
        lambda x: total(scaled(x)),
        ("y (N,)",),
        (Case("x", lambda draw: {"x": draw.normal(3, 5)}),),
        builds_on=("scaled", "total"),
    )
    ITEMS["both"] = both
    try:
        with pytest.raises(CheckFailed) as caught:
            check(namespace["both"])
    finally:
        del ITEMS["both"]
    assert "both itself is right: the fault is in scaled and total, which it calls." in " ".join(
        str(caught.value).split()
    )


def test_a_wrong_answer_on_top_of_a_wrong_one_is_told_its_own_mistake_and_the_other():
    namespace = in_notebook(
        """
        def scaled(x):
            return x + 0

        def total(x):
            return scaled(x).mean(-1)
        """
    )
    with pytest.raises(CheckFailed) as caught:
        check(namespace["total"])
    text = " ".join(str(caught.value).split())
    assert "Every number is 0.2 times the expected one." in text
    assert "scaled, which it calls, is not right either." in text


def test_when_the_check_itself_stumbles_the_reason_is_written_down_beside_the_learners_work(
    tmp_path, monkeypatch
):
    work = tmp_path / "work"
    work.mkdir()
    (work / ".handed_out.json").write_text("{}")
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys.modules[tutor.examine.__module__], "compare_trial", lambda *_: 1 / 0)
    with pytest.raises(CheckBroken) as caught:
        check(scaled)
    text = " ".join(str(caught.value).split())
    assert "The fault is the course's, not yours." in text and "work/problems.txt" in text
    assert "ZeroDivisionError" in (work / "problems.txt").read_text()
    assert not (work / "progress.json").exists()
