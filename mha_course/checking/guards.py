"""What an answer may not do, seen while it runs: forbidden calls, and mistakes with devices.

Nothing here reads source code: aliases are seen, comments are not. It is a help for honest learners and
no lock: whoever wants to hide a call from Python inside the same process can.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from .kinds import FailureKind

REFERENCE_FOLDER = str(Path(__file__).parents[1] / "reference")
OURS = (REFERENCE_FOLDER, str(Path(__file__).with_name("callables.py")))

# Names of torch's functions and kernels, matched as parts of the name: new kernels (flash, efficient,
# cudnn, "…_for_cpu") carry the same stem.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "ready-made attention": (
        "scaled_dot_product",
        "_flash_attention",
        "_efficient_attention",
        "multi_head_attention",
        "MultiheadAttention.forward",
        "_transformer_encoder_layer_fwd",
        "flex_attention",
    ),
    "ready-made softmax": ("softmax", "softmin"),
}


class SwitchedOff(RuntimeError):
    """Something ready-made was called where it is switched off, while answers are marked.

    Args:
        name: what was called ("torch.nn.functional.softmax", "mha_course.reference.attend").
    """

    def __init__(self, name: str):
        super().__init__(f"{name} is switched off here: the point is to write it")
        self.name = name


class _Functions(TorchFunctionMode):
    """Sees calls of torch's functions and tensor methods."""

    def __init__(self, note: Callable[[str], None]):
        super().__init__()
        self.note = note

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.note(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


class _Kernels(TorchDispatchMode):
    """Sees the kernels that are reached in the end, whatever name led there."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # the default imports torch's whole compiler at the first call
        return False

    def __init__(self, note: Callable[[str], None]):
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.note(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


class Sizes(TorchDispatchMode):
    """Notes the largest tensor that is made, if it is larger than allowed. A view makes nothing.

    Args:
        largest: how many numbers a tensor may have.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __init__(self, largest: int | None):
        super().__init__()
        self.largest = largest or 0
        self.too_large: tuple[int, ...] = ()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.untyped_storage().nbytes() > self.largest * x.element_size():
                self.largest = x.untyped_storage().nbytes() // x.element_size()
                self.too_large = tuple(x.shape)
        return result


@contextlib.contextmanager
def watching(groups: tuple[str, ...], reference_allowed: tuple[str, ...] | None) -> Iterator[list[str]]:
    """Collect the names of forbidden things that are called inside the block.

    Args:
        groups: keys of `FORBIDDEN`.
        reference_allowed: functions of ``mha_course.reference``, and of `callables`, that may be called; ``None``:
            all may.
    """
    stems = tuple(stem for group in groups for stem in FORBIDDEN[group])
    used: list[str] = []

    def note(name: str) -> None:
        if any(stem in name for stem in stems) and name not in used:
            used.append(name)

    def profile(frame, event, _argument):
        if event != "call":
            return
        code = frame.f_code
        if code.co_filename.startswith(OURS):
            caller = frame.f_back
            inside = caller is not None and caller.f_code.co_filename.startswith(OURS)
            owner = code.co_qualname.split(".")[0]
            if not inside and reference_allowed is not None and owner not in reference_allowed:
                ours = code.co_filename.startswith(REFERENCE_FOLDER)
                name = f"mha_course.{'reference' if ours else 'checking.callables'}.{owner}"
                if name not in used:
                    used.append(name)
        elif stems and "torch" in code.co_filename:
            note(code.co_qualname)

    before = sys.getprofile()
    with contextlib.ExitStack() as stack:
        if stems:
            stack.enter_context(_Functions(note))
            stack.enter_context(_Kernels(note))
        sys.setprofile(profile)
        threading.setprofile(profile)
        try:
            yield used
        finally:
            sys.setprofile(before)
            threading.setprofile(None)


# ---------------------------------------------------------------- a GPU that is not there


class WaitsForTheDevice(RuntimeError):
    """The answer needs a number's value on the host: on a GPU, everything waits for it."""


class _PretendCuda(TorchFunctionMode):
    """Lets fake CUDA tensors work in a build of torch that has no CUDA at all.

    There, a few entry points (indexing, ``.to``) look for a CUDA device before they reach the fake
    tensor, and building a graph ends the whole process. So: no graph is ever built here, and a call
    that finds no CUDA is made again on meta tensors, its results labelled as on the GPU.
    """

    def __init__(self):
        super().__init__()
        self.copied_back = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func is torch._C._set_grad_enabled:
            return None
        if name == "requires_grad_":
            return args[0]
        if name == "__set__" and "requires_grad" in repr(getattr(func, "__self__", "")):
            return None
        kwargs.pop("requires_grad", None)
        if name == "__getitem__" and args[0].device.type == "cuda" and _by_numbers_on_the_device(args[1]):
            return torch.ops.aten.index.Tensor(
                args[0], list(args[1]) if isinstance(args[1], tuple) else [args[1]]
            )
        if name in ("cpu", "to") and args[0].device.type == "cuda" and _asks_for_cpu(name, args, kwargs):
            self.copied_back = True
        try:
            return func(*args, **kwargs)
        except (RuntimeError, AssertionError) as error:
            if "not linked with support for" not in str(error) and "not compiled with CUDA" not in str(error):
                raise
        return self._on_meta(func, name, args, kwargs)

    def _on_meta(self, func, name, args, kwargs):
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        moving = name in ("to", "cuda", "cpu", "__getitem__", "__setitem__", "copy_")
        if not moving and len({leaf.device.type for leaf in leaves if leaf.dim()}) > 1:
            raise RuntimeError("Expected all tensors to be on the same device, but found cuda:0 and cpu")
        if name in ("item", "__float__", "__int__", "__bool__", "tolist", "__index__", "numpy"):
            raise WaitsForTheDevice(name)
        target = "cpu" if name == "cpu" else ("cuda" if name in ("to", "cuda") else None)
        if target is None:
            on_gpu = leaves and leaves[0].device.type == "cuda"
            target = "cuda" if on_gpu or not leaves else "cpu"

        def twin(leaf):
            if not isinstance(leaf, Tensor):
                return "meta" if isinstance(leaf, torch.device) or leaf in ("cuda", "cuda:0") else leaf
            return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")

        def label(leaf):
            if not isinstance(leaf, Tensor):
                return leaf
            return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=target)

        return tree_map(
            label, func(*tree_map(_tensor_safe(twin), args), **tree_map(_tensor_safe(twin), kwargs))
        )


