"""Lesson 06: where a token stands, and what need not be computed again.

Attention does not know order: positions are put into the tokens (sinusoids) or into queries and keys
(rotary positions). A decoder that keeps its keys and values need not recompute them, and fewer
key-value heads make what it keeps smaller.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "KVCache",
    "apply_rope",
    "decode_step",
    "grouped_attention",
    "kv_cache_bytes",
    "sinusoidal_positions",
]


def sinusoidal_positions(L: int, E: int, device: torch.device | None = None) -> Tensor:
    """Position vectors of sines and cosines.

    Args:
        L: number of positions, 0 … L-1.
        E: embed_dim, even.
        device: where the result should be.

    Returns:
        (L, E), float32: ``[p, 2i] = sin(p / 10000^(2i/E))``, ``[p, 2i+1] = cos(…)``.

    Raises:
        ValueError: E is odd.

    Source: Vaswani et al. 2017, "Attention is all you need", section 3.5.
    """
    if E % 2:
        raise ValueError(f"embed_dim must be even: a sine and a cosine for each frequency; got {E}")
    position = torch.arange(L, dtype=torch.float64, device=device).unsqueeze(1)  # (L, 1)
    frequency = 10000 ** (-torch.arange(0, E, 2, dtype=torch.float64, device=device) / E)  # (E/2,)
    angle = position * frequency  # (L, E/2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2).float()  # (L, E)


def apply_rope(x: Tensor, positions: Tensor) -> Tensor:
    """Turn each pair of neighbouring features by an angle that grows with the position.

    Args:
        x: queries or keys (never values), (N, H, L, D), D even.
        positions: where each token stands, int64, (L,) or (N, L).

    Returns:
        the same shape and dtype: features ``2i, 2i+1`` turned by ``position · 10000^(-2i/D)``.

    Raises:
        ValueError: D is odd.

    Source: Su et al. 2021, "RoFormer", section 3.2 (the interleaved layout).
    """
    D = x.shape[-1]
    if D % 2:
        raise ValueError(f"head_dim must be even: features are turned in pairs; got {D}")
    frequency = 10000 ** (-torch.arange(0, D, 2, dtype=torch.float64, device=x.device) / D)  # (D/2,)
    angle = positions.to(torch.float64).unsqueeze(-1) * frequency  # (L, D/2) or (N, L, D/2)
    if angle.dim() == 3:
        angle = angle.unsqueeze(1)  # (N, 1, L, D/2): the same for every head
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]  # (N, H, L, D/2)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2)  # (N, H, L, D)


class KVCache:
    """The keys and values of all tokens so far."""

    def __init__(self):
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    def __len__(self) -> int:
        return 0 if self.k is None else self.k.shape[-2]

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens; give all of them.

        Args:
            k: (N, Hkv, L, D), the new keys (already turned to their own positions).
            v: (N, Hkv, L, Dv), the new values.

        Returns:
            keys (N, Hkv, S, D) and values (N, Hkv, S, Dv), S = all tokens so far, oldest first.
        """
        self.k = k if self.k is None else torch.cat([self.k, k], dim=-2)
        self.v = v if self.v is None else torch.cat([self.v, v], dim=-2)
        return self.k, self.v


def grouped_attention(
    q: Tensor, k: Tensor, v: Tensor, may_attend: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention in which several query heads share one key-value head.

    Args:
        q: (N, H, L, D).
        k: (N, Hkv, S, D), H a multiple of Hkv: query head h looks at key-value head h // (H / Hkv).
        v: (N, Hkv, S, Dv).
        may_attend: bool, broadcastable to (N, H, L, S); True = may look. A query that may see nothing gets zeros.

    Returns:
        output (N, H, L, Dv), weights (N, H, L, S).

    Raises:
        ValueError: H is not a multiple of Hkv.

    Source: Ainslie et al. 2023, "GQA"; Hkv = 1 is Shazeer 2019, "Fast transformer decoding" (MQA).
    """
    H, Hkv = q.shape[1], k.shape[1]
    if H % Hkv:
        raise ValueError(f"{H} query heads cannot share {Hkv} key-value heads evenly")
    k = k.repeat_interleave(H // Hkv, dim=1)  # (N, H, S, D): neighbours share
    v = v.repeat_interleave(H // Hkv, dim=1)  # (N, H, S, Dv)
    scores = q @ k.mT / q.shape[-1] ** 0.5  # (N, H, L, S)
    if may_attend is not None:
        scores = scores.masked_fill(~may_attend, -torch.inf)
        dead = ~may_attend.any(-1, keepdim=True)
        scores = scores.masked_fill(dead, 0.0)
    weights = torch.softmax(scores, dim=-1)
    if may_attend is not None:
        weights = weights.masked_fill(dead, 0.0)
    return weights @ v, weights


def decode_step(
    q: Tensor, k: Tensor, v: Tensor, cache: KVCache, padding: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One step of decoding: the new tokens look at everything kept and at themselves, never ahead.

    Args:
        q: (N, H, L, D), the new tokens' queries, not yet turned.
        k: (N, Hkv, L, D), their keys, not yet turned.
        v: (N, Hkv, L, Dv), their values.
        cache: what is kept; it grows by L.
        padding: int64 (N,), how many tokens on the left of each sample are padding; None: none. Positions
            count from the first real token.

    Returns:
        output (N, H, L, Dv), weights (N, H, L, S), S = all tokens so far.
    """
    seen, L = len(cache), q.shape[-2]
    places = torch.arange(seen, seen + L, device=q.device)  # (L,): they go on, they do not restart
    left = torch.zeros(q.shape[0], dtype=torch.int64, device=q.device) if padding is None else padding
    positions = (places - left.unsqueeze(1)).clamp_min(0)  # (N, L)
    keys, values = cache.append(apply_rope(k, positions), v)
    key_places = torch.arange(seen + L, device=q.device)  # (S,)
    causal = key_places <= places.unsqueeze(1)  # (L, S)
    real = key_places >= left.unsqueeze(1)  # (N, S)
    may_attend = (causal & real.unsqueeze(1)).unsqueeze(1)  # (N, 1, L, S)
    return grouped_attention(apply_rope(q, positions), keys, values, may_attend)


def kv_cache_bytes(N: int, S: int, Hkv: int, D: int, layers: int, dtype: torch.dtype = torch.float16) -> int:
    """Memory that a decoder's keys and values take: two tensors of (N, Hkv, S, D) in each layer.

    Args:
        N, S, Hkv, D: batch, tokens, key-value heads, head_dim.
        layers: number of layers.
        dtype: of the kept numbers.

    Returns:
        bytes.
    """
    return 2 * layers * N * Hkv * S * D * dtype.itemsize
