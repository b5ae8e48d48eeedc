"""The one door between the engine and an answer: a `Call` goes in, an `Observation` comes out.

Both are plain data (tensors, numbers, names), so that the two sides may live in different processes.
Nothing else of the engine ever touches the answer.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import dis
import inspect
import io
import linecache
import random
import signal
import sysconfig
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from . import callables, guards
from .exercise import Draw, Named, Step

OURS = tuple(
    str(Path(__file__).parents[1] / part)
    for part in ("checking", "reference", "tutor.py", "grading", "devices.py")
)
ELSEWHERE = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


@dataclass(frozen=True)
class Call:
    """One request to an answer.

    Args:
        inputs: arguments by name, in call order; or a list of `Step` for an object called several times.
        keywords: which names are passed by keyword.
        construct: for a class: constructor arguments by name.
        state: for a module: the state dict to load before the call.
        train: for a module: train mode instead of eval mode.
        gradients: names of the inputs whose gradients are wanted; ``()``: none at all.
        seed: for what the answer draws at random itself, and for the gradients' cotangents.
        seconds: how long the call may take.
        device: "cpu", or "fake cuda" (shapes without values, see `guards.pretend_cuda`).
        forbidden: groups of `guards.FORBIDDEN` to watch for.
        reference_allowed: functions of the reference that the answer may use; ``None``: any.
        largest: how many numbers a tensor may have that is made on the way; ``None``: any.
    """

    inputs: Mapping[str, Any] | list[Step]
    keywords: tuple[str, ...] = ()
    construct: Mapping[str, Any] | None = None
    state: Mapping[str, Tensor] | None = None
    train: bool = False
    gradients: tuple[str, ...] = ()
    seed: int = 0
    seconds: float = 10.0
    device: str = "cpu"
    forbidden: tuple[str, ...] = ()
    reference_allowed: tuple[str, ...] | None = None
    largest: int | None = None


@dataclass(frozen=True)
class Failure:
    """An exception in the answer, as plain words.

    Args:
        kind: "raised", "not written", "too slow", "parameters" (the state dict does not fit); on the
            pretended GPU also "mixed" or "waits" (see `guards.device_mistake`), "attribute" (mixed, by a module's
            plain attributes, which are the message) and "round trip" (to the CPU and back again).
        types: names of the exception's class and its bases.
        message: what the exception says.
        lines: the learner's own lines on the way to it, outermost first: (function, line number, code).
    """

    kind: str
    types: tuple[str, ...]
    message: str
    lines: tuple[tuple[str, int, str], ...] = ()


@dataclass(frozen=True)
class Observation:
    """What one call of an answer gave.

    Args:
        value: the returned tensors and numbers, detached.
        gradients: by name of input or parameter (``None``: no gradient arrives there).
        detached: gradients were wanted and the value is cut off from its inputs.
        gradient_error: what the backward pass said, if it failed.
        changed: names of inputs that were written into.
        odd_types: returned tensors that are of a subclass, by class name.
        warnings: texts of warnings.
        printed: what the answer printed.
        used: forbidden things that were called.
        too_large: the shape of a tensor that was made and is larger than allowed; ``()``: none was.
        stub: the body of the answer is still empty.
        failure: what was raised, if anything.
        seconds: how long the call took.
    """

    value: Any = None
    gradients: Mapping[str, Tensor | None] = field(default_factory=dict)
    detached: bool = False
    gradient_error: str = ""
    changed: tuple[str, ...] = ()
    odd_types: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    printed: str = ""
    used: tuple[str, ...] = ()
    too_large: tuple[int, ...] = ()
    stub: bool = False
    failure: Failure | None = None
    seconds: float = 0.0


class Answer(Protocol):
    """Anything that can be asked: in this process, or behind a pipe."""

    def observe(self, call: Call) -> Observation:
        """Make the call and say what happened. Never raises because of what the answer does."""
        ...


class LocalAnswer:
    """A function or class in this very process."""

    def __init__(self, target: Callable[..., Any]):
        self.target = target

    def observe(self, call: Call) -> Observation:
        return (_observe_fake if call.device == "fake cuda" else _observe)(self.target, call)


# ------------------------------------------------------------------------------- one real call

_nothing = contextlib.nullcontext()


def _observe(target: Callable[..., Any], call: Call) -> Observation:
    steps = _steps(call)
    kept = [dict(step.inputs) for step in steps]
    live, leaves = [], {}
    for step in steps:
        arguments = {}
        for name, value in step.inputs.items():
            value = tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, value)
            if name in call.gradients and isinstance(value, Tensor) and value.is_floating_point():
                leaves[name] = value.requires_grad_()
                value = value.clone()  # not a leaf: writing into it is seen below, not an error of autograd's
            arguments[name] = value
        live.append(arguments)

    printed, used, sizes = io.StringIO(), [], guards.Sizes(call.largest)
    parameters: dict[str, Tensor] = {}
    value, failure, made = None, None, _made(steps)
    started = time.perf_counter()
    with _quiet(printed) as caught, _seeded(call.seed), torch.enable_grad():
        try:
            watched = guards.watching(call.forbidden, _allowed(call))
            with time_limit(call.seconds), watched as used, sizes if call.largest else _nothing:
                function = target
                if call.construct is not None:
                    function = _construct(target, call)
                    if isinstance(function, torch.nn.Module):
                        parameters = dict(function.named_parameters())
                results = [
                    _call(function, step.method, arguments, call, made)
                    for step, arguments in zip(steps, live)
                ]
            value = results[0] if not isinstance(call.inputs, list) else results
        except BaseException as error:  # whatever an answer raises is an observation, Ctrl-C apart
            if isinstance(error, KeyboardInterrupt):
                raise
            failure = _failure(error)
        seconds = time.perf_counter() - started
        if failure is None and call.gradients:
            gradients, detached, gradient_error = _gradients(value, {**leaves, **parameters}, call.seed)
        else:
            gradients, detached, gradient_error = {}, False, ""

    changed = tuple(
        dict.fromkeys(
            name
            for before, after in zip(kept, live)
            for name in before
            if not all(map(_same, tree_leaves(before[name]), tree_leaves(after[name])))
        )
    )
    odd = {type(x).__name__ for x in tree_leaves(value) if isinstance(x, Tensor)} - {"Tensor", "Parameter"}
    return Observation(
        value=tree_map(_plain, value),
        gradients=gradients,
        detached=detached,
        gradient_error=gradient_error,
        changed=changed,
        odd_types=tuple(sorted(odd)),
        warnings=tuple(dict.fromkeys(str(w.message).strip() for w in caught)),
        printed=printed.getvalue(),
        used=tuple(used),
        too_large=sizes.too_large,
        stub=(value is None or value is ...) and _is_stub(target),
        failure=failure,
        seconds=seconds,
    )


def _allowed(call: Call) -> tuple[str, ...] | None:
    """What the answer may use of ours: parts of the reference, and what it was handed."""
    if call.reference_allowed is None:
        return None
    handed = (v.name for step in _steps(call) for v in step.inputs.values() if isinstance(v, Named))
    return (*call.reference_allowed, *handed)


def _steps(call: Call) -> list[Step]:
    return call.inputs if isinstance(call.inputs, list) else [Step("__call__", call.inputs)]


def _made(steps: list[Step]) -> dict[str, Any]:
    """What `Named` arguments stand for: all steps of a call get the same one."""
    names = {value.name: None for step in steps for value in step.inputs.values() if isinstance(value, Named)}
    return {name: callables.resolve(name) for name in names}


def _call(function: Any, method: str, arguments: Mapping[str, Any], call: Call, made: dict[str, Any]) -> Any:
    """One step; ``made`` holds what `Named` arguments stand for."""
    bound = function if method == "__call__" else getattr(function, method)
    arguments = {n: made[v.name] if isinstance(v, Named) else v for n, v in arguments.items()}
    return bound(*_positional(arguments, call.keywords), **_keyword(arguments, call.keywords))


def _construct(target: Callable[..., Any], call: Call) -> Any:
    made = target(*_positional(call.construct, call.keywords), **_keyword(call.construct, call.keywords))
    if isinstance(made, torch.nn.Module):
        if call.state is not None:
            _load(made, call.state)
        made.train(call.train)
    return made


class _ParametersDiffer(Exception):
    pass


def _load(module: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    own = module.state_dict()
    missing = _together([name for name in state if name not in own], state)
    extra = _together([name for name in own if name not in state], own)
    if missing:
        there = f" It has {', '.join(extra)} instead." if extra else ""
        raise _ParametersDiffer(f"The module has no {', no '.join(missing)}.{there}")
    if extra:
        raise _ParametersDiffer(f"The module has a parameter or buffer too many: {', '.join(extra)}.")
    for name, tensor in state.items():
        if own[name].shape != tensor.shape:
            raise _ParametersDiffer(
                f"{name} has shape {tuple(own[name].shape)}, expected {tuple(tensor.shape)}."
            )
    dtype = next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), None)
    module.to(dtype)
    module.load_state_dict({name: tensor.clone() for name, tensor in state.items()})


def _together(names: list[str], among: Mapping[str, Tensor]) -> list[str]:
    """Names of parameters, with those of a layer whose parameters are all meant said as one: the layer's name."""

    def layer(name: str) -> str:
        whole = name.rpartition(".")[0]
        others = [other for other in among if whole and other.rpartition(".")[0] == whole]
        return whole if others and set(others) <= set(names) else name

    return list(dict.fromkeys(layer(name) for name in names))


