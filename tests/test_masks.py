"""Lesson 02: its reference against torch, and what the lesson says of the four treatments of a dead row."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

from mha_course import reference


@pytest.mark.parametrize(("L", "S"), [(4, 4), (3, 5), (5, 3), (1, 7)])
def test_the_causal_mask_is_torchs_for_both_alignments(L, S):
    scores, values = (
        torch.zeros(1, 1, L, 1, dtype=torch.float64),
        torch.eye(S, dtype=torch.float64)[None, None],
    )
    for offset, theirs in ((0, causal_upper_left(L, S)), (S - L, causal_lower_right(L, S))):
        if S < L and offset:
            continue  # lower-right with fewer keys than queries has dead rows, where torch's own answers differ
        weights = F.scaled_dot_product_attention(
            scores, torch.zeros(1, 1, S, 1, dtype=torch.float64), values, theirs
        )
        assert torch.equal(weights[0, 0] > 0, reference.causal_mask(L, S, offset))


def test_masked_attention_equals_torchs_with_gradients():
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(2, n, d, dtype=torch.float64, requires_grad=True) for n, d in ((5, 4), (7, 4), (7, 3))
    )
    may_attend = reference.combine_masks(
        reference.causal_mask(5, 7, 2), reference.padding_mask(torch.tensor([7, 3]), 7)
    )
    ours = reference.masked_softmax(q @ k.mT / 2, may_attend) @ v
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=may_attend)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(ours.sin().sum(), (q, k, v)), torch.autograd.grad(theirs.sin().sum(), (q, k, v))
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_dead_row_gives_zeros_and_finite_gradients():
    scores = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    mask[0, 1] = False
    weights = reference.masked_softmax(scores, mask)
    assert torch.equal(weights[0, 1], torch.zeros(4, dtype=torch.float64))
    gradient = torch.autograd.grad((weights * torch.randn(2, 3, 4)).sum(), scores)[0]
    assert gradient.isfinite().all()
    assert torch.equal(gradient[0, 1], torch.zeros(4, dtype=torch.float64))


def test_replacing_the_nan_of_an_added_mask_leaves_it_in_the_gradient():
    scores = torch.randn(1, 3, requires_grad=True)
    closed = reference.to_additive(torch.zeros(1, 3, dtype=torch.bool), torch.float32)
    weights = (scores + closed).softmax(-1).nan_to_num(0.0)
    assert torch.equal(weights, torch.zeros(1, 3))
    assert torch.autograd.grad(weights.sum(), scores)[0].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_additive_masks_exist_in_every_dtype(dtype):
    mask = torch.tensor([True, False])
    assert reference.to_additive(mask, dtype).tolist() == [0.0, -torch.inf]
    assert reference.to_additive(mask, dtype).dtype == dtype


def attention(weigh):
    return lambda x: weigh(x @ x.T / x.shape[-1] ** 0.5) @ x


def above_the_diagonal(weigh, x):
    return int((reference.future_leak(attention(weigh), x).triu(1) > 1e-9).sum())


def test_the_detector_sees_the_three_wrong_masks_of_the_lesson_and_lets_the_right_one_pass():
    torch.manual_seed(0)
    x = torch.randn(6, 4, dtype=torch.float64)
    with_a_zero = x.clone()
    with_a_zero[0] = 0

    def score_is_zero(scores):
        closed = scores.tril()
        return closed.masked_fill(closed == 0, -1e9).softmax(-1)

    def yours(scores):
        return reference.masked_softmax(scores, reference.causal_mask(*scores.shape))

    one_ahead = lambda s: s.masked_fill(torch.ones_like(s).triu(2).bool(), -torch.inf).softmax(-1)  # noqa: E731
    after = lambda s: s.softmax(-1) * reference.causal_mask(*s.shape)  # noqa: E731
    assert above_the_diagonal(one_ahead, x) == 5
    assert above_the_diagonal(after, x) == 15
    assert above_the_diagonal(score_is_zero, x) == 0
    assert above_the_diagonal(score_is_zero, with_a_zero) == 5
    assert above_the_diagonal(yours, x) == above_the_diagonal(yours, with_a_zero) == 0
