"""Lesson 05: the drop-in. What lessons 01 to 05 built takes the place of ``torch.nn.MultiheadAttention``.

Inside the course True in a mask means "may look" (``may_attend``). ``nn.MultiheadAttention`` means the opposite by
``attn_mask`` and ``key_padding_mask``; `to_may_attend` is where the two meet.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conversion import add_bias_kv, add_zero_attn, nest, pad_nested, to_may_attend
from .many_heads import merge_heads, split_heads
from .masks import to_additive
from .misuse import refuse_misuse, refuse_wrong_masks
from .module import unpack_projections

__all__ = ["MultiheadAttention"]


class MultiheadAttention(nn.Module):
    """``torch.nn.MultiheadAttention``, written to be read: same parameters, same call, same numbers.

    A query that may look at nothing (a *dead row*: every key masked) gets zeros from attention, so its output
    is ``out_proj.bias`` and its weights are zeros, with finite gradients. ``nn.MultiheadAttention`` gives NaN
    there with weights and ``out_proj.bias`` without. All differences are listed, each with a test, in
    docs/drop-in.md.

    Args:
        embed_dim: E, features of a query and of the output.
        num_heads: H; divides E.
        dropout: on the attention weights, in train mode.
        bias: whether the input and output projections have biases.
        add_bias_kv: one more key and value, learned.
        add_zero_attn: one more key and value, zeros.
        kdim, vdim: features of a key and a value, if not E.
        batch_first: (N, L, E) in and out, instead of (L, N, E).
        device, dtype: of the parameters.

    Raises:
        ValueError: E or H is not positive.
        AssertionError: H does not divide E.

    Source: Vaswani et al. 2017, section 3.2.2; names, initial values and errors: ``torch.nn.MultiheadAttention``
    of PyTorch 2.13.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if embed_dim <= 0 or num_heads <= 0:
            raise ValueError(f"embed_dim ({embed_dim}) and num_heads ({num_heads}) must be greater than 0")
        if embed_dim % num_heads:
            raise AssertionError(f"embed_dim ({embed_dim}) must be divisible by num_heads ({num_heads})")
        E, made = embed_dim, {"device": device, "dtype": dtype}
        self.embed_dim, self.num_heads, self.head_dim = E, num_heads, E // num_heads
        self.kdim, self.vdim = E if kdim is None else kdim, E if vdim is None else vdim
        self.dropout, self.add_zero_attn, self.batch_first = dropout, add_zero_attn, batch_first

        def parameter(name: str, *shape: int, wanted: bool) -> None:
            self.register_parameter(name, nn.Parameter(torch.empty(shape, **made)) if wanted else None)

        packed = self._qkv_same_embed_dim = self.kdim == self.vdim == E
        parameter("in_proj_weight", 3 * E, E, wanted=packed)
        parameter("q_proj_weight", E, E, wanted=not packed)
        parameter("k_proj_weight", E, self.kdim, wanted=not packed)
        parameter("v_proj_weight", E, self.vdim, wanted=not packed)
        parameter("in_proj_bias", 3 * E, wanted=bias)
        self.out_proj = nn.Linear(E, E, bias=bias, **made)
        parameter("bias_k", 1, 1, E, wanted=add_bias_kv)
        parameter("bias_v", 1, 1, E, wanted=add_bias_kv)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Draw the initial values, in PyTorch's order: the same numbers under the same seed."""
        for weight in (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
            if weight is not None:
                nn.init.xavier_uniform_(weight)
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
            nn.init.zeros_(self.out_proj.bias)
        for extra in (self.bias_k, self.bias_v):
            if extra is not None:
                nn.init.xavier_normal_(extra)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            query: (L, N, E); batch first (N, L, E); or without a batch (L, E). Or, batch first and without masks,
                three NestedTensors of N sequences each; the output is one, too.
            key, value: alike, with S in place of L, and kdim or vdim in place of E.
            key_padding_mask: (N, S), or (S,) without a batch. True = may not look; float = added to the scores.
            need_weights: return the weights, too. Without them a fused kernel is used that never stores them.
            attn_mask: (L, S) or (N·H, L, S), in the same sense.
            average_attn_weights: weights averaged over the heads.
            is_causal: a promise that ``attn_mask`` is the causal mask; needs ``attn_mask``.

        Returns:
            output, shaped like query, and weights (N, L, S), per head (N, H, L, S), or ``None``; without a
            batch there is no N. In train mode the weights are those after dropout, as in PyTorch.
        """
        refuse_misuse(self, query, key, value, key_padding_mask, attn_mask, is_causal)
        if query.is_nested:
            return self._attend_nested(query, key, value, need_weights, average_attn_weights)
        batched = query.dim() == 3
        is_causal = is_causal and key_padding_mask is None and not need_weights
        if is_causal:
            attn_mask = None  # taken at its word: the fused kernel knows causality without a mask
        if key_padding_mask is not None and not batched:
            key_padding_mask = key_padding_mask.unsqueeze(0)  # (1, S)

        q, k, v = (self._swap_layout(x) for x in self._project(query, key, value))  # (N, L or S, E)
        N, H = q.shape[0], self.num_heads
        refuse_wrong_masks(q, k, key_padding_mask, attn_mask, H, batched)
        may_attend = to_may_attend(attn_mask, key_padding_mask, N, H)
        bias = _score_bias(attn_mask, key_padding_mask, N, H, q.dtype)
        if bias is not None:  # finite numbers, too, can have become −∞: by their sum, or in a narrower type
            closed = bias == -torch.inf
            bias, may_attend = bias.masked_fill(closed, 0.0), may_attend & ~closed
        if self.bias_k is not None:
            k, v, may_attend = add_bias_kv(k, v, self.bias_k, self.bias_v, may_attend)
        q, k, v = (split_heads(x, H) for x in (q, k, v))  # (N, H, L or S, D)
        if self.add_zero_attn:
            k, v, may_attend = add_zero_attn(k, v, may_attend)

        mask = dead = None
        if may_attend is not None:
            dead = ~may_attend.any(
                -1, keepdim=True
            )  # (N or 1, H or 1, L or 1, 1): rows that may look at nothing
            mask = to_additive(may_attend | dead, q.dtype)  # no row is all −∞: gradients stay finite
        if bias is not None:
            bias = F.pad(bias, (0, k.shape[2] - bias.shape[-1]))  # nothing is added at the extra keys
            mask = mask + bias

        dropout_p, weights = self.dropout if self.training else 0.0, None
        if need_weights:
            output, weights = _attend(q, k, v, mask, dead, dropout_p, average_attn_weights)
            weights = weights if batched else weights.squeeze(0)
        else:  # the same numbers, but the (L, S) matrix is never stored
            output = F.scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal)
        output = merge_heads(output if dead is None else output.masked_fill(dead, 0.0))  # (N, L, E)
        return self.out_proj(self._swap_layout(output) if batched else output.squeeze(0)), weights

    def _attend_nested(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool, average_attn_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """`forward` for NestedTensors, which ``nn.TransformerEncoder`` makes in eval mode: pad, attend, cut to size."""
        padded = {id(x): pad_nested(x) for x in (query, key, value)}  # what was one tensor stays one
        (q, beyond), (k, padding), (v, _) = (padded[id(x)] for x in (query, key, value))
        output, weights = self.forward(
            q, k, v, padding, need_weights, average_attn_weights=average_attn_weights
        )
        if weights is not None:
            beyond_end = beyond.unsqueeze(-1) if average_attn_weights else beyond[:, None, :, None]
            weights = weights.masked_fill(beyond_end, 0.0)
        return nest(output, beyond), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """The three input projections, in the caller's layout: (…, E) each. One product if all three are one tensor."""
        b = self.in_proj_bias
        b = b if b is None else b.to(query.dtype)  # biases may be kept in another precision
        if self.in_proj_weight is None:
            weights = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        elif query is key and key is value:
            return F.linear(query, self.in_proj_weight, b).chunk(3, dim=-1)  # (…, 3E) → (…, E) three times
        else:
            weights = unpack_projections(self.in_proj_weight)
        biases = (None, None, None) if b is None else unpack_projections(b)
        return tuple(F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases))

    def _swap_layout(self, x: Tensor) -> Tensor:
        """From the caller's layout to (N, L, E), and with a batch also back; never a copy."""
        if x.dim() == 2:
            return x.unsqueeze(0)  # (1, L, E)
        return x if self.batch_first else x.transpose(0, 1)

    # No attention in it: what nn.TransformerEncoderLayer asks for, to hand both masks to its fused kernel as one.
    merge_masks = nn.MultiheadAttention.merge_masks


