"""From an answer to a report: call, compare, diagnose, describe."""

from __future__ import annotations

import contextlib
import textwrap
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from . import report as reporting
from .calls import Answer, Call, LocalAnswer, Observation
from .compare import Difference, difference, leaves
from .diagnose import Cause, Trial, candidates, diagnose, looked_at
from .exercise import Case, Draw, Exercise, Step
from .report import Card, Report


def examine(
    exercise: Exercise,
    answer: Answer,
    seed: int = 0,
    reference_allowed: bool = False,
    *,
    diagnosing: bool = True,
    memory: dict | None = None,
) -> Report:
    """Check one answer against one exercise.

    Args:
        exercise: what was asked.
        answer: the learner's answer, behind the interface of `calls`.
        seed: the cases are always the same for the same seed.
        reference_allowed: let the answer call the course's own reference (for known wrong answers).
        diagnosing: look for the misconception behind a wrong answer; without, only right or wrong is to be known.
        memory: where what does not depend on the answer is kept for the next one: cases, and what known wrong
            answers give. Use one for each pair of seed and ``reference_allowed``.

    Returns:
        a `Report`; nothing is printed or raised.
    """
    started = time.perf_counter()
    if not diagnosing:
        exercise = _without_misconceptions(exercise)

    def trials_of(round_: int) -> list[Trial]:
        key = (exercise.name, round_)
        if memory is None or key not in memory:
            trials = prepare(exercise, seed + 7919 * round_, reference_allowed)
            if memory is None:
                return trials
            memory[key] = trials
        return memory[key]

    trials = trials_of(0)
    seen: list[Observation] = []
    for trial in trials:
        observation = answer.observe(trial.call)
        seen.append(observation)
        if observation.failure is not None and observation.failure.kind in (
            "not written",
            "too slow",
            "parameters",
        ):
            break
        if observation.stub:
            break
    result = _judge(exercise, answer, trials, seen, seed, reference_allowed, trials_of, memory)
    notes = _notes(seen)
    card = replace(result.card, notes=(*result.card.notes, *notes))
    seconds = time.perf_counter() - started
    if result.status == "right":
        card = replace(card, headline=f"{result.checked} things checked in {seconds:.2f} s")
    return replace(result, card=card, seconds=seconds)


def _without_misconceptions(exercise: Exercise) -> Exercise:
    twin = replace(exercise, misconceptions=())
    vars(twin)["_on_gpu"] = vars(exercise).setdefault("_on_gpu", {})
    return twin


def prepare(
    exercise: Exercise, seed: int, reference_allowed: bool = True, device: str = "cpu"
) -> list[Trial]:
    """The exercise's cases as calls, each with what the reference gives.

    On the pretended GPU, where there are no values, one case is enough of those that differ in sizes and values alone,
    and what the reference gives is asked only where an answer makes a mistake (it takes torch's compiler).
    """
    trials, kinds = [], set()
    for case in exercise.cases:
        if device != "cpu" and not case.on_gpu:
            continue
        call = _call(exercise, case, seed, reference_allowed, device)
        if device != "cpu":
            kind = _kind((call.inputs, call.construct, call.train))
            if case.raises or kind in kinds:
                continue
            kinds.add(kind)
            trials.append(Trial(case, call, Observation()))
            continue
        expected = _expected(exercise, case, call)
        if expected.failure is not None and not case.raises:
            raise AssertionError(
                f"{exercise.name}, case {case.name!r}: the reference raised {expected.failure}"
            )
        trials.append(Trial(case, call, expected))
    return trials


def _expected(exercise: Exercise, case: Case, call: Call) -> Observation:
    """What the reference gives. On the pretended GPU only where things lie is seen: the same whatever the numbers are."""
    reference = LocalAnswer(exercise.reference)
    call = replace(call, forbidden=(), reference_allowed=None)
    if call.device == "cpu":
        return reference.observe(call)
    known = vars(exercise).setdefault("_on_gpu", {})
    if case.name not in known:
        known[case.name] = reference.observe(call)
    return known[case.name]


