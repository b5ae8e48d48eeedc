"""Lesson 03: its functions against torch, its hand-worked examples, and what its "Break it" claims."""

import ast
import io
from contextlib import redirect_stdout
from pathlib import Path

import jupytext
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mha_course import exercises, plots
from mha_course.checking import LocalAnswer, examine
from mha_course.progress_bar import progress_bar
from mha_course.reference import (
    attend_by_loop,
    attend_in_parallel,
    causal_mask,
    future_leak,
    head_distance,
    masked_softmax,
    merge_heads,
    padding_mask,
    projection_parameters,
    split_heads,
)

FOLDER = Path(__file__).parents[1] / "solutions" / "03_many_heads"
LESSON = next(lesson for lesson in exercises.lessons() if lesson.folder == "03_many_heads")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw(N=2, H=3, L=5, S=7, D=4):
    return normal(N, L, H * D), normal(N, S, H * D, seed=1), normal(N, S, H * D, seed=2)


def scrambled_merge(x):
    return x.reshape(x.shape[0], x.shape[2], -1)


def code_cells():
    nb = jupytext.reads((FOLDER / "03_many_heads.py").read_text(encoding="utf-8"), fmt="py:percent")
    return [cell.source for cell in nb.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def broken():
    """What the cells of "Break it" define, after they have run; pictures and checks left out."""
    torch.manual_seed(0)
    names = {}
    for source in code_cells():
        if "check(" not in source and "plots." not in source and "FlopCounter" not in source:
            with redirect_stdout(io.StringIO()):
                exec(source, names)
    return names


# -------------------------------------------------------------------------------- against torch


def test_split_and_merge_are_inverses_of_one_another():
    x = normal(2, 5, 12)
    for H in (1, 2, 3, 4, 6, 12):
        assert merge_heads(split_heads(x, H)).equal(x)
        assert split_heads(x, H)[:, H - 1].equal(x[..., -12 // H :])
    heads = normal(2, 3, 5, 4)
    assert split_heads(merge_heads(heads), 3).equal(heads)


def test_loop_and_parallel_agree_with_torch_in_values_and_gradients():
    inputs = [x.requires_grad_() for x in draw()]
    results = [
        attend_by_loop(*inputs, 3)[0],
        attend_in_parallel(*inputs, 3)[0],
        merge_heads(F.scaled_dot_product_attention(*(split_heads(x, 3) for x in inputs))),
    ]
    cotangent = normal(*results[0].shape, seed=3)
    gradients = [torch.autograd.grad(result, inputs, cotangent) for result in results]
    for result, gradient in zip(results[:2], gradients):
        torch.testing.assert_close(result, results[2], rtol=0, atol=1e-12)
        torch.testing.assert_close(gradient, gradients[2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 7), (2, 1, 1, 7), (2, 1, 5, 7), (2, 3, 5, 7)])
def test_masks_of_every_shape_agree_with_torch(shape):
    q, k, v = draw()
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(4)) < 0.6
    mask[..., 0] = True
    output, weights = attend_in_parallel(q, k, v, 3, mask)
    theirs = F.scaled_dot_product_attention(*(split_heads(x, 3) for x in (q, k, v)), attn_mask=mask)
    torch.testing.assert_close(output, merge_heads(theirs), rtol=0, atol=1e-12)
    assert not weights[~mask.expand_as(weights)].any()


def test_with_identity_projections_torchs_class_gives_output_and_weights_of_each_head():
    q, k, v = draw()
    theirs = nn.MultiheadAttention(12, 3, bias=False, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.eye(12).repeat(3, 1))
        theirs.out_proj.weight.copy_(torch.eye(12))
        expected = theirs(q, k, v, average_attn_weights=False)
    torch.testing.assert_close(attend_in_parallel(q, k, v, 3), expected, rtol=0, atol=1e-12)


def test_a_query_that_may_see_nothing_gets_zeros_and_finite_gradients():
    q, k, v = (x.requires_grad_() for x in draw())
    mask = torch.ones(2, 1, 5, 7, dtype=torch.bool)
    mask[1, 0, 2] = False
    output, weights = attend_in_parallel(q, k, v, 3, mask)
    assert not output[1, 2].any() and not weights[1, :, 2].any()
    for gradient in torch.autograd.grad(output.square().sum(), (q, k, v)):
        assert gradient.isfinite().all()


def test_the_padding_mask_of_lesson_02_fits_once_it_has_a_place_for_heads():
    q, k, v = draw()
    mask = padding_mask(torch.tensor([3, 7]), 7)  # (N, 1, S)
    _, weights = attend_in_parallel(q, k, v, 3, mask.unsqueeze(1))
    assert not weights[0, ..., 3:].any() and weights[1].all()
    with pytest.raises(RuntimeError):
        attend_in_parallel(q, k, v, 3, mask)


@pytest.mark.parametrize("attention", [attend_by_loop, attend_in_parallel])
def test_heads_that_do_not_divide_the_features_are_refused_with_both_numbers(attention):
    with pytest.raises(ValueError, match=r"10.*3"):
        attention(normal(2, 5, 10), normal(2, 7, 10), normal(2, 7, 10), 3)
    with pytest.raises(ValueError, match=r"10.*3"):
        split_heads(normal(2, 5, 10), 3)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("H", [1, 2, 4, 8])
def test_parameters_are_those_of_torchs_class_and_do_not_depend_on_the_heads(H, bias):
    torchs = nn.MultiheadAttention(64, H, bias=bias)
    assert projection_parameters(64, H, bias) == sum(p.numel() for p in torchs.parameters())


def test_multiplications_do_not_depend_on_the_heads_and_weights_do():
    from torch.utils.flop_counter import FlopCounterMode

    counted, kept = set(), []
    for H in (1, 2, 4, 8):
        with FlopCounterMode(display=False) as counter:
            _, weights = attend_in_parallel(*torch.randn(3, 1, 16, 64), H)
        counted.add(counter.get_total_flops() // 2)
        kept.append(weights.numel())
    assert counted == {2 * 16 * 16 * 64}
    assert kept == [256, 512, 1024, 2048]


# --------------------------------------------------------------------------- examples by hand


def test_the_loops_example_by_hand():
    v = torch.tensor([[[4.0, 8, 0, 4], [0, 0, 8, 0]]])
    weights = torch.tensor([[[[0.75, 0.25]], [[0.25, 0.75]]]])  # (1, 2, 1, 2)
    k = torch.tensor([[[1.0, 0, 1, 0], [0, 0, 0, 0]]])
    log_odds = (weights[..., 0] / weights[..., 1]).log() * 2**0.5  # the score that gives these weights
    q = torch.tensor([[[log_odds[0, 0, 0], 0, log_odds[0, 1, 0], 0]]])
    output, found = attend_by_loop(q, k, v, 2)
    torch.testing.assert_close(found, weights)
    torch.testing.assert_close(output, torch.tensor([[[3.0, 6, 6, 1]]]))


def test_the_split_and_the_merge_by_hand():
    x = torch.arange(12).view(1, 3, 4)
    heads = split_heads(x, 2)
    assert heads[0].tolist() == [[[0, 1], [4, 5], [8, 9]], [[2, 3], [6, 7], [10, 11]]]
    assert merge_heads(heads)[0, 0].tolist() == [0, 1, 2, 3]
    assert scrambled_merge(heads)[0, 0].tolist() == [0, 1, 4, 5]


def test_the_count_by_hand():
    assert projection_parameters(4, 2, False) == 64
    assert projection_parameters(4, 2, True) == 80


def test_the_distance_by_hand():
    weights = torch.tensor([[[[0.5, 0.5, 0]], [[0.5, 0, 0.5]]]])  # (1, 2, 1, 3)
    torch.testing.assert_close(head_distance(weights), torch.tensor([[0, 0.5], [0.5, 0]]))


def test_the_distance_is_zero_for_equals_one_for_strangers_and_a_metric():
    weights = normal(3, 4, 5, 6).softmax(-1)
    d = head_distance(weights)
    assert d.diagonal().eq(0).all() and d.equal(d.mT) and d.max() < 1
    assert (d.unsqueeze(1) <= d.unsqueeze(2) + d.unsqueeze(0) + 1e-12).all(), "the triangle inequality"
    torch.testing.assert_close(head_distance(torch.eye(2).view(1, 2, 1, 2)), 1 - torch.eye(2))


# -------------------------------------------------------------------------------- break it


def test_both_merges_copy_perfectly_in_training(broken):
    assert broken["right_seen"][-1] == broken["wrong_seen"][-1] == 1.0
    assert broken["accuracy"](broken["right"], 8, 500) > 0.99
    assert broken["accuracy"](broken["wrong"], 8, 500) > 0.99


def test_the_scrambled_model_has_learned_the_detour_that_the_text_describes(broken):
    words = torch.randint(10, (200, 8), generator=torch.Generator().manual_seed(5))
    weights = broken["wrong"](words)[1].mean(0)  # (4, 8, 8)
    for head in range(4):
        assert weights[head].argmax(-1).tolist() == [2 * head] * 4 + [2 * head + 1] * 4
    assert weights.amax(-1).mean() > 0.8


@pytest.mark.parametrize("L", [5, 6, 7])
def test_on_shorter_sequences_the_right_merge_hardly_minds_and_the_scrambled_one_fails(broken, L):
    assert broken["accuracy"](broken["right"], L, 500) > 0.9
    assert broken["accuracy"](broken["wrong"], L, 500) < 0.75


def test_the_scrambled_merge_leaks_the_future_under_a_right_mask(broken):
    tokens = normal(6, 4)

    def ahead(merge):
        leak = future_leak(lambda x: broken["attend_causally"](x, merge), tokens)
        return (leak > 1e-9).triu(1).any(-1).tolist()

    assert ahead(merge_heads) == [False] * 6
    assert ahead(scrambled_merge) == [True] * 3 + [False] * 3


def test_two_wrongs_make_a_perfect_round_trip():
    x = plots.many_heads.numbered(4, 6)
    assert scrambled_merge(x.view(1, 2, 4, 3)).equal(x)
    assert not scrambled_merge(split_heads(x, 2)).equal(x)


def test_the_heads_of_the_sentence_look_where_the_text_says(broken):
    words, heads = broken["words"], broken["two_heads"][0]
    assert heads[0].argmax(-1).tolist() == [0, 0, 1, 2, 3, 4, 5, 6]
    assert heads[1, words.index("she")].argmax() == words.index("Ada")
    assert heads[1, words.index("it")].argmax() == words.index("ring")
    assert min(heads[0, 5].max(), heads[1, 5].max()) > 0.9


def test_the_number_of_framed_cells_is_the_one_in_the_alt_texts():
    x = plots.many_heads.numbered(4, 6)
    rows = torch.arange(4).unsqueeze(1)
    for made in (x.view(1, 2, 4, 3), scrambled_merge(split_heads(x, 2))):
        assert int((made // 6 != rows).sum()) == 18


# -------------------------------------------------------------------------------- the checks


def cut_by_view(x, H):
    N, L, E = x.shape
    return x.view(N, H, L, E // H)


def cut_for_strides(x, H):
    N, L, E = x.shape
    return x.view(N, L, E // H, H).permute(0, 3, 1, 2)


def parallel(split=split_heads, merge=merge_heads, divide=lambda q, E: q.shape[-1] ** 0.5, seen=lambda m: m):
    def attend_in_parallel(q, k, v, H, may_attend=None):
        E = q.shape[-1]
        q, k, v = split(q, H), split(k, H), split(v, H)
        scores = q @ k.mT / divide(q, E)
        weights = scores.softmax(-1) if may_attend is None else masked_softmax(scores, seen(may_attend))
        return merge(weights @ v), weights

    return attend_in_parallel


@pytest.mark.parametrize(
    ("name", "answer", "cause"),
    [
        ("split_heads", cut_by_view, "view-without-transpose"),
        ("split_heads", cut_for_strides, "strided-heads"),
        ("split_heads", lambda x, H: x.unflatten(-1, (H, -1)).mT, "wrong-pair-exchanged"),
        ("merge_heads", lambda x: x.view(len(x), x.shape[2], -1), "reshape-without-transpose"),
        ("attend_in_parallel", parallel(merge=scrambled_merge), "scrambled-merge"),
        ("attend_in_parallel", parallel(cut_by_view), "scrambled-split"),
        ("attend_in_parallel", parallel(cut_by_view, scrambled_merge), "scrambled-both-ways"),
        (
            "attend_in_parallel",
            parallel(divide=lambda q, E: 1, seen=lambda m: ~m),
            "no-scale + inverted-mask",
        ),
        (
            "attend_in_parallel",
            parallel(merge=scrambled_merge, divide=lambda q, E: E**0.5),
            "scrambled-merge + root-of-e",
        ),
    ],
)
def test_mistakes_in_a_learners_own_words_are_named_alone_and_together(name, answer, cause):
    report = examine(exercises.find(name), LocalAnswer(answer), reference_allowed=True)
    assert report.status == "wrong"
    assert cause in report.cause, (report.cause, report.card)


def test_a_right_split_that_refuses_nothing_hears_of_the_refusal_only():
    def split_heads(x, H):
        return x.view(*x.shape[:2], H, x.shape[2] // H).transpose(1, 2)

    report = examine(exercises.find("split_heads"), LocalAnswer(split_heads))
    assert report.cause == "uneven-heads-left-to-torch"
    assert "ValueError" in report.card.cause


def test_an_answer_that_is_wrong_and_refuses_in_a_way_nobody_foresaw_is_still_named():
    def split_heads(x, H):
        if x.shape[-1] % H:
            raise KeyError(H)
        return x.reshape(len(x), H, x.shape[1], -1)

    report = examine(exercises.find("split_heads"), LocalAnswer(split_heads))
    assert report.cause == "view-without-transpose"


def test_a_number_where_a_table_was_expected_is_told_by_its_shape():
    report = examine(exercises.find("head_distance"), LocalAnswer(lambda weights: weights.sum() * 0 + 0.123))
    assert report.cause == "shape" and "expected (3, 3)" in " ".join(report.card.lines)


def test_the_lesson_knows_at_least_twenty_mistakes_and_five_styles_of_each_core_exercise():
    assert len({m.id for exercise in LESSON.exercises for m in exercise.misconceptions}) >= 60
    assert all(len(exercise.styles) >= 5 for exercise in LESSON.exercises)


def test_every_option_of_a_question_is_explained_and_stands_in_the_notebook():
    text = (FOLDER / "03_many_heads.py").read_text(encoding="utf-8")
    assert len(LESSON.questions) == 4
    for question in LESSON.questions:
        before = text[: text.index(f'"grade_id": "{question.name}"')].rsplit("# %% [markdown]", 1)[1]
        assert all(f"({letter})" in before for letter in question.why), question.name


def test_code_cells_are_short():
    for source in code_cells():
        assert ast.parse(source)
        lines = [line for line in source.split("\n") if line.strip() and "### " not in line]
        assert len(lines) <= 16, source


# ---------------------------------------------------------------------------- the progress bar


def test_the_progress_bar_counts_and_says_so_outside_a_notebook(capsys):
    assert list(progress_bar(3, "training")) == [0, 1, 2]
    seen = capsys.readouterr()
    assert seen.out == "training: 3 of 3\n" and not seen.err


def test_the_leak_of_the_reference_is_nothing():
    leak = future_leak(
        lambda x: attend_in_parallel(x[None], x[None], x[None], 2, causal_mask(6, 6))[0][0], normal(6, 4)
    )
    assert not leak.triu(1).any()
