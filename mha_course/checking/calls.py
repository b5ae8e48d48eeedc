"""The one door between the engine and an answer: a `Call` goes in, an `Observation` comes out.

Both are plain data (tensors, numbers, names), so that the two sides may live in different processes.
Nothing else of the engine ever touches the answer.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import dis
import functools
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

from mha_course import quiet

from . import callables, guards
from .exercise import Draw, Named, Step
from .kinds import FailureKind
from .plain import Plain, clean

OURS = tuple(
    str(Path(__file__).parents[1] / part)
    for part in ("checking", "reference", "tutor.py", "grading", "devices.py")
)
REAL = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
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
        kind: in what way.
        types: names of the exception's class and its bases.
        message: what the exception says; for ``ATTRIBUTE`` the names of the attributes, for ``SWITCHED_OFF`` what
            was called.
        lines: the learner's own lines on the way to it, outermost first: (function, line number, code).
    """

    kind: FailureKind
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


@functools.cache
def _load_what_works_without_values() -> None:
    """What torch loads at its first operation on the meta device: hundreds of modules, not on an answer's time.

    On a slow machine that takes longer than an answer may, and a module that is stopped while it is loaded stays half.
    """
    with quiet.nothing_on_stderr(), contextlib.suppress(Exception):  # what is wrong shows in the call itself
        places = torch.arange(2, device="meta")
        places + (places <= places)


