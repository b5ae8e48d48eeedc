"""A lesson made for the tests of grading: small exercises of every kind."""

from __future__ import annotations

import torch

from mha_course.checking import Case, Exercise, Lesson, Misconception, Question


def double_it(x):
    return 2 * x


def mix(q, k, v):
    weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)  # (N, L, S)
    return weights @ v


def soft_rows(x):
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


def double_twice(x):
    return double_it(double_it(x))


def _vector(draw):
    return {"x": draw.normal(5)}


def _heads(draw):
    return {"q": draw.normal(2, 3, 4), "k": draw.normal(2, 5, 4), "v": draw.normal(2, 5, 6)}


def _unscaled(q, k, v):
    return torch.softmax(q @ k.mT, -1) @ v


DOUBLE = Exercise(
    "double_it",
    "90.1",
    double_it,
    ("y (N,)",),
    (Case("five numbers", _vector), Case("a matrix", lambda draw: {"x": draw.normal(3, 4)})),
    (Misconception("squared", "It is squared, not doubled.", wrong=lambda x: x * x, hint=1),),
)
MIX = Exercise(
    "mix",
    "90.2",
    mix,
    ("output (N, L, Dv)",),
    (Case("sizes differ", _heads),),
    (Misconception("no-scale", "The scores are not divided by √D.", wrong=_unscaled, hint=2),),
    forbidden=("ready-made attention",),
)
SOFT = Exercise(
    "soft_rows",
    "90.3",
    soft_rows,
    ("y",),
    (Case("a matrix", lambda draw: {"x": draw.normal(3, 4)}),),
    forbidden=("ready-made softmax",),
)
TWICE = Exercise(
    "double_twice",
    "90.4",
    double_twice,
    ("y (N,)",),
    (Case("five numbers", _vector),),
    builds_on=("double_it",),
)
WHY = Question("why_double", "b", {"a": "No: that halves.", "b": "Yes.", "c": "No: that squares."})
LESSON = Lesson("90_sample", "Sample", (DOUBLE, MIX, SOFT, TWICE), (WHY,))