def _positional(arguments: Mapping[str, Any], keywords: tuple[str, ...]) -> list[Any]:
    return [value for name, value in arguments.items() if name not in keywords]


def _keyword(arguments: Mapping[str, Any], keywords: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name in keywords}


def _plain(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    with torch.no_grad():
        return leaf.detach().as_subclass(Tensor)


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor):
        return True
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    return a.device.type == "meta" or bool(((a == b.detach()) | (a != a)).all())


def _gradients(value: Any, leaves: dict[str, Tensor], seed: int) -> tuple[dict, bool, str]:
    """Gradients of a random weighted sum of all floating outputs."""
    outputs = [x for x in tree_leaves(value) if isinstance(x, Tensor) and x.is_floating_point()]
    if not outputs or not leaves:
        return {}, False, ""
    attached = [x for x in outputs if x.requires_grad]
    if not attached:
        return dict.fromkeys(leaves), True, ""
    draw = Draw(seed + 1)
    total = sum((x * draw.normal(*x.shape, dtype=x.dtype).to(x.device)).sum() for x in outputs)
    try:
        found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    except RuntimeError as error:
        return {}, False, str(error).splitlines()[0]
    return dict(zip(leaves, found)), False, ""


# ------------------------------------------------------------------------------ one fake CUDA call


