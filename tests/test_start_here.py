"""Lesson 00: its three functions, its hand-worked examples, its first picture, its questions."""

from pathlib import Path

import pytest
import torch

from mha_course import exercises
from mha_course.checking import LocalAnswer, examine
from mha_course.reference import pairwise_dot, regroup, steps_back

SOURCE = Path(__file__).parents[1] / "solutions" / "00_start_here" / "00_start_here.py"


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cells(containing):
    """Code of the cells in which a text stands."""
    import jupytext

    nb = jupytext.reads(SOURCE.read_text(encoding="utf-8"), fmt="py:percent")
    return [cell.source for cell in nb.cells if cell.cell_type == "code" and containing in cell.source]


def test_steps_back_gives_the_table_worked_out_in_the_lesson():
    table = steps_back(torch.tensor([2, 5]), torch.tensor([0, 2, 3]))
    assert table.tolist() == [[2, 0, -1], [5, 3, 2]]


def test_pairwise_dot_gives_the_table_worked_out_in_the_lesson():
    a = torch.tensor([[1, 2], [0, 1], [3, 1]])
    b = torch.tensor([[1, 0], [1, 1], [2, 1], [0, 3]])
    assert pairwise_dot(a, b).tolist() == [[1, 3, 4, 6], [0, 1, 1, 3], [3, 4, 7, 3]]


def test_regroup_gives_the_groups_worked_out_in_the_lesson():
    groups = regroup(torch.arange(12).view(3, 4), 2)
    assert groups.tolist() == [[[0, 1], [4, 5], [8, 9]], [[2, 3], [6, 7], [10, 11]]]
    assert torch.arange(12).view(2, 3, 2)[0, 1].tolist() == [2, 3], "the scramble that the text shows"


def test_the_warm_ups_agree_with_torch_in_values_and_gradients():
    a, b, x = normal(3, 4), normal(5, 4, seed=1), normal(3, 6, seed=2)
    torch.testing.assert_close(pairwise_dot(a, b), torch.nn.functional.linear(a, b), rtol=0, atol=1e-12)
    torch.testing.assert_close(steps_back(a[0], b[0]), -torch.sub(b[0], a[0].unsqueeze(1)))
    assert regroup(x, 2).equal(torch.stack(x.split(3, dim=-1)))
    for fn, inputs in ((steps_back, (a[0], b[0])), (pairwise_dot, (a, b)), (lambda x: regroup(x, 3), (x,))):
        assert torch.autograd.gradcheck(fn, tuple(i.clone().requires_grad_() for i in inputs))


def test_regroup_refuses_features_that_cannot_be_shared_out():
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        regroup(torch.arange(10).view(2, 5), 2)


def test_the_wrong_line_that_the_lesson_asks_for_is_named():
    exercise = exercises.find("steps_back")
    report = examine(
        exercise, LocalAnswer(lambda query_positions, key_positions: query_positions - key_positions)
    )
    assert (report.status, report.cause) == ("wrong", "no-new-dimension")


def test_two_mistakes_at_once_are_both_named():
    exercise = exercises.find("steps_back")
    report = examine(exercise, LocalAnswer(lambda q, k: k[:, None] + q[None, :]))
    assert report.cause == "table-turned-round + added"


@pytest.mark.parametrize(
    ("name", "answer", "says"),
    [
        ("steps_back", lambda q, k: 2 * (q[:, None] - k), "Entry [0, 0] is query_positions[0] minus"),
        (
            "pairwise_dot",
            lambda a, b: a @ b.T + 1,
            "Entry [0, 0] is the dot product of the first row of a",
        ),
        (
            "regroup",
            lambda x, groups: x.roll(1, 0).view(len(x), groups, -1).transpose(0, 1),
            "numbers of token 0 only",
        ),
        ("regroup", lambda x, groups: 2 * x.view(len(x), groups, -1).transpose(0, 1), "only moves numbers"),
    ],
)
def test_an_unknown_mistake_is_told_by_a_property(name, answer, says):
    report = examine(exercises.find(name), LocalAnswer(answer))
    assert report.status == "wrong" and not report.named
    assert says in " ".join((*report.card.lines, report.card.cause)), report.card


def test_the_heads_of_the_first_picture_look_where_the_text_says():
    [code] = cells("head_1 = torch.softmax")
    names = {"torch": torch}
    exec(code, names)
    words, head_1, head_2 = names["words"], names["head_1"], names["head_2"]
    assert head_1.shape == head_2.shape == (8, 8)
    assert head_1.argmax(-1).tolist() == [0, 0, 1, 2, 3, 4, 5, 6]
    looks_at = {words[i]: words[int(row.argmax())] for i, row in enumerate(head_2) if row.max() > 0.9}
    assert looks_at == {"she": "Ada", "it": "ring"}
    others = [i for i, word in enumerate(words) if word not in looks_at]
    torch.testing.assert_close(head_2[others], torch.full((6, 8), 1 / 8))


def test_what_the_questions_say_is_so():
    p, q = torch.zeros(4, 1), torch.zeros(3)
    assert (p + q).shape == (4, 3)
    q, k = torch.ones(5, 4), torch.ones(7, 4)
    assert (q @ k.T).shape == (5, 7) and (k @ q.T).shape == (7, 5)
    for fails in (lambda: q * k, lambda: q @ k):
        with pytest.raises(RuntimeError):
            fails()
    x = torch.tensor([[0, 1, 2], [3, 4, 5]])
    assert x.view(3, 2)[0].tolist() == [0, 1] and x.T[0].tolist() == [0, 3]


def test_every_option_of_a_question_is_explained_and_stands_in_the_notebook():
    lesson = next(lesson for lesson in exercises.lessons() if lesson.folder == "00_start_here")
    text = SOURCE.read_text(encoding="utf-8")
    assert len(lesson.questions) == 4
    for question in lesson.questions:
        assert question.right in question.why and set(question.why) == set("abcd")
        before = text[: text.index(f'"grade_id": "{question.name}"')].rsplit("# %% [markdown]", 1)[1]
        assert all(f"({letter})" in before for letter in question.why), question.name


def test_the_lesson_has_at_least_five_correct_styles_and_six_known_mistakes_per_exercise():
    for name in ("steps_back", "pairwise_dot", "regroup"):
        exercise = exercises.find(name)
        assert len(exercise.styles) >= 5 and len(exercise.misconceptions) >= 6
