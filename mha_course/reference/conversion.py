"""Lesson 05, the small steps: from torch's parameters, masks and NestedTensors to ours and back, and extra keys."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["add_bias_kv", "add_zero_attn", "export_to_torch", "load_from_torch", "to_may_attend"]


def to_may_attend(attn_mask: Tensor | None, key_padding_mask: Tensor | None, N: int, H: int) -> Tensor | None:
    """torch's two masks as one of ours.

    Args:
        attn_mask: (L, S), or (N·H, L, S) with the heads of a sample next to one another. bool: True = blocked.
            Floating: added to the scores; only −inf blocks.
        key_padding_mask: (N, S), likewise.
        N, H: batch and heads.

    Returns:
        bool, broadcastable to (N, H, L, S), True = may look; ``None`` where there is no mask at all.

    Source: torch.nn.MultiheadAttention's documentation, arguments of ``forward``.
    """
    may_attend = None
    if attn_mask is not None:
        may_attend = ~_blocked(attn_mask)
        may_attend = may_attend.unflatten(0, (N, H)) if attn_mask.dim() == 3 else may_attend[None, None]
    if key_padding_mask is not None:
        real = ~_blocked(key_padding_mask)[
            :, None, None, :
        ]  # (N, 1, 1, S): the same for every head and query
        may_attend = real if may_attend is None else may_attend & real
    return may_attend


def _blocked(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask == -torch.inf


def load_from_torch(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of ``torch.nn.MultiheadAttention`` as one of lesson 04's ``MultiHeadAttention``.

    Args:
        state: with ``in_proj_weight`` (3E, E), or ``q_proj_weight``, ``k_proj_weight`` and ``v_proj_weight`` where kdim
            or vdim differ; ``in_proj_bias`` (3E,) and ``out_proj.bias`` if it has biases; ``out_proj.weight``.

    Returns:
        ``query.weight``, ``key.weight``, ``value.weight``, ``out.weight``, and their biases if there are any.
    """
    if "in_proj_weight" in state:
        weights = state["in_proj_weight"].chunk(3)
    else:
        weights = [state[f"{letter}_proj_weight"] for letter in "qkv"]
    names = ("query", "key", "value")
    ours = {f"{name}.weight": weight for name, weight in zip(names, weights)}
    ours["out.weight"] = state["out_proj.weight"]
    if "in_proj_bias" in state:
        ours |= {f"{name}.bias": bias for name, bias in zip(names, state["in_proj_bias"].chunk(3))}
        ours["out.bias"] = state["out_proj.bias"]
    return ours


def export_to_torch(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `load_from_torch`.

    Args:
        state: of lesson 04's ``MultiHeadAttention``.

    Returns:
        a state dict for ``torch.nn.MultiheadAttention``; packed where all three projections are (E, E).
    """
    weights = [state[f"{name}.weight"] for name in ("query", "key", "value")]
    if all(weight.shape == weights[0].shape for weight in weights):
        theirs = {"in_proj_weight": torch.cat(weights)}
    else:
        theirs = {f"{letter}_proj_weight": weight for letter, weight in zip("qkv", weights)}
    theirs["out_proj.weight"] = state["out.weight"]
    if "out.bias" in state:
        theirs["in_proj_bias"] = torch.cat([state[f"{name}.bias"] for name in ("query", "key", "value")])
        theirs["out_proj.bias"] = state["out.bias"]
    return theirs


def add_bias_kv(
    k: Tensor, v: Tensor, bias_k: Tensor, bias_v: Tensor, may_attend: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One more key and value, learned, the same for every sample; everybody may look at it.

    Args:
        k, v: (N, S, E), projected.
        bias_k, bias_v: (1, 1, E).
        may_attend: bool (…, L or 1, S), or ``None``.

    Returns:
        k, v (N, S + 1, E), may_attend (…, S + 1) or ``None``; the new one comes last.
    """
    N = k.shape[0]
    k = torch.cat([k, bias_k.expand(N, -1, -1)], dim=1)
    v = torch.cat([v, bias_v.expand(N, -1, -1)], dim=1)
    return k, v, _one_more_true(may_attend)


def add_zero_attn(k: Tensor, v: Tensor, may_attend: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """One more key and value of zeros in every head: somewhere to look when there is nothing to see.

    Args:
        k: (N, H, S, D).
        v: (N, H, S, Dv).
        may_attend: bool (…, L or 1, S), or ``None``.

    Returns:
        k (N, H, S + 1, D), v (N, H, S + 1, Dv), may_attend (…, S + 1) or ``None``; the zeros come last.
    """
    k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))  # one row more in dimension 2, also of none
    return k, v, _one_more_true(may_attend)


def _one_more_true(may_attend: Tensor | None) -> Tensor | None:
    return None if may_attend is None else F.pad(may_attend, (0, 1), value=True)


def pad_nested(x: Tensor) -> tuple[Tensor, Tensor]:
    """A NestedTensor as an ordinary tensor.

    Args:
        x: N sequences (their length, E).

    Returns:
        (N, S, E) with zeros at the ends, S the greatest length; and bool (N, S), True at these zeros.
    """
    lengths = torch.tensor([len(sequence) for sequence in x.unbind()], device=x.device)
    padded = x.to_padded_tensor(0.0)
    return padded, torch.arange(padded.shape[1], device=x.device) >= lengths.unsqueeze(1)


def nest(x: Tensor, padding: Tensor) -> Tensor:
    """Undo `pad_nested`.

    Args:
        x: (N, S, E).
        padding: bool (N, S), True at what goes.

    Returns:
        a NestedTensor of N sequences.
    """
    return torch.nested.as_nested_tensor([sequence[~gone] for sequence, gone in zip(x, padding)])