def _observe_fake(target: Callable[..., Any], call: Call) -> Observation:
    value, failure, function, made = None, None, None, _made(_steps(call))
    with _quiet(io.StringIO()), _seeded(call.seed), guards.pretend_cuda() as to_gpu:
        try:
            with time_limit(call.seconds):
                function = target
                if call.construct is not None:
                    made = target(
                        *_positional(call.construct, call.keywords), **_keyword(call.construct, call.keywords)
                    )
                    function = made
                    if isinstance(made, torch.nn.Module):
                        dtype = next(
                            (t.dtype for t in (call.state or {}).values() if t.is_floating_point()), None
                        )
                        guards.move_module(
                            made, lambda x: to_gpu(x).to(dtype if x.is_floating_point() else x.dtype)
                        )
                        made.train(call.train)
                results = []
                for step in _steps(call):
                    arguments = tree_map(
                        lambda x: to_gpu(x) if isinstance(x, Tensor) else x, dict(step.inputs)
                    )
                    results.append(_call(function, step.method, arguments, call, made))
                value = results
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            kind = guards.device_mistake(error) or "raised"
            attribute = kind == "mixed" and guards.left_behind(function)
            failure = _failure(error, "attribute" if attribute else kind)
            if attribute:
                failure = replace(failure, message=", ".join(attribute))
        places = tuple(x.device.type for x in tree_leaves(value) if isinstance(x, Tensor))
        if failure is None and to_gpu.copied_back and "cpu" not in places:
            failure = Failure("round trip", ("RuntimeError",), "copied to the CPU and back")
    return Observation(value=places, failure=failure)


