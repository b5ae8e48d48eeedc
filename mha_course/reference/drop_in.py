"""Lesson 05: `MultiheadAttention`, which takes the place of ``torch.nn.MultiheadAttention``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conversion import add_bias_kv, add_zero_attn, load_from_torch, to_may_attend
from .many_heads import merge_heads, split_heads
from .masks import masked_softmax

__all__ = ["MultiheadAttention"]


class MultiheadAttention(nn.MultiheadAttention):
    """torch's constructor and parameters, with a forward made of the functions of lessons 01 to 05.

    Arguments, shapes and results are those of ``torch.nn.MultiheadAttention``, with one difference: a query that may
    see nothing gets zeros from attention, so its output is the bias of ``out_proj``.
    """

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
        batched = query.dim() == 3
        if not batched:
            query, key, value = query[None], key[None], value[None]  # (1, L, E)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))  # (N, L, E)
        N, H = query.shape[0], self.num_heads
        p = load_from_torch(dict(self.named_parameters()))
        q, k, v = (
            F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))
            for name, x in (("query", query), ("key", key), ("value", value))
        )
        may_attend = to_may_attend(attn_mask, key_padding_mask, N, H)
        if self.bias_k is not None:
            k, v, may_attend = add_bias_kv(k, v, self.bias_k, self.bias_v, may_attend)
        q, k, v = split_heads(q, H), split_heads(k, H), split_heads(v, H)  # (N, H, L or S, D)
        if self.add_zero_attn:
            k, v, may_attend = add_zero_attn(k, v, may_attend)
        scores = q @ k.mT / q.shape[-1] ** 0.5  # (N, H, L, S)
        for mask in (attn_mask, key_padding_mask):
            if mask is not None and mask.is_floating_point():
                bias = mask.masked_fill(mask == -torch.inf, 0)
                if mask is key_padding_mask:
                    bias = bias[:, None, None, :]
                elif mask.dim() == 3:
                    bias = bias.unflatten(0, (N, H))
                scores = scores + F.pad(bias, (0, scores.shape[-1] - bias.shape[-1]))
        weights = scores.softmax(-1) if may_attend is None else masked_softmax(scores, may_attend)
        weights = F.dropout(weights, self.dropout, self.training)
        output = self.out_proj(merge_heads(weights @ v))  # (N, L, E)
        weights = weights.mean(1) if average_attn_weights else weights
        if not batched:
            output, weights = output[0], weights[0]
        elif not self.batch_first:
            output = output.transpose(0, 1)
        return output, weights if need_weights else None
