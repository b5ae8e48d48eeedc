"""What a card says is true, and leads on: properties that keep silent, causes that have a name, hints that stay hints."""

import functools
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mha_course import exercises, reference
from mha_course.checking import LocalAnswer, examine
from mha_course.checking.examine import prepare
from mha_course.exercises import _properties
from mha_course.exercises import many_heads as heads_parts

EVERY = [exercise for lesson in exercises.lessons() for exercise in lesson.exercises]
SPOKEN = [
    pytest.param(exercise, rule, id=f"{exercise.name}: {rule.name}")
    for exercise in EVERY
    for rule in exercise.properties
]
INF = torch.inf
SOLUTIONS = Path(__file__).parents[1] / "solutions"


# ------------------------------------------------------------------------------------- properties


def everywhere(change, value):
    """The value with every tensor in it changed; numbers become NaN where the change is to NaN."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(everywhere(change, item) for item in value)
    if change is all_nan and isinstance(value, float):
        return math.nan
    return value


def all_nan(x):
    return x * math.nan if x.is_floating_point() else x


def one_nan(x):
    if not x.is_floating_point() or not x.numel():
        return x
    return torch.where(torch.arange(x.numel(), device=x.device).view(x.shape) == x.numel() - 1, math.nan, x)


WRONG_SHAPES = {
    "a dimension more": lambda x: x.unsqueeze(0),
    "one long row": lambda x: torch.cat([x.flatten()] * 2),
    "twice as wide": lambda x: torch.cat([x, x], -1) if x.dim() else x.expand(2),
    "a row less": lambda x: x[:-1] if x.dim() else x.expand(3),
    "nothing in it": lambda x: x.flatten()[:0],
}


@functools.cache
def of_every_case(exercise_name):
    """What the right answer gets and gives, case by case."""
    trials = [trial for trial in prepare(exercises.find(exercise_name), 0) if not trial.case.raises]
    return [(trial.case.name, trial.call.inputs, trial.expected.value) for trial in trials]


@pytest.mark.parametrize(("exercise", "rule"), SPOKEN)
def test_a_property_has_nothing_to_say_of_the_right_answer(exercise, rule):
    for name, inputs, value in of_every_case(exercise.name):
        assert rule.fails(inputs, value) is None, name


# What 7.2 gives is a batch of any shape; its property asks where tensors are, not what is in them.
ABOUT_NUMBERS = [param for param in SPOKEN if param.values[0].name != "to_device"]


@pytest.mark.parametrize(("exercise", "rule"), ABOUT_NUMBERS)
def test_a_property_has_nothing_to_say_of_a_wrong_shape(exercise, rule):
    for name, inputs, value in of_every_case(exercise.name):
        for how, change in WRONG_SHAPES.items():
            assert rule.fails(inputs, everywhere(change, value)) is None, f"{name}, {how}"


@pytest.mark.parametrize(("exercise", "rule"), ABOUT_NUMBERS)
def test_a_property_has_nothing_to_say_of_nan(exercise, rule):
    for name, inputs, value in of_every_case(exercise.name):
        for change in (all_nan, one_nan):
            assert rule.fails(inputs, everywhere(change, value)) is None, f"{name}, {change.__name__}"


@pytest.mark.parametrize(("exercise", "rule"), ABOUT_NUMBERS)
def test_a_property_has_nothing_to_say_of_results_that_have_changed_places(exercise, rule):
    for name, inputs, value in of_every_case(exercise.name):
        if isinstance(value, tuple):
            assert rule.fails(inputs, value[::-1]) is None, name
        if isinstance(value, list):  # an object that was called several times
            turned = [step[::-1] if isinstance(step, tuple) else step for step in value]
            assert rule.fails(inputs, turned) is None, name


@pytest.mark.parametrize(("exercise", "rule"), SPOKEN)
def test_a_property_has_nothing_to_say_of_something_else_altogether(exercise, rule):
    for name, inputs, right in of_every_case(exercise.name):
        for value in (None, "abc", [], (), {}, (None, None), True, object(), torch.zeros(()), [3, None]):
            if type(value) is not type(right):
                assert rule.fails(inputs, value) is None, f"{name}, {value!r}"


def test_shapes_are_looked_at_before_a_property_speaks():
    speaks = _properties.of_shape(lambda inputs: (2, None))(lambda inputs, value: "wrong")
    assert speaks({}, torch.zeros(2, 5)) == "wrong"
    for other in (torch.zeros(3, 5), torch.zeros(2), torch.full((2, 5), math.nan), torch.full((2, 5), INF), 1.0):
        assert speaks({}, other) is None
    assert speaks({}, torch.zeros(2, 5, device="meta")) is None