# ------------------------------------------------------------------------------------- failures


def _failure(error: BaseException, kind: str = "raised") -> Failure:
    if isinstance(error, NotImplementedError) and not str(error):
        kind = "not written"
    elif isinstance(error, TooSlow):
        kind = "too slow"
    elif isinstance(error, _ParametersDiffer):
        kind = "parameters"
    types = tuple(c.__name__ for c in type(error).__mro__ if c not in (object, builtins.BaseException))
    message = str(error).split("\nException raised from")[0].strip()
    if isinstance(error, KeyError) and error.args:
        message = f"{error.args[0]!r}"
    return Failure(kind, types, message, _own_lines(error))


def _own_lines(error: BaseException) -> tuple[tuple[str, int, str], ...]:
    lines = []
    for frame, number in traceback.walk_tb(error.__traceback__):
        name = frame.f_code.co_filename
        if name.startswith(OURS) or name.startswith(ELSEWHERE) or name.startswith("<frozen"):
            continue
        lines.append((frame.f_code.co_name, number, linecache.getline(name, number).strip()))
    return tuple(lines[-4:])


def _is_stub(target: Callable[..., Any]) -> bool:
    """Whether nothing stands in the body but a docstring, ``...`` or ``pass``."""
    if inspect.isclass(target):
        target = target.__dict__.get("forward") or target.__dict__.get("__init__")
    code = getattr(target, "__code__", None)
    if code is None:
        return False
    harmless = {"RESUME", "NOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST", "POP_TOP", "COPY_FREE_VARS"}
    for instruction in dis.get_instructions(code):
        if instruction.opname not in harmless:
            return False
        if "CONST" in instruction.opname and instruction.argval not in (None, ...):
            return False
    return True


# ------------------------------------------------------------------------------- around a call


class TooSlow(BaseException):
    """A call was stopped because its time was up. Not an `Exception`: answers may catch those."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TooSlow` inside the block after so many seconds, wherever Python gets a word in.

    By the alarm signal where there is one (Linux, macOS, main thread), else by an exception set in the
    thread from outside (Windows; only between two Python instructions).
    """
    if not 0 < seconds < float("inf"):
        yield
        return
    if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():

        def ring(_signal, _frame):
            raise TooSlow(f"stopped after {seconds:g} s")

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)  # again and again: an answer may catch the first
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        return
    ident = threading.get_ident()
    timer = threading.Timer(
        seconds,
        lambda: ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(TooSlow)),
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _quiet(printed: io.StringIO) -> Iterator[list[warnings.WarningMessage]]:
    """Warnings are caught, and what is printed is kept: nothing reaches stderr."""
    with (
        warnings.catch_warnings(record=True) as caught,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        warnings.simplefilter("always")
        yield caught


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A fixed global seed inside the block; the learner's own random numbers are not disturbed.

    By the generator itself: `torch.manual_seed` also imports torch's compiler and queues work for a CUDA to come.
    """
    python_state, torch_state = random.getstate(), torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(torch_state)
        random.setstate(python_state)
