"""Lesson 01: its six answers against torch, its hand-worked examples, and what its prose and experiments claim."""

import math
from pathlib import Path

import jupytext
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mha_course import exercises
from mha_course.checking import LocalAnswer, examine
from mha_course.reference import (
    SingleHead,
    attend,
    attention_scores,
    permutation_gap,
    stable_softmax,
    weight_sharpness,
)

SOURCE = Path(__file__).parents[1] / "solutions" / "01_one_head" / "01_one_head.py"
EXACT = {"rtol": 0, "atol": 1e-12}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def qkv(N=2, L=5, S=7, D=4, Dv=3):
    return [x.requires_grad_() for x in (normal(N, L, D), normal(N, S, D, seed=1), normal(N, S, Dv, seed=2))]


def run_cell(defines, old="", new=""):
    """What the lesson's own cell defines, run with the course's answers (and one text in it replaced)."""
    nb = jupytext.reads(SOURCE.read_text(encoding="utf-8"), fmt="py:percent")
    (code,) = [cell.source for cell in nb.cells if f"def {defines}(" in cell.source]
    assert old in code
    names = {
        "torch": torch,
        "math": math,
        "attention_scores": attention_scores,
        "stable_softmax": stable_softmax,
    }
    exec(code.split("\n\n\n")[0].replace(old, new), names)
    return names[defines]


def cause(name, answer, seed=0):
    report = examine(exercises.find(name), LocalAnswer(answer), seed)
    return "right" if report.status == "right" else report.cause


# ------------------------------------------------------------------------- worked out by hand


def test_the_scores_worked_out_in_the_lesson():
    q, k = torch.tensor([[[1.0, 2]]]), torch.tensor([[[3.0, 0], [1, 1], [-2, 1]]])
    torch.testing.assert_close(attention_scores(q, k) * math.sqrt(2), torch.tensor([[[3.0, 3, 0]]]))
    assert round(attention_scores(q, k)[0, 0, 0].item(), 2) == 2.12


def test_the_softmax_worked_out_in_the_lesson():
    x = torch.tensor([1.0, 2, 5]).double().log()
    torch.testing.assert_close(stable_softmax(x, 0), torch.tensor([1, 2, 5]).double() / 8)
    assert [round(p, 2) for p in stable_softmax(torch.tensor([2.0, 1, -1]), 0).tolist()] == [0.71, 0.26, 0.04]


def test_the_look_up_worked_out_in_the_lesson():
    k = torch.tensor([0, math.log(3)]).view(1, 2, 1)
    output, weights = attend(torch.ones(1, 1, 1), k, torch.tensor([[[8.0, 0], [4, 4]]]))
    torch.testing.assert_close(weights, torch.tensor([[[0.25, 0.75]]]))
    torch.testing.assert_close(output, torch.tensor([[[5.0, 3]]]))


def test_the_permutation_gap_worked_out_in_the_lesson():
    x, perm = torch.tensor([5.0, 7, 9]).view(1, 3, 1), torch.tensor([2, 0, 1])
    place = torch.tensor([1.0, 2, 3]).view(1, 3, 1)
    assert x[:, perm].flatten().tolist() == [9, 5, 7]
    assert permutation_gap(lambda x: 2 * x, x, perm) == 0
    assert permutation_gap(lambda x: place * x, x, perm) == 18


def test_the_projection_worked_out_in_the_lesson():
    head = SingleHead(E=2, D=2)
    head.query.weight = nn.Parameter(torch.tensor([[1.0, 0], [1, 1]]))
    assert head.query(torch.tensor([2.0, 1])).tolist() == [2, 3]


# --------------------------------------------------------------------------------- against torch


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_stable_softmax_is_torchs_softmax_with_its_gradient(dim):
    x = normal(3, 4, 5).requires_grad_()
    torch.testing.assert_close(stable_softmax(x, dim), torch.softmax(x, dim), **EXACT)
    assert torch.autograd.gradcheck(lambda x: stable_softmax(x, dim), (x,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_stable_softmax_survives_large_numbers(dtype):
    x = torch.tensor([[1e4, 1e4, 0], [-1e4, -1e4, -2e4], [-torch.inf, 0, 0]], dtype=dtype)
    expected = torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0.5, 0.5]], dtype=dtype)
    torch.testing.assert_close(stable_softmax(x, -1), expected)


def test_attend_is_torchs_attention_with_its_gradients():
    q, k, v = qkv()
    output, weights = attend(q, k, v)
    theirs = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(output, theirs, **EXACT)
    torch.testing.assert_close(weights @ v, output, **EXACT)
    towards = normal(*output.shape, seed=3)
    for mine, expected in zip(*(torch.autograd.grad(y, (q, k, v), towards) for y in (output, theirs))):
        torch.testing.assert_close(mine, expected, **EXACT)
    assert torch.autograd.gradcheck(attend, (q, k, v))


