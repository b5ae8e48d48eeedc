"""Lesson 08: attention that never holds the L × L matrix, exact to rounding.

A softmax needs its row's maximum and sum before it can give one weight; both can be kept up to date while
the row passes by in blocks. That is all there is to FlashAttention's forward pass; its backward pass computes
the blocks again instead of keeping them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = [
    "alibi",
    "causal",
    "flash_backward",
    "flash_forward",
    "logsumexp_merge",
    "online_softmax",
    "sliding_window",
]


def online_softmax(blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Maximum and sum of exponentials of a row that passes by in blocks, each seen once.

    Args:
        blocks: the row's pieces in order, each (…, any length); −inf allowed.

    Returns:
        maximum (…) and sum of exp(x - maximum) (…). A row of nothing but −inf has maximum −inf and sum 0.

    Source: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", algorithm 3.
    """
    m = l = None
    for block in blocks:
        top = block.amax(-1)
        if m is None:
            m, l = torch.full_like(top, -torch.inf), torch.zeros_like(top)
        new = torch.maximum(m, top)
        safe = new.masked_fill(new == -torch.inf, 0.0)  # −inf − (−inf) would be NaN
        l = l * (m - safe).exp() + (block - safe.unsqueeze(-1)).exp().sum(-1)
        m = new
    if m is None:
        raise ValueError("online_softmax needs at least one block")
    return m, l


def logsumexp_merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys from the attention over each.

    Args:
        out_a, out_b: (…, L, Dv), the outputs, each normalised over its own keys.
        lse_a, lse_b: (…, L), log of the sum of exponentials of the scores; −inf where nothing may be seen.

    Returns:
        output (…, L, Dv) and lse (…, L) over both sets; zeros and −inf where neither may be seen.

    Source: Dao et al. 2023, "Flash-Decoding".
    """
    lse = torch.logaddexp(lse_a, lse_b)  # (…, L)
    safe = lse.masked_fill(lse == -torch.inf, 0.0)
    share_a, share_b = (lse_a - safe).exp(), (lse_b - safe).exp()  # (…, L): they sum to 1
    return out_a * share_a.unsqueeze(-1) + out_b * share_b.unsqueeze(-1), lse


def flash_forward(
    q: Tensor, k: Tensor, v: Tensor, block_size: int, may_attend: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Exact attention, block by block of queries and keys.

    Args:
        q: (N, H, L, D).
        k: (N, H, S, D).
        v: (N, H, S, Dv).
        block_size: rows and columns of a tile; the last one may be smaller.
        may_attend: bool, broadcastable to (N, H, L, S); True = may look.

    Returns:
        output (N, H, L, Dv); zeros where a query may see nothing,
        lse (N, H, L): log of the sum of exponentials of each query's scores, −inf there.

    Source: Dao et al. 2022, "FlashAttention", algorithm 1; Dao 2023, "FlashAttention-2", section 3.1.
    """
    outputs, sums = [], []
    for i in range(0, q.shape[-2], block_size):
        tile = q[..., i : i + block_size, :] / q.shape[-1] ** 0.5  # (N, H, B, D)
        m = torch.full(tile.shape[:-1], -torch.inf, dtype=q.dtype, device=q.device)  # (N, H, B)
        l = torch.zeros_like(m)
        acc = tile.new_zeros(*tile.shape[:-1], v.shape[-1])  # (N, H, B, Dv)
        for j in range(0, k.shape[-2], block_size):
            scores = tile @ k[..., j : j + block_size, :].mT  # (N, H, B, B)
            if may_attend is not None:
                scores = scores.masked_fill(~_tile(may_attend, i, j, block_size), -torch.inf)
            new = torch.maximum(m, scores.amax(-1))
            safe = new.masked_fill(new == -torch.inf, 0.0)
            p = (scores - safe.unsqueeze(-1)).exp()
            shrink = (m - safe).exp()  # what was summed so far was relative to the old maximum
            l = l * shrink + p.sum(-1)
            acc = acc * shrink.unsqueeze(-1) + p @ v[..., j : j + block_size, :]
            m = new
        dead = l == 0
        outputs.append(acc / l.masked_fill(dead, 1.0).unsqueeze(-1))
        sums.append(m + l.log())
    return torch.cat(outputs, -2), torch.cat(sums, -1)


