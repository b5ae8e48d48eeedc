"""torch's FlexAttention, compiled where that is wanted and possible, and a word about which path ran.

Compiled, the scores never exist as a matrix: the `score_mod` is built into one kernel. Run eagerly, FlexAttention makes
the whole matrix; the numbers are the same. Compiling needs a C++ compiler on a CPU and Triton on a GPU.

Source: https://docs.pytorch.org/docs/stable/nn.attention.flex_attention.html
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mha_course import quiet

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def eager(q: Tensor, k: Tensor, v: Tensor, score_mod: ScoreMod | None = None, **options: Any) -> Tensor:
    """FlexAttention, not compiled: any dtype, any device, the whole matrix.

    Args:
        q: (N, H, L, D).
        k: (N, H, S, D).
        v: (N, H, S, Dv).
        score_mod: changes one score; called with (score, n, h, i, j), tensors without dimensions.
        options: passed on to ``flex_attention``.

    Returns:
        (N, H, L, Dv).
    """
    from torch.nn.attention.flex_attention import flex_attention

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        return flex_attention(q, k, v, score_mod=score_mod, **options)


def attention(
    q: Tensor, k: Tensor, v: Tensor, score_mod: ScoreMod | None = None, compiled: bool = True, **options: Any
) -> tuple[Tensor, str]:
    """FlexAttention, compiled if that is asked for and works, else `eager`; and a sentence that says which it was.

    Args:
        q, k, v, score_mod, options: as for `eager`.
        compiled: try to compile. The first call for a ``score_mod`` then takes 5 to 20 seconds.

    Returns:
        output (N, H, L, Dv), and the sentence.
    """
    why = "it was not asked to compile"
    if compiled:
        try:
            with quiet.nothing_on_stderr(), warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                output = _compiled()(q, k, v, score_mod=score_mod, **options)
            return output, f"FlexAttention ran compiled, on {q.device.type}: no matrix of scores."
        except Exception as error:  # no compiler, no Triton, a version that cannot: eager still works
            why = f"it could not be compiled here ({_reason(error)})"
    return eager(q, k, v, score_mod, **options), f"FlexAttention ran eagerly, with the whole matrix: {why}."


def _reason(error: Exception) -> str:
    """In few words, what was in the way of compiling."""
    text = str(error)
    if "C++ compiler" in text:
        return "no C++ compiler was found"
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.endswith("raised:")]
    return (lines or [type(error).__name__])[0][:120]


def _compiled() -> Callable[..., Tensor]:
    quiet.mend_caches()
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)