def test_single_head_is_torchs_module_with_one_head_and_no_output_projection():
    E = 6
    mine = SingleHead(E, E).double()
    theirs = nn.MultiheadAttention(E, num_heads=1, bias=False, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in (mine.query, mine.key, mine.value)]))
        theirs.out_proj.weight.copy_(torch.eye(E))
    x = normal(2, 5, E)
    for a, b in zip(mine(x), theirs(x, x, x)):
        torch.testing.assert_close(a, b, **EXACT)


# ----------------------------------------------------------------------- what the lesson claims


def test_sharpness_is_what_the_lesson_and_its_picture_say():
    torch.manual_seed(0)
    raw = [weight_sharpness(D, scaled=False, queries=1000) for D in (4, 64, 256, 1024)]
    scaled = [weight_sharpness(D, scaled=True, queries=1000) for D in (4, 64, 256, 1024)]
    # 16 keys, mean of 40,000 queries: 0.425, 0.843, 0.921, 0.959 and 0.234 to 0.246; this mean scatters by 0.007
    assert raw == pytest.approx([0.425, 0.843, 0.921, 0.959], abs=0.03)
    assert scaled == pytest.approx([0.24] * 4, abs=0.03)


def test_without_the_scale_the_softmax_has_hardly_any_gradient_left():
    gradient = run_cell("softmax_gradient")
    torch.manual_seed(0)
    raw, scaled = ([gradient(D, scaled=s, queries=2000) for D in (4, 64, 1024)] for s in (False, True))
    assert raw[0] > 2 * raw[1] > 4 * raw[2]
    assert max(scaled) < 1.25 * min(scaled)


@pytest.mark.parametrize("lr", ["0.1", "1.0", "10"])
def test_without_the_scale_a_head_does_not_learn_to_look_at_token_0(lr):
    learn = run_cell("learns_to_look_at_token_0", "lr=1.0", f"lr={lr}")
    with_scale, without = learn(1)[-1], learn(16)[-1]
    assert without > 0.6 and without > with_scale + 0.1
    assert with_scale < 0.1 or lr == "0.1"


def test_attention_does_not_know_order_until_tokens_say_where_they_stand():
    head, x, perm = SingleHead(6, 4).double(), normal(1, 5, 6), torch.tensor([3, 0, 4, 1, 2])
    place = torch.arange(5).view(1, 5, 1)
    assert permutation_gap(lambda x: head(x)[0], x, perm) < 1e-12
    assert permutation_gap(lambda x: head(x + place)[0], x, perm) > 0.01
    assert permutation_gap(lambda x: x.cumsum(1), x, perm) > 0.01


# ------------------------------------------------------------------------ what the checks say


@pytest.mark.parametrize("seed", range(5))
def test_one_draw_of_keys_for_all_queries_passes_whatever_the_seed(seed):
    def weight_sharpness(D, scaled, keys=16, queries=500):
        scores = torch.randn(queries, D) @ torch.randn(keys, D).T
        return (scores / math.sqrt(D) if scaled else scores).softmax(-1).amax(-1).mean().item()

    assert cause("weight_sharpness", weight_sharpness, seed) == "right"


def test_queries_taken_from_the_keys_are_not_called_anything_they_are_not():
    def weight_sharpness(D, scaled, keys=16, queries=500):
        k = torch.randn(queries, keys, D)
        scores = k[:, :1] @ k.mT
        return (scores / math.sqrt(D) if scaled else scores).softmax(-1).amax(-1).mean().item()

    assert cause("weight_sharpness", weight_sharpness) == "values"


def test_two_mistakes_at_once_are_both_named():
    def attend(q, k, v):
        weights = (q @ k.mT).softmax(1)
        return weights @ v, weights

    assert cause("attend", attend) == "no-scale + softmax-over-queries"


def test_a_root_that_torch_takes_in_float32_is_right():
    assert cause("attention_scores", lambda q, k: q @ k.mT / torch.tensor(q.shape[-1]).sqrt()) == "right"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda q, k: q @ k, "nothing-transposed"),
        (lambda q, k: torch.bmm(q.transpose(1, 2), k), "features-meet-features"),
        (lambda q, k: q @ k.T, "everything-turned"),
    ],
    ids=["q k", "qᵀ k", "every dimension of k turned"],
)
def test_a_wrong_transpose_is_seen_in_the_shapes(answer, expected):
    report = examine(exercises.find("attention_scores"), LocalAnswer(answer))
    assert report.cause == expected
    assert "shapes do not fit" in " ".join((*report.card.lines, report.card.cause))


def test_the_options_of_every_question_stand_in_the_notebook():
    text = SOURCE.read_text(encoding="utf-8")
    (lesson,) = [lesson for lesson in exercises.lessons() if lesson.folder == "01_one_head"]
    for question in lesson.questions:
        before = text[: text.index(f'"grade_id": "{question.name}"')].rsplit("# %% [markdown]", 1)[1]
        assert all(f"* ({letter})" in before for letter in question.why), question.name
