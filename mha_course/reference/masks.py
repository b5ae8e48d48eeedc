"""Lesson 02: who may look at whom. Everywhere in the course True means: this query may look at this key."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["causal_mask", "combine_masks", "future_leak", "masked_softmax", "padding_mask", "to_additive"]


def causal_mask(L: int, S: int, offset: int = 0, device: torch.device | str | None = None) -> Tensor:
    """Nobody looks into the future.

    Args:
        L, S: numbers of queries and keys.
        offset: how many keys came before the first query: query i stands at place ``i + offset``.
        device: where the mask shall be.

    Returns:
        bool (L, S): True where key j is at or before query i's place, ``j <= i + offset``.
    """
    query_place = torch.arange(L, device=device).unsqueeze(1) + offset  # (L, 1)
    key_place = torch.arange(S, device=device)  # (S,)
    return key_place <= query_place  # (L, S)


def padding_mask(lengths: Tensor, S: int) -> Tensor:
    """Nobody looks at padding.

    Args:
        lengths: int64 (N,), how many real keys each sample has; the rest of its S keys is padding.
        S: number of keys.

    Returns:
        bool (N, 1, S): True at real keys, for every query.
    """
    return (torch.arange(S, device=lengths.device) < lengths.unsqueeze(1)).unsqueeze(1)  # (N, S) → (N, 1, S)


def combine_masks(*masks: Tensor) -> Tensor:
    """May look only where every mask lets it.

    Args:
        masks: boolean masks whose shapes broadcast.

    Returns:
        bool, of the broadcast shape.
    """
    combined = masks[0]
    for mask in masks[1:]:
        combined = combined & mask
    return combined


def to_additive(may_attend: Tensor, dtype: torch.dtype) -> Tensor:
    """The same mask as numbers to be added to the scores: 0 where it may look, −∞ where not.

    Args:
        may_attend: bool, any shape.
        dtype: of the scores.

    Returns:
        the same shape, of ``dtype``.
    """
    zeros = torch.zeros(may_attend.shape, dtype=dtype, device=may_attend.device)
    return zeros.masked_fill(~may_attend, -torch.inf)


def masked_softmax(scores: Tensor, may_attend: Tensor) -> Tensor:
    """Weights over the keys that a query may look at.

    Args:
        scores: (N, L, S), or with heads (N, H, L, S).
        may_attend: bool, broadcastable to the scores.

    Returns:
        weights, shaped like the scores: rows sum to 1; a row that may look at nothing is all zeros. The
        gradient is finite everywhere, and zero for what may not be seen.
    """
    dead = ~may_attend.any(-1, keepdim=True)  # (…, L, 1): rows that may look at nothing
    scores = scores.masked_fill(
        ~(may_attend | dead), -torch.inf
    )  # dead rows stay as they are: no row is all −∞
    return torch.softmax(scores, dim=-1).masked_fill(dead, 0.0)


def future_leak(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """How much each output depends on each input: a map on which looking ahead shows.

    Args:
        fn: takes tokens (L, E), gives one result per token, (L, anything).
        x: tokens, (L, E).

    Returns:
        (L, L): entry [i, j] is the sum over all features of |∂ fn(x)[i] / ∂ x[j]|; everything above the
        diagonal must be 0 for a causal function.
    """
    jacobian = torch.autograd.functional.jacobian(fn, x)  # (L, F, L, E)
    return jacobian.abs().sum(dim=(1, 3))  # (L, L)
