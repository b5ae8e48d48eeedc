"""From an answer to a report: call, compare, diagnose, describe."""

from __future__ import annotations

import contextlib
import textwrap
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from . import report as reporting
from .calls import Answer, Call, Limited, LocalAnswer, Observation, usual_settings
from .compare import Difference, difference, leaves
from .diagnose import Cause, Trial, candidates, diagnose, looked_at
from .exercise import Case, Draw, Exercise, Step
from .kinds import DifferenceKind as Kind
from .kinds import FailureKind, Status
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
        a `Report`; nothing is printed or raised. Where the check itself stumbles, its status is ``BROKEN``, and
        ``details["why"]`` says how.
    """
    started = time.perf_counter()
    try:
        with usual_settings(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = _examine(exercise, answer, seed, reference_allowed, diagnosing, memory)
    except Exception:  # a fault of ours: it must not look like one of the learner's
        result = broken(exercise.name, traceback.format_exc())
    seconds = time.perf_counter() - started
    if result.status == Status.RIGHT:
        card = replace(result.card, headline=f"{result.checked} things checked in {seconds:.2f} s")
        result = replace(result, card=card)
    return replace(result, seconds=seconds)


def broken(name: str, why: str) -> Report:
    """The outcome where the check itself stumbled: nothing is known about the answer.

    Args:
        why: for whoever mends the check.
    """
    lines = (
        "Your answer may well be right. Go on with the next exercise.",
        f"If you report this, the last words were: {' '.join(why.strip().splitlines()[-1:])[:200]}",
    )
    headline = "the check itself stumbled. The fault is the course's, not yours."
    return Report(
        name, Status.BROKEN, Card(Status.BROKEN, name, headline, lines), "broken", details={"why": why}
    )


def _examine(
    exercise: Exercise,
    answer: Answer,
    seed: int,
    reference_allowed: bool,
    diagnosing: bool,
    memory: dict | None,
) -> Report:
    if not isinstance(answer, Limited):
        answer = Limited(answer, exercise.seconds)
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
        if observation.stub or (observation.failure is not None and observation.failure.kind in _FINAL):
            break
    result = _judge(exercise, answer, trials, seen, seed, reference_allowed, trials_of, memory)
    return replace(result, card=replace(result.card, notes=(*result.card.notes, *_notes(seen))))


# After these, no other case can tell more.
_FINAL = (FailureKind.NOT_WRITTEN, FailureKind.TOO_SLOW, FailureKind.PARAMETERS, FailureKind.SWITCHED_OFF)


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
    if stopped := _unwritten(exercise, seen) or _borrowed(exercise, seen):
        return stopped
    if used := [name for observation in seen for name in _used(observation)]:
        return _forbidden(exercise, used[0], trials, seen)
    # What is returned, in every case, before how it came about in any: gradients of wrong numbers say nothing.
    for conduct in (False, True):
        for index, (trial, observation) in enumerate(zip(trials, seen)):
            found = compare_trial(exercise, trial, observation, conduct)
            if found is not None:
                return _wrong(exercise, answer, trials, seen, index, found, trials_of, memory)
    checked = len(exercise.forbidden)
    for trial, observation in zip(trials, seen):
        checked += 2 + 3 * len(leaves(observation.value, exercise.returns)) + len(trial.expected.gradients)
    if exercise.device_safe:
        on_device = _device(exercise, answer, seed, reference_allowed)
        if isinstance(on_device, Report):
            return on_device
        checked += on_device
    return Report(exercise.name, Status.RIGHT, Card(Status.RIGHT, exercise.name, ""), checked=checked)


def _used(seen: Observation) -> tuple[str, ...]:
    """Names of what an answer called that it should write."""
    off = seen.failure is not None and seen.failure.kind == FailureKind.SWITCHED_OFF
    return (*seen.used, seen.failure.message) if off else seen.used


def _borrowed(exercise: Exercise, seen: list[Observation]) -> Report | None:
    failure = seen[-1].failure
    if (
        failure is None
        or failure.kind != FailureKind.SWITCHED_OFF
        or not failure.message.startswith("mha_course.")
    ):
        return None
    line = "Going on with the course's own is fine for learning. It is not counted as yours."
    card = Card(Status.WRONG, exercise.name, "borrowed from the reference.", (line,))
    return Report(exercise.name, Status.WRONG, card, "borrowed")


METHODS = {"__call__": "your function", "__len__": "len(…)"}


def compare_trial(
    exercise: Exercise, trial: Trial, seen: Observation, conduct: bool = True
) -> Difference | None:
    """The first difference between what an answer gave in one case and what the reference gave.

    Args:
        conduct: look at gradients and memory as well as at what was returned.
    """
    case, expected = trial.case, trial.expected
    if case.raises:
        return _not_refused(case, seen)
    looked = looked_at(trial, seen)
    if looked is seen:
        if isinstance(trial.call.inputs, list) and seen.failure is None:
            return _first_wrong_step(exercise, trial, seen, conduct)
        names = exercise.returns
    else:
        expected = looked_at(trial, expected)
        names = tuple(looked.value) if isinstance(looked.value, dict) else exercise.returns
    return difference(looked, expected, names, case.tolerance, exercise.may_change_inputs, conduct)


def _not_refused(case: Case, seen: Observation) -> Difference | None:
    """What is wrong with the answer to an input that should be refused."""
    wanted = " or ".join(kind.__name__ for kind in case.raises)
    if seen.failure is None:
        line = (
            f"{_capital(case.name)}: raise a {wanted} here that says what is wrong, instead of carrying on."
        )
        return Difference(Kind.ACCEPTED, "accepted something that it should refuse.", (line,))
    if {kind.__name__ for kind in case.raises} & set(seen.failure.types):
        return None
    line = "refuse it yourself, before torch stumbles over it."
    if seen.failure.types[0] == "AssertionError":
        line = f"you do refuse it, but an `assert` is skipped when Python runs with -O. Raise a {wanted}."
    headline = f"raised {seen.failure.types[0]}, expected {wanted}."
    return Difference(Kind.ACCEPTED, headline, (f"{_capital(case.name)}: {line}",))


def _first_wrong_step(
    exercise: Exercise, trial: Trial, seen: Observation, conduct: bool
) -> Difference | None:
    """Several calls of one object: the first whose result differs, and which one that was."""
    steps = trial.call.inputs
    tolerance, may_change = trial.case.tolerance, exercise.may_change_inputs
    given = seen.value if isinstance(seen.value, list) else []
    for number, (step, a, b) in enumerate(zip(steps, given, trial.expected.value), start=1):
        whole = isinstance(b, (tuple, list)) or len(exercise.returns) == 1
        names = exercise.returns if whole else (METHODS.get(step.method, step.method),)
        seen_here = replace(seen, value=a, gradients={}, detached=False, gradient_error="")
        expected_here = replace(trial.expected, value=b, gradients={})
        found = difference(seen_here, expected_here, names, tolerance, may_change, conduct)
        if found is not None:
            alike = [i for i, other in enumerate(steps, start=1) if other.method == step.method]
            which = f"{METHODS.get(step.method, step.method)}, call {alike.index(number) + 1} of {len(alike)}"
            return replace(found, details=(*found.details, f"That was {which}."))
    return difference(seen, trial.expected, exercise.returns, tolerance, may_change, conduct)


def _unwritten(exercise: Exercise, seen: list[Observation]) -> Report | None:
    last = seen[-1]
    if last.stub or (last.failure is not None and last.failure.kind == FailureKind.NOT_WRITTEN):
        where = (
            last.failure.lines[-1][0] if last.failure is not None and last.failure.lines else exercise.name
        )
        line = f"Write {exercise.name} in the cell above and run that cell, then this one."
        if where in exercise.builds_on:
            line = f"It calls {where}, which is not written yet: that one comes first."
        card = Card(Status.NOT_WRITTEN, exercise.name, "not written yet.", (line,))
        return Report(exercise.name, Status.NOT_WRITTEN, card, "not written")
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
        Status.WRONG,
        exercise.name,
        "uses a ready-made part.",
        lines,
        hint=f"Hint 1 of exercise {exercise.number} says where to start.",
    )
    return Report(exercise.name, Status.WRONG, card, cause, named=cause != "forbidden")


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
    cause: Cause | None = None
    if found.kind != Kind.TOO_SLOW:
        cause = diagnose(exercise, trials[: len(seen)], seen, index, trials_of, answer, memory)
    card = _card(exercise, trials, seen, index, found, cause)
    name = cause.id if cause else found.kind
    return Report(exercise.name, Status.WRONG, card, name, named=cause is not None)


def _card(
    exercise: Exercise,
    trials: list[Trial],
    seen: list[Observation],
    index: int,
    found: Difference,
    cause: Cause | None,
) -> Card:
    trial, observation = trials[index], seen[index]
    lines = [*found.details, *_about_the_dtype(found, trial)]
    numbers, grids, note = _numbers(found)
    if cause is not None:
        says = "\n".join(m.says for m in cause.misconceptions)
        number = next((m.hint for m in cause.misconceptions if m.hint), None)
        lines = lines[:1] if found.kind == Kind.SHAPE else []
    else:
        says, number = _broken_property(exercise, trial, observation, found)
    if number:
        step = f"Open hint {number} of exercise {exercise.number}."
    elif says:
        step = f"If that does not help, open hint 1 of exercise {exercise.number}."
    else:
        step = _next_step(exercise, trials, seen, index, found)
    code = ()
    if observation.failure is not None and found.kind in (Kind.RAISED, Kind.TOO_SLOW):
        code = observation.failure.lines
    return Card(
        Status.WRONG,
        exercise.name,
        found.headline,
        tuple(lines),
        grids,
        note,
        says,
        step,
        code,
        numbers=numbers,
        tried=f"Tried with {_inputs(trial)} ({trial.case.name}).",
    )


def _numbers(found: Difference) -> tuple[str, tuple[reporting.Grid, ...], str]:
    """Yours and expected: in a line, or as two grids and what they show."""
    if found.kind not in (Kind.VALUES, Kind.NOT_FINITE, Kind.GRADIENTS, Kind.SHAPE) or found.seen is None:
        return "", (), ""
    if not any(isinstance(x, Tensor) and x.dim() for x in (found.seen, found.expected)):
        yours, expected = reporting.pair(_item(found.seen), _item(found.expected), 4)
        return f"Yours: {yours}. Expected: {expected}.", (), ""
    if found.rounding:
        return "", (), ""
    what = f"the gradient of {found.where}" if found.kind == Kind.GRADIENTS else found.where
    return "", *reporting.grids(found.seen, found.expected, found.tolerance, what)


def _item(value: Any) -> Any:
    return (
        value.item()
        if isinstance(value, Tensor) and value.numel() == 1 and value.device.type == "cpu"
        else value
    )


def _about_the_dtype(found: Difference, trial: Trial) -> tuple[str, ...]:
    """Where the expected dtype comes from."""
    if found.kind != Kind.DTYPE or not isinstance(found.expected, Tensor):
        return ()
    expected = found.expected.dtype
    if expected == torch.bool:
        return ("A mask is made of True and False: a comparison gives that, as does `dtype=torch.bool`.",)
    inputs = tree_leaves(trial.call.inputs if isinstance(trial.call.inputs, Mapping) else {})
    if any(isinstance(x, Tensor) and x.dtype == expected for x in inputs):
        return (
            "The result should have the inputs' dtype: compute in another if you like, and come back at the end.",
        )
    if any(x == expected for x in inputs if isinstance(x, torch.dtype)):
        return ("Which dtype it should have is one of the arguments.",)
    return ()


def _broken_property(
    exercise: Exercise, trial: Trial, seen: Observation, found: Difference
) -> tuple[str, int | None]:
    """What every right answer has and this one lacks, and which hint helps. Asked only about what can be compared."""
    for rule in exercise.properties:
        if found.kind not in rule.about or seen.failure is not None:
            continue
        with contextlib.suppress(Exception):  # one that cannot be computed for this answer has nothing to say
            if sentence := rule.fails(trial.call.inputs, seen.value):
                return sentence, rule.hint
    return "", None


def _next_step(
    exercise: Exercise, trials: list[Trial], seen: list[Observation], index: int, found: Difference
) -> str:
    """What to do next where nothing explains the answer."""
    first = f"hint 1 of exercise {exercise.number}"
    if found.kind == Kind.RAISED:
        return f"Print what goes into that line, shapes above all. Then {first}."
    if found.kind in (Kind.SHAPE, Kind.STRUCTURE, Kind.TYPE):
        return f"Print `.shape` after each of your lines: which is the first that you did not expect? Then {first}."
    if found.rounding or found.kind not in (Kind.VALUES, Kind.NOT_FINITE):
        return f"If that does not help, open {first}."
    right = [
        f"“{trial.case.name}”"
        for trial, observation in zip(trials, seen)
        if compare_trial(exercise, trial, observation, conduct=False) is None
    ]
    if right:
        return (
            f"It is right for {' and '.join(right[:2])}. What is different about these inputs? Then {first}."
        )
    if not isinstance(found.expected, Tensor):
        return (
            f"Print what your number is made of, step by step, and work the same out by hand. Then {first}."
        )
    return f"Work out one row by hand, and print yours beside it, step by step. Then {first}."


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
    texts = (text.split(" (Triggered internally")[0] for o in seen for text in o.warnings)
    warned = dict.fromkeys(texts)
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
    FailureKind.MIXED: (
        "right on the CPU; on a GPU it would stop.",
        "A tensor made inside your code stays on the CPU while the inputs are on the GPU. "
        "Whatever you make (`torch.zeros`, `torch.ones`, `torch.arange`, `torch.tensor`) needs `device=` of an input; "
        "in a module, make it a buffer.",
    ),
    FailureKind.WAITS: (
        "right on the CPU; on a GPU it would make everything wait.",
        "Your code asks for the value of a number (`.item()`, `float(…)`, `if tensor:`, `.tolist()`, NumPy). "
        "On a GPU that stops Python until all work before it is done. Stay with tensors.",
    ),
    FailureKind.ATTRIBUTE: (
        "right on the CPU; on a GPU it would stop.",
        "`module.to(device)` moves parameters and buffers. A tensor kept as a plain attribute (`self.mask = …`) stays "
        "where it was made, on the CPU, and meets inputs that are on the GPU. Register it as a buffer.",
    ),
    FailureKind.ROUND_TRIP: (
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
    if kind == FailureKind.ATTRIBUTE:
        says = says.replace("self.mask", f"self.{seen.failure.message.split(', ')[0]}")
    cause, named, hint = "device", False, f"If that does not help, open hint 1 of exercise {exercise.number}."
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
    tried = f"Tried with {_inputs(trial)} on a pretended GPU."
    card = Card(Status.WRONG, exercise.name, headline, cause=says, hint=hint, code=code, tried=tried)
    return Report(exercise.name, Status.WRONG, card, cause, named=named)
