"""Switch ready-made functions of torch off, before a learner's first line runs.

Three things together, as none is enough alone: a kernel that raises is put over every kernel of the
operators (threads, `torch.jit`, ``torch.ops.aten`` and disabled modes all end there); the Python functions that
do not end there lose their bodies; the public names raise by themselves (`torch.func.vmap` goes past kernels).
No handle that would take the kernels back is left where Python can find it. This is best effort: whoever
brings along a copy of the code of such a function has it, as has whoever writes it, which is what was asked.

How kernels are replaced: https://docs.pytorch.org/docs/stable/library.html (low-level APIs).
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Callable

import torch

from mha_course.checking.guards import SwitchedOff

# By group of `guards.FORBIDDEN`: parts of operators' names, Python functions, builtin functions (module, name).
OPERATORS = {
    "ready-made attention": (
        *("scaled_dot_product", "_flash_attention", "_efficient_attention", "_cudnn_attention"),
        *("multi_head_attention", "_transformer_encoder_layer_fwd"),
    ),
    "ready-made softmax": ("softmax", "softmin"),
}
FUNCTIONS = {
    "ready-made attention": (
        "torch.nn.functional.multi_head_attention_forward",
        "torch.nn.modules.activation.MultiheadAttention.forward",
        "torch.nn.attention.flex_attention.flex_attention",
        "torch._higher_order_ops.flex_attention.math_attention",
        "torch.ao.nn.quantizable.modules.activation.MultiheadAttention._forward_impl",
        "torch.onnx.ops._impl.attention_23",
    ),
    "ready-made softmax": (
        "torch.nn.functional.softmax",
        "torch.nn.functional.log_softmax",
        "torch.nn.functional.softmin",
        "torch.nn.functional.gumbel_softmax",
        "torch._refs.softmax",
        "torch._refs.log_softmax",
        "torch._refs.special.softmax",
        "torch._refs.nn.functional.softmax",
        "torch._decomp.decompositions._softmax",
        "torch._decomp.decompositions._log_softmax",
        "torch._decomp.decompositions._safe_softmax",
    ),
}
MODULES = {  # that are not loaded, and never will be: they hold nothing else
    "ready-made attention": ("torch._inductor.fx_passes.fuse_attention",),
    "ready-made softmax": (),
}
BUILTINS = {
    "ready-made attention": (
        ("torch.nn.functional", "scaled_dot_product_attention"),
        ("torch._C._nn", "scaled_dot_product_attention"),
        ("torch", "_native_multi_head_attention"),
        ("torch", "_transformer_encoder_layer_fwd"),
        ("torch", "_scaled_dot_product_attention_math"),
    ),
    "ready-made softmax": (
        *(("torch", "softmax"), ("torch", "log_softmax"), ("torch.special", "softmax")),
        *(("torch.special", "log_softmax"), ("torch.Tensor", "softmax"), ("torch.Tensor", "log_softmax")),
    ),
}
KEYS = (
    *("CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional"),
    *(
        "CPU",
        "MkldnnCPU",
        "SparseCPU",
        "SparseCsrCPU",
        "QuantizedCPU",
        "NestedTensorCPU",
        "Meta",
        "ZeroTensor",
    ),
    *(
        "CompositeImplicitAutogradNestedTensor",
        "AutocastCPU",
        "FuncTorchBatched",
        "FuncTorchBatchedDecomposition",
    ),
    "FuncTorchVmapMode",
)


noticed = False  # whether anything that is switched off was called in this process


def switch_off(group: str) -> None:
    """Make everything in this group raise `SwitchedOff`, for as long as the process lives.

    Args:
        group: "ready-made attention" or "ready-made softmax".
    """
    sys.modules.update(dict.fromkeys(MODULES[group]))
    for path in FUNCTIONS[group]:
        if (function := _find(path)) is not None:
            _empty(function)
    for module, name in BUILTINS[group]:
        owner = _find(module)
        if hasattr(owner, name):
            setattr(owner, name, _raising(f"{module}.{name}"))
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("aten::") and any(part in name for part in OPERATORS[group]):
            _put_over(name.removeprefix("aten::"))


def _put_over(operator: str) -> None:
    raising = _raising(f"torch.ops.aten.{operator}")
    for key in KEYS:
        batched = key.startswith("FuncTorch")
        if not batched and not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{operator}", key):
            continue
        handle = torch._C._dispatch_library("IMPL", "aten", key, "", 0)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(handle))  # never freed: that would bring the kernel back
        try:
            handle.impl(operator, torch._C._dispatch_key_parse(key), raising)
        except RuntimeError:  # this key takes no kernel for this operator
            continue


def _raising(name: str) -> Callable[..., None]:
    def switched_off(*_args, **_kwargs):
        global noticed
        noticed = True
        raise SwitchedOff(name)

    return switched_off


def _raise_without_a_name(*_args, **_kwargs):
    from mha_course.grading import switches

    switches.noticed = True
    raise switches.SwitchedOff("this ready-made function")


def _empty(function: Callable) -> None:
    """Take a Python function's body away, so that every reference to it raises."""
    function = getattr(function, "_init_fn", function)  # what an operator made in Python calls
    while hasattr(function, "__wrapped__"):
        inner = function.__wrapped__
        _take_body(function)
        function = inner
    _take_body(function)


def _take_body(function: Callable) -> None:
    code = getattr(function, "__code__", None)
    if code is None:
        return
    if code.co_freevars:  # a closure keeps its number of free variables
        names = ", ".join(code.co_freevars)
        source = f"def outer():\n {' = '.join(code.co_freevars)} = None\n def inner(*a, **k):\n  {names}\n"
        source += "  from mha_course.grading import switches\n  switches.noticed = True\n"
        source += "  raise switches.SwitchedOff('this ready-made function')\n return inner"
        space: dict = {}
        exec(source, space)
        function.__code__ = space["outer"]().__code__
    else:
        function.__code__ = _raise_without_a_name.__code__
    function.__defaults__ = None
    function.__kwdefaults__ = None


def _find(path: str):
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part, None)
        return found
    return None
