"""Where an observation differs from the expected one, and what is plain to see about it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .calls import Observation
from .kinds import DifferenceKind as Kind
from .kinds import FailureKind
from .plain import Odd, with_article

# Largest difference allowed, relative to the largest expected number (at least 1). float64 carries the proof:
# 1e-9 is far above rounding for the sizes used here and far below any mistake. The others are a few units in
# the last place (2^-23, 2^-10, 2^-7), times a margin for sums in another order.
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 2e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 3e-2,
}


@dataclass(frozen=True)
class Difference:
    """One way in which an answer is not what was expected.

    Args:
        kind: in what way.
        headline: the card's first line, after the exercise's name.
        details: further sentences.
        where: which returned thing, by name ("weights").
        seen, expected: the tensors or numbers to draw.
        tolerance: what was used.
        rounding: the numbers differ by so little that drawing them shows nothing.
    """

    kind: Kind
    headline: str
    details: tuple[str, ...] = ()
    where: str = ""
    seen: Any = None
    expected: Any = None
    tolerance: float = 0.0
    rounding: bool = False


def tolerance_for(expected: Any, override: float | None) -> float:
    """The absolute difference allowed for this expected tensor or number."""
    if override is not None:
        return override
    if isinstance(expected, Tensor):
        if not expected.dtype.is_floating_point:
            return 0.0
        finite = expected[torch.isfinite(expected)]
        size = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
        return TOLERANCE.get(expected.dtype, 1e-9) * size
    if not isinstance(expected, float):
        return 0.0
    return 1e-9 * max(1.0, abs(expected)) if math.isfinite(expected) else 1e-9


def close(seen: Any, expected: Any, tolerance: float) -> bool:
    """Equal up to ``tolerance``; NaN equals NaN, an infinity only itself. Shapes and dtypes must agree."""
    if isinstance(expected, Tensor) != isinstance(seen, Tensor):
        return False
    if isinstance(expected, Tensor):
        alike = (seen.shape, seen.dtype, seen.device) == (expected.shape, expected.dtype, expected.device)
        on_meta = expected.device.type == "meta"  # shapes without numbers
        return alike and (on_meta or not bool(wrong_cells(seen, expected, tolerance).any()))
    if isinstance(expected, (int, float)) and isinstance(seen, (int, float)):
        if isinstance(expected, bool) != isinstance(seen, bool):
            return False
        return (
            seen == expected or abs(seen - expected) <= tolerance or (seen != seen and expected != expected)
        )
    return type(seen) is type(expected) and seen == expected


def wrong_cells(seen: Tensor, expected: Tensor, tolerance: float) -> Tensor:
    """Which elements differ, a boolean tensor of the same shape."""
    if not expected.dtype.is_floating_point:
        return seen != expected
    a, b = seen.double(), expected.double()
    same = (a == b) | (a.isnan() & b.isnan())
    return ~(same | ((a - b).abs() <= tolerance))


def leaves(value: Any, names: tuple[str, ...]) -> list[tuple[str, Any]]:
    """The returned things with the names an exercise gives them."""
    if isinstance(value, (tuple, list)):
        flat = []
        for index, item in enumerate(value):
            name = names[index].split(" (")[0] if len(names) == len(value) else f"item {index}"
            if isinstance(item, (tuple, list, dict)):
                flat += [(f"{name}, {inner}", leaf) for inner, leaf in leaves(item, ())]
            else:
                flat.append((name, item))
        return flat
    if isinstance(value, dict):
        return [
            (str(key), value[key]) for key in sorted(value, key=str)
        ]  # in whichever order they were put in
    return [(names[0].split(" (")[0] if len(names) == 1 else "result", value)]


def difference(
    seen: Observation,
    expected: Observation,
    names: tuple[str, ...],
    tolerance: float | None,
    may_change: bool,
    conduct: bool = True,
) -> Difference | None:
    """The first thing that is wrong with an observation, in the order in which a tutor would mention it.

    Args:
        conduct: look at gradients and memory as well as at what was returned.
    """
    if seen.failure is not None:
        return _failed(seen)
    if expected.failure is not None:
        return None  # both sides are compared by the caller (Case.raises)
    if seen.changed and not may_change:
        listed = " and ".join(seen.changed)
        return Difference(
            Kind.CHANGED,
            f"your function changed its input {listed}.",
            (
                "Whoever called it still needs those numbers. Operations that end in an underscore (`add_`), "
                "`+=` and `x[…] = …` write into the tensor itself: work on a copy, or use the form that makes a new tensor.",
            ),
            where=listed,
        )
    found = _structure(seen.value, expected.value, names)
    if found is not None:
        return found
    if _wrong_order(seen.value, expected.value, names, tolerance):
        return Difference(
            Kind.STRUCTURE,
            "the right things, returned in the wrong order.",
            (f"Expected {', then '.join(names)}.",),
        )
    if seen.odd_types:
        return Difference(
            Kind.SUBCLASS,
            f"the result is a {' and a '.join(seen.odd_types)}, not a plain torch.Tensor.",
            ("Return an ordinary tensor: the next lesson's code relies on its behaviour.",),
        )
    for (name, a), (_, b) in zip(leaves(seen.value, names), leaves(expected.value, names)):
        found = _leaf(name, a, b, tolerance)
        if found is not None:
            return found
    if not conduct:
        return None
    if seen.too_large:
        return Difference(
            Kind.TOO_LARGE,
            f"right numbers, and on the way a tensor of shape {seen.too_large}.",
            ("That is the size that this function is there to avoid: no tensor may grow with L · S.",),
        )
    return _gradients(seen, expected, tolerance)


def same_behaviour(a: Observation, b: Observation, tolerance: float | None, names: tuple[str, ...]) -> bool:
    """Whether two answers, both perhaps wrong, did the same thing: how a misconception is recognised."""
    if (a.failure is None) != (b.failure is None):
        return False
    if a.failure is not None and b.failure is not None:
        return a.failure.types[0] == b.failure.types[0] and a.failure.message == b.failure.message
    if bool(a.too_large) != bool(b.too_large):
        return False
    if set(a.changed) != set(b.changed) or a.detached != b.detached:
        return False
    if bool(a.gradient_error) != bool(b.gradient_error):
        return False
    if _structure(a.value, b.value, names) is not None:
        return False
    pairs = list(zip(leaves(a.value, names), leaves(b.value, names)))
    if not all(close(x, y, tolerance_for(y, tolerance)) for (_, x), (_, y) in pairs):
        return False
    if set(a.gradients) == set(b.gradients):
        for name, x in a.gradients.items():
            y = b.gradients[name]
            x = torch.zeros_like(y) if x is None and y is not None else x
            y = torch.zeros_like(x) if y is None and x is not None else y
            if x is not None and not close(x, y, max(tolerance_for(y, tolerance), 1e-9)):
                return False
    return True


def _failed(seen: Observation) -> Difference:
    failure = seen.failure
    assert failure is not None
    if failure.kind == FailureKind.NOT_WRITTEN:
        return Difference(Kind.NOT_WRITTEN, "not written yet.")
    if failure.kind == FailureKind.TOO_SLOW:
        return Difference(
            Kind.TOO_SLOW,
            f"{failure.message}.",
            ("The inputs are tiny, so a loop probably never ends: does its condition ever become false?",),
        )
    if failure.kind == FailureKind.PARAMETERS:
        headline = "the module's parameters are not the expected ones."
        return Difference(Kind.PARAMETERS, headline, (failure.message,))
    said = f": {_short(failure.message)}" if failure.message else ", without a word."
    return Difference(Kind.RAISED, f"your code raised {failure.types[0]}{said}", _explain(failure.message))


def _short(message: str, limit: int = 300) -> str:
    message = " ".join(message.split())
    return message if len(message) <= limit else message[: limit - 1] + "…"


# What torch says, and what it means for someone who meets it for the first time.
_EXPLANATIONS = (
    (
        ("Can't call numpy() on Tensor that requires grad", "converting a tensor with requires_grad"),
        "NumPy cannot carry gradients, so nothing before this line could learn. Stay in torch: every step here has a torch form.",
    ),
    (
        (
            "shapes cannot be multiplied",
            "must match the size of tensor",
            "Expected size for first two dimensions",
        ),
        "Two shapes do not fit together. Print both `.shape`s just before this line and say each letter aloud.",
    ),
    (
        ("torch.return_types.max", "torch.return_types.min"),
        "`max` and `min` along a dimension give two things, values and indices. Take `.values`, or call `amax` or `amin`.",
    ),
    (
        ("Boolean value of Tensor with more than one value is ambiguous",),
        "`if`, `and`, `or` and `not` ask for one truth value, and this tensor has many. Element by element it is "
        "`&`, `|`, `~` or `torch.where`.",
    ),
    (
        ("must be Tensor, not int", "must be Tensor, not float"),
        "A size like `x.shape[-1]` is a plain number: torch's functions want tensors, `math` has the one for numbers.",
    ),
    (
        (
            "failed to unpack the object at pos",
            "cannot be interpreted as an integer",
            "must be tuple of ints, but found",
        ),
        "A size must be a whole number. `/` makes a float of two ints, `//` an int.",
    ),
    (
        ("'NoneType' object", "not NoneType"),
        "Something here is None: an argument that may be left out, or the result of a function without a `return`.",
    ),
    (
        ("has no attribute 'to'",),
        "Only tensors and modules have `.to`, and here is something else. What is it, and what should become of it?",
    ),
    (
        ("is not defined",),
        "Python does not know this name: is it spelled as where it was made, and has that cell been run?",
    ),
    (
        ("before Module.__init__() call",),
        "A module cannot hold anything yet: the first line of `__init__` is `super().__init__()`.",
    ),
    (
        ("view size is not compatible",),
        "`view` only relabels memory in its present order; after a transpose that order is another. `reshape` copies where it must.",
    ),
    (
        ("expected scalar type", "must have the same dtype", "same dtype, but got"),
        "Two dtypes meet. A tensor you make yourself should take its dtype from the inputs.",
    ),
    (
        ("leaf Variable that requires grad",),
        "This line writes into an input. Work on a copy, or use the form that makes a new tensor.",
    ),
    (
        ("positional argument", "unexpected keyword"),
        "Compare the parameters in your `def` line with the exercise's.",
    ),
)


def _explain(message: str) -> tuple[str, ...]:
    return tuple(text for needles, text in _EXPLANATIONS if any(needle in message for needle in needles))[:1]


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    if value is None:
        return "nothing (None)"
    return value.what if isinstance(value, Odd) else with_article(type(value).__name__)


ONE_NUMBER = "Everything was reduced to a single number: does a `sum`, `mean` or `max` lack its `dim`?"


def _one_number(seen: Any) -> tuple[str, ...]:
    """A word about the slip that makes one number of everything."""
    return (ONE_NUMBER,) if isinstance(seen, Tensor) and seen.dim() == 0 else ()


def _structure(seen: Any, expected: Any, names: tuple[str, ...], whole: bool = True) -> Difference | None:
    """What is wrong with what was returned (``whole``), or with one of the things in it, before any number is looked at."""
    wanted = f"{len(names)} things: {', '.join(names)}" if len(names) > 1 else names[0]
    if seen is None and expected is not None and whole:
        return Difference(
            Kind.STRUCTURE,
            "your function returned nothing.",
            ("Does it end with a `return`?", f"Expected: {wanted}."),
        )
    what = "returned" if whole else f"{_named(names)} is"
    if isinstance(expected, (tuple, list)):
        if not isinstance(seen, (tuple, list)):
            details = (f"Expected {wanted}.", *_one_number(seen))
            return Difference(Kind.STRUCTURE, f"{what} {_kind(seen)}.", details)
        if len(seen) != len(expected):
            return Difference(Kind.STRUCTURE, f"{what} {len(seen)} things.", (f"Expected {wanted}.",))
        for index, (a, b) in enumerate(zip(seen, expected)):
            name = (names[index],) if len(names) == len(expected) else (f"item {index}",)
            if (found := _structure(a, b, name, whole=False)) is not None:
                return found
        return None
    if isinstance(expected, dict):
        if not isinstance(seen, dict):
            listed = ", ".join(map(str, expected))
            return Difference(Kind.STRUCTURE, f"{what} {_kind(seen)}.", (f"Expected a dict with {listed}.",))
        if missing := [key for key in expected if key not in seen]:
            return Difference(Kind.STRUCTURE, f"the dict has no {' and no '.join(map(str, missing))}.")
        if extra := [key for key in seen if key not in expected]:
            listed = ", ".join(map(str, extra[:4])) + (" …" if len(extra) > 4 else "")
            return Difference(Kind.STRUCTURE, f"the dict has something too many: {listed:.200}.")
        inside = (_structure(seen[key], expected[key], (str(key),), whole=False) for key in expected)
        return next(filter(None, inside), None)
    if isinstance(seen, (tuple, list)):
        return Difference(Kind.STRUCTURE, f"{what} {_kind(seen)}.", (f"Expected one thing: {wanted}.",))
    if isinstance(expected, Tensor) != isinstance(seen, Tensor):
        wanted = _kind(expected) + (" (a plain Python number)" if isinstance(expected, (int, float)) else "")
        return Difference(Kind.TYPE, f"{_named(names)} is {_kind(seen)}.", (f"Expected {wanted}.",))
    if expected is None and seen is not None:
        return Difference(Kind.TYPE, f"{_named(names)} is {_kind(seen)}.", ("Expected None here.",))
    if isinstance(expected, (bool, str)) and type(seen) is not type(expected):
        return Difference(Kind.TYPE, f"{_named(names)} is {_kind(seen)}.", (f"Expected {_kind(expected)}.",))
    if isinstance(expected, (int, float)) and not isinstance(seen, (int, float)):
        return Difference(Kind.TYPE, f"{_named(names)} is {_kind(seen)}.", (f"Expected {_kind(expected)}.",))
    return None


def _wrong_order(seen: Any, expected: Any, names: tuple[str, ...], tolerance: float | None) -> bool:
    """A pair whose two halves have changed places."""
    if not isinstance(expected, (tuple, list)) or len(expected) != 2:
        return False
    pairs = list(zip(reversed(seen), expected))
    straight = list(zip(seen, expected))
    return _all_close(pairs, tolerance) and not _all_close(straight, tolerance)


def _all_close(pairs: list[tuple[Any, Any]], tolerance: float | None) -> bool:
    return all(
        not isinstance(b, (tuple, list, dict)) and close(a, b, tolerance_for(b, tolerance)) for a, b in pairs
    )


def _named(names: tuple[str, ...]) -> str:
    return names[0].split(" (")[0] if names else "the result"


def _leaf(name: str, seen: Any, expected: Any, override: float | None) -> Difference | None:
    if not isinstance(expected, Tensor):
        tolerance = tolerance_for(expected, override)
        if close(seen, expected, tolerance):
            return None
        details = ()
        if not isinstance(expected, (int, float)) or isinstance(expected, bool):
            return Difference(Kind.VALUES, f"{name} is {seen!s:.80}, expected {expected!s:.80}.", (), name)
        if isinstance(seen, float) and seen != seen:
            details = ("NaN: somewhere 0 was divided by 0, or ∞ met −∞.",)
        return Difference(Kind.VALUES, f"{name} is a wrong number.", details, name, seen, expected, tolerance)
    if seen.shape != expected.shape:
        details = [f"{name} has shape {tuple(seen.shape)}, expected {tuple(expected.shape)}."]
        if seen.dim() >= 2 and seen.shape[:-2] + seen.shape[:-3:-1] == expected.shape:
            details.append("The last two sizes have changed places.")
        details += _one_number(seen)
        return Difference(Kind.SHAPE, f"{name} has the wrong shape.", tuple(details), name, seen, expected)
    if seen.device != expected.device:
        return Difference(Kind.DEVICE, f"{name} is on {seen.device}, expected {expected.device}.", (), name)
    if expected.device.type == "meta":  # shapes without numbers
        same = seen.dtype == expected.dtype
        return (
            None
            if same
            else Difference(Kind.DTYPE, f"{name} is {_dtype(seen)}, expected {_dtype(expected)}.")
        )
    tolerance = tolerance_for(expected, override)
    if seen.dtype != expected.dtype:
        return Difference(
            Kind.DTYPE,
            f"{name} is {_dtype(seen)}, expected {_dtype(expected)}.",
            (),
            name,
            seen,
            expected,
            tolerance,
        )
    if expected.dtype.is_floating_point and bool((seen.isnan() & ~expected.isnan()).any()):
        share = int((seen.isnan() & ~expected.isnan()).sum())
        return Difference(
            Kind.NOT_FINITE,
            f"{name} has NaN in it ({share} of {seen.numel()} numbers).",
            ("NaN comes from ∞ − ∞, 0 · ∞ or 0 / 0. Which step can give that for these inputs?",),
            name,
            seen,
            expected,
            tolerance,
        )
    wrong = wrong_cells(seen, expected, tolerance)
    if not bool(wrong.any()):
        return None
    nearly = _nearly(seen, expected)
    insight = next((text for look in _INSIGHTS if (text := look(seen, expected, tolerance))), None)
    details = tuple(filter(None, [nearly or insight]))
    headline = f"right shape, wrong values in {name}."
    return Difference(Kind.VALUES, headline, details, name, seen, expected, tolerance, rounding=bool(nearly))


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _constant_factor(seen: Tensor, expected: Tensor, tolerance: float) -> str | None:
    a, b = seen.double().flatten(), expected.double().flatten()
    if not expected.is_floating_point() or not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        return None
    size = float(b @ b)
    factor = float(a @ b) / size if size else 0.0
    if abs(factor) < 1e-12 or not bool(((a - factor * b).abs() <= tolerance * max(1.0, abs(factor))).all()):
        return None
    return f"Every number is {factor:.4g} times the expected one."


def _constant_offset(seen: Tensor, expected: Tensor, tolerance: float) -> str | None:
    gap = seen.double() - expected.double()
    if (
        gap.numel() < 2
        or not bool(torch.isfinite(gap).all())
        or not bool(((gap - gap.mean()).abs() <= tolerance).all())
    ):
        return None
    return f"Every number is off by the same {float(gap.mean()):+.4g}."


def _all_the_same(seen: Tensor, expected: Tensor, tolerance: float) -> str | None:
    if seen.numel() < 2 or not bool((seen == seen.flatten()[0]).all()):
        return None
    return f"Every number of yours is {seen.flatten()[0].item():.4g}."


def _transposed(seen: Tensor, expected: Tensor, tolerance: float) -> str | None:
    if seen.dim() >= 2 and seen.shape[-1] == seen.shape[-2] and close(seen, expected.mT, tolerance):
        return "These are the right numbers, transposed."
    return None


def _inverted(seen: Tensor, expected: Tensor, tolerance: float) -> str | None:
    return (
        "Every True should be False, and the other way round."
        if seen.dtype == torch.bool and bool((seen != expected).all())
        else None
    )


def _nearly(seen: Tensor, expected: Tensor) -> str | None:
    """What a very small difference says about where it comes from."""
    if expected.dtype != torch.float64 or not bool(torch.isfinite(seen).all()):
        return None
    gap = (seen - expected)[torch.isfinite(expected)]
    largest = float(gap.abs().max()) if gap.numel() else math.inf
    finite = expected[torch.isfinite(expected)]
    if not largest <= 1e-4 * max(1.0, float(finite.abs().max()) if finite.numel() else 0.0):
        return None
    very = f"Very nearly right: the largest difference is {largest:.0e}"
    zeros = gap[finite == 0]
    if bool((zeros != 0).any()):  # rounding leaves a zero that is meant exactly
        return f"{very}, and where exactly 0 is expected, yours is not. Is something closed that is only made small?"
    if gap.numel() >= 8 and (bool((gap > 0).all()) or bool((gap < 0).all())):
        return f"{very}, always to the same side. Is a small number added somewhere?"
    return f"{very}. Is a part of it computed in float32?"


def _one_part(seen: Tensor, expected: Tensor, tolerance: float) -> str | None:
    """Wrong in some batch elements, rows or columns only."""
    wrong = wrong_cells(seen, expected, tolerance)
    for dim in range(wrong.dim()):
        if wrong.shape[dim] < 2:
            continue
        others = [d for d in range(wrong.dim()) if d != dim]
        bad = wrong.any(dim=others) if others else wrong
        if 0 < int(bad.sum()) < bad.numel():
            places = bad.nonzero().flatten().tolist()
            shown = ", ".join(map(str, places[:6])) + ("…" if len(places) > 6 else "")
            where = f"index {shown}" + (f" along dim={dim}" if wrong.dim() > 1 else "")
            return f"Only some are wrong: {where} (of {bad.numel()}); the rest is right."
    return None


_INSIGHTS: tuple[Callable[[Tensor, Tensor, float], str | None], ...] = (
    _inverted,
    _all_the_same,
    _transposed,
    _constant_factor,
    _constant_offset,
    _one_part,
)


def _gradients(seen: Observation, expected: Observation, override: float | None) -> Difference | None:
    if not expected.gradients or expected.detached:
        return None
    if seen.detached:
        return Difference(
            Kind.DETACHED,
            "right numbers, but they are cut off from their inputs: nothing could learn through them.",
            (
                "The result has no gradient. `.detach()`, `.data`, `.item()`, `torch.tensor(x)`, NumPy and "
                "`torch.no_grad()` all cut the thread.",
            ),
        )
    if seen.gradient_error:
        return Difference(
            Kind.GRADIENTS,
            "right numbers, but the backward pass fails.",
            (
                f"torch says: {_short(seen.gradient_error, 160)}",
                "Usually a tensor that the gradient still needs was overwritten in place.",
            ),
        )
    for name, b in expected.gradients.items():
        a = seen.gradients.get(name)
        if b is None:
            continue
        if not isinstance(a, Tensor):
            if not bool(b.any()):
                continue
            return Difference(
                Kind.GRADIENTS,
                f"right numbers, but no gradient reaches {name}.",
                (
                    "Somewhere on the way from it to the result the thread is cut (`detach`, `.data`, `no_grad`).",
                ),
                name,
            )
        tolerance = max(tolerance_for(b, override), 10 * tolerance_for(b, None))
        if a.shape == b.shape and not bool(wrong_cells(a, b, tolerance).any()):
            continue
        if bool(a.isnan().any()):
            return Difference(
                Kind.GRADIENTS,
                f"right numbers, but the gradient of {name} is NaN.",
                (
                    "A step that is finite forwards can be infinite backwards: look for √0, 0/0 or −∞ that is cut out afterwards.",
                ),
                name,
                a,
                b,
                tolerance,
            )
        return Difference(
            Kind.GRADIENTS,
            f"right numbers, but the gradient of {name} is wrong.",
            ("A part of the computation is cut off from it, or counted twice.",),
            name,
            a,
            b,
            tolerance,
        )
    return None
