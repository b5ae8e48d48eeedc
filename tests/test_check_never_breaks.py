"""Whatever an answer returns, raises or does, a check and the grader give one of their own outcomes."""

import json
import subprocess
import sys
import time

import pytest
import spoilt
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mha_course import exercises
from mha_course.checking import Case, Exercise, LocalAnswer, Observation, as_html, as_text, examine
from mha_course.checking.calls import Limited
from mha_course.checking.kinds import FailureKind, Status
from mha_course.checking.plain import MAX_DEPTH, Odd, Plain, clean
from mha_course.grading import wire

EXERCISES = [exercise for lesson in exercises.lessons() for exercise in lesson.exercises]
REMEMBERED: dict = {}  # what known wrong answers give, for the whole file: by the names of exercises


class Wired(LocalAnswer):
    """An answer on the other side of the grader's pipe: calls and observations cross it as bytes."""

    def observe(self, call):
        body, blobs = wire.pack_call(call)
        there = wire.call_from(json.loads(json.dumps(body)), memoryview(b"".join(blobs)))
        body, blobs = wire.pack_observation(super().observe(there))
        return wire.observation_from(json.loads(json.dumps(body)), memoryview(b"".join(blobs)))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def outcome(exercise, spoilt_answer, door=LocalAnswer):
    report = examine(exercise, door(spoilt_answer), reference_allowed=True, memory=REMEMBERED)
    assert report.status != Status.BROKEN, report.details["why"]
    text, page = as_text(report.card), as_html(report.card)
    assert report.name in text and report.card.headline
    (text + page).encode()  # no half letters: it can be printed
    assert "\x1b" not in text + page
    return report


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.name)
def test_whatever_comes_back_the_check_and_the_grader_have_a_word_for_it(exercise):
    @settings(
        max_examples=6,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        result=st.sampled_from([None, *spoilt.RESULTS]),
        conduct=st.sampled_from([None, *spoilt.CONDUCT]),
        door=st.sampled_from([LocalAnswer, Wired]),
    )
    def holds(result, conduct, door):
        change, what = spoilt.RESULTS.get(result), spoilt.CONDUCT.get(conduct)
        outcome(exercise, spoilt.spoil(exercise.reference, change, what), door)
        assert torch.get_default_dtype() == torch.float32 and torch.get_default_device().type == "cpu"
        assert torch.is_grad_enabled() and not torch._C._len_torch_function_stack()

    holds()


@pytest.mark.exhaustive
@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.name)
def test_every_single_way_to_spoil_an_answer_has_an_outcome(exercise):
    for change in spoilt.RESULTS.values():
        outcome(exercise, spoilt.spoil(exercise.reference, change))
    for conduct in spoilt.CONDUCT.values():
        outcome(exercise, spoilt.spoil(exercise.reference, None, conduct))


def scaled(x):
    return x / 2


SCALED = Exercise("scaled", "9.1", scaled, ("y (N, E)",), (Case("x", lambda draw: {"x": draw.normal(3, 5)}),))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("summed up", "y has shape (), expected (3, 5)."),
        ("lists", "returned a list of 3."),
        ("numpy", "y is a NumPy array."),
        ("sparse", "y is a sparse tensor of shape (3, 5)."),
        ("nested", "y is a nested tensor."),
        ("meta", "y is on meta, expected cpu."),
        ("quantized", "y is a tensor in a special form"),
        ("freed memory", "y is a tensor of shape (3, 5) whose memory was freed."),
        ("expanded without end", "y is a tensor of shape (100000000000000,), too large to look at."),
        ("10**400", "y is a number of about 401 digits."),
        ("10**5000", "y is a number of about 5001 digits."),
        ("a generator", "y is a generator."),
        ("a shy object", "y is a Shy."),
        ("a dict with None", "y is a dict."),
        ("nothing", "your function returned nothing."),
        ("a list in itself", "returned a list of 2."),
    ],
)
def test_what_is_no_tensor_is_said_in_words(change, said):
    report = outcome(SCALED, spoilt.spoil(scaled, spoilt.RESULTS[change]))
    assert said in " ".join(as_text(report.card).split())


