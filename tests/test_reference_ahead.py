"""Reference of lesson 08: exact against the direct formula."""

import pytest
import torch

from mha_course.reference import order_and_memory as om
from mha_course.reference import without_the_matrix as wm


def exact(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def masks(N, L, S):
    causal = torch.arange(S) <= torch.arange(L).unsqueeze(1)
    padding = (torch.arange(S) < torch.tensor([S, 2]).unsqueeze(1))[:, None, None]
    dead = torch.ones(N, 1, L, S, dtype=torch.bool)
    dead[1, 0, 3] = False
    return {"none": None, "causal": causal, "padding": padding, "a dead row": dead}


def direct(q, k, v, may_attend):
    return om.grouped_attention(q, k, v, may_attend)[0]


@pytest.mark.parametrize("block_size", [1, 3, 4, 16])
@pytest.mark.parametrize("mask", ["none", "causal", "padding", "a dead row"])
def test_attention_in_tiles_is_exact_forwards_and_backwards(mask, block_size):
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(2, 3, n, d, dtype=torch.float64, requires_grad=True) for n, d in ((5, 4), (7, 4), (7, 6))
    )
    may_attend = masks(2, 5, 7)[mask]
    expected = direct(q, k, v, may_attend)
    output, lse = wm.flash_forward(q, k, v, block_size, may_attend)
    exact(output, expected)
    grad = torch.randn_like(expected)
    found = wm.flash_backward(*(x.detach() for x in (q, k, v, output, lse)), grad, block_size, may_attend)
    for ours, theirs in zip(found, torch.autograd.grad(expected, (q, k, v), grad)):
        exact(ours, theirs)


def test_two_halves_of_the_keys_merge_into_the_whole():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 4, dtype=torch.float64) for n in (5, 7, 7))
    halves = [wm.flash_forward(q, k[:, :, part], v[:, :, part], 2) for part in (slice(0, 3), slice(3, 7))]
    whole = wm.flash_forward(q, k, v, 4)
    for ours, theirs in zip(wm.logsumexp_merge(*halves[0], *halves[1]), whole):
        exact(ours, theirs)


def test_a_softmax_in_one_pass_has_the_maximum_and_the_sum():
    x = torch.randn(3, 10, dtype=torch.float64) * 50
    x[1] = -torch.inf
    m, total = wm.online_softmax(x.split([4, 1, 5], dim=-1))
    exact(m + total.log(), x.logsumexp(-1))
    with pytest.raises(ValueError, match="at least one block"):
        wm.online_softmax([])


def test_score_mods_equal_explicit_masks():
    scores = torch.randn(6, 6, dtype=torch.float64)
    i, j = torch.arange(6).unsqueeze(1), torch.arange(6)
    zero = torch.zeros((), dtype=torch.int64)
    assert torch.equal(wm.causal(scores, zero, zero, i, j).isinf(), j > i)
    window = wm.sliding_window(scores, zero, zero, i, j, 3)
    assert torch.equal(window.isinf(), (j > i) | (i - j >= 3))
    head = torch.tensor(1)
    exact(wm.alibi(scores, zero, head, i, j, 4), scores - 2.0**-4 * (i - j).abs())
