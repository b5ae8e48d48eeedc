"""What can only be checked on a real device: every exercise's answer there, and that measuring means what it says.

    for result in check_everything("cuda"):
        print(result)  # {"name": "causal_mask, reference", "result": "ok", "says": ""}

The checks of the lessons find device mistakes on any machine, with a pretended GPU. Here the answers themselves (the
reference's, and those of ``solutions/`` where that folder is there) run on the real one: same values and gradients as
on the CPU, and what comes back lives where the inputs do.
"""

from __future__ import annotations

import ast
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from mha_course import exercises, reference
from mha_course.checking import Call, Exercise, LocalAnswer, Observation, Step
from mha_course.checking.examine import compare_trial, prepare
from mha_course.counting import peak_bytes
from mha_course.reference.without_the_matrix import flash_backward, flash_forward

from .machine import Machine, machine_for
from .runs import using, why

SOLUTIONS = Path(__file__).parents[2] / "solutions"

Result = dict[str, str]


def check_everything(device: str | torch.device, solutions: Path = SOLUTIONS) -> Iterator[Result]:
    """Every check, one after the other, each as name, result ("ok", "failed", "left out") and what there is to say."""
    machine = machine_for(device)
    for lesson in exercises.lessons():
        written = answers_in(solutions / lesson.folder / f"{lesson.folder}.py")
        for exercise in lesson.exercises:
            answers = {"reference": exercise.reference}
            if exercise.name in written:
                answers["solution"] = written[exercise.name]
            for kind, answer in answers.items():
                yield _result(
                    f"{exercise.name}, {kind}", partial(check_answer, exercise, answer, machine.device)
                )
    for check in DEVICE_CHECKS:
        yield _result(check.__name__.replace("_", " "), partial(check, machine))


class LeftOut(Exception):
    """This check has nothing to say on this machine, and why."""


def _result(name: str, check: Callable[[], None]) -> Result:
    try:
        with using("float32"):
            check()
    except LeftOut as reason:
        return {"name": name, "result": "left out", "says": str(reason)}
    except Exception as error:
        return {"name": name, "result": "failed", "says": why(error)}
    return {"name": name, "result": "ok", "says": ""}


# ------------------------------------------------------------------------------------- the exercises


def check_answer(exercise: Exercise, answer: Callable[..., Any], device: torch.device) -> None:
    """An answer on the device against the reference on the CPU, case by case.

    Args:
        exercise: what was asked.
        answer: what somebody wrote; or the reference itself.
        device: where it runs.

    Raises:
        AssertionError: it differs, or something comes back on another device; the message says what.
        LeftOut: the exercise is not about tensors on a device.
    """
    if not exercise.device_safe:
        raise LeftOut("works on the host, on purpose")
    tried = 0
    for trial in prepare(exercise, seed=0):
        if device.type == "mps":  # which has no float64
            call = _mapped(trial.call, lambda x: x.float() if x.dtype == torch.float64 else x)
            expected = LocalAnswer(exercise.reference).observe(replace(call, forbidden=()))
            trial = replace(trial, call=call, expected=expected)
        if not _tensors([trial.call.state, *_inputs(trial.call)]):
            continue  # nothing to move
        seen = LocalAnswer(_moved(answer, device)).observe(_on(trial.call, device))
        if seen.failure is not None and not trial.case.raises:
            raise AssertionError(f"{trial.case.name}: {seen.failure.message}")
        wanted = {x.device.type for x in _tensors(trial.expected.value)} - {"cpu"} | {device.type}
        if astray := {x.device.type for x in _tensors(seen.value) if x.dim()} - wanted:
            raise AssertionError(f"{trial.case.name}: gives a tensor on {astray.pop()}, not on {device.type}")
        found = compare_trial(exercise, trial, _back(seen))
        if found is not None:
            raise AssertionError(f"{trial.case.name}: {found.headline} {' '.join(found.details[:1])}")
        tried += 1
    if not tried:
        raise LeftOut("no tensor goes in")


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _inputs(call: Call) -> list[dict[str, Any]]:
    steps = call.inputs if isinstance(call.inputs, list) else [Step("__call__", call.inputs)]
    return [dict(step.inputs) for step in steps]


def _mapped(call: Call, change: Callable[[Any], Any]) -> Call:
    """The call with every tensor and device in it changed, a module's parameters too."""

    def each(leaf: Any) -> Any:
        return change(leaf) if isinstance(leaf, Tensor) else leaf

    if isinstance(call.inputs, list):
        inputs = [replace(step, inputs=tree_map(each, dict(step.inputs))) for step in call.inputs]
    else:
        inputs = tree_map(each, dict(call.inputs))
    return replace(call, inputs=inputs, state=tree_map(each, dict(call.state)) if call.state else call.state)


