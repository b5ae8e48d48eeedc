"""Every way to compute the same attention: self-attention of (N, H, L, D), no mask, no dropout."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mha_course import reference
from mha_course.reference.without_the_matrix import flash_backward, flash_forward

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v (N, H, L, D) → output (N, H, L, D)


@dataclass(frozen=True)
class Setting:
    """What is computed, and where.

    Args:
        device: of the inputs.
        precision: "float32", "tf32" (float32 tensors, products in tf32) or "bfloat16".
        backward: a training step, forward and backward; else only forward, without a graph.
        N, H, L, D: shape of q, k and v; a module's input is (N, L, H·D).
        block: rows and columns of a tile, for the tiled version.
    """

    device: torch.device
    precision: str
    backward: bool
    N: int
    H: int
    L: int
    D: int
    block: int = 128

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32


@dataclass(frozen=True)
class Way:
    """One way to compute attention.

    Args:
        says: what it is, in a few words, for pictures and tables.
        make: takes a `Setting`, gives the function of q, k and v, or a module of x (N, L, E).
        module: whether it projects, too (then more is computed: `flops`).
        compiled: compiled code: its memory and traffic cannot be seen by counting, and it is measured last.
        one_kernel: compiled to a single kernel, so that its traffic is known: what goes in and what comes out.
        backend: the kernel that ``F.scaled_dot_product_attention`` may use; "" leaves it the choice.
    """

    says: str
    make: Callable[[Setting], Attention | nn.Module]
    module: bool = False
    compiled: bool = False
    one_kernel: bool = False
    backend: str = ""


def flops(way: Way, setting: Setting) -> int:
    """Floating-point operations that are needed: a product of (a, b) and (b, c) takes 2·a·b·c.

    Forward two products with the (L, L) matrix, 4·N·H·L²·D; a module has four projections besides, 8·N·L·E². The
    backward pass needs twice as much as the forward pass. What a way computes again (flash does) is not counted:
    so the same work is compared with the same number.
    """
    s = setting
    forward = 4 * s.N * s.H * s.L**2 * s.D
    if way.module:
        forward += 8 * s.N * s.L * (s.H * s.D) ** 2
    return forward * (3 if s.backward else 1)


def least_bytes(setting: Setting) -> int:
    """What attention has to read and write in any case: q, k, v, the output; in a training step what the backward
    pass reads (all four and the output's gradient) and writes (three gradients), too."""
    s = setting
    one = s.N * s.H * s.L * s.D * torch.empty(0, dtype=s.dtype).element_size()
    return (12 if s.backward else 4) * one


def prepare(way: Way, setting: Setting) -> Callable[[], Any]:
    """A function without arguments that computes attention once, on inputs it already holds."""
    s = setting
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        made = torch.randn(shape, generator=generator).to(s.device, s.dtype)
        return made.requires_grad_(s.backward)

    attention = way.make(s)
    if way.module:
        attention.to(s.device, s.dtype).train(s.backward)
        inputs = [normal(s.N, s.L, s.H * s.D)]
        wanted = [*inputs, *attention.parameters()]
    else:
        wanted = inputs = [normal(s.N, s.H, s.L, s.D) for _ in range(3)]
    upstream = torch.ones_like(inputs[0], requires_grad=False)
    if way.compiled:
        from torch import _dynamo

        for x in inputs:
            _dynamo.maybe_mark_dynamic(x, 2)  # compiled once for every L

    def forward() -> Tensor:
        with torch.no_grad(), _only(way.backend):
            return attention(*inputs)

    def step() -> tuple[Tensor, ...]:
        with torch.enable_grad(), _only(way.backend):
            return torch.autograd.grad(attention(*inputs), wanted, upstream)

    return step if s.backward else forward


# ------------------------------------------------------------------------------------- the ways


def _materialised(setting: Setting) -> Attention:
    return _own_output


class _Output(nn.Module):
    """Self-attention by a module that gives (output, weights)."""

    def __init__(self, attention: nn.Module, need_weights: bool):
        super().__init__()
        self.attention, self.need_weights = attention, need_weights

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=self.need_weights)[0]


def _module(kind: type[nn.Module], need_weights: bool) -> Callable[[Setting], nn.Module]:
    return lambda s: _Output(kind(s.H * s.D, s.H, batch_first=True), need_weights)


def _fused(setting: Setting) -> Attention:
    return F.scaled_dot_product_attention


@contextlib.contextmanager
def _only(backend: str) -> Iterator[None]:
    if not backend:
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(getattr(SDPBackend, backend)):
        yield


class _Flash(torch.autograd.Function):
    """`flash_forward` with `flash_backward`: autograd alone would keep every tile."""

    @staticmethod
    def forward(ctx, q, k, v, block):
        output, lse = flash_forward(q, k, v, block)
        ctx.save_for_backward(q, k, v, output, lse)
        ctx.block = block
        return output

    @staticmethod
    def backward(ctx, grad_output):
        return *flash_backward(*ctx.saved_tensors, grad_output, ctx.block), None


def _tiles(setting: Setting) -> Attention:
    return lambda q, k, v: _Flash.apply(q, k, v, setting.block)


def _compiled(setting: Setting) -> Attention:
    return torch.compile(_own_output, fullgraph=True)


def _own_output(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return reference.attend(q, k, v)[0]


def _flex(setting: Setting) -> Attention:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, fullgraph=True)


WAYS: Mapping[str, Way] = {
    "materialised": Way("own, with the L × L matrix", _materialised),
    "module": Way("reference module", _module(reference.MultiheadAttention, False), module=True),
    "module (weights)": Way(
        "reference module, weights returned", _module(reference.MultiheadAttention, True), module=True
    ),
    "nn.MultiheadAttention": Way("nn.MultiheadAttention", _module(nn.MultiheadAttention, False), module=True),
    "nn.MultiheadAttention (weights)": Way(
        "nn.MultiheadAttention, weights returned", _module(nn.MultiheadAttention, True), module=True
    ),
    "fused": Way("fused, PyTorch's choice", _fused),
    "fused: flash": Way("fused, FlashAttention kernel", _fused, backend="FLASH_ATTENTION"),
    "fused: efficient": Way("fused, memory-efficient kernel", _fused, backend="EFFICIENT_ATTENTION"),
    "fused: cudnn": Way("fused, cuDNN kernel", _fused, backend="CUDNN_ATTENTION"),
    "fused: math": Way("fused interface, plain arithmetic", _fused, backend="MATH"),
    "tiles": Way("flash in plain PyTorch", _tiles),
    "compiled": Way("own, with torch.compile", _compiled, compiled=True),
    "flex": Way("FlexAttention, compiled", _flex, compiled=True, one_kernel=True),
}
COMPILED = tuple(name for name, way in WAYS.items() if way.compiled)


def own(functions: Mapping[str, Attention]) -> dict[str, Way]:
    """Ways made of a reader's own functions of q, k and v (N, H, L, D), which may also return (output, …)."""

    def only_output(fn: Attention) -> Attention:
        def attention(q, k, v):
            result = fn(q, k, v)
            return result[0] if isinstance(result, tuple) else result

        return attention

    return {name: Way(name, lambda s, fn=fn: only_output(fn)) for name, fn in functions.items()}
