"""How an exercise is declared: plain data, no behaviour of its own.

A declaration with a mistake in it (a misconception without code, a hint that is not there, a group that nobody has
forbidden) fails when its file is imported, by name: never in front of a learner.

An exercise names its reference answer, the cases both answers are called on, and the
misconceptions that are worth recognising. Everything that happens with it (calling,
comparing, diagnosing, reporting) lives in the other files of this package.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .kinds import DifferenceKind


class DeclarationError(ValueError):
    """A mistake in the declaration of an exercise."""


def _demand(holds: bool, whose: str, says: str) -> None:
    if not holds:
        raise DeclarationError(f"{whose}: {says}")


def _demand_once(names: Iterable[str], whose: str, what: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    _demand(not twice, whose, f"two {what} are called {' and '.join(map(repr, twice))}")


HINTS = (None, 1, 2, 3)


class Draw:
    """Where a case takes its random numbers from: always the same for the same seed.

    Every method makes CPU tensors. The default dtype is float64: those cases carry the proof.

    Args:
        seed: any int.
    """

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Tensor:
        """Normal numbers of the given shape, mean 0, standard deviation ``scale``."""
        return (torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale).to(dtype)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Numbers in [0, 1) of the given shape."""
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64).to(dtype)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers in [low, high) of the given shape, int64."""
        return torch.randint(low, high, shape, generator=self.generator)

    def permutation(self, n: int) -> Tensor:
        """A permutation of 0 … n-1 that moves every element (a rotation, shuffled), int64 (n,)."""
        order = torch.randperm(n, generator=self.generator)
        moved = torch.empty_like(order)
        moved[order] = order.roll(1)
        return moved

    def mask(self, *shape: int, p: float = 0.6) -> Tensor:
        """A boolean ``may_attend`` of the given shape: True with probability ``p``, at least one True per row."""
        mask = torch.rand(*shape, generator=self.generator) < p
        keep = torch.randint(0, shape[-1], shape[:-1], generator=self.generator)
        return mask | (torch.arange(shape[-1]) == keep.unsqueeze(-1))


@dataclass(frozen=True)
class Step:
    """One method call on an object under test, for answers that keep a state (a cache).

    Args:
        method: the method's name; ``"__call__"`` is a module's forward.
        inputs: its arguments, by name, in the order in which they are passed.
    """

    method: str
    inputs: Mapping[str, Any]


@dataclass(frozen=True)
class Named:
    """A callable argument: one of the small set in ``checking.callables``, passed by its name.

    A function cannot cross a process boundary; its name can.
    """

    name: str


@dataclass(frozen=True)
class Case:
    """One situation in which the answer is called.

    Args:
        name: what is special about it, in a few words a learner understands
            ("L and S differ", "a row that may see nothing").
        make: takes a `Draw`, gives the inputs by name, in the order in which they are passed
            (a list of `Step` instead where an object is called several times).
        construct: for a class as the answer: the constructor's arguments by name.
        train: for a module: train mode (the default is eval mode).
        tolerance: largest absolute difference allowed; ``None`` takes the dtype's own.
            For statistical cases: say in a comment where the number comes from.
        look_at: what is compared instead of the returned value: takes ``(value, inputs)``
            and gives tensors or numbers, e.g. the share of zeros after a dropout.
        raises: the right answer refuses this input with one of these exceptions.
        gradients: compare gradients here too (if the exercise is differentiable).
        requires_grad: names of the inputs that gradients are asked for; ``None``: all floating ones.
        on_gpu: try it on the pretended GPU, too. False where another case leads along the same way.
        largest: takes the inputs, gives how many numbers the largest tensor may have that the answer makes.
    """

    name: str
    make: Callable[[Draw], Any]
    construct: Mapping[str, Any] | Callable[[Draw], Mapping[str, Any]] | None = None
    train: bool = False
    tolerance: float | None = None
    look_at: Callable[[Any, Mapping[str, Any]], Any] | None = None
    raises: tuple[type[BaseException], ...] = ()
    gradients: bool = True
    requires_grad: tuple[str, ...] | None = None
    on_gpu: bool = True
    largest: Callable[[Mapping[str, Any]], int] | None = None


@dataclass(frozen=True)
class Misconception:
    """A mistake worth recognising, as a wrong implementation that really runs.

    It is recognised by behaviour: a learner's answer has it when it gives what ``wrong`` gives on
    every case, and not what the reference gives.

    Args:
        id: a short name in kebab-case, unique within the exercise ("softmax-over-queries").
        says: what a tutor would say, one to three sentences, without giving the line away.
            Begin with what is seen, then the cause.
        wrong: the wrong implementation (a function or class like the reference).
        part: instead of ``wrong``: the parts in which ``Exercise.assemble`` differs from the right
            answer. Two misconceptions in different parts are also recognised *together*.
        hint: number of the hint to open (1, 2 or 3).
        also: other ways in which people write the same mistake; each must be named alike.
    """

    id: str
    says: str
    wrong: Callable[..., Any] | None = None
    part: Mapping[str, Any] | None = None
    hint: int | None = None
    also: tuple[Callable[..., Any], ...] = ()

    def __post_init__(self):
        whose = f"misconception {self.id!r}"
        _demand(bool(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.id)), whose, "an id is in kebab-case")
        _demand(bool(self.says.strip()), whose, "it says nothing")
        forms = (self.wrong, *self.also)
        _demand(bool(self.wrong or self.part or self.also), whose, "it has no code: give `wrong` or `part`")
        _demand(all(callable(form) for form in forms if form is not None), whose, "its code cannot be called")
        _demand(self.hint in HINTS, whose, f"there is no hint {self.hint}, only 1, 2 and 3")


@dataclass(frozen=True)
class Property:
    """Something every right answer satisfies: what is said when no misconception explains the answer.

    Args:
        fails: takes ``(inputs, value)`` of the *learner's* call, gives a sentence saying how the
            property is broken, or ``None`` where it holds. May raise: then it has nothing to say.
        hint: number of the hint to open.
        about: the kinds of difference that it may speak about. By default it is asked only where everything
            returned has the right shape and dtype, no NaN, and numbers that are wrong.
    """

    name: str
    fails: Callable[[Mapping[str, Any], Any], str | None]
    hint: int | None = None
    about: tuple[DifferenceKind, ...] = (DifferenceKind.VALUES,)

    def __post_init__(self):
        whose = f"property {self.name!r}"
        _demand(callable(self.fails), whose, "`fails` is no function")
        _demand(self.hint in HINTS, whose, f"there is no hint {self.hint}, only 1, 2 and 3")
        _demand(bool(self.about), whose, "it is about nothing: it would never speak")


@dataclass(frozen=True)
class Style:
    """A correct way to write the answer that must pass."""

    name: str
    answer: Callable[..., Any]


@dataclass(frozen=True)
class Exercise:
    """One graded exercise.

    Args:
        name: the function's or class's name; ``check`` finds the exercise by it.
        number: "1.3": as the notebook calls it.
        reference: the right answer, from ``mha_course.reference``.
        returns: the names and shapes of what is returned, in shape letters:
            ``("output (N, L, Dv)", "weights (N, L, S)")``; one entry where one thing is returned.
        cases: where it is tried. Sizes pairwise different; float64 first.
        misconceptions: known mistakes, the most common first.
        properties: what is said where no misconception explains the answer.
        styles: correct ways to write it.
        forbidden: names of groups in ``checking.guards.FORBIDDEN`` that the answer may not use.
        builds_on: names of earlier exercises whose functions the answer may call.
        keywords: names of inputs (or constructor arguments) passed by keyword; others go by position.
        differentiable: gradients with respect to floating inputs (and parameters) are compared.
        device_safe: run once with fake CUDA tensors.
        may_change_inputs: writing into the inputs is allowed.
        is_class: the answer is a class (constructor, state dict, forward).
        fill: gives a module's parameters their values, ``(module, draw)``; the default draws all
            of them at random, biases included.
        assemble: builds an implementation from named parts, for `Misconception.part`.
        seconds: how long all calls of one check may take together.
        large: a case with more to compute than there is memory for if it is done at once. Tried only where the answer
            is marked, in a process that has no room for more; a learner's own check looks at `Case.largest`.
    """

    name: str
    number: str
    reference: Callable[..., Any]
    returns: tuple[str, ...]
    cases: tuple[Case, ...]
    misconceptions: tuple[Misconception, ...] = ()
    properties: tuple[Property, ...] = ()
    styles: tuple[Style, ...] = ()
    forbidden: tuple[str, ...] = ()
    builds_on: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    differentiable: bool = True
    device_safe: bool = True
    may_change_inputs: bool = False
    is_class: bool = False
    fill: Callable[[torch.nn.Module, Draw], None] | None = None
    assemble: Callable[..., Callable[..., Any]] | None = None
    seconds: float = 10.0
    large: Case | None = None

    def __post_init__(self):
        whose = f"exercise {self.name!r}"
        _demand(bool(re.fullmatch(r"\w+\.\d+", self.number)), whose, f"{self.number!r} is no number like 1.3")
        _demand(bool(self.returns), whose, "it does not say what is returned")
        _demand(bool(self.cases), whose, "it has no case")
        _demand(self.seconds > 0, whose, "it has no time")
        _demand(self.name not in self.builds_on, whose, "it builds on itself")
        _demand_once((case.name for case in self.cases), whose, "cases")
        _demand_once((mistake.id for mistake in self.misconceptions), whose, "misconceptions")
        _demand_once((style.name for style in self.styles), whose, "styles")
        from .guards import FORBIDDEN

        unknown = sorted(set(self.forbidden) - set(FORBIDDEN))
        _demand(
            not unknown, whose, f"nothing is known as {unknown}; forbidden can be: {', '.join(FORBIDDEN)}"
        )
        parts = _parts(self.assemble)
        for mistake in self.misconceptions:
            strange = [part for part in mistake.part or () if parts is not None and part not in parts]
            _demand(not strange, whose, f"{mistake.id!r}: `assemble` has no part {' and '.join(strange)}")


def _parts(assemble: Callable[..., Any] | None) -> tuple[str, ...] | None:
    """Names of the parts that `Exercise.assemble` takes; none where there is none, ``None`` where it takes any."""
    taken = inspect.signature(assemble).parameters if assemble is not None else {}
    return None if any(p.kind is p.VAR_KEYWORD for p in taken.values()) else tuple(taken)


@dataclass(frozen=True)
class Question:
    """A quick multiple-choice question at the end of a lesson.

    The question and its options stand in the notebook; here is which one is right and why.

    Args:
        name: the variable in which the learner answers (``why_scale = "b"``).
        right: the right option's letter.
        why: for every option, the right one included, one or two sentences of explanation.
    """

    name: str
    right: str
    why: Mapping[str, str]

    def __post_init__(self):
        _demand(self.right in self.why, f"question {self.name!r}", f"there is no option {self.right!r}")


@dataclass(frozen=True)
class Lesson:
    """What one lesson grades.

    Args:
        folder: the lesson's folder under ``solutions/`` and ``notebooks/`` ("01_one_head").
        title: "One head".
    """

    folder: str
    title: str
    exercises: tuple[Exercise, ...] = field(default=())
    questions: tuple[Question, ...] = field(default=())

    def __post_init__(self):
        items = [*self.exercises, *self.questions]
        _demand_once((item.name for item in items), f"lesson {self.folder!r}", "exercises or questions")
        _demand_once((exercise.number for exercise in self.exercises), f"lesson {self.folder!r}", "exercises")

    @property
    def number(self) -> str:
        return self.folder.split("_", 1)[0]