def _by_numbers_on_the_device(index: Any) -> bool:
    """Whether an index is made of single numbers that are on the device: ``slopes[h]``.

    That is how PyTorch's own score_mods are written. Compiled, or under vmap, nothing waits for it.
    """
    parts = index if isinstance(index, tuple) else (index,)
    return all(isinstance(i, Tensor) and i.dtype in (torch.int64, torch.int32) for i in parts) and any(
        i.dim() == 0 for i in parts
    )


def _asks_for_cpu(name: str, args: tuple, kwargs: dict) -> bool:
    if name == "cpu":
        return True
    given = [*args[1:2], kwargs.get("device"), kwargs.get("other")]
    places = [x.device if isinstance(x, Tensor) else x for x in given]
    return any(isinstance(x, (str, torch.device)) and torch.device(x).type == "cpu" for x in places)


def _tensor_safe(twin: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def apply(leaf):
        return twin(leaf) if isinstance(leaf, (Tensor, torch.device, str)) else leaf

    return apply


class PretendedGpu:
    """What `pretend_cuda` gives: call it with a tensor for the tensor's twin on the GPU that is not there."""

    def __init__(self, mode: _PretendCuda):
        self._mode = mode

    def __call__(self, x: Tensor) -> Tensor:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")

    @property
    def copied_back(self) -> bool:
        """Whether anything was copied from the GPU to the CPU so far."""
        return self._mode.copied_back


@contextlib.contextmanager
def pretend_cuda() -> Iterator[PretendedGpu]:
    """A block in which tensors can be on a CUDA device that does not exist; they have shapes, no values.

    Source: FakeTensorMode, https://docs.pytorch.org/docs/stable/torch.compiler_fake_tensor.html
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = _PretendCuda()
    log = logging.getLogger(
        "torch._subclasses.fake_tensor"
    )  # writes every error to stderr before it is raised
    before, log.disabled = log.disabled, True
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), mode:
            yield PretendedGpu(mode)
    finally:
        log.disabled = before


def move_module(module: torch.nn.Module, to_gpu: Callable[[Tensor], Tensor]) -> None:
    """What ``module.to("cuda")`` does: parameters and buffers move, plain attributes stay."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = torch.nn.Parameter(to_gpu(parameter), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = to_gpu(buffer)


def left_behind(module: Any) -> list[str]:
    """Names of a module's tensors that `move_module` does not move: plain attributes."""
    if not isinstance(module, torch.nn.Module):
        return []
    return [name for part in module.modules() for name, x in vars(part).items() if isinstance(x, Tensor)]


def device_mistake(error: BaseException) -> FailureKind | None:
    """Which device mistake an exception under `pretend_cuda` stands for: ``MIXED``, ``WAITS``, or none."""
    name, text = type(error).__name__, str(error)
    if isinstance(error, WaitsForTheDevice) or name == "DataDependentOutputException":
        return FailureKind.WAITS
    if ".numpy() is not supported" in text or "meta tensors" in text:
        return FailureKind.WAITS
    if "same device" in text or "two different devices" in text or name == "FakeTensorDeviceMismatchError":
        return FailureKind.MIXED
    return None
