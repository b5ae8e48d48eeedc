"""Functions that an exercise may take as an argument, known by name.

``Named("softmax_rows")`` in a case becomes the function of that name on the answer's side of the
process boundary: a function cannot cross it, its name can. Nothing here is an answer to anything.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

KNOWN: dict[str, Callable] = {}


def known(function: Callable) -> Callable:
    """Make a function available to cases as ``Named(function.__name__)``."""
    if function.__name__ in KNOWN:
        raise ValueError(f"two known callables are called {function.__name__!r}")
    KNOWN[function.__name__] = function
    return function


@known
def cumulative_sum(x: Tensor) -> Tensor:
    """Each token becomes the sum of itself and those before it: looks back, never ahead. (N, L, E) or (L, E)."""
    return x.cumsum(-2)


@known
def cumulative_mean(x: Tensor) -> Tensor:
    """Each token becomes the mean of itself and those before it: order matters. (…, L, E) → same."""
    count = torch.arange(1, x.shape[-2] + 1, dtype=x.dtype, device=x.device)
    return x.cumsum(-2) / count.unsqueeze(-1)


@known
def weighted_by_position(x: Tensor) -> Tensor:
    """Token i is multiplied by i + 1: order matters, tokens do not mix. (…, L, E) → same."""
    return x * torch.arange(1, x.shape[-2] + 1, dtype=x.dtype, device=x.device).unsqueeze(-1)


@known
def squared(x: Tensor) -> Tensor:
    """Each token on its own, squared: order does not matter. Any shape → same."""
    return x * x


@known
def centred(x: Tensor) -> Tensor:
    """Subtracts the mean token: tokens mix, order does not matter. (…, L, E) → same."""
    return x - x.mean(-2, keepdim=True)


@known
def peek_one_ahead(x: Tensor) -> Tensor:
    """Each token also sees the next one: the smallest leak of the future. (…, L, E) → same."""
    ahead = torch.cat([x[..., 1:, :], torch.zeros_like(x[..., :1, :])], -2)
    return x + 0.5 * ahead


@known
def plain_self_attention(x: Tensor) -> Tensor:
    """Attention of the tokens to one another, no mask, no parameters. (…, L, E) → same."""
    return torch.softmax(x @ x.mT / x.shape[-1] ** 0.5, -1) @ x


@known
def sum_of_cubes(x: Tensor) -> Tensor:
    """A single number: Σ x³. Any shape → ()."""
    return x.pow(3).sum()


@known
def chained_products(x: Tensor) -> Tensor:
    """A single number in which neighbours meet: Σ xᵢ · xᵢ₊₁². Any shape → ()."""
    flat = x.flatten()
    return (flat[:-1] * flat[1:].pow(2)).sum()
