"""Ways to spoil a right answer: what comes back is of another kind, or something else happens on the way.

``RESULTS`` change what is returned (whole, or each thing in it), ``CONDUCT`` changes what is done besides.
``spoil(answer, change)`` gives a function, or a class, that is like the answer but for that.
"""

import collections
import decimal
import enum
import fractions
import sys
import types
import warnings

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map


class Shy:
    """An object that refuses everything one can ask of it."""

    def refuse(self, *_, **__):
        raise RuntimeError("not for you")

    __repr__ = __str__ = __len__ = __iter__ = __eq__ = __hash__ = __bool__ = __float__ = __int__ = refuse
    __format__ = __getitem__ = __contains__ = __lt__ = __add__ = __array__ = refuse

    def __getattr__(self, name):
        raise RuntimeError("not for you")


class Endless(list):
    """A list without an end."""

    def __iter__(self):
        while True:
            yield 0.0

    def __len__(self):
        return 10**9


class OddTensor(Tensor):
    """A tensor that lets nobody compute with it."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError("not with me")


class OddFloat(float):
    def __eq__(self, other):
        raise RuntimeError("no")

    __lt__ = __abs__ = __sub__ = __rsub__ = __repr__ = __eq__
    __hash__ = float.__hash__


class Speechless(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class Colour(enum.IntEnum):
    RED = 1


def itself():
    """A list that contains itself."""
    loop = [1.0]
    loop.append(loop)
    return loop


def deep(levels=50_000):
    value = 0.0
    for _ in range(levels):
        value = [value]
    return value


def leaf(change):
    """The same change for every tensor in the result."""
    return lambda value: tree_map(lambda x: change(x) if isinstance(x, Tensor) else x, value)


def first(value):
    return value[0] if isinstance(value, (list, tuple)) else value


def cast(dtype):
    return leaf(lambda x: x.detach().to(dtype))


RESULTS = {
    # forgotten dimensions
    "summed up": leaf(lambda x: x.sum()),
    "mean of all": leaf(lambda x: x.double().mean()),
    "summed over the last": leaf(lambda x: x.sum(-1) if x.dim() else x),
    "one dimension more": leaf(lambda x: x.unsqueeze(0)),
    "squeezed": leaf(lambda x: x.squeeze()),
    "flat": leaf(lambda x: x.flatten()),
    "first of the batch": leaf(lambda x: x[0] if x.dim() else x),
    "empty": leaf(lambda x: x.flatten()[:0]),
    "transposed": leaf(lambda x: x.mT if x.dim() > 1 else x),
    "expanded without end": leaf(lambda x: x.flatten()[:1].expand(10**14)),
    "huge": leaf(lambda x: torch.zeros(1).expand(10**6, 10**6, 10**6)),
    # other kinds of tensors
    "lists": leaf(lambda x: x.tolist()),
    "a number": leaf(lambda x: float(x.double().sum())),
    "numpy": leaf(lambda x: x.detach().double().numpy()),
    "numpy float": leaf(lambda x: np.float64(x.double().sum().item())),
    "numpy array of objects": lambda value: np.array([None, value, "x"], dtype=object),
    "sparse": leaf(lambda x: x.detach().to_sparse()),
    "sparse csr": leaf(lambda x: x.detach().double().reshape(1, -1).to_sparse_csr()),
    "meta": leaf(lambda x: x.detach().to("meta")),
    "nested": leaf(lambda x: torch.nested.nested_tensor([x.detach().double().flatten()[:2], torch.ones(1)])),
    "jagged": leaf(
        lambda x: torch.nested.nested_tensor(
            [x.detach().double().flatten()[:2], torch.ones(1).double()], layout=torch.jagged
        )
    ),
    "quantized": leaf(lambda x: torch.quantize_per_tensor(x.detach().float(), 0.1, 0, torch.qint8)),
    "mkldnn": leaf(lambda x: x.detach().float().to_mkldnn()),
    "conjugated": leaf(lambda x: torch.complex(x.detach().double(), x.detach().double()).conj()),
    "negative view": leaf(lambda x: torch.complex(x.detach().double(), x.detach().double()).conj().imag),
    "an odd subclass": leaf(lambda x: x.detach().as_subclass(OddTensor)),
    "a parameter": leaf(lambda x: nn.Parameter(x.detach().double())),
    "freed memory": leaf(lambda x: (y := x.detach().clone(), y.untyped_storage().resize_(0))[0]),
    "functorch wrapper": leaf(lambda x: torch._C._functorch._add_batch_dim(x.detach()[None], 0, 1)),
    **{
        str(dtype): cast(dtype)
        for dtype in (
            torch.float8_e4m3fn,
            torch.float8_e5m2,
            torch.float16,
            torch.bfloat16,
            torch.complex64,
            torch.complex128,
            torch.complex32,
            torch.uint16,
            torch.uint64,
            torch.int8,
            torch.bool,
        )
    },
    # numbers
    "nan": leaf(lambda x: x.double() * float("nan")),
    "inf": leaf(lambda x: x.double() / 0),
    "10**400": lambda value: 10**400,
    "-(10**400)": lambda value: -(10**400),
    "10**5000": lambda value: 10**5000,
    "nan itself": lambda value: float("nan"),
    "inf itself": lambda value: float("inf"),
    "a complex number": lambda value: 1j,
    "a fraction": lambda value: fractions.Fraction(1, 3),
    "a decimal": lambda value: decimal.Decimal("sNaN"),
    "an odd float": lambda value: OddFloat(0.5),
    "an enum": lambda value: Colour.RED,
    "true": lambda value: True,
    "a sym int": lambda value: torch.SymInt(3) if hasattr(torch, "SymInt") else 3,
    # other things
    "nothing": lambda value: None,
    "dots": lambda value: ...,
    "not implemented": lambda value: NotImplemented,
    "a word": lambda value: "done",
    "half a letter": lambda value: "\ud800",
    "bytes": lambda value: b"done",
    "a set": lambda value: {1, 2},
    "a generator": lambda value: (x for x in (value,)),
    "a function": lambda value: lambda x: x,
    "a class": lambda value: dict,
    "a module": lambda value: sys,
    "a layer": lambda value: nn.Linear(2, 2),
    "a generator of numbers": lambda value: torch.Generator(),
    "a size": lambda value: torch.Size([1, 2]),
    "a dtype": lambda value: torch.float32,
    "a device": lambda value: torch.device("cuda:7"),
    "a shy object": lambda value: Shy(),
    "shy objects": lambda value: [Shy(), (Shy(), {"x": Shy()})],
    "an endless list": lambda value: Endless(),
    "a list in itself": lambda value: itself(),
    "lists in lists": lambda value: deep(),
    "a mapping proxy": lambda value: types.MappingProxyType({"output": value}),
    # containers
    "in a list": lambda value: [value],
    "in a tuple": lambda value: (value,),
    "twice": lambda value: (value, value),
    "an empty tuple": lambda value: (),
    "the first alone": first,
    "in the other order": lambda value: tuple(reversed(value)) if isinstance(value, tuple) else value,
    "a dict with None": lambda value: {None: value},
    "a dict with odd keys": lambda value: {(1, 2): value, 3: value, Shy: value, frozenset(): None},
    "a dict by name": lambda value: {"output": value},
    "a default dict": lambda value: collections.defaultdict(list, {"x": value}),
    "a named tuple": lambda value: torch.ones(2, 2).max(0),
    "one missing": lambda value: value[:-1] if isinstance(value, (list, tuple)) else [],
    "lists for tuples": lambda value: list(value) if isinstance(value, tuple) else value,
    "a million zeros": lambda value: [0] * 1_000_000,
    "none inside": lambda value: tuple(None for _ in value) if isinstance(value, (list, tuple)) else (None,),
}


def raising(make):
    def conduct(arguments):
        raise make()

    return conduct


def recursion(arguments):
    return recursion(arguments)


def tensors_in(arguments):
    return [x for x in arguments if isinstance(x, Tensor)]


def set_default_dtype(arguments):
    torch.set_default_dtype(torch.float64)


def each_input(change):
    def to_inputs(arguments):
        for x in tensors_in(arguments):
            change(x)

    return to_inputs


def print_nonsense(arguments):
    print("\x1b[31m", "\ud800" * 3, "x" * 100_000)
    print("to stderr", file=sys.stderr)
    warnings.warn("careful " * 1000, stacklevel=1)


def exhaust_recursion(arguments):
    sys.setrecursionlimit(sys.getrecursionlimit())
    return recursion(arguments)


CONDUCT = {
    "raises ValueError": raising(lambda: ValueError("no")),
    "raises without words": raising(Speechless),
    "raises KeyError of a shy key": raising(lambda: KeyError(Shy())),
    "raises KeyError of nothing": raising(KeyError),
    "raises SystemExit": raising(lambda: SystemExit(3)),
    "raises GeneratorExit": raising(GeneratorExit),
    "raises StopIteration": raising(StopIteration),
    "raises MemoryError": raising(MemoryError),
    "raises a group": raising(lambda: ExceptionGroup("two", [ValueError("a"), TypeError("b")])),
    "raises a BaseException": raising(lambda: BaseException("deep")),
    "raises a long story": raising(lambda: RuntimeError("x" * 10**6 + "\n" * 1000)),
    "raises NotImplementedError": raising(NotImplementedError),
    "raises NotImplemented with words": raising(lambda: NotImplementedError("later")),
    "asserts": raising(lambda: AssertionError("must be")),
    "asserts silently": raising(AssertionError),
    "recurses": recursion,
    "exhausts recursion": exhaust_recursion,
    "asks for too much": lambda arguments: torch.empty(10**15),
    "asks for a negative size": lambda arguments: torch.empty(-1),
    "prints nonsense": print_nonsense,
    "default dtype": set_default_dtype,
    "default device": lambda arguments: torch.set_default_device("meta"),
    "no more gradients": lambda arguments: torch._C._set_grad_enabled(False),
    "inference mode": lambda arguments: torch._C._InferenceMode(True),
    "autocast": lambda arguments: torch.autocast("cpu", torch.bfloat16).__enter__(),
    "warnings become errors": lambda arguments: warnings.simplefilter("error"),
    "no stdout": lambda arguments: setattr(sys, "stdout", None),
    "inputs resized": each_input(lambda x: x.detach().resize_(3) if x.is_floating_point() else x),
    "inputs replaced": each_input(lambda x: setattr(x, "data", torch.zeros(1, dtype=x.dtype))),
    "inputs transposed": each_input(lambda x: x.detach().t_() if x.dim() == 2 else x),
    "inputs zeroed": each_input(lambda x: x.detach().zero_()),
    "inputs want gradients": each_input(lambda x: x.requires_grad_() if x.is_floating_point() else x),
}


# Not for an answer that keeps its inputs: torch itself crashes on a tensor without memory.
empty_the_inputs = each_input(lambda x: x.untyped_storage().resize_(0))


def spoil(answer, change, conduct=None):
    """The same answer, but for what it returns (``change``) and does besides (``conduct``)."""
    if isinstance(answer, type):
        methods = [name for name in ("forward", "append", "update") if callable(getattr(answer, name, None))]
        changed = {name: spoil(getattr(answer, name), change, conduct) for name in methods}
        return type(answer.__name__, (answer,), changed)

    def spoilt(*arguments, **named):
        with_inputs = conduct is not None and conduct.__name__ == "to_inputs"
        if conduct is not None and not with_inputs:
            conduct([*arguments, *named.values()])
        value = answer(*arguments, **named)
        if with_inputs:  # afterwards: torch itself crashes on an input without memory
            conduct([*arguments, *named.values()])
        return change(value) if change is not None else value

    spoilt.__name__ = answer.__name__
    return spoilt
