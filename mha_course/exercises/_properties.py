"""What the properties of all lessons share: they speak of results of the right kind only.

A wrong shape, NaN, or two results that have changed places say enough by themselves; whatever a property said about
them would be false, or beside the point.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Fails = Callable[[Mapping[str, Any], Any], str | None]


def of_shape(
    *shapes: Callable[[Mapping[str, Any]], tuple], infinite: bool = False
) -> Callable[[Fails], Fails]:
    """Let a property speak only where the answer's results have the shapes they should have, and hold no NaN.

    Args:
        shapes: for each result, what its shape should be, from the inputs; ``None`` for a size that may be any.
        infinite: ∞ and −∞ may stand among the numbers (a logarithm of 0, a closed score).
    """

    def decorate(fails: Fails) -> Fails:
        @functools.wraps(fails)
        def careful(inputs, value):
            results = value if len(shapes) > 1 else (value,)
            if not isinstance(results, (tuple, list)) or len(results) != len(shapes):
                return None
            if all(sound(x, shape(inputs), infinite) for x, shape in zip(results, shapes)):
                return fails(inputs, value)
            return None

        return careful

    return decorate


def sound(x: Any, shape: tuple, infinite: bool = False) -> bool:
    """Whether x is a tensor of this shape (``None``: any size) that can be looked at, without NaN."""
    if not isinstance(x, Tensor) or x.is_meta or x.dim() != len(shape):
        return False
    if any(wanted not in (None, size) for size, wanted in zip(x.shape, shape)):
        return False
    return not bool(x.isnan().any() if infinite else (~x.isfinite()).any())


def a_number(fails: Fails) -> Fails:
    """Let a property speak of a plain Python number only, and not of NaN."""

    @functools.wraps(fails)
    def careful(inputs, value):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
            return None
        return fails(inputs, value)

    return careful
