"""Memory and traffic of a computation, counted instead of timed: the same numbers on every machine.

    peak_bytes(lambda: attend(q, k, v))    # how much memory it takes at its highest point
    moved_bytes(lambda: attend(q, k, v))   # what its operations read and write, one after the other

Every operation of torch passes by a dispatch mode, the backward pass's too. A tensor's memory counts from the
operation that makes it until nobody holds it any more; views cost nothing.

Two things cannot be seen from here: scratch memory inside one kernel, and what compiled code does.
Source: https://docs.pytorch.org/docs/stable/notes/extending.html, "Extending all torch API with Modes".
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["moved_bytes", "peak_bytes"]


def peak_bytes(fn: Callable[[], Any]) -> int:
    """The most memory that tensors made inside ``fn()`` hold at one time, in bytes.

    Args:
        fn: is called once, without arguments. Its inputs were there before and do not count; its result does.
    """
    with _Memory() as memory:
        result = fn()
    del result
    return memory.peak


def moved_bytes(fn: Callable[[], Any]) -> int:
    """What the operations inside ``fn()`` read and write, in bytes, if each takes its operands from memory anew.

    A kernel that does several things in one go reads and writes once: that is what a fused kernel saves. A
    cache can make the real traffic smaller.

    Args:
        fn: is called once, without arguments.
    """
    with _Traffic() as traffic:
        fn()
    return traffic.moved


class _Mode(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # the default imports torch's whole compiler at the first call
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.before(_tensors((args, kwargs)))
        result = func(*args, **kwargs)
        self.after(func, _tensors((args, kwargs)), _tensors(result))
        return result

    def before(self, inputs: list[Tensor]) -> None:
        pass

    def after(self, func: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        pass


class _Memory(_Mode):
    """Adds what each new storage holds, takes it off when the storage dies."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def before(self, inputs):
        for x in inputs:
            self._meet(x, size=0)  # made elsewhere

    def after(self, func, inputs, outputs):
        for x in outputs:
            self._meet(x, size=x.untyped_storage().nbytes())
        self.peak = max(self.peak, self.now)

    def _meet(self, x: Tensor, size: int) -> None:
        storage = x.untyped_storage()
        if id(storage) in self.known:  # stays the same object as long as its memory lives
            return
        self.known.add(id(storage))
        self.now += size
        weakref.finalize(storage, self._forget, id(storage), size).atexit = False

    def _forget(self, name: int, size: int) -> None:
        self.known.discard(name)
        self.now -= size


class _Traffic(_Mode):
    """Adds up the bytes of each operation's operands and results."""

    def __init__(self):
        super().__init__()
        self.moved = 0

    def after(self, func, inputs, outputs):
        if func.is_view or not outputs:
            return
        read = {_place(x): _size(x) for x in inputs}
        written = {_place(x): _size(x) for x in outputs}
        schema = func._schema
        if schema.name in _ONLY_WRITE:
            read = {}
        elif schema.name in _ONLY_ASIDE:
            read.pop(_place(inputs[0]), None)
        if schema.name not in _NOTHING:
            self.moved += sum(read.values()) + sum(written.values())


_NOTHING = {
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty",
    "aten::new_empty_strided",
}
_NOTHING |= {"aten::_unsafe_view", "aten::_reshape_alias", "aten::detach", "aten::lift_fresh"}
_ONLY_WRITE = {
    "aten::zeros_like",
    "aten::ones_like",
    "aten::full_like",
    "aten::rand_like",
    "aten::randn_like",
}
_ONLY_WRITE |= {"aten::new_zeros", "aten::new_ones", "aten::new_full", "aten::zero_", "aten::fill_"}
_ONLY_ASIDE = {"aten::copy_"}  # the first operand is overwritten unread


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _place(x: Tensor) -> tuple[Any, ...]:
    return id(x.untyped_storage()), x.storage_offset(), tuple(x.shape), x.stride()


def _size(x: Tensor) -> int:
    """Bytes that are really there: a dimension that was expanded (stride 0) is read once."""
    there = [size for size, stride in zip(x.shape, x.stride()) if stride or size == 0]
    return x.element_size() * int(torch.Size(there).numel())
