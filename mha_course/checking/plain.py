"""Whatever an answer gave, as plain data: dense tensors, numbers, text, and lists, tuples and dicts of them.

An answer may return anything: a sparse tensor, a list that contains itself, an object that raises when it is looked
at. Here is the one place that looks. What is not plain becomes an `Odd`, which says in words what it was; everything
behind it (comparing, diagnosing, reporting, the way between two processes) meets plain data only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MAX_BYTES = 256 << 20  # of one tensor
MAX_ITEMS = 100_000  # of all lists, tuples and dicts together
MAX_DEPTH = 12
MAX_TEXT = 100_000  # characters


@dataclass(frozen=True)
class Odd:
    """Something returned that is no plain data.

    Args:
        what: in words, with its article ("a sparse tensor", "an ndarray").
    """

    what: str


class Plain:
    """Looks at one returned value.

    Attributes:
        subclasses: names of the tensor subclasses that were among what was returned, parameters apart.
        tensors: the plain ones among what was returned, as they were: still attached to their inputs.
    """

    def __init__(self):
        self.items = 0
        self.subclasses: set[str] = set()
        self.tensors: list[Tensor] = []

    def of(self, value: Any, depth: int = 0) -> Any:
        """The value as plain data: detached, of no subclass, bounded in size. Whatever else it was is an `Odd`."""
        try:
            return self._of(value, depth)
        except Exception:  # it does not let itself be looked at
            return Odd(with_article(type(value).__name__))

    def _of(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if value is None or kind is bool or issubclass(kind, (torch.dtype, torch.device, Odd)):
            return value
        if issubclass(kind, Tensor):
            return self._tensor(value, kind)
        if issubclass(kind, int):
            value = int.__add__(value, 0)
            return value if abs(value) < 1 << 63 else Odd(f"a number of about {digits(value)} digits")
        if issubclass(kind, float):
            return float.__add__(value, 0.0)
        if issubclass(kind, str):
            return str.__str__(value)[:MAX_TEXT].encode("utf-8", "replace").decode()
        if issubclass(kind, (list, tuple, dict)):
            return self._container(value, kind, depth)
        return Odd("a NumPy array" if kind.__name__ == "ndarray" else with_article(kind.__name__))

    def _container(self, value: Any, kind: type, depth: int) -> Any:
        base = next(c for c in (list, tuple, dict) if issubclass(kind, c))
        size = base.__len__(value)
        self.items += size
        if depth >= MAX_DEPTH:
            return Odd(f"{with_article(base.__name__)} nested more than {MAX_DEPTH} deep")
        if self.items > MAX_ITEMS:
            return Odd(f"{with_article(base.__name__)} of {size} things")
        if base is not dict:
            return base(self.of(item, depth + 1) for item in base.__iter__(value))
        pairs = {}
        for key, item in dict.items(value):
            name = self.of(key) if type(key) in (str, int, float, bool, type(None)) else Odd("")
            if isinstance(name, Odd):
                return Odd(f"a dict with a key of type {type(key).__name__}")
            pairs[name] = self.of(item, depth + 1)
        return pairs

    def _tensor(self, x: Tensor, kind: type) -> Any:
        if kind not in (Tensor, torch.nn.Parameter):
            self.subclasses.add(kind.__name__)
        with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
            if x.is_nested:
                return Odd("a nested tensor")
            if x.layout != torch.strided:
                return Odd(f"a sparse tensor of shape {tuple(x.shape)}")
            if x.is_quantized or x.is_mkldnn or torch._C._functorch.is_functorch_wrapped_tensor(x):
                return Odd("a tensor in a special form (quantized, mkldnn, or inside vmap)")
            if x.numel() * x.element_size() > MAX_BYTES:
                return Odd(f"a tensor of shape {tuple(x.shape)}, too large to look at")
            live, x = x, x.detach()
            if type(x) is not Tensor:
                x = x.as_subclass(Tensor)
            if x.device.type != "meta" and not _backed(x):
                return Odd(f"a tensor of shape {tuple(x.shape)} whose memory was freed")
            self.tensors.append(live)
            return x.resolve_conj().resolve_neg()


def _backed(x: Tensor) -> bool:
    """Whether the memory that the tensor's shape and strides point to is there."""
    if not x.numel():
        return True
    last = x.storage_offset() + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride()))
    return (last + 1) * x.element_size() <= x.untyped_storage().nbytes()


def digits(number: int) -> int:
    """About how many decimal digits a whole number has. `str` refuses very long ones."""
    return int(abs(number).bit_length() * 0.30103) + 1


def with_article(noun: str) -> str:
    """The noun with its article: "a list", "an int"."""
    return f"{'an' if noun[:1].lower() in tuple('aeiou') else 'a'} {noun}"


def clean(text: str, limit: int) -> str:
    """Text that can be printed anywhere: no escape sequences, no half letters, at most ``limit`` characters.

    The end is cut, and a "…" says so.
    """
    text = text[: 2 * limit]
    text = re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07\x1b]*(\x07|\x1b\\)?)", "", text)
    text = text.encode("utf-8", "replace").decode()
    text = "".join(c for c in text if c in "\n\t" or (ord(c) >= 32 and not 127 <= ord(c) < 160))
    return text if len(text) <= limit else text[: limit - 1] + "…"
