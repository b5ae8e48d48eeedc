"""Lesson 00: three warm-ups on shapes. Each comes back in a later lesson."""

from torch import Tensor

__all__ = ["pairwise_dot", "regroup", "steps_back"]


def steps_back(query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """How many steps each query must look back to reach each key.

    Entry ``[i, j]`` is ``query_positions[i] - key_positions[j]``: 0 is the same place, negative lies ahead.
    Lesson 02 makes the causal mask of it: look where it is not negative.

    Args:
        query_positions: (L,), any dtype.
        key_positions: (S,), the same dtype.

    Returns:
        (L, S)
    """
    column = query_positions[:, None]  # (L, 1)
    row = key_positions[None, :]  # (1, S)
    return column - row  # (L, S)


def pairwise_dot(a: Tensor, b: Tensor) -> Tensor:
    """The dot product of every row of ``a`` with every row of ``b``.

    Lesson 01 calls this the scores of attention, before they are scaled.

    Args:
        a: (L, D)
        b: (S, D)

    Returns:
        (L, S): entry ``[i, j]`` is the sum over d of ``a[i, d] * b[j, d]``.
    """
    return a @ b.T  # (L, D) @ (D, S) → (L, S)


def regroup(x: Tensor, groups: int) -> Tensor:
    """Split the features of every token into groups, and bring the groups to the front.

    Lesson 03 splits an embedding into heads so.

    Args:
        x: (L, E), one row per token.
        groups: how many; divides E.

    Returns:
        (groups, L, E / groups): slice ``[g]`` has every token's g-th run of neighbouring features.

    Raises:
        RuntimeError: E is not divisible by ``groups``.
    """
    L, E = x.shape
    x = x.view(L, groups, E // groups)  # cut each row: (L, groups, E / groups)
    return x.transpose(0, 1)  # groups in front of the tokens: (groups, L, E / groups)
