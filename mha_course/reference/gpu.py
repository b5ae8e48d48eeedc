"""Lesson 07: where tensors live, what a measurement has to wait for, and what attention costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .masks import causal_mask

__all__ = [
    "CausalMask",
    "attention_bytes",
    "attention_flops",
    "benchmark",
    "fused_attention",
    "mixed_precision_gap",
    "pick_device",
    "roofline",
    "to_device",
]


class Device(Protocol):
    """What `benchmark` needs to know of a device: see ``mha_course.devices``."""

    def clock(self) -> float:
        """Seconds on the host's clock."""
        ...

    def synchronize(self) -> None:
        """Wait until all queued work is done."""
        ...


# -------------------------------------------------------------------------------------- devices


def pick_device(cuda: bool | None = None, mps: bool | None = None) -> torch.device:
    """The fastest device there is: CUDA before MPS before the CPU.

    Args:
        cuda, mps: whether such a device is there; ``None``: ask torch.

    Returns:
        ``torch.device("cuda")``, ``torch.device("mps")`` or ``torch.device("cpu")``.
    """
    if cuda is None:
        cuda = torch.cuda.is_available()
    if mps is None:
        mps = torch.backends.mps.is_available()
    return torch.device("cuda" if cuda else "mps" if mps else "cpu")


def to_device(batch: Any, device: torch.device | str) -> Any:
    """Every tensor in a batch on ``device``; the batch that was given stays as it is.

    Args:
        batch: a tensor, or dicts, lists and tuples of batches, nested as deep as you like; anything else in it
            (a number, a text, ``None``) is passed on.
        device: where to.

    Returns:
        the same structure.
    """
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(item, device) for item in batch)
    return batch


class CausalMask(nn.Module):
    """Closes the future in scores, wherever the scores are.

    Args:
        longest: the largest L it can be asked for.

    The mask moves along with the module (it is a buffer), and is not saved with its parameters.
    """

    def __init__(self, longest: int):
        super().__init__()
        self.register_buffer("mask", causal_mask(longest, longest), persistent=False)  # (longest, longest)

    def forward(self, scores: Tensor) -> Tensor:
        """−∞ wherever a key comes after the query.

        Args:
            scores: (N, H, L, L), of any floating dtype, on any device; L ≤ longest.

        Returns:
            the same shape, dtype and device.
        """
        L = scores.shape[-1]
        return scores.masked_fill(~self.mask[:L, :L], -torch.inf)


# --------------------------------------------------------------------------------- measuring


def benchmark(fn: Callable[[], Any], device: Device, repeats: int = 20, warmup: int = 3) -> float:
    """How long one call of ``fn`` takes, its work on the device included.

    Args:
        fn: called without arguments.
        device: has ``clock()`` (seconds) and ``synchronize()`` (waits until all queued work is done).
        repeats: how many calls are timed, each by itself.
        warmup: how many calls come before them and do not count.

    Returns:
        the median, in seconds.

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#asynchronous-execution
    """
    for _ in range(warmup):
        fn()
    device.synchronize()
    times = []
    for _ in range(repeats):
        started = device.clock()
        fn()
        device.synchronize()
        times.append(device.clock() - started)
    return statistics.median(times)


def attention_flops(N: int, H: int, L: int, D: int) -> int:
    """Additions and multiplications of self-attention's two products, forward.

    Args:
        N, H, L, D: batch, heads, tokens, features per head.

    Returns:
        ``4 N H L² D``: scores and mixing, L² D multiplications each per head, and as many additions.
        (The softmax does not count: it is L² of something, not L² D.)
    """
    return 2 * 2 * N * H * L * L * D


def attention_bytes(N: int, H: int, L: int, D: int, dtype: torch.dtype, fused: bool) -> int:
    """What self-attention moves between the device's memory and its arithmetic units, at the least.

    Args:
        N, H, L, D: batch, heads, tokens, features per head.
        dtype: of all the tensors.
        fused: one kernel, the L × L numbers never leave it. Otherwise three: scores are written, read by the
            softmax, the weights are written, and read again.

    Returns:
        bytes: q, k, v are read and the output is written, (N, H, L, D) each; unfused, four times (N, H, L, L) more.
    """
    numbers = 4 * N * H * L * D
    if not fused:
        numbers += 4 * N * H * L * L
    return numbers * dtype.itemsize


def roofline(flops: float, moved: float, peak_flops: float, peak_bandwidth: float) -> tuple[float, str]:
    """The shortest time that a piece of work can take, and what it is that sets it.

    Args:
        flops: additions and multiplications.
        moved: bytes to and from memory.
        peak_flops: the machine's ceiling, in FLOP/s.
        peak_bandwidth: its other ceiling, in bytes/s.

    Returns:
        seconds, and "compute" or "memory": the longer of the two times; at a tie "compute".

    Source: Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model".
    """
    computing, moving = flops / peak_flops, moved / peak_bandwidth
    return max(computing, moving), "memory" if moving > computing else "compute"


# ------------------------------------------------------------------- the fused kernel, precision


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    may_attend: Tensor | None = None,
    dropout_p: float = 0.0,
    training: bool = False,
    is_causal: bool = False,
) -> Tensor:
    """Attention by ``F.scaled_dot_product_attention``, under the course's rules.

    Args:
        q: (N, H, L, D).
        k, v: (N, H, S, D).
        may_attend: bool, broadcastable to (N, H, L, S); True = may look. A query that may see nothing gets zeros.
        dropout_p: on the weights, in training only.
        training: whether it is.
        is_causal: the future is closed, in training and out of it: key j is open to query i where j ≤ i.

    Returns:
        (N, H, L, D).
    """
    p = dropout_p if training else 0.0
    if may_attend is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=is_causal)
    if is_causal:  # torch takes a mask or is_causal, not both
        may_attend = may_attend & causal_mask(q.shape[-2], k.shape[-2], device=q.device)
    dead = ~may_attend.any(-1, keepdim=True)  # (…, L, 1); kernels differ in what they give there
    output = F.scaled_dot_product_attention(q, k, v, attn_mask=may_attend | dead, dropout_p=p)
    return output.masked_fill(dead, 0.0)


def mixed_precision_gap(fn: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype) -> float:
    """How far a computation in ``dtype`` is from the truth, in rounding steps of that dtype.

    Args:
        fn: takes a tensor, gives a tensor, in the dtype it is given.
        x: its input.
        dtype: torch.float16, torch.bfloat16 or torch.float32.

    Returns:
        the largest error, divided by the truth's largest absolute value and by ``torch.finfo(dtype).eps``. The truth
        is ``fn`` in float64. ``inf`` if anything in the result is not finite.
    """
    truth = fn(x.double())
    low = fn(x.to(dtype)).double()
    if not bool(low.isfinite().all()):
        return float("inf")
    error = (low - truth).abs().max() / truth.abs().max()
    return error.item() / torch.finfo(dtype).eps
