"""Lesson 05: torch's documented use runs unchanged, and torch answers a dead row in two ways."""

import pytest
import torch
from torch import nn

from mha_course import reference


def documented_example(cls):
    torch.manual_seed(0)
    multihead_attn = cls(embed_dim=8, num_heads=2, batch_first=True)
    x = torch.rand(1, 4, 8)
    return multihead_attn(x, x, x)


def test_the_documented_example_gives_the_same_numbers():
    ours, theirs = documented_example(reference.MultiheadAttention), documented_example(nn.MultiheadAttention)
    assert [tuple(x.shape) for x in ours] == [(1, 4, 8), (1, 4, 4)]
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kdim", "vdim"), [(None, None), (3, 5)])
def test_loading_and_exporting_are_inverses(bias, kdim, vdim):
    theirs = nn.MultiheadAttention(8, 2, bias=bias, kdim=kdim, vdim=vdim)
    ours = reference.MultiHeadAttention(8, 2, bias=bias, kdim=kdim, vdim=vdim)
    ours.load_state_dict(reference.load_from_torch(theirs.state_dict()))
    back = reference.export_to_torch(ours.state_dict())
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())


def empty_sample(module, **options):
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    padding = torch.tensor([[False, False, True], [True, True, True]])
    return module(x, x, x, key_padding_mask=padding, **options)[0][1]


def test_torch_answers_a_dead_row_in_two_ways_and_ours_in_one():
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    nn.init.normal_(theirs.out_proj.bias)
    ours = reference.MultiheadAttention(8, 2, batch_first=True)
    ours.load_state_dict(theirs.state_dict())
    bias = theirs.out_proj.bias.expand(3, 8)
    assert empty_sample(theirs).isnan().all()
    torch.testing.assert_close(empty_sample(theirs, need_weights=False), bias)
    theirs.eval()
    with torch.no_grad():
        assert empty_sample(theirs, need_weights=False).isnan().all()
    for need_weights in (True, False):
        torch.testing.assert_close(empty_sample(ours, need_weights=need_weights), bias)


def test_masks_of_numbers_block_only_where_they_are_minus_infinity():
    mask = torch.tensor([[0.0, -2.0, -torch.inf]])
    assert reference.to_may_attend(mask, None, 1, 1).flatten().tolist() == [True, True, False]
    assert reference.to_may_attend(None, None, 1, 1) is None


def test_the_heads_of_a_sample_are_neighbours_in_a_three_dimensional_mask():
    N, H = 2, 3
    blocked = torch.zeros(N * H, 1, 4, dtype=torch.bool)
    blocked[1 * H + 2, 0, 3] = True  # sample 1, head 2
    may_attend = reference.to_may_attend(blocked, None, N, H)
    assert (~may_attend).nonzero().tolist() == [[1, 2, 0, 3]]