def _tile(may_attend: Tensor, i: int, j: int, block_size: int) -> Tensor:
    rows = slice(i, i + block_size) if may_attend.shape[-2] > 1 else slice(None)
    columns = slice(j, j + block_size) if may_attend.shape[-1] > 1 else slice(None)
    return may_attend[..., rows, columns]


def flash_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    lse: Tensor,
    grad_output: Tensor,
    block_size: int,
    may_attend: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `flash_forward`, from its output and lse alone: each tile's weights are computed again.

    Args:
        q, k, v, may_attend, block_size: as for `flash_forward`.
        output, lse: what it gave.
        grad_output: (N, H, L, Dv).

    Returns:
        gradients of q, k and v, shaped like them.

    Source: Dao et al. 2022, "FlashAttention", algorithm 4; D = rowsum(dO · O) as in FlashAttention-2.
    """
    scale = q.shape[-1] ** -0.5
    grad_q, grad_k, grad_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    delta = (grad_output * output).sum(-1)  # (N, H, L)
    safe = lse.masked_fill(lse == -torch.inf, 0.0)
    for i in range(0, q.shape[-2], block_size):
        rows = slice(i, i + block_size)
        for j in range(0, k.shape[-2], block_size):
            columns = slice(j, j + block_size)
            scores = q[..., rows, :] @ k[..., columns, :].mT * scale  # (N, H, B, B)
            if may_attend is not None:
                scores = scores.masked_fill(~_tile(may_attend, i, j, block_size), -torch.inf)
            p = (scores - safe[..., rows].unsqueeze(-1)).exp()
            grad_v[..., columns, :] += p.mT @ grad_output[..., rows, :]
            grad_p = grad_output[..., rows, :] @ v[..., columns, :].mT
            grad_scores = p * (grad_p - delta[..., rows].unsqueeze(-1)) * scale
            grad_q[..., rows, :] += grad_scores @ k[..., columns, :]
            grad_k[..., columns, :] += grad_scores.mT @ q[..., rows, :]
    return grad_q, grad_k, grad_v


def causal(score: Tensor, n: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """FlexAttention score_mod: query i may look at key j ≤ i.

    Args:
        score: scores, already divided by √D; one number, or a tensor that the others broadcast to.
        n, h, i, j: sample, head, query and key that each score belongs to, integers.

    Returns:
        the score to use instead, shaped like ``score``.

    Source: https://docs.pytorch.org/docs/stable/nn.attention.flex_attention.html
    """
    return torch.where(j <= i, score, -torch.inf)


def sliding_window(score: Tensor, n: Tensor, h: Tensor, i: Tensor, j: Tensor, width: int) -> Tensor:
    """FlexAttention score_mod: query i sees itself and the ``width - 1`` keys before it.

    Args:
        score, n, h, i, j: as for `causal`.
        width: how many keys a query sees at most, itself included.

    Source: Beltagy et al. 2020, "Longformer", section 3.1.
    """
    return torch.where((j <= i) & (i - j < width), score, -torch.inf)


def alibi(score: Tensor, n: Tensor, h: Tensor, i: Tensor, j: Tensor, H: int) -> Tensor:
    """FlexAttention score_mod: far keys cost, head h by the slope 2^(-8(h+1)/H).

    Args:
        score, n, h, i, j: as for `causal`.
        H: number of heads.

    Source: Press et al. 2022, "Train short, test long", section 3.
    """
    slope = torch.exp2(-8.0 * (h + 1) / H)
    return score - slope * (i - j).abs()