def _kind(value: Any) -> Any:
    """What two inputs have in common that lead an answer along the same way."""
    if isinstance(value, Tensor):
        return ("tensor", value.dtype, tuple(size == 1 for size in value.shape))
    if isinstance(value, Step):
        return (value.method, _kind(value.inputs))
    if isinstance(value, Mapping):
        return tuple((name, _kind(item)) for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_kind(item) for item in value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return (type(value), value == 0, value == 1)
    return repr(value)


def _call(exercise: Exercise, case: Case, seed: int, reference_allowed: bool, device: str) -> Call:
    number = zlib.crc32(f"{seed}/{exercise.name}/{case.name}".encode())
    draw = Draw(number)
    construct = case.construct(draw) if callable(case.construct) else case.construct
    inputs = case.make(draw)
    state = None
    if exercise.is_class and construct is not None and not case.raises:
        state = _state(exercise, construct, inputs, draw)
    gradients: tuple[str, ...] = ()
    if exercise.differentiable and case.gradients and not case.raises:
        steps = inputs if isinstance(inputs, list) else [Step("__call__", inputs)]
        floating = [
            name
            for step in steps
            for name, value in step.inputs.items()
            if isinstance(value, Tensor) and value.is_floating_point()
        ]
        gradients = tuple(floating if case.requires_grad is None else case.requires_grad)
    return Call(
        inputs=inputs,
        keywords=exercise.keywords,
        construct=construct if exercise.is_class else None,
        state=state,
        train=case.train,
        gradients=gradients,
        seed=number,
        seconds=exercise.seconds,
        device=device,
        forbidden=exercise.forbidden,
        reference_allowed=None if reference_allowed else exercise.builds_on,
        largest=None if case.largest is None else case.largest(inputs),
    )


def _state(
    exercise: Exercise, construct: Mapping[str, Any], inputs: Any, draw: Draw
) -> dict[str, Tensor] | None:
    """Random parameters, biases included: a bias left at its usual zero hides mistakes."""
    made = exercise.reference(
        *[value for name, value in construct.items() if name not in exercise.keywords],
        **{name: value for name, value in construct.items() if name in exercise.keywords},
    )
    if not isinstance(made, torch.nn.Module):
        return None
    first = next((x for x in tree_leaves(inputs) if isinstance(x, Tensor) and x.is_floating_point()), None)
    if first is not None:
        made.to(first.dtype)
    if exercise.fill is not None:
        exercise.fill(made, draw)
    else:
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.copy_(draw.normal(*parameter.shape, scale=0.5))
    return {name: tensor.clone() for name, tensor in made.state_dict().items()}


# ------------------------------------------------------------------------------------- judging


def _judge(
    exercise: Exercise,
    answer: Answer,
    trials: list[Trial],
    seen: list[Observation],
    seed: int,
    reference_allowed: bool,
    trials_of: Callable[[int], list[Trial]],
    memory: dict | None,
) -> Report:
    if stopped := _unwritten(exercise, seen):
        return stopped
    if used := [name for observation in seen for name in observation.used]:
        return _forbidden(exercise, used[0], trials, seen)
    checked = 0
    for index, (trial, observation) in enumerate(zip(trials, seen)):
        found = compare_trial(exercise, trial, observation)
        if found is not None:
            return _wrong(exercise, answer, trials, seen, index, found, trials_of, memory)
        checked += 2 + 3 * len(leaves(observation.value, exercise.returns)) + len(trial.expected.gradients)
    if exercise.device_safe:
        on_device = _device(exercise, answer, seed, reference_allowed)
        if isinstance(on_device, Report):
            return on_device
        checked += on_device
    checked += len(exercise.forbidden)
    return Report(exercise.name, "right", Card("right", exercise.name, ""), checked=checked)


METHODS = {"__call__": "your function", "__len__": "len(…)"}


def compare_trial(exercise: Exercise, trial: Trial, seen: Observation) -> Difference | None:
    """The first difference between what an answer gave in one case and what the reference gave."""
    case, expected = trial.case, trial.expected
    if case.raises:
        wanted = " or ".join(kind.__name__ for kind in case.raises)
        if seen.failure is None:
            return Difference(
                "accepted",
                "accepted something that it should refuse.",
                (
                    f"{_capital(case.name)}: raise a {wanted} here that says what is wrong, instead of carrying on.",
                ),
            )
        if not {kind.__name__ for kind in case.raises} & set(seen.failure.types):
            return Difference(
                "accepted",
                f"raised {seen.failure.types[0]}, expected {wanted}.",
                (f"{_capital(case.name)}: refuse it yourself, before torch stumbles over it.",),
            )
        return None
    looked = looked_at(trial, seen)
    if looked is seen:
        if isinstance(trial.call.inputs, list) and seen.failure is None:
            return _first_wrong_step(exercise, trial, seen)
        return difference(seen, expected, exercise.returns, case.tolerance, exercise.may_change_inputs)
    expected = looked_at(trial, expected)
    names = tuple(looked.value) if isinstance(looked.value, dict) else exercise.returns
    return difference(looked, expected, names, case.tolerance, exercise.may_change_inputs)


def _first_wrong_step(exercise: Exercise, trial: Trial, seen: Observation) -> Difference | None:
    """Several calls of one object: the first whose result differs, and which one that was."""
    steps = trial.call.inputs
    for number, (step, a, b) in enumerate(zip(steps, seen.value, trial.expected.value), start=1):
        whole = isinstance(b, (tuple, list)) or len(exercise.returns) == 1
        names = exercise.returns if whole else (METHODS.get(step.method, step.method),)
        seen_here = replace(seen, value=a, gradients={}, detached=False, gradient_error="")
        expected_here = replace(trial.expected, value=b, gradients={})
        found = difference(seen_here, expected_here, names, trial.case.tolerance, exercise.may_change_inputs)
        if found is not None:
            alike = [i for i, other in enumerate(steps, start=1) if other.method == step.method]
            which = f"{METHODS.get(step.method, step.method)}, call {alike.index(number) + 1} of {len(alike)}"
            return replace(found, details=(*found.details, f"That was {which}."))
    return difference(
        seen, trial.expected, exercise.returns, trial.case.tolerance, exercise.may_change_inputs
    )


def _unwritten(exercise: Exercise, seen: list[Observation]) -> Report | None:
    last = seen[-1]
    if last.stub or (last.failure is not None and last.failure.kind == "not written"):
        where = (
            last.failure.lines[-1][0] if last.failure is not None and last.failure.lines else exercise.name
        )
        line = f"Write {exercise.name} in the cell above and run that cell, then this one."
        if where in exercise.builds_on:
            line = f"It calls {where}, which is not written yet: that one comes first."
        card = Card("not written", exercise.name, "not written yet.", (line,))
        return Report(exercise.name, "not written", card, "not written")
    return None


def _forbidden(exercise: Exercise, name: str, trials: list[Trial], seen: list[Observation]) -> Report:
    own = name.startswith("mha_course.")
    lines = (
        (f"It calls {name}: that is the course's answer. The point of this exercise is to write it.",)
        if own
        else (
            f"It calls {name}, which does the work of this exercise. Build it from smaller steps; then you know what it does.",
        )
    )
    cause = "forbidden"
    for found, wrong in candidates(exercise):
        local = LocalAnswer(wrong)
        if not own and any(local.observe(trial.call).used for trial in trials[:1]):
            cause = found.id
            break
    card = Card(
        "wrong",
        exercise.name,
        "uses a ready-made part.",
        lines,
        hint=f"Hint 1 of exercise {exercise.number} says where to start.",
    )
    return Report(exercise.name, "wrong", card, cause, named=cause != "forbidden")


def _wrong(
    exercise: Exercise,
    answer: Answer,
    trials: list[Trial],
    seen: list[Observation],
    index: int,
    found: Difference,
    trials_of: Callable[[int], list[Trial]],
    memory: dict | None,
) -> Report:
    trial, observation = trials[index], seen[index]
    cause: Cause | None = None
    if found.kind != "too slow":
        cause = diagnose(
            exercise,
            trials[: len(seen)],
            seen,
            index,
            trials_of,
            answer,
            memory,
        )
    card = _card(exercise, trial, observation, found, cause)
    return Report(exercise.name, "wrong", card, cause.id if cause else found.kind, named=cause is not None)


def _card(
    exercise: Exercise, trial: Trial, seen: Observation, found: Difference, cause: Cause | None
) -> Card:
    drawn, note = (), ""
    lines = []
    if found.kind in ("values", "not finite", "gradients", "shape") and found.seen is not None:
        if not any(isinstance(x, Tensor) and x.dim() for x in (found.seen, found.expected)):
            lines.append(f"Yours: {_scalar(found.seen)}. Expected: {_scalar(found.expected)}.")
        else:
            if not any(detail.startswith("Very nearly") for detail in found.details):
                drawn, note = reporting.grids(found.seen, found.expected, found.tolerance)
            what = f"the gradient of {found.where}" if found.kind == "gradients" else found.where
            note = f"{what}{note}" if note.startswith("[") else ", ".join(filter(None, (what, note)))
    hint = ""
    if cause is not None:
        says = "\n".join(m.says for m in cause.misconceptions)
        number = next((m.hint for m in cause.misconceptions if m.hint), None)
        hint = (
            f"Open hint {number} of exercise {exercise.number}."
            if number
            else f"The hints of exercise {exercise.number} lead on."
        )
        if found.kind == "shape":
            lines += found.details[:1]
    else:
        says = ""
        for rule in exercise.properties:
            try:
                sentence = rule.fails(trial.call.inputs, seen.value) if seen.failure is None else None
            except Exception:  # a property that cannot be computed for this answer has nothing to say
                sentence = None
            if sentence:
                says = sentence
                hint = f"Open hint {rule.hint} of exercise {exercise.number}." if rule.hint else ""
                break
        lines += found.details
        hint = hint or f"The hints of exercise {exercise.number} lead on."
    where = f"Tried with {_inputs(trial)} ({trial.case.name})."
    code = seen.failure.lines if seen.failure is not None and found.kind == "raised" else ()
    return Card("wrong", exercise.name, found.headline, (*lines, where), drawn, note, says, hint, code)


def _scalar(value: Any) -> str:
    return reporting.number(value.item() if isinstance(value, Tensor) else value, 4)


def _inputs(trial: Trial) -> str:
    """The inputs in a few words: names, shapes, small numbers."""
    call = trial.call
    steps = call.inputs if isinstance(call.inputs, list) else [Step("__call__", call.inputs)]
    made = ", ".join(f"{name} = {_short(value)}" for name, value in (call.construct or {}).items())
    shown = [
        ", ".join(
            f"{name} {_short(value)}" if isinstance(value, Tensor) else f"{name} = {_short(value)}"
            for name, value in step.inputs.items()
        )
        for step in steps
    ]
    shown = [words for words in shown if words]
    parts = [*([made] if made else []), "; then ".join(shown[:2])]
    return ", ".join(parts) + ("; then …" if len(shown) > 2 else "")


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        dtype = (
            ""
            if value.dtype in (torch.float64, torch.int64)
            else f" {str(value.dtype).removeprefix('torch.')}"
        )
        return f"{tuple(value.shape)}{dtype}"
    if isinstance(value, (list, tuple)):
        return f"{len(value)} of {_short(value[0])}" if value and isinstance(value[0], Tensor) else str(value)
    if isinstance(value, dict):
        return f"a dict with {', '.join(map(str, value))}"
    return getattr(value, "name", None) or str(value)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _notes(seen: list[Observation]) -> tuple[str, ...]:
    warned = dict.fromkeys(text for observation in seen for text in observation.warnings)
    notes = [
        f"your code warned: {textwrap.shorten(text, 300, placeholder=' …')}" for text in list(warned)[:2]
    ]
    printed = next((o.printed.strip() for o in seen if o.printed.strip()), "")
    if printed:
        first = printed.splitlines()
        notes.append(
            f"your code printed: {first[0][:120]}{' …' if len(first) > 1 or len(first[0]) > 120 else ''}"
        )
    return tuple(notes)


@contextlib.contextmanager
def replace_name(answer: Callable[..., Any], name: str, stand_in: Any) -> Iterator[Any]:
    """Inside the block, ``answer`` finds ``stand_in`` under ``name``; gives what it found there before.

    Gives ``None`` (and changes nothing) where the answer knows no such name.
    """
    code = (
        answer
        if hasattr(answer, "__globals__")
        else next((member for member in vars(answer).values() if hasattr(member, "__globals__")), None)
    )
    namespace = getattr(code, "__globals__", {})
    if namespace.get(name) is None:
        yield None
        return
    own = namespace[name]
    namespace[name] = stand_in
    try:
        yield own
    finally:
        namespace[name] = own


# -------------------------------------------------------------------------------------- devices

_DEVICE = {
    "mixed": (
        "right on the CPU; on a GPU it would stop.",
        "A tensor made inside your code stays on the CPU while the inputs are on the GPU. "
        "Whatever you make (`torch.zeros`, `torch.ones`, `torch.arange`, `torch.tensor`) needs `device=` of an input; "
        "in a module, make it a buffer.",
    ),
    "waits": (
        "right on the CPU; on a GPU it would make everything wait.",
        "Your code asks for the value of a number (`.item()`, `float(…)`, `if tensor:`, `.tolist()`, NumPy). "
        "On a GPU that stops Python until all work before it is done. Stay with tensors.",
    ),
    "attribute": (
        "right on the CPU; on a GPU it would stop.",
        "`module.to(device)` moves parameters and buffers. A tensor kept as a plain attribute (`self.mask = …`) stays "
        "where it was made, on the CPU, and meets inputs that are on the GPU. Register it as a buffer.",
    ),
    "round trip": (
        "right on the CPU; on a GPU it would make everything wait.",
        'Your code brings numbers back from the GPU to the CPU in the middle of the work (`.cpu()`, `.to("cpu")`). '
        "Python stops there until all work before it is done, and then the copy has to travel. Stay on the device.",
    ),
    "left": (
        "right on the CPU; on a GPU the result would come back to the CPU.",
        "The inputs are on the GPU, the result is not: a `.cpu()`, or a result tensor made without `device=`.",
    ),
}


def device_finding(
    exercise: Exercise, answer: Answer, seed: int, reference_allowed: bool
) -> tuple[str, Observation, Trial] | int:
    """Call the answer with fake CUDA tensors; the first mistake, or the number of cases that were fine."""
    fine = 0
    for trial in prepare(exercise, seed, reference_allowed, device="fake cuda"):
        seen = answer.observe(trial.call)
        if seen.failure is None and "cpu" not in (seen.value or ()):
            fine += 1
            continue
        expected = _expected(exercise, trial.case, trial.call)
        if expected.failure is not None:
            continue  # nothing can be said where the reference itself cannot run without values
        if seen.failure is not None and seen.failure.kind in _DEVICE:
            return seen.failure.kind, seen, trial
        if seen.failure is None and "cpu" not in (expected.value or ()):
            return "left", seen, trial
        fine += seen.failure is None
    return fine


def _device(exercise: Exercise, answer: Answer, seed: int, reference_allowed: bool) -> Report | int:
    found = device_finding(exercise, answer, seed, reference_allowed)
    if isinstance(found, int):
        return found
    kind, seen, trial = found
    headline, says = _DEVICE[kind]
    if kind == "attribute":
        says = says.replace("self.mask", f"self.{seen.failure.message.split(', ')[0]}")
    cause, named, hint = "device", False, f"The hints of exercise {exercise.number} lead on."
    trials = prepare(exercise, seed, True)
    for candidate, wrong in candidates(exercise):
        if len(candidate.misconceptions) > 1:
            break
        local = LocalAnswer(wrong)
        if any(
            compare_trial(exercise, t, local.observe(replace(t.call, forbidden=(), reference_allowed=None)))
            for t in trials
        ):
            continue
        same = device_finding(exercise, local, seed, True)
        if not isinstance(same, int) and same[0] == kind:
            cause, named, says = candidate.id, True, candidate.misconceptions[0].says
            if candidate.misconceptions[0].hint:
                hint = f"Open hint {candidate.misconceptions[0].hint} of exercise {exercise.number}."
            break
    code = seen.failure.lines[-1:] if seen.failure is not None else ()
    card = Card(
        "wrong",
        exercise.name,
        headline,
        (f"Tried with {_inputs(trial)} on a pretended GPU.",),
        cause=says,
        hint=hint,
        code=code,
    )
    return Report(exercise.name, "wrong", card, cause, named=named)
