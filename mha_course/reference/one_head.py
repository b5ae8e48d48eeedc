"""Lesson 01: one head. A soft look-up: every query takes a weighted mean of the values, by likeness to the keys."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = [
    "SingleHead",
    "attend",
    "attention_scores",
    "permutation_gap",
    "stable_softmax",
    "weight_sharpness",
]


def attention_scores(q: Tensor, k: Tensor) -> Tensor:
    """How alike each query and each key are: their dot product, divided by √D.

    Args:
        q: queries, (N, L, D).
        k: keys, (N, S, D).

    Returns:
        (N, L, S): entry [n, l, s] says how much query l likes key s.

    Source: Vaswani et al. 2017, "Attention is all you need", section 3.2.1.
    """
    return q @ k.mT / math.sqrt(q.shape[-1])  # (N, L, D) @ (N, D, S) → (N, L, S)


def stable_softmax(x: Tensor, dim: int) -> Tensor:
    """exp(x), divided by its sum along ``dim``, without overflow however large x is.

    Args:
        x: any floating tensor.
        dim: the dimension whose entries shall sum to 1.

    Returns:
        the same shape and dtype.
    """
    shifted = x - x.amax(dim, keepdim=True)  # the largest becomes 0: exp gives at most 1
    e = shifted.exp()
    return e / e.sum(dim, keepdim=True)


def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """One head of attention.

    Args:
        q: queries, (N, L, D).
        k: keys, (N, S, D).
        v: values, (N, S, Dv).

    Returns:
        output (N, L, Dv): for each query a weighted mean of the values,
        weights (N, L, S): each row sums to 1.
    """
    weights = stable_softmax(attention_scores(q, k), dim=-1)  # (N, L, S)
    return weights @ v, weights  # (N, L, S) @ (N, S, Dv) → (N, L, Dv)


def weight_sharpness(D: int, scaled: bool, keys: int = 16, queries: int = 4000) -> float:
    """How much of its attention a random query gives to its favourite key, on average.

    Args:
        D: head_dim. Queries and keys are drawn with independent normal entries, mean 0, variance 1.
        scaled: divide the dot products by √D, or not.
        keys: how many keys each query chooses from.
        queries: how many queries are averaged.

    Returns:
        a number between 1/keys (attention spread evenly) and 1 (all on one key).
    """
    q, k = torch.randn(queries, 1, D), torch.randn(queries, keys, D)  # every query has keys of its own
    scores = attention_scores(q, k)  # (queries, 1, keys)
    if not scaled:
        scores = scores * math.sqrt(D)
    return stable_softmax(scores, dim=-1).amax(-1).mean().item()


class SingleHead(nn.Module):
    """Self-attention with one head: queries, keys and values are three views of the same tokens.

    Args:
        E: embed_dim, the size of a token.
        D: head_dim, the size of its query, key and value.

    Three ``nn.Linear(E, D, bias=False)``: ``query``, ``key`` and ``value``.
    """

    def __init__(self, E: int, D: int):
        super().__init__()
        self.query = nn.Linear(E, D, bias=False)
        self.key = nn.Linear(E, D, bias=False)
        self.value = nn.Linear(E, D, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens x (N, L, E) → output (N, L, D), weights (N, L, L)."""
        return attend(self.query(x), self.key(x), self.value(x))


def permutation_gap(fn: Callable[[Tensor], Tensor], x: Tensor, perm: Tensor) -> float:
    """Does ``fn`` notice in which order the tokens come?

    Args:
        fn: takes tokens (N, L, E), gives one result per token, (N, L, anything).
        x: tokens, (N, L, E).
        perm: a permutation of 0 … L-1, int64 (L,).

    Returns:
        the largest absolute difference between "shuffle, then fn" and "fn, then shuffle": 0 for a
        function that does not know order.
    """
    return (fn(x[:, perm]) - fn(x)[:, perm]).abs().max().item()
