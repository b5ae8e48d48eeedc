"""Memory and traffic, counted: against what can be worked out by hand."""

import torch
import torch.nn.functional as F

from mha_course.counting import moved_bytes, peak_bytes

FLOAT = 4


def test_what_lives_at_the_same_time_counts_together():
    x = torch.ones(1000)

    def one_after_the_other():
        y = x + 1  # 1 alive
        y = y * 2  # 2 alive while the old one is read, then 1
        return y + 1  # 2

    def all_kept():
        a, b, c = x + 1, x + 2, x + 3
        return a, b, c

    assert peak_bytes(one_after_the_other) == 2 * 1000 * FLOAT
    assert peak_bytes(all_kept) == 3 * 1000 * FLOAT


def test_inputs_views_and_writing_in_place_cost_no_memory():
    x = torch.ones(10, 100)
    assert peak_bytes(lambda: x.mT.reshape(100, 10)[3:].expand(5, 97, 10)) == 0
    assert peak_bytes(lambda: x.add_(1)) == 0


def test_the_graph_and_the_gradients_count_too():
    x = torch.ones(1000, requires_grad=True)

    def step():
        (gradient,) = torch.autograd.grad((x.exp() * 2).sum(), x)
        return gradient

    kept = 2 * 1000 * FLOAT  # exp(x) is kept for the backward pass; the product lives beside it
    assert kept <= peak_bytes(step) <= kept + 1000 * FLOAT + 64


def test_counting_again_gives_the_same():
    x = torch.ones(50, 50)
    assert len({peak_bytes(lambda: (x @ x).softmax(-1) @ x) for _ in range(5)}) == 1


def test_traffic_is_operands_read_and_results_written():
    a, b = torch.ones(10, 20), torch.ones(20, 30)
    assert moved_bytes(lambda: a @ b) == (10 * 20 + 20 * 30 + 10 * 30) * FLOAT
    assert moved_bytes(lambda: a.mT) == 0
    assert moved_bytes(lambda: a + a) == 2 * 10 * 20 * FLOAT  # the same operand twice is read once
    assert moved_bytes(lambda: torch.zeros_like(a)) == 10 * 20 * FLOAT
    assert moved_bytes(lambda: a.copy_(torch.ones(1).expand(10, 20))) == (1 + 1 + 10 * 20) * FLOAT


def test_the_fused_kernel_moves_less_the_longer_the_sequence():
    def ratio(L):
        q = torch.ones(1, 2, L, 8)
        direct = moved_bytes(lambda: torch.softmax(q @ q.mT / 8**0.5, -1) @ q)
        return direct / moved_bytes(lambda: F.scaled_dot_product_attention(q, q.clone(), q.clone()))

    assert 1 < ratio(64) < ratio(256) / 3