def _on(call: Call, device: torch.device) -> Call:
    moved = _mapped(call, lambda x: x.to(device))

    def placed(inputs: dict[str, Any]) -> dict[str, Any]:
        return {name: _place(value, device) for name, value in inputs.items()}

    inputs = moved.inputs
    if isinstance(inputs, list):
        inputs = [replace(step, inputs=placed(step.inputs)) for step in inputs]
    else:
        inputs = placed(inputs)
    construct = placed(moved.construct) if moved.construct else moved.construct
    return replace(moved, inputs=inputs, construct=construct, forbidden=(), reference_allowed=None)


def _place(value: Any, device: torch.device) -> Any:
    return device if isinstance(value, torch.device) and value.type == "cpu" else value


def _moved(answer: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The answer; if it makes a module, one that is moved to the device, as its user would."""

    def on_device(*args: Any, **kwargs: Any) -> Any:
        made = answer(*args, **kwargs)
        return made.to(device) if isinstance(made, nn.Module) else made

    return on_device


def _back(seen: Observation) -> Observation:
    def home(leaf: Any) -> Any:
        return leaf.cpu() if isinstance(leaf, Tensor) else leaf

    return replace(
        seen,
        value=tree_map(home, seen.value),
        gradients={name: home(gradient) for name, gradient in seen.gradients.items()},
    )


def answers_in(path: Path) -> dict[str, Callable[..., Any]]:
    """The answers that stand in a lesson's solution, by name; nothing where there is no such file.

    Its imports and its answer cells are run, and nothing else.
    """
    if not path.exists():
        return {}
    import jupytext

    from mha_course.notebook_rules import grade_id, is_answer

    names: dict[str, Any] = {"__name__": path.stem}
    answers = []
    for cell in jupytext.read(path).cells:
        if cell.cell_type != "code":
            continue
        with contextlib.suppress(SyntaxError, ImportError):
            tree = ast.parse(cell.source)
            if is_answer(cell):
                answers.append(grade_id(cell))
            else:
                tree.body = [line for line in tree.body if isinstance(line, (ast.Import, ast.ImportFrom))]
            exec(compile(tree, f"<{path.name}>", "exec"), names)
    return {name: names[name] for name in answers if callable(names.get(name))}


# ------------------------------------------------------------------------------------- the device itself


def flash_equals_the_direct_formula(machine: Machine) -> None:
    """Lesson 08's tiles, forward and backward, with a mask that leaves one row nothing to look at."""
    dtype, tolerance = (torch.float32, 2e-4) if machine.device.type == "mps" else (torch.float64, 1e-9)
    q, k, v, upstream = _normal(machine, dtype, (2, 3, 37, 8), (2, 3, 53, 8), (2, 3, 53, 8), (2, 3, 37, 8))
    may_attend = torch.arange(53, device=machine.device) <= torch.arange(37, device=machine.device)[:, None]
    may_attend[5] = False
    for x in (q, k, v):
        x.requires_grad_()
    scores = reference.attention_scores(q, k)
    direct = reference.masked_softmax(scores, may_attend) @ v
    wanted = torch.autograd.grad(direct, (q, k, v), upstream)
    with torch.no_grad():
        output, lse = flash_forward(q, k, v, 16, may_attend)
        seen = flash_backward(q, k, v, output, lse, upstream, 16, may_attend)
    for a, b in zip((output, *seen), (direct, *wanted)):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def the_fused_kernel_gives_the_own_numbers(machine: Machine) -> None:
    """In float32 and bfloat16, against attention in float64 on the CPU."""
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.bfloat16, 3e-2)):
        q, k, v = (x.to(dtype) for x in _normal(machine, torch.float32, *[(2, 3, 70, 16)] * 3))
        wanted = reference.attend(*(x.double().cpu() for x in (q, k, v)))[0]
        seen = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        torch.testing.assert_close(seen.double().cpu(), wanted, rtol=0, atol=tolerance)


def the_drop_in_equals_torchs_module(machine: Machine) -> None:
    """`reference.MultiheadAttention` with torch's parameters, both on the device, with padding and gradients."""
    theirs = nn.MultiheadAttention(24, 3, batch_first=True).to(machine.device)
    ours = reference.MultiheadAttention(24, 3, batch_first=True).to(machine.device)
    ours.load_state_dict(theirs.state_dict())
    x = _normal(machine, torch.float32, (2, 7, 24))[0].requires_grad_()
    padding = torch.arange(7, device=machine.device) >= torch.tensor([[7], [4]], device=machine.device)
    for need_weights in (True, False):
        a, b = (module(x, x, x, padding, need_weights=need_weights)[0] for module in (ours, theirs))
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        grads = (torch.autograd.grad(y.sum(), x)[0] for y in (a, b))
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


