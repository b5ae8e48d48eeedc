"""What ``nn.MultiheadAttention`` refuses, and in which words: kept apart so that the class itself reads as attention."""

from __future__ import annotations

import warnings

from torch import Tensor, bool, nn, strided

__all__: list[str] = []


def refuse_misuse(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
) -> None:
    """Raise what PyTorch 2.13 raises for inputs that do not fit.

    Raises:
        AssertionError: a mask that is neither bool nor float; numbers of dimensions that do not fit; a wrong
            embed_dim, kdim or vdim; keys that do not match values or their padding mask; NestedTensors that
            cannot be padded.
        TypeError: a mask that is no Tensor.
        RuntimeError: ``is_causal`` without ``attn_mask``.
    """
    if query.is_nested or key.is_nested or value.is_nested:
        _refuse_nested(
            module, query, key, value, key_padding_mask is not None or attn_mask is not None or is_causal
        )
        return
    for name, mask in (("key_padding_mask", key_padding_mask), ("attn_mask", attn_mask)):
        if mask is not None and not isinstance(mask, Tensor):
            raise TypeError(f"{name} must be a Tensor, not {type(mask).__name__}")
        if mask is not None and mask.dtype != bool and not mask.is_floating_point():
            raise AssertionError(f"only bool and floating types of {name} are supported")
    if key_padding_mask is not None and attn_mask is not None and key_padding_mask.dtype != attn_mask.dtype:
        warnings.warn(
            "Support for mismatched key_padding_mask and attn_mask is deprecated. Use same type for both instead.",
            stacklevel=3,
        )

    dims = query.dim()
    if dims not in (2, 3):
        raise AssertionError(
            f"query should be unbatched 2D or batched 3D tensor but received {dims}-D query tensor"
        )
    expected = f"For {'batched' if dims == 3 else 'unbatched'} ({dims}-D) `query`, expected"
    if key.dim() != dims or value.dim() != dims:
        raise AssertionError(
            f"{expected} `key` and `value` to be {dims}-D but found {key.dim()}-D and {value.dim()}-D tensors respectively"
        )
    if key_padding_mask is not None and key_padding_mask.dim() != dims - 1:
        raise AssertionError(
            f"{expected} `key_padding_mask` to be `None` or {dims - 1}-D but found {key_padding_mask.dim()}-D tensor instead"
        )
    if attn_mask is not None and attn_mask.dim() not in (2, 3):
        raise AssertionError(
            f"{expected} `attn_mask` to be `None`, 2-D or 3-D but found {attn_mask.dim()}-D tensor instead"
        )
    if is_causal and attn_mask is None:
        raise RuntimeError("Need attn_mask if specifying the is_causal hint.")

    if query.shape[-1] != module.embed_dim:
        raise AssertionError(
            f"was expecting embedding dimension of {module.embed_dim}, but got {query.shape[-1]}"
        )
    if module.in_proj_weight is not None and key.shape != value.shape:
        raise AssertionError(f"key shape {key.shape} does not match value shape {value.shape}")
    if key.shape[:-1] != value.shape[:-1]:
        raise AssertionError(
            f"key's sequence and batch dims {key.shape[:-1]} do not match value's {value.shape[:-1]}"
        )
    if module.in_proj_weight is None and (key.shape[-1] != module.kdim or value.shape[-1] != module.vdim):
        raise AssertionError(
            f"expecting {module.kdim} features of key and {module.vdim} of value, but got {key.shape[-1]} and {value.shape[-1]}"
        )


def _refuse_nested(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, masked: bool) -> None:
    """Raise unless the three are NestedTensors that can be padded, attended, and cut to size again."""
    inputs = (query, key, value)
    why = None
    if masked:
        why = "masks do not fit sequences of different lengths"
    elif not module.batch_first:
        why = "batch_first is False"
    elif not all(x.is_nested and x.layout == strided for x in inputs):
        why = "query, key and value must all be nested, in the strided layout"
    elif [len(x) for x in key.unbind()] != [len(x) for x in value.unbind()]:
        why = "key and value have different lengths"
    if why:
        raise AssertionError(
            f"MultiheadAttention does not support NestedTensor here: {why}. "
            "Pad it (to_padded_tensor) and pass key_padding_mask."
        )


def refuse_wrong_masks(
    q: Tensor, k: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None, H: int, batched: bool
) -> None:
    """Raise what PyTorch 2.13 raises for sizes that do not fit, once everything is batch first.

    Args:
        q, k: (N, L, E), (N, S, E).
        key_padding_mask: shall be (N, S).
        attn_mask: shall be (L, S) or (N·H, L, S).
        H: number of heads.
        batched: whether the caller's tensors had a batch.

    Raises:
        AssertionError: a padding mask of another shape; without a batch, an ``attn_mask`` of another 3-D shape.
        RuntimeError: an ``attn_mask`` of another shape; another batch in the keys than in the queries.
    """
    (N, L, _), S = q.shape, k.shape[1]
    if k.shape[0] != N:
        raise RuntimeError(f"query has a batch of {N}, but key and value have one of {k.shape[0]}")
    if key_padding_mask is not None and key_padding_mask.shape != (N, S):
        raise AssertionError(
            f"Expected key_padding_mask to be {(N, S)}, but got {tuple(key_padding_mask.shape)}"
        )
    if attn_mask is not None:
        shape = (L, S) if attn_mask.dim() == 2 else (N * H, L, S)
        if attn_mask.shape != shape:
            if attn_mask.dim() == 3 and not batched:
                raise AssertionError(f"Expected `attn_mask` shape to be {shape} but got {attn_mask.shape}")
            raise RuntimeError(
                f"The shape of the {attn_mask.dim()}D attn_mask is {attn_mask.shape}, but should be {shape}."
            )
