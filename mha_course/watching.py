"""Looking at a function at work: which tiles of scores it computes, and in which order.

Queries and keys are chosen so that the score of query i and key j *is* a number that says "i, j". Whatever operation makes
a block of such numbers has computed that tile, however the function is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Tile = tuple[int, int, int, int]


def score_tiles(fn: Callable[[Tensor, Tensor, Tensor], Any], L: int, S: int) -> list[Tile]:
    """The tiles of the (L, S) scores that ``fn(q, k, v)`` makes, in order.

    Args:
        fn: attention with the scale 1/√D; gets q (1, 1, L, 2), k (1, 1, S, 2), v (1, 1, S, 1), float64.
        L, S: how many queries and keys. Choose them so that no block has a single row or column.

    Returns:
        for each tile (first query, behind the last query, first key, behind the last key); empty if no scores were seen.
    """
    i, j = torch.arange(L, dtype=torch.float64), torch.arange(S, dtype=torch.float64)
    q = torch.stack([i * S, torch.ones_like(i)], -1).view(1, 1, L, 2)
    k = torch.stack([torch.ones_like(j), j], -1).view(1, 1, S, 2)
    v = torch.full((1, 1, S, 1), math.pi, dtype=torch.float64)  # no output looks like a score
    with _Scores(L, S) as scores:
        fn(q, k, v)
    return scores.tiles


class _Scores(TorchDispatchMode):
    """Notes every result whose rows and columns count on like the numbers i · S + j."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # the default imports torch's whole compiler at the first call
        return False

    def __init__(self, L: int, S: int):
        super().__init__()
        self.L, self.S = L, S
        self.tiles: list[Tile] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.dim() >= 2 and x.is_floating_point():
                self.look_at(x.reshape(-1, *x.shape[-2:])[0])
        return result

    def look_at(self, x: Tensor) -> None:
        rows, columns = x.shape
        if not (2 <= rows <= self.L and 2 <= columns <= self.S and x.isfinite().all()):
            return  # a single row or column could be anything, a maximum for instance
        for scale in (math.sqrt(2), 1.0):  # divided by √D already, or not yet
            first = round(float(x[0, 0]) * scale)
            i, j = divmod(first, self.S)
            expected = first + torch.arange(rows).unsqueeze(1) * self.S + torch.arange(columns)
            fits = i >= 0 and i + rows <= self.L and j + columns <= self.S
            if fits and torch.allclose(x * scale, expected.to(x.dtype), rtol=0, atol=1e-6):
                tile = (i, i + rows, j, j + columns)
                if self.tiles[-1:] != [tile]:
                    self.tiles.append(tile)
                return