def _is_meta(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_meta
    return isinstance(value, (str, torch.device)) and str(value) == "meta"


def _observe(target: Callable[..., Any], call: Call) -> Observation:
    steps = _steps(call)
    if any(_is_meta(leaf) for step in steps for leaf in tree_leaves(dict(step.inputs))):
        _load_what_works_without_values()
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
    looked, made, stub = Plain(), _made(steps), False
    value, failure, changed = None, None, ()
    gradients, detached, gradient_error = {}, False, ""
    started = time.perf_counter()
    with _quiet(printed) as caught, _seeded(call.seed):
        try:
            with time_limit(call.seconds):
                watched = guards.watching(call.forbidden, _allowed(call))
                with watched as used, sizes if call.largest else _nothing:
                    function = target
                    if call.construct is not None:
                        function = _construct(target, call)
                        if isinstance(function, torch.nn.Module):
                            parameters = dict(function.named_parameters())
                    results = [
                        _call(function, step.method, arguments, call, made)
                        for step, arguments in zip(steps, live)
                    ]
                result = results if isinstance(call.inputs, list) else results[0]
                stub = (result is None or result is ...) and _is_stub(target)
                value = looked.of(result)
                if call.gradients and _intact(live):
                    gradients, detached, gradient_error = _gradients(
                        looked.tensors, {**leaves, **parameters}, call.seed
                    )
        except BaseException as error:  # whatever an answer raises is an observation, Ctrl-C apart
            if isinstance(error, KeyboardInterrupt):
                raise
            failure = _failure(error)
        seconds = time.perf_counter() - started

    with contextlib.suppress(
        Exception
    ):  # an input that can no longer be looked at was changed, as all its like
        changed = tuple(
            dict.fromkeys(name for before, after in zip(kept, live) for name in _changed(before, after))
        )
    return Observation(
        value=value,
        gradients=gradients,
        detached=detached,
        gradient_error=clean(gradient_error, 500),
        changed=changed,
        odd_types=tuple(sorted(looked.subclasses)),
        warnings=tuple(dict.fromkeys(_own_warnings(caught))),
        printed=clean(printed.getvalue(), 10_000),
        used=tuple(used),
        too_large=sizes.too_large,
        stub=stub,
        failure=failure,
        seconds=seconds,
    )


def _intact(live: list[dict[str, Any]]) -> bool:
    """Whether the memory of all inputs is still there: torch's backward pass crashes where it is not."""
    tensors = [x for x in tree_leaves(live) if isinstance(x, Tensor)]
    return all(isinstance(Plain().of(x), Tensor) for x in tensors)


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names of the inputs that were written into."""
    return [name for name in before if not _same(before[name], after[name])]


def _same(before: Any, after: Any) -> bool:
    a, b = tree_leaves(before), tree_leaves(after)
    return len(a) == len(b) and all(map(_same_leaf, a, b))


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
        raise _ParametersDiffer(
            f"The module has a parameter or buffer too many: {', '.join(extra)}. "
            "If it is a buffer: one registered with `persistent=False` is not in the state dict."
        )
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


def _same_leaf(before: Any, after: Any) -> bool:
    """Whether an input is still what it was. Only tensors are looked at: nothing else is handed over by reference."""
    if not isinstance(before, Tensor):
        return True
    after = Plain().of(after)
    if not isinstance(after, Tensor) or before.shape != after.shape or before.dtype != after.dtype:
        return False
    if before.device != after.device or before.device.type == "meta":
        return before.device == after.device
    before = before.detach()
    return bool(((after == before) | (before != before)).all())


def _gradients(tensors: list[Tensor], leaves: dict[str, Tensor], seed: int) -> tuple[dict, bool, str]:
    """Gradients of a random weighted sum of all floating tensors that were returned."""
    outputs = [x for x in tensors if x.dtype in REAL]
    if not outputs or not leaves:
        return {}, False, ""
    if not any(x.requires_grad for x in outputs):
        return dict.fromkeys(leaves), True, ""
    draw = Draw(seed + 1)
    try:
        total = sum((x * draw.normal(*x.shape, dtype=x.dtype).to(x.device)).sum() for x in outputs)
        found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    except Exception as error:
        return {}, False, (_words(error).splitlines() or [type(error).__name__])[0]
    return {name: _gradient(x) for name, x in zip(leaves, found)}, False, ""


def _gradient(x: Tensor | None) -> Tensor | None:
    if x is None:
        return None
    dense = Plain().of(x if x.layout == torch.strided else x.to_dense())
    return dense if isinstance(dense, Tensor) else None


# ------------------------------------------------------------------------------ one fake CUDA call


def _observe_fake(target: Callable[..., Any], call: Call) -> Observation:
    value, failure, function, made = None, None, None, _made(_steps(call))
    with _quiet(io.StringIO()), _seeded(call.seed), guards.pretend_cuda() as to_gpu:
        try:
            with time_limit(call.seconds):
                function = target
                if call.construct is not None:
                    function = target(
                        *_positional(call.construct, call.keywords), **_keyword(call.construct, call.keywords)
                    )
                    if isinstance(function, torch.nn.Module):
                        dtype = next(
                            (t.dtype for t in (call.state or {}).values() if t.is_floating_point()), None
                        )
                        guards.move_module(
                            function, lambda x: to_gpu(x).to(dtype if x.is_floating_point() else x.dtype)
                        )
                        function.train(call.train)
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
            kind = guards.device_mistake(error) or FailureKind.RAISED
            attribute = kind == FailureKind.MIXED and guards.left_behind(function)
            failure = _failure(error, FailureKind.ATTRIBUTE if attribute else kind)
            if attribute:
                failure = replace(failure, message=", ".join(attribute))
        places = tuple(x.device.type for x in tree_leaves(value) if isinstance(x, Tensor))
        if failure is None and to_gpu.copied_back and "cpu" not in places:
            failure = Failure(FailureKind.ROUND_TRIP, ("RuntimeError",), "copied to the CPU and back")
    return Observation(value=places, failure=failure)


# ------------------------------------------------------------------------------------- failures


def _failure(error: BaseException, kind: FailureKind = FailureKind.RAISED) -> Failure:
    if isinstance(error, guards.SwitchedOff):
        return Failure(FailureKind.SWITCHED_OFF, ("SwitchedOff", "RuntimeError"), clean(error.name, 100))
    if isinstance(error, NotImplementedError) and not _words(error):
        kind = FailureKind.NOT_WRITTEN
    elif isinstance(error, TooSlow):
        kind = FailureKind.TOO_SLOW
    elif isinstance(error, _ParametersDiffer):
        kind = FailureKind.PARAMETERS
    types = tuple(c.__name__ for c in type(error).__mro__ if c not in (object, builtins.BaseException))
    message = clean(_words(error).split("\nException raised from")[0].strip(), 2000)
    return Failure(kind, types or ("BaseException",), message, _own_lines(error))


def _words(error: Any) -> str:
    """What an exception or a warning says, as far as it can be asked."""
    try:
        return repr(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    except Exception:
        return "(its message cannot be read)"


def _own_warnings(caught: list[warnings.WarningMessage]) -> list[str]:
    """What was warned about, but for what a library says of the machine or of its own age."""
    told = [(w, clean(_words(w.message), 500).strip()) for w in caught]
    return [text for w, text in told if not quiet.is_noise(w.category, w.filename, text)]


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


class Limited:
    """An answer that has so many seconds for all its calls together.

    Args:
        answer: the answer itself.
        seconds: how many.
    """

    def __init__(self, answer: Answer, seconds: float):
        self.answer, self.seconds, self.left = answer, seconds, seconds

    def observe(self, call: Call) -> Observation:
        """Make the call, if there is time left for it."""
        says = f"stopped after {self.seconds:g} s"
        if self.left <= 0:
            return Observation(failure=Failure(FailureKind.TOO_SLOW, ("TimeoutError",), says))
        started = time.monotonic()
        seen = self.answer.observe(replace(call, seconds=min(call.seconds, self.left)))
        self.left -= time.monotonic() - started
        if seen.failure is not None and seen.failure.kind == FailureKind.TOO_SLOW:
            self.left = 0.0
            seen = replace(seen, failure=replace(seen.failure, message=says))
        return seen


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
    """Warnings are caught, and what is printed is kept: nothing reaches stderr, and no log of a library's anything."""
    with (
        quiet.nothing_on_stderr(),
        warnings.catch_warnings(record=True) as caught,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        warnings.simplefilter("always")
        yield caught


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A block with a fixed global seed; the learner's own random numbers are not disturbed.

    By the generator itself: `torch.manual_seed` also imports torch's compiler and queues work for a CUDA to come.
    """
    python_state, torch_state = random.getstate(), torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    try:
        with usual_settings():
            yield
    finally:
        torch.default_generator.set_state(torch_state)
        random.setstate(python_state)


@contextlib.contextmanager
def usual_settings() -> Iterator[None]:
    """A block with torch's usual settings, whatever a notebook has set; afterwards they are as they were before.

    The default dtype and device, gradients on, no autocast, no inference mode, no other mode that was entered and not
    left (`torch.device`). A mode that an answer enters and does not leave ends with the block.
    """
    here = (
        torch._GLOBAL_DEVICE_CONTEXT
    )  # the default device is a mode, too; asked for by name, it may not be there
    dtype, device = torch.get_default_dtype(), getattr(here, "device_context", None)
    entered = [torch._C._pop_torch_function_stack() for _ in range(torch._C._len_torch_function_stack())]
    here.device_context = None
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            depths = [count() for count, _ in _MODES]
            try:
                yield
            finally:
                for depth, (count, pop) in zip(depths, _MODES):
                    while count() > depth:
                        pop()
    finally:
        for mode in reversed(entered):
            torch._C._push_on_torch_function_stack(mode)
        here.device_context = device
        torch.set_default_dtype(dtype)


_MODES = (
    (torch._C._len_torch_function_stack, torch._C._pop_torch_function_stack),
    (torch._C._len_torch_dispatch_stack, torch._C._pop_torch_dispatch_stack),
)