SCORES_AT_ONCE = 2**22  # 16 MiB of float32: memory that was used a moment ago is faster than new


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    dead: Tensor | None,
    dropout_p: float,
    average: bool,
) -> tuple[Tensor, Tensor]:
    """Attention with its weights: output (N, H, L, D) and weights (N, L, S), or (N, H, L, S) if not averaged."""
    (N, H, L, _), S = q.shape, k.shape[2]
    k, v = k.contiguous(), v.contiguous()  # every product below would make its own copy
    scores = N * H * L * S
    traced = torch.compiler.is_compiling() or not isinstance(
        scores, int
    )  # sizes are left open: no fixed blocks
    if traced or dropout_p or scores <= SCORES_AT_ONCE:
        return _attend_rows(q, k, v, mask, dead, dropout_p, average)
    rows = max(1, SCORES_AT_ONCE // (N * H * S))  # some queries at a time

    def parts(x: Tensor | None) -> list[Tensor | None]:
        shared = x is None or x.shape[2] == 1  # the same for every query
        return [x] * math.ceil(L / rows) if shared else x.split(rows, dim=2)

    blocks = [
        _attend_rows(q, k, v, m, d, 0.0, average) for q, m, d in zip(parts(q), parts(mask), parts(dead))
    ]
    output, weights = (torch.cat(pieces, dim=-2) for pieces in zip(*blocks))
    return output, weights


def _attend_rows(q, k, v, mask, dead, dropout_p, average) -> tuple[Tensor, Tensor]:
    """`_attend` in one go: lesson 02's `masked_softmax`, with the zeros of dead rows where least is to be filled."""
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)  # (N, H, L, S); q is smallest: divide it
    weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    del scores
    if dropout_p:
        weights = F.dropout(weights, dropout_p)  # attention_dropout, with PyTorch's random numbers
    output = weights @ v  # (N, H, L, D)
    if dead is not None and dead.shape[1] > 1:  # some heads may be dead, some alive
        weights, dead = weights.masked_fill(dead, 0.0), None
    if average:
        weights = weights.mean(1, keepdim=True)  # (N, 1, L, S)
    if dead is not None:
        weights = weights.masked_fill(dead, 0.0)
    return output, weights.squeeze(1) if average else weights


def _by_head(attn_mask: Tensor | None, key_padding_mask: Tensor | None, N: int, H: int) -> list[Tensor]:
    """The masks that are given, each broadcastable to (N, H, L, S)."""
    masks = []
    if attn_mask is not None:
        masks.append(
            attn_mask if attn_mask.dim() == 2 else attn_mask.unflatten(0, (N, H))
        )  # (L, S), (N, H, L, S)
    if key_padding_mask is not None:
        masks.append(key_padding_mask[:, None, None, :])  # (N, 1, 1, S)
    return masks


def _score_bias(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, N: int, H: int, dtype: torch.dtype
) -> Tensor | None:
    """Float masks as one sum, to be added to scores of ``dtype``; ``None`` without float masks."""
    masks = [mask for mask in _by_head(attn_mask, key_padding_mask, N, H) if mask.is_floating_point()]
    return sum(masks).to(dtype) if masks else None