@pytest.mark.parametrize(
    ("conduct", "said"),
    [
        ("raises without words", "raised Speechless: (its message cannot be read)"),
        ("asserts silently", "raised AssertionError, without a word."),
        ("raises SystemExit", "raised SystemExit: 3"),
        ("raises a BaseException", "raised BaseException: deep"),
        ("raises KeyError of a shy key", "raised KeyError: (its message cannot be read)"),
        ("recurses", "raised RecursionError"),
        ("inputs zeroed", "changed its input x"),
        (spoilt.empty_the_inputs, "changed its input x"),
    ],
)
def test_whatever_is_raised_or_done_is_said_in_words(conduct, said):
    conduct = spoilt.CONDUCT.get(conduct, conduct)
    report = outcome(SCALED, spoilt.spoil(scaled, None, conduct))
    assert report.status == Status.WRONG
    assert said in " ".join(as_text(report.card).split())


@pytest.mark.parametrize(
    "setting",
    [
        "torch.set_default_dtype(torch.float64)",
        "torch.set_default_device('meta')",
        "torch.set_default_device('cuda')",  # that may not be there
        "torch.device('meta').__enter__()",
        "torch.set_grad_enabled(False)",
        "torch.autocast('cpu', torch.bfloat16).__enter__()",
        "torch.inference_mode().__enter__()",
    ],
)
def test_what_a_notebook_has_set_makes_no_right_answer_wrong_and_stays_as_it_was(setting):
    code = f"""
import torch
from mha_course import exercises
from mha_course.checking import LocalAnswer, as_text, examine
{setting}
def state():
    device = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return torch.get_default_dtype(), device, torch.is_grad_enabled(), (
        torch.is_autocast_enabled('cpu'), torch.is_inference_mode_enabled(), torch._C._len_torch_function_stack())
before = state()
for name in ("attend", "SingleHead", "causal_mask"):
    exercise = exercises.find(name)
    report = examine(exercise, LocalAnswer(exercise.reference), reference_allowed=True)
    assert report.status == "right", as_text(report.card)
    assert state() == before, (name, before, state())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_mode_that_an_answer_leaves_behind_ends_with_its_call():
    from torch.overrides import TorchFunctionMode

    class Passing(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    def scaled(x):
        Passing().__enter__()
        return x / 2

    assert outcome(SCALED, scaled).status == Status.RIGHT
    assert not torch._C._len_torch_function_stack()


def test_a_fault_of_the_check_itself_is_called_one_and_its_reason_is_kept(monkeypatch):
    monkeypatch.setattr(sys.modules[examine.__module__], "compare_trial", lambda *_: 1 / 0)
    report = examine(SCALED, LocalAnswer(scaled))
    assert report.status == Status.BROKEN and not report.named
    assert "ZeroDivisionError" in report.details["why"] and "compare_trial" in report.details["why"]
    text = " ".join(as_text(report.card).split())
    assert "The fault is the course's, not yours." in text and "Traceback" not in text


# ------------------------------------------------------------------------------------ plain data

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.integers() | st.none(), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(values)
def test_plain_data_stays_what_it_is_and_crosses_the_pipe(value):
    seen = Plain().of(value)
    packer = wire.Packer()
    packed = json.loads(json.dumps(packer.pack(seen)))
    assert wire.Unpacker(memoryview(b"")).unpack(packed) == seen
    if not list(odd_ones(seen)):
        assert seen == (value.encode("utf-8", "replace").decode() if isinstance(value, str) else seen)


def odd_ones(value):
    if isinstance(value, Odd):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from odd_ones(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from odd_ones(item)


def test_depth_and_number_of_things_are_bounded():
    assert list(odd_ones(Plain().of(spoilt.deep(1000)))) == [Odd(f"a list nested more than {MAX_DEPTH} deep")]
    assert Plain().of([0] * 1_000_000) == Odd("a list of 1000000 things")
    assert list(odd_ones(Plain().of([[0] * 60_000] * 3)))


def test_text_of_an_answer_has_no_escape_sequences_no_half_letters_and_an_end():
    assert clean("\x1b[31mred\x1b[0m \x1b]0;title\x07 \ud800 \x00ok", 100) == "red  ? ok"
    assert clean("x" * 1000, 10) == "x" * 9 + "…"


def test_an_observation_whose_time_was_up_says_how_long_the_whole_check_may_take():
    class Slow:
        def observe(self, call):
            time.sleep(call.seconds)
            return Observation(
                failure=wire.Failure(FailureKind.TOO_SLOW, ("TooSlow",), "stopped after a while")
            )

    trial = sys.modules[examine.__module__].prepare(SCALED, 0)[0]
    answer = Limited(Slow(), 0.2)
    assert [answer.observe(trial.call).failure.message for _ in range(3)] == ["stopped after 0.2 s"] * 3
    assert answer.left == 0
