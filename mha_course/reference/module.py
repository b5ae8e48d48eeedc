"""Lesson 04: the module. Projections, cross-attention, dropout on the weights, and a way to trust its gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .many_heads import attend_in_parallel, merge_heads, split_heads

__all__ = [
    "MultiHeadAttention",
    "attention_dropout",
    "numerical_gradient",
    "pack_projections",
    "unpack_projections",
]


def pack_projections(wq: Tensor, wk: Tensor, wv: Tensor) -> Tensor:
    """Three projection matrices as one, so that one product makes queries, keys and values.

    Args:
        wq, wk, wv: (E, E) each, as in ``nn.Linear.weight``: (out, in).

    Returns:
        (3E, E): the query rows first, then the key rows, then the value rows.
    """
    return torch.cat([wq, wk, wv], dim=0)


def unpack_projections(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Undo `pack_projections`.

    Args:
        packed: (3E, E).

    Returns:
        wq, wk, wv: (E, E) each.
    """
    wq, wk, wv = packed.chunk(3, dim=0)
    return wq, wk, wv


def attention_dropout(weights: Tensor, p: float, training: bool) -> Tensor:
    """Close each look with probability p while training, and make the others stronger to keep the mean.

    Args:
        weights: any shape; rows sum to 1.
        p: probability of being set to 0, in [0, 1).
        training: only then; otherwise the weights stay as they are.

    Returns:
        the same shape: 0 with probability p, ``weight / (1 - p)`` otherwise.

    Source: Srivastava et al. 2014; on attention weights: Vaswani et al.'s code.
    """
    if not training or p == 0:
        return weights
    keep = torch.rand_like(weights) >= p
    return weights * keep / (1 - p)


class MultiHeadAttention(nn.Module):
    """Multi-head attention as in the paper, batch first.

    Args:
        E: embed_dim, of queries and of the output.
        H: number of heads; divides E.
        dropout: on the attention weights, in train mode.
        bias: whether the four projections have biases.
        kdim, vdim: features of key and value, if not E.

    Four layers: ``query`` (E → E), ``key`` (kdim → E), ``value`` (vdim → E), ``out`` (E → E).

    Raises:
        ValueError: H does not divide E.

    Source: Vaswani et al. 2017, section 3.2.2.
    """

    def __init__(
        self,
        E: int,
        H: int,
        dropout: float = 0.0,
        bias: bool = True,
        kdim: int | None = None,
        vdim: int | None = None,
    ):
        super().__init__()
        if E % H:
            raise ValueError(f"embed_dim {E} cannot be split evenly among {H} heads")
        self.H, self.dropout = H, dropout
        self.query = nn.Linear(E, E, bias=bias)
        self.key = nn.Linear(E if kdim is None else kdim, E, bias=bias)
        self.value = nn.Linear(E if vdim is None else vdim, E, bias=bias)
        self.out = nn.Linear(E, E, bias=bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        may_attend: Tensor | None = None,
        need_weights: bool = False,
        average_weights: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            query: (N, L, E).
            key: (N, S, kdim).
            value: (N, S, vdim).
            may_attend: bool, broadcastable to (N, H, L, S); True = may look. A query that may see nothing gets
                the bias of ``out``.
            need_weights: return the weights, too (before dropout).
            average_weights: their mean over the heads, (N, L, S), instead of (N, H, L, S).

        Returns:
            output (N, L, E), and the weights or ``None``.
        """
        q, k, v = self.query(query), self.key(key), self.value(value)  # (N, L, E), (N, S, E), (N, S, E)
        _, weights = attend_in_parallel(q, k, v, self.H, may_attend)  # (N, H, L, S)
        dropped = attention_dropout(weights, self.dropout, self.training)
        output = self.out(merge_heads(dropped @ split_heads(v, self.H)))  # (N, L, E)
        if not need_weights:
            return output, None
        return output, weights.mean(1) if average_weights else weights


def numerical_gradient(fn: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-5) -> Tensor:
    """The gradient by trying: move each number a little both ways and look what the result does.

    Args:
        fn: takes x, gives a single number (0-dimensional tensor).
        x: float64, any shape.
        step: how far to move.

    Returns:
        shaped like x: ``(fn(x + step) - fn(x - step)) / (2 step)``, one number at a time.
    """
    gradient = torch.zeros_like(x)
    for index in range(x.numel()):
        move = torch.zeros_like(x).view(-1)
        move[index] = step
        move = move.view_as(x)
        gradient.view(-1)[index] = (fn(x + move) - fn(x - move)).item() / (2 * step)
    return gradient
