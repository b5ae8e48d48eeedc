"""Lesson 03: many heads side by side, at the price of one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .masks import masked_softmax

__all__ = [
    "attend_by_loop",
    "attend_in_parallel",
    "head_distance",
    "merge_heads",
    "projection_parameters",
    "split_heads",
]


def split_heads(x: Tensor, H: int) -> Tensor:
    """Give each head its own D features of every token.

    Args:
        x: (N, L, E).
        H: number of heads; divides E.

    Returns:
        (N, H, L, D), D = E / H: head h gets features h·D … (h+1)·D − 1.

    Raises:
        ValueError: H does not divide E.
    """
    N, L, E = x.shape
    if E % H:
        raise ValueError(f"embed_dim {E} cannot be split evenly among {H} heads")
    return x.reshape(N, L, H, E // H).transpose(1, 2)  # (N, L, H, D) → (N, H, L, D)


def merge_heads(x: Tensor) -> Tensor:
    """Undo `split_heads`: put the heads' features side by side again.

    Args:
        x: (N, H, L, D).

    Returns:
        (N, L, E), E = H · D.
    """
    return x.transpose(1, 2).flatten(2)  # (N, L, H, D) → (N, L, E)


def attend_by_loop(q: Tensor, k: Tensor, v: Tensor, H: int) -> tuple[Tensor, Tensor]:
    """Every head by itself, one after the other: the slow way that is easy to believe.

    Args:
        q: (N, L, E).
        k, v: (N, S, E).
        H: number of heads; divides E.

    Returns:
        output (N, L, E), weights (N, H, L, S).

    Raises:
        ValueError: H does not divide E.
    """
    E = q.shape[-1]
    if E % H:
        raise ValueError(f"embed_dim {E} cannot be split evenly among {H} heads")
    outputs, weights = [], []
    for qh, kh, vh in zip(q.split(E // H, -1), k.split(E // H, -1), v.split(E // H, -1)):
        w = torch.softmax(qh @ kh.mT / math.sqrt(E // H), dim=-1)  # (N, L, S)
        outputs.append(w @ vh)  # (N, L, D)
        weights.append(w)
    return torch.cat(outputs, dim=-1), torch.stack(weights, dim=1)


def attend_in_parallel(
    q: Tensor, k: Tensor, v: Tensor, H: int, may_attend: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """All heads in one batched product.

    Args:
        q: (N, L, E).
        k, v: (N, S, E).
        H: number of heads; divides E.
        may_attend: bool, broadcastable to (N, H, L, S); True = may look. A query that may see nothing gets zeros.

    Returns:
        output (N, L, E), weights (N, H, L, S).

    Raises:
        ValueError: H does not divide E.
    """
    q, k, v = split_heads(q, H), split_heads(k, H), split_heads(v, H)  # (N, H, L or S, D)
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # (N, H, L, S)
    weights = torch.softmax(scores, -1) if may_attend is None else masked_softmax(scores, may_attend)
    return merge_heads(weights @ v), weights  # (N, H, L, D) → (N, L, E)


def projection_parameters(E: int, H: int, bias: bool) -> int:
    """How many numbers the four projections (query, key, value, output) of H heads hold, head by head.

    Args:
        E: embed_dim.
        H: number of heads; divides E.
        bias: whether the projections have biases.

    Returns:
        the count. It does not depend on H.
    """
    D = E // H
    per_head = 3 * (D * E + (D if bias else 0))  # its own query, key and value projection
    output = E * E + (E if bias else 0)
    return H * per_head + output


def head_distance(weights: Tensor) -> Tensor:
    """How differently two heads look: total variation between their rows of weights, averaged.

    Args:
        weights: (N, H, L, S); rows sum to 1.

    Returns:
        (H, H): 0 for heads that look alike everywhere, 1 for heads that never look at the same key.
    """
    gap = (weights.unsqueeze(2) - weights.unsqueeze(1)).abs().sum(-1) / 2  # (N, H, H, L)
    return gap.mean(dim=(0, 3))  # (H, H)
