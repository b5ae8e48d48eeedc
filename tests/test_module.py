"""Lesson 04: its reference against torch, and what the lesson says of dropout and of tests with x, x, x."""

import torch
from torch import nn

from mha_course import reference


def pair(E=12, H=3, **options):
    """Our module and torch's, with the same random parameters."""
    ours = reference.MultiHeadAttention(E, H, **options).double()
    theirs = nn.MultiheadAttention(E, H, batch_first=True, **options).double()
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    theirs.load_state_dict(reference.export_to_torch(ours.state_dict()))
    return ours, theirs


def test_the_module_equals_torchs_with_gradients():
    torch.manual_seed(0)
    for options in ({}, {"bias": False}, {"kdim": 5, "vdim": 8}):
        ours, theirs = pair(**options)
        sizes = ((5, 12), (7, options.get("kdim", 12)), (7, options.get("vdim", 12)))
        inputs = [torch.randn(2, n, e, dtype=torch.float64, requires_grad=True) for n, e in sizes]
        mask = torch.rand(2, 5, 7) < 0.7
        mask[..., 0] = True
        output, weights = ours(*inputs, may_attend=mask[:, None], need_weights=True)
        expected, expected_weights = theirs(*inputs, attn_mask=~mask.repeat_interleave(3, 0))
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-11)
        torch.testing.assert_close(weights, expected_weights, rtol=0, atol=1e-11)
        for a, b in zip(
            torch.autograd.grad(output.sin().sum(), inputs), torch.autograd.grad(expected.sin().sum(), inputs)
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_packing_and_unpacking_are_inverses():
    matrices = torch.randn(3, 4, 4).unbind()
    for a, b in zip(reference.unpack_projections(reference.pack_projections(*matrices)), matrices):
        assert torch.equal(a, b)


def test_dropout_keeps_the_mean_and_lets_row_sums_scatter():
    torch.manual_seed(0)
    weights = torch.randn(4000, 12).softmax(-1)
    sums = reference.attention_dropout(weights, 0.5, True).sum(-1)
    # a row's sum has a standard deviation of about 0.4; the mean of 4000 is within 0.03 of 1 almost surely
    assert abs(sums.mean() - 1) < 0.03
    assert sums.std() > 0.2
    assert reference.attention_dropout(weights, 0.5, False) is weights


def test_a_self_attention_test_cannot_see_a_module_that_ignores_its_keys():
    class OnlySelf(reference.MultiHeadAttention):
        def forward(self, query, key, value, **options):
            return super().forward(query, query, query, **options)

    right, wrong = reference.MultiHeadAttention(12, 3), OnlySelf(12, 3)
    wrong.load_state_dict(right.state_dict())
    x, memory = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    assert torch.equal(right(x, x, x)[0], wrong(x, x, x)[0])
    assert not torch.allclose(right(x, memory, memory)[0], wrong(x, memory, memory)[0])


def test_a_numerical_gradient_agrees_with_autograd():
    torch.manual_seed(0)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    fn = lambda x: (x.sin() * x.flip(0)).sum()  # noqa: E731
    exact = torch.autograd.grad(fn(x), x)[0]
    torch.testing.assert_close(reference.numerical_gradient(fn, x.detach()), exact, rtol=0, atol=1e-8)


def test_the_worked_example_of_the_lesson():
    def cube(x):
        return (x**3).sum()

    x = torch.tensor([2.0], dtype=torch.float64)
    assert reference.numerical_gradient(cube, x, step=1.0).item() == 13