def what_is_asked_for_there_is_made_there(machine: Machine) -> None:
    """A batch that is moved, and a mask that is made on the device, with nothing to take the place from."""
    from mha_course.reference.gpu import to_device

    batch = {"tokens": torch.arange(6), "more": [torch.ones(2), (torch.zeros(3), "a word")]}
    moved = _tensors([to_device(batch, machine.device), reference.causal_mask(3, 5, device=machine.device)])
    if {x.device.type for x in moved} != {machine.device.type} or len(moved) != 4:
        raise AssertionError("a tensor stayed behind")


def a_mask_on_the_cpu_is_refused(machine: Machine) -> None:
    """What the pretended GPU of the checks says is what the real one does."""
    if machine.device.type == "cpu":
        raise LeftOut("inputs and mask are on the CPU")
    scores = torch.zeros(5, 5, device=machine.device)
    try:
        scores.masked_fill(torch.ones(5, 5, dtype=torch.bool), 0.0)
    except RuntimeError as error:
        if "device" not in str(error):
            raise
        return
    raise AssertionError("no error: the pretended GPU is stricter than this one")


def a_clock_that_does_not_wait_sees_the_launch_only(machine: Machine) -> None:
    """A queue of large products: the host is done with it long before the device is."""
    if machine.device.type == "cpu":
        raise LeftOut("a CPU has no queue")
    a, b = _normal(machine, torch.float32, (4096, 4096), (4096, 4096))
    c = torch.empty_like(a)

    def products() -> None:
        for _ in range(10):
            torch.mm(a, b, out=c)

    machine.seconds(products)
    true = min(machine.seconds(products) for _ in range(3))
    machine.wait()
    started = time.perf_counter()
    products()
    launched = time.perf_counter() - started
    machine.wait()
    if not launched < true / 2:
        raise AssertionError(f"launching took {launched / true:.0%} of the time that the products took")


def eight_times_the_work_takes_longer(machine: Machine) -> None:
    """Timing follows the work: eight times as many products take over three times as long."""
    if machine.device.type == "cpu":
        raise LeftOut("a CPU has no queue")
    a, b = _normal(machine, torch.float32, (512, 512), (512, 512))
    machine.seconds(lambda: a @ b, 3)

    def products(number: int) -> None:
        for _ in range(number):
            a @ b

    few, many = (min(machine.seconds(partial(products, n)) for _ in range(5)) for n in (20, 160))
    if not many > 3 * few:
        raise AssertionError(f"8 times the work took {many / few:.1f} times as long")


def lesson_07s_benchmark_agrees(machine: Machine) -> None:
    """The clock on the host around a wait, and the device's own events: the same, on work that is long enough."""
    from mha_course.devices import RealDevice
    from mha_course.reference.gpu import benchmark

    if machine.device.type == "cpu":
        raise LeftOut("a CPU has no queue")
    a, b = _normal(machine, torch.float32, (4096, 4096), (4096, 4096))
    ours = min(machine.seconds(lambda: a @ b) for _ in range(10))
    theirs = benchmark(lambda: a @ b, RealDevice(machine.device))
    if not 0.5 * ours <= theirs <= 3 * ours:
        raise AssertionError(f"benchmark says {theirs / ours:.2f} times what the device's events say")


def the_allocators_peak_is_the_counted_one(machine: Machine) -> None:
    """Memory by the device's own bookkeeping and by counting: within a tenth, on a large enough example."""
    if machine.device.type != "cuda":
        raise LeftOut("memory is counted here in any case")
    q, k, v = _normal(machine, torch.float32, *[(2, 4, 1024, 32)] * 3)

    def attention() -> Tensor:
        with torch.no_grad():
            return reference.attend(q, k, v)[0]

    attention()  # cuBLAS takes its workspace once
    allocated, counted = machine.peak(attention), peak_bytes(attention)
    if not 0.9 * counted <= allocated <= 1.1 * counted:
        raise AssertionError(f"the allocator says {allocated} bytes, counting says {counted}")


DEVICE_CHECKS: tuple[Callable[[Machine], None], ...] = (
    flash_equals_the_direct_formula,
    the_fused_kernel_gives_the_own_numbers,
    the_drop_in_equals_torchs_module,
    what_is_asked_for_there_is_made_there,
    a_mask_on_the_cpu_is_refused,
    a_clock_that_does_not_wait_sees_the_launch_only,
    eight_times_the_work_takes_longer,
    lesson_07s_benchmark_agrees,
    the_allocators_peak_is_the_counted_one,
)


def _normal(machine: Machine, dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(machine.device, dtype) for shape in shapes]
