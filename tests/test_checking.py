"""The engine behind check(), on a small exercise of its own: every kind of wrong answer and what is said of it."""

import contextlib
import dataclasses
import inspect
import logging
import math
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mha_course.checking import (
    Case,
    Exercise,
    Lesson,
    LocalAnswer,
    Misconception,
    Named,
    Property,
    Question,
    Step,
    Style,
    as_html,
    as_text,
    examine,
    report,
)
from mha_course.checking.audit import audit, table
from mha_course.checking.callables import KNOWN
from mha_course.checking.exercise import DeclarationError
from mha_course.checking.report import grids


def mix(q, k, v):
    weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)
    return weights @ v, weights


def mix_with(scale=math.sqrt, dim=-1):
    def mix(q, k, v):
        weights = torch.softmax(q @ k.mT / scale(q.shape[-1]), dim)
        return weights @ v, weights

    return mix


def rows_sum_to_one(inputs, value):
    sums = value[1].sum(-1)
    return (
        None if torch.allclose(sums, torch.ones_like(sums)) else "The rows of your weights do not sum to 1."
    )


def inputs(draw, dtype=torch.float64):
    return {
        "q": draw.normal(2, 5, 4, dtype=dtype),
        "k": draw.normal(2, 7, 4, dtype=dtype),
        "v": draw.normal(2, 7, 3, dtype=dtype),
    }


MIX = Exercise(
    name="mix",
    number="9.1",
    reference=mix,
    returns=("output (N, L, Dv)", "weights (N, L, S)"),
    cases=(Case("L and S differ", inputs), Case("float32", lambda draw: inputs(draw, torch.float32))),
    assemble=mix_with,
    forbidden=("ready-made attention",),
    misconceptions=(
        Misconception("no-scale", "The scores are not divided.", part={"scale": lambda d: 1.0}, hint=2),
        Misconception("over-queries", "The softmax ran over the queries.", part={"dim": -2}, hint=1),
        Misconception("wrong-scale", "Divided by D.", part={"scale": float}, hint=2),
    ),
    properties=(Property("rows", rows_sum_to_one, hint=1),),
    styles=(Style("in two steps", lambda q, k, v: mix_with()(q.contiguous(), k, v)),),
)


def told(answer, exercise=MIX, **options):
    """The report, and the card's text unfolded into one line."""
    report = examine(exercise, LocalAnswer(answer), **options)
    return report, " ".join(as_text(report.card).split())


def test_a_right_answer_gives_one_line_with_a_tick_a_count_and_a_time():
    report, text = told(mix)
    assert report.status == "right" and report.checked > 10
    assert text.startswith("✓ mix: ") and "things checked in" in text and "\n" not in as_text(report.card)


def test_a_misconception_is_named_in_the_tutors_words_with_its_hint():
    report, text = told(mix_with(dim=-2))
    assert report.cause == "over-queries"
    assert "The softmax ran over the queries." in text and "hint 1 of exercise 9.1" in text


WRONG = (
    mix_with(dim=-2),
    mix_with(scale=lambda d: 1.0),
    mix_with(scale=float),
    mix_with(scale=lambda d: 1.0, dim=-2),
    mix_with(scale=lambda d: 3.0),
)


def test_what_is_remembered_from_one_answer_to_the_next_changes_no_card():
    memory = {}
    for _ in range(2):
        for wrong in WRONG:
            remembered, text = told(wrong, memory=memory)
            report, fresh = told(wrong)
            assert (remembered.cause, remembered.named, text) == (report.cause, report.named, fresh)
            assert report.status == "wrong"
        assert told(mix, memory=memory)[0].status == "right"


def test_right_or_wrong_is_told_without_looking_for_the_mistake():
    for wrong in WRONG:
        report, _ = told(wrong, diagnosing=False)
        assert report.status == "wrong" and not report.named
    assert told(mix, diagnosing=False)[0].status == "right"


def test_two_mistakes_at_once_are_both_named():
    report, text = told(mix_with(scale=lambda d: 1.0, dim=-2))
    assert report.cause == "no-scale + over-queries"
    assert "not divided" in text and "over the queries" in text


def test_a_misconception_is_not_named_when_only_some_cases_fit_it():
    def sometimes(q, k, v):
        return mix_with(dim=-2)(q, k, v) if q.dtype == torch.float64 else mix_with(scale=float)(q, k, v)

    report, text = told(sometimes)
    assert report.status == "wrong" and not report.named
    assert "The rows of your weights do not sum to 1." in text


def test_the_same_mistake_written_otherwise_is_named_alike():
    def by_hand(q, k, v):
        e = torch.einsum("nld,nsd->nls", q, k).exp()
        weights = e / e.sum(2, keepdim=True)
        return torch.bmm(weights, v), weights

    assert told(by_hand)[0].cause == "no-scale"


def test_grids_show_yours_beside_expected_and_mark_wrong_numbers_with_a_sign():
    def one_wrong(q, k, v):
        out, weights = mix(q, k, v)
        bump = torch.zeros_like(out)
        bump[1, 2, 0] = 1
        return out + bump, weights

    report, text = told(one_wrong)
    assert text.count("✗") == 3  # the headline, the one number, the legend
    assert "yours" in text and "expected" in text and "output[1, …]" in text
    assert "index 1 along dim=0" in text
    assert max(map(len, as_text(report.card).splitlines())) <= 78


def test_numbers_have_the_digits_that_the_wrong_ones_need():
    x = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    half_wrong = x + 1e-7
    half_wrong[0] = torch.nan
    (yours, _), _ = grids(half_wrong, x, tolerance=1e-4)
    assert yours.cells[0] == ("NaN",) * 3
    assert {len(text) for text in yours.cells[1]} == {len("0.12")}


def no_return(q, k, v):
    mix(q, k, v)


# The card shows the learner's own line where it raised, so what the card should say must not stand on that line.
def nothing_turned(q, k, v):
    return q @ k


def numpy_on_the_way(q, k, v):
    return torch.from_numpy(q.numpy()), v


def maximum_with_its_place(q, k, v):
    return q - q.max(-1)


def unknown_name(q, k, v):
    return qq  # noqa: F821


@pytest.mark.parametrize(
    ("answer", "cause", "said"),
    [
        (no_return, "structure", "returned nothing"),
        (
            lambda q, k, v: mix(q, k, v)[0],
            "structure",
            "Expected 2 things: output (N, L, Dv), weights (N, L, S)",
        ),
        (
            lambda q, k, v: mix(q, k, v)[::-1],
            "structure",
            "wrong order. Expected output (N, L, Dv), then weights",
        ),
        (lambda q, k, v: (mix(q, k, v)[0].mT, mix(q, k, v)[1]), "shape", "changed places"),
        (lambda q, k, v: tuple(x.float() for x in mix(q, k, v)), "dtype", "float32, expected float64"),
        (lambda q, k, v: tuple(x.detach() for x in mix(q, k, v)), "detached", "cut off from their inputs"),
        (lambda q, k, v: tuple(x / 0 * 0 for x in mix(q, k, v)), "not finite", "NaN"),
        (lambda q, k, v: tuple(2 * x for x in mix(q, k, v)), "values", "2 times the expected one"),
        (lambda q, k, v: mix(q.float().double(), k, v), "values", "float32"),
        (lambda q, k, v: mix(q, k.detach(), v), "gradients", "no gradient reaches k"),
        (lambda q, k, v: ([1.0], 2), "type", "Expected"),
        (lambda q, k: q, "raised", "positional argument"),
        (nothing_turned, "raised", "shapes do not fit"),
        (numpy_on_the_way, "raised", "NumPy cannot carry gradients"),
        (maximum_with_its_place, "raised", "Take `.values`"),
        (unknown_name, "raised", "Python does not know this name"),
    ],
)
def test_what_no_misconception_explains_is_described_by_what_is_plain_to_see(answer, cause, said):
    report, text = told(answer)
    assert report.cause == cause or (cause in ("type", "structure") and report.cause in ("type", "structure"))
    assert said in text


def test_results_in_the_wrong_order_are_seen_even_when_their_shapes_agree():
    pair = Exercise(
        "pair",
        "9.2",
        lambda x: (x + 1, x * 3),
        ("more (N,)", "triple (N,)"),
        (Case("x", lambda d: {"x": d.normal(5)}),),
    )
    assert "wrong order" in told(lambda x: (x * 3, x + 1), pair)[1]


def test_an_input_that_was_written_into_is_noticed_though_the_result_is_right():
    def in_place(q, k, v):
        q /= math.sqrt(q.shape[-1])
        weights = torch.softmax(q @ k.mT, -1)
        return weights @ v, weights

    report, text = told(in_place)
    assert report.cause == "changed" and "changed its input q" in text


def test_in_place_work_on_own_temporaries_is_fine():
    def own(q, k, v):
        scores = q @ k.mT
        scores /= math.sqrt(q.shape[-1])
        weights = scores.exp_()
        weights = weights / weights.sum(-1, keepdim=True)
        output = torch.zeros(*q.shape[:2], v.shape[-1], dtype=q.dtype, device=q.device)
        output += weights @ v
        return output, weights

    assert told(own)[0].status == "right"


def test_a_tensor_subclass_is_not_a_plain_tensor():
    class Odd(torch.Tensor):
        pass

    report, text = told(lambda q, k, v: tuple(x.as_subclass(Odd) for x in mix(q, k, v)))
    assert report.cause == "subclass" and "Odd" in text


ALIAS = F.scaled_dot_product_attention


def through_a_module(q, k, v):
    nn.MultiheadAttention(4, 1).double()(q, q, q)
    return mix(q, k, v)


def through_the_fast_path(q, k, v):
    layer = nn.MultiheadAttention(4, 1, batch_first=True).double().eval()
    with torch.no_grad():
        layer(q, q, q, need_weights=False)
    return mix(q, k, v)


@pytest.mark.parametrize(
    "answer",
    [
        lambda q, k, v: (F.scaled_dot_product_attention(q, k, v), mix(q, k, v)[1]),
        lambda q, k, v: (ALIAS(q, k, v), mix(q, k, v)[1]),
        lambda q, k, v: (torch.ops.aten.scaled_dot_product_attention(q, k, v), mix(q, k, v)[1]),
        lambda q, k, v: (
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q[None], q[None], q[None])[0],
            mix(q, k, v)[1],
        ),
        through_a_module,
        through_the_fast_path,
    ],
)
def test_ready_made_attention_is_seen_whatever_it_is_called(answer):
    report, text = told(answer)
    assert report.cause == "forbidden" and "ready-made" in text


def test_mentioning_a_forbidden_name_without_calling_it_is_fine():
    def honest(q, k, v):
        # not F.scaled_dot_product_attention, says this comment
        _ = F.scaled_dot_product_attention
        return mix(q, k, v)

    assert told(honest)[0].status == "right"


def test_the_courses_own_reference_may_not_be_the_answer_but_earlier_ones_may_help():
    from mha_course import reference

    def borrowed(q, k, v):
        weights = reference.stable_softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)
        return weights @ v, weights

    assert told(borrowed)[0].cause == "forbidden"
    assert told(borrowed, dataclasses.replace(MIX, builds_on=("stable_softmax",)))[0].status == "right"


def cpu_mask(q, k, v):
    ones = torch.ones(q.shape[1], k.shape[1], dtype=q.dtype)
    weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]) * ones, -1)
    return weights @ v, weights


def asks_for_a_number(q, k, v):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    weights = torch.softmax(scores - scores.max().item(), -1)
    return weights @ v, weights


def back_on_the_cpu(q, k, v):
    output, weights = mix(q, k, v)
    return output.cpu(), weights


def allocates_on_the_cpu(q, k, v):
    output, weights = mix(q, k, v)
    return torch.zeros(output.shape, dtype=output.dtype).copy_(output), weights


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (cpu_mask, "on a GPU it would stop"),
        (asks_for_a_number, "make everything wait"),
        (back_on_the_cpu, "come back to the CPU"),
        (allocates_on_the_cpu, "come back to the CPU"),
    ],
)
def test_gpu_mistakes_are_caught_without_a_gpu(answer, said):
    report, text = told(answer)
    assert report.cause == "device" and said in text


def indexing_and_loops(q, k, v):
    rows = []
    for n in range(q.shape[0]):
        row = [torch.softmax(q[n, i] @ k[n].T / math.sqrt(q.shape[-1]), -1) for i in range(q.shape[1])]
        rows.append(torch.stack(row))
    weights = torch.stack(rows)
    output = q.new_zeros(*q.shape[:2], v.shape[-1])
    output[:, :, :] = weights @ v
    return output, weights[:, torch.arange(q.shape[1])]


def boolean_indexing(q, k, v):
    output, weights = mix(q, k, v)
    return output, weights.masked_fill(weights < 0, 0.0)


def a_zero_dimensional_constant(q, k, v):
    weights = torch.softmax(q @ k.mT / torch.tensor(float(q.shape[-1])).sqrt(), -1)
    return weights @ v, weights


@pytest.mark.parametrize("answer", [indexing_and_loops, boolean_indexing, a_zero_dimensional_constant])
def test_what_works_on_a_gpu_passes_the_pretended_one(answer):
    report, text = told(answer)
    assert report.status == "right", text


def to_the_cpu_and_back(q, k, v):
    scores = (q.cpu() @ k.cpu().mT).to(q.device) / math.sqrt(q.shape[-1])
    weights = torch.softmax(scores, -1)
    return weights @ v, weights


def test_a_round_trip_to_the_cpu_is_seen_on_the_pretended_gpu():
    report, text = told(to_the_cpu_and_back)
    assert report.cause == "device" and "make everything wait" in text and ".cpu()" in text


def test_what_fails_on_the_pretended_gpu_is_not_logged_to_stderr_as_well():
    """nbgrader gives a cell that writes there no points."""

    def falls_back(q, k, v):
        with contextlib.suppress(RuntimeError):
            q @ k
        return mix(q, k, v)

    logged = []
    handler = logging.Handler()
    handler.emit = logged.append
    log = logging.getLogger("torch._subclasses.fake_tensor")
    log.addHandler(handler)
    try:
        assert told(falls_back)[0].status == "right"
        assert not logged
        assert not log.disabled
    finally:
        log.removeHandler(handler)


class Shift(torch.nn.Module):
    """Adds 0, 1, 2, …; a plain attribute or a buffer holds them."""

    def __init__(self, buffer):
        super().__init__()
        if buffer:
            self.register_buffer("steps", torch.arange(3), persistent=False)
        else:
            self.steps = torch.arange(3)

    def forward(self, x):
        return x + self.steps


@pytest.mark.parametrize("buffer", [True, False])
def test_a_tensor_kept_as_a_plain_attribute_is_named_on_the_pretended_gpu(buffer):
    case = Case("any", lambda draw: {"x": draw.normal(2, 3)}, construct={})
    exercise = Exercise("Shift", "0.9", lambda: Shift(True), ("x",), (case,), is_class=True)
    report = examine(exercise, LocalAnswer(lambda: Shift(buffer)))
    assert report.status == ("right" if buffer else "wrong")
    assert buffer or "`self.steps = …`" in report.card.cause


def test_what_keeps_a_state_is_made_anew_for_every_call():
    def timed(fn, device):
        fn()
        return device.clock()

    case = Case("once", lambda draw: {"fn": Named("simulated_kernel"), "device": Named("simulated_gpu")})
    exercise = Exercise("timed", "0.8", timed, ("seconds",), (case, dataclasses.replace(case, name="again")))
    exercise = dataclasses.replace(exercise, device_safe=False)
    assert examine(exercise, LocalAnswer(lambda fn, device: timed(fn, device))).status == "right"


@pytest.mark.parametrize("given", [1.0, math.nan, -math.inf])
def test_only_infinity_equals_an_expected_infinity(given):
    case = Case("any", lambda draw: {"x": 1.0})
    exercise = Exercise("endless", "0.6", lambda x: math.inf, ("size",), (case,), device_safe=False)
    assert examine(exercise, LocalAnswer(lambda x: math.inf)).status == "right"
    assert examine(exercise, LocalAnswer(lambda x: given)).status == "wrong"


def test_an_input_moved_to_another_device_has_changed():
    def moved(batch):
        batch["x"] = batch["x"].to("meta")
        return 1

    case = Case("a dict", lambda draw: {"batch": {"x": draw.normal(2)}})
    exercise = Exercise("moved", "0.7", lambda batch: 1, ("count",), (case,), device_safe=False)
    report = examine(exercise, LocalAnswer(moved))
    assert report.cause == "changed"


def test_gradients_asked_for_inside_an_answer_do_not_end_the_process_on_the_pretended_gpu():
    def with_autograd(q, k, v):
        with torch.enable_grad():
            x = q.detach().clone().requires_grad_()
            torch.autograd.grad((x * x).sum(), x)
        return mix(q, k, v)

    assert told(with_autograd)[0].status == "right"


def test_an_endless_loop_ends_with_a_message_even_if_it_catches_everything():
    def endless(q, k, v):
        while True:
            try:
                q + 1
            except Exception:  # swallows whatever interrupts it, if it can
                pass

    report, text = told(endless, dataclasses.replace(MIX, seconds=0.3))
    assert report.cause == "too slow" and "stopped after 0.3 s" in text


def test_an_answer_that_is_not_written_is_not_called_wrong():
    def dots(q, k, v):
        """Docstring."""

    def stub(q, k, v):
        raise NotImplementedError()

    class Stub(nn.Module):
        def __init__(self, size):
            raise NotImplementedError()

    for answer in (dots, stub):
        report, text = told(answer)
        assert report.status == "not written" and text.startswith("○ mix: not written yet")
    assert told(Stub, SCALE_MODULE)[0].status == "not written"


def test_the_learners_own_lines_are_shown_where_their_code_raised_and_ours_are_not():
    def helper(q):
        return q.transpose(5, 6)

    def raising(q, k, v):
        return helper(q)

    report, text = told(raising)
    assert "return q.transpose(5, 6)" in text and "return helper(q)" in text
    assert "calls.py" not in text and "examine" not in text


def test_warnings_and_prints_become_notes_and_nothing_reaches_stderr(capfd):
    import sys

    def noisy(q, k, v):
        warnings.warn("be careful\nplease", stacklevel=1)
        print("shape", tuple(q.shape))
        print("to stderr", file=sys.stderr)
        return mix(q, k, v)

    report, text = told(noisy)
    assert report.status == "right"
    assert "your code warned: be careful please" in text and "your code printed: shape (2, 5, 4)" in text
    assert capfd.readouterr() == ("", "")


def test_the_same_seed_gives_the_same_failure_and_another_seed_other_numbers():
    first, second, other = (told(mix_with(dim=-2), seed=seed)[1] for seed in (0, 0, 1))
    assert first == second != other


def test_the_learners_random_numbers_are_not_disturbed():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    told(mix)
    assert torch.equal(torch.rand(2), expected)


def test_html_cards_escape_what_comes_from_the_learner():
    def evil(q, k, v):
        raise ValueError("<script>alert(1)</script>")

    report, _ = told(evil)
    page = as_html(report.card)
    assert "<script>" not in page and "&lt;script&gt;" in page


# ------------------------------------------------------------------------------ other kinds of answers


class ScaleModule(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(size))
        self.register_buffer("offset", torch.arange(size).float())

    def forward(self, x):
        return x * self.gain + self.offset


SCALE_MODULE = Exercise(
    "ScaleModule",
    "9.3",
    ScaleModule,
    ("y (N, E)",),
    (Case("x", lambda draw: {"x": draw.normal(3, 5)}, construct={"size": 5}),),
    is_class=True,
)


def test_a_class_is_checked_with_random_parameters_and_their_gradients():
    report, text = told(ScaleModule, SCALE_MODULE)
    assert report.status == "right", text

    class Forgets(ScaleModule):
        def forward(self, x):
            return x + self.offset  # right for the initial gain of 1

    assert told(Forgets, SCALE_MODULE)[0].status == "wrong"

    class Renamed(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(size))

        def forward(self, x):
            return x * self.scale

    report, text = told(Renamed, SCALE_MODULE)
    assert report.cause == "parameters" and "no gain" in text and "scale instead" in text


def test_a_plain_attribute_where_a_buffer_belongs_is_caught_without_a_gpu():
    class Plain(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(size))
            self.offset = torch.arange(size).float()

        def forward(self, x):
            return x * self.gain + self.offset

    class Reference(Plain):
        def forward(self, x):
            return x * self.gain + self.offset.to(x.device)

    exercise = dataclasses.replace(SCALE_MODULE, reference=Reference)
    report, text = told(Plain, exercise)
    assert report.cause == "device" and "buffer" in text


def test_objects_with_a_state_are_called_step_by_step():
    class Total:
        def __init__(self, start):
            self.total = start

        def add(self, x):
            self.total = self.total + x
            return self.total

    def make(draw):
        return [Step("add", {"x": draw.normal(3)}), Step("add", {"x": draw.normal(3)})]

    exercise = Exercise(
        "Total",
        "9.4",
        Total,
        ("after each step (3,)",),
        (Case("two", make, construct={"start": 1.0}),),
        is_class=True,
    )
    assert told(Total, exercise)[0].status == "right"

    class Forgetful(Total):
        def add(self, x):
            return self.total + x

    report, text = told(Forgetful, exercise)
    assert report.status == "wrong" and "after each step" in text and "call 2 of 2" in text


def test_a_callable_argument_is_passed_by_name():
    exercise = Exercise(
        "apply_twice",
        "9.5",
        lambda fn, x: fn(fn(x)),
        ("y (L, E)",),
        (Case("sums", lambda draw: {"fn": Named("cumulative_sum"), "x": draw.normal(4, 3)}),),
    )
    assert told(lambda fn, x: fn(fn(x)), exercise)[0].status == "right"
    assert told(lambda fn, x: fn(x), exercise)[0].status == "wrong"
    for name, function in KNOWN.items():
        if not inspect.signature(function).parameters:  # a piece of work to be timed
            continue
        x = torch.randn(2, 5, 3, dtype=torch.float64)
        assert function(x).shape in (x.shape, ()), name


def test_a_case_may_expect_a_refusal():
    def half(n):
        if n % 2:
            raise ValueError(f"{n} is odd")
        return n // 2

    exercise = Exercise(
        "half",
        "9.6",
        half,
        ("n / 2",),
        (Case("even", lambda d: {"n": 6}), Case("an odd number", lambda d: {"n": 7}, raises=(ValueError,))),
    )
    assert told(half, exercise)[0].status == "right"
    report, text = told(lambda n: n // 2, exercise)
    assert report.cause == "accepted" and "An odd number" in text


def test_a_statistical_case_compares_what_it_looks_at():
    def drop(x):
        return x * (torch.rand_like(x) > 0.25) / 0.75

    def look(value, inputs):
        return {"share of zeros": float((value == 0).double().mean()), "mean": float(value.mean())}

    exercise = Exercise(
        "drop",
        "9.7",
        drop,
        ("y (N,)",),
        (Case("many", lambda d: {"x": torch.ones(20000)}, tolerance=0.03, look_at=look, gradients=False),),
        misconceptions=(
            Misconception("no-rescale", "Not rescaled.", wrong=lambda x: x * (torch.rand_like(x) > 0.25)),
        ),
    )
    assert told(lambda x: F.dropout(x, 0.25), exercise)[0].status == "right"
    assert told(lambda x: F.dropout(x, 0.25) * 0.75, exercise)[0].cause == "no-rescale"
    assert told(lambda x: F.dropout(x, 0.5), exercise)[0].status == "wrong"


# ----------------------------------------------------------------------------------------- the audit


def test_the_audit_counts_what_is_caught_named_and_let_through():
    result = audit(MIX)
    assert result.clean and (result.caught, result.named, result.wrong) == (3, 3, 3)
    assert (result.passed, result.styles) == (2, 2)
    assert "mix" in table([result])


def test_the_audit_tells_when_a_misconception_is_right_or_two_are_one_or_a_style_is_wrong():
    twin = Misconception("no-scale-again", "…", wrong=mix_with(scale=lambda d: 1.0))
    harmless = Misconception("harmless", "…", wrong=mix)
    bad_style = Style("wrong", mix_with(dim=-2))
    spoiled = dataclasses.replace(
        MIX, misconceptions=(*MIX.misconceptions, twin, harmless), styles=(*MIX.styles, bad_style)
    )
    problems = " ".join(audit(spoiled).problems)
    assert "no-scale-again: named 'no-scale'" in problems
    assert "harmless: not caught" in problems
    assert "style wrong: refused (over-queries" in problems


# ------------------------------------------------------------------------------ a card tells the truth


def lines_of(answer, exercise=MIX, **options):
    return as_text(told(answer, exercise, **options)[0].card).splitlines()


NUMBER = Exercise("number", "9.2", lambda x: 0.30910001, ("a number",), (Case("x", lambda draw: {"x": 1}),))


@pytest.mark.parametrize(
    "yours", [0.3091, 0.309100011, 0.30910001 + 2e-9, 1e-30, -0.30910001, math.nan, math.inf]
)
def test_two_numbers_that_differ_are_shown_with_as_many_digits_as_it_takes(yours):
    _, text = told(lambda x: yours, NUMBER)
    shown = text.split("Yours: ")[1].split(" Tried")[0]
    mine, expected = shown.rstrip(".").split(". Expected: ")
    assert mine != expected


@pytest.mark.parametrize("size", [1.0, 1e-7, 123456.0, 3e9])
@pytest.mark.parametrize("gap", [1e-3, 2e-5, 3e-8])
def test_every_marked_number_in_a_grid_looks_other_than_the_expected_one(size, gap):
    expected = torch.full((2, 3), size, dtype=torch.float64)
    seen = expected.clone()
    seen[0, 1] += size * gap
    seen[1, 2] += 0.5 * size
    (yours, right), _ = grids(seen, expected, size * gap / 2)
    for mine, other, marked in zip(yours.cells, right.cells, yours.marked):
        for a, b, mark in zip(mine, other, marked):
            assert (a != b) == mark


def test_values_of_every_case_are_judged_before_any_gradient():
    def wrong_in_float32(q, k, v):
        out, weights = mix(q, k, v)
        return (out * 2, weights) if q.dtype == torch.float32 else (out.detach() + 0 * out, weights)

    _, text = told(wrong_in_float32)
    assert "wrong values in output" in text and "gradient" not in text


def test_gradients_are_judged_once_all_values_are_right():
    _, text = told(lambda q, k, v: tuple(x.detach() + 0 * x for x in mix(q, k, v)))
    assert "right numbers, but" in text


@pytest.mark.parametrize(
    "answer",
    [
        lambda q, k, v: tuple(x.mT for x in mix(q, k, v)),  # shape
        lambda q, k, v: tuple(x / 0 * 0 for x in mix(q, k, v)),  # NaN
        lambda q, k, v: tuple(x.float() for x in mix(q, k, v)),  # dtype
        lambda q, k, v: mix(q, k, v)[0],  # one thing alone
        lambda q, k, v: None,
    ],
)
def test_a_property_does_not_speak_of_what_cannot_be_compared(answer):
    _, text = told(answer)
    assert "do not sum to 1" not in text


def test_a_property_can_be_about_something_else_than_values():
    rule = Property("short", lambda inputs, value: "There is one row too few.", about=("shape",))
    exercise = dataclasses.replace(MIX, properties=(rule,))
    assert "one row too few" in told(lambda q, k, v: tuple(x[:, 1:] for x in mix(q, k, v)), exercise)[1]
    assert "one row too few" not in told(lambda q, k, v: tuple(x + 1 for x in mix(q, k, v)), exercise)[1]


def test_the_cause_stands_right_under_the_headline():
    lines = lines_of(mix_with(dim=-2))
    assert lines[1].strip() == "→ The softmax ran over the queries."
    page = as_html(told(mix_with(dim=-2))[0].card)
    assert page.index("The softmax ran over") < page.index("<table") < page.index("Open hint 1")


@pytest.mark.parametrize(
    ("answer", "step"),
    [
        (lambda q, k, v: tuple(x + x * x for x in mix(q, k, v)), "Work out one row by hand"),
        (lambda q, k, v: tuple(x[:, :2] for x in mix(q, k, v)), "Print `.shape` after each of your lines"),
        (lambda q, k, v: q @ v, "Print what goes into that line"),
        (
            lambda q, k, v: tuple(x + (q.dtype == torch.float32) * x * x for x in mix(q, k, v)),
            "It is right for “L and S differ”. What is different about these inputs?",
        ),
    ],
)
def test_a_card_without_a_cause_still_says_what_to_do_next(answer, step):
    exercise = dataclasses.replace(MIX, properties=())
    _, text = told(answer, exercise)
    assert step in text and "hint 1 of exercise 9.1" in text and "lead on" not in text


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda w: w + 1e-9, "always to the same side. Is a small number added somewhere?"),
        (lambda w: w.float().double() * 1.0, "Is a part of it computed in float32?"),
        (lambda w: w + torch.where(w == 0, 2e-9, 0.0), "Is something closed that is only made small?"),
    ],
)
def test_what_is_very_nearly_right_is_told_where_the_rest_comes_from(make, said):
    def weights(x):
        return x.softmax(-1).masked_fill(torch.eye(5, 7, dtype=torch.bool), 0.0)

    def nearly(x):
        return make(weights(x))

    x = Case("x", lambda draw: {"x": draw.normal(5, 7)})
    exercise = Exercise("weights", "9.3", weights, ("weights (L, S)",), (x,))
    if "added" in said:
        exercise = dataclasses.replace(exercise, reference=lambda x: x.softmax(-1))
        nearly = lambda x: make(x.softmax(-1))  # noqa: E731
    text = told(nearly, exercise)[1]
    assert said in text and text.count("Very nearly right") == 1 and "│" not in text


@pytest.mark.parametrize(
    ("reference", "answer", "said", "unsaid"),
    [
        (
            lambda lengths: torch.arange(7) < lengths[:, None],
            lambda lengths: (torch.arange(7) < lengths[:, None]).float(),
            "A mask is made of True and False",
            "inputs' dtype",
        ),
        (
            lambda lengths: lengths.double(),
            lambda lengths: lengths.float(),
            "expected float64",
            "inputs' dtype",
        ),
        (
            lambda lengths: lengths + 1,
            lambda lengths: lengths + 1.0,
            "The result should have the inputs' dtype",
            "mask",
        ),
    ],
)
def test_where_a_dtype_comes_from_is_said_as_it_is(reference, answer, said, unsaid):
    lengths = Case("lengths", lambda draw: {"lengths": draw.integers(1, 7, 3)})
    _, text = told(
        answer, Exercise("count", "9.4", reference, ("counts (N, S)",), (lengths,), differentiable=False)
    )
    assert said in text and unsaid not in text


def test_a_place_is_called_as_torch_calls_it():
    def one_head(q, k, v):
        out, weights = mix(q, k, v)
        bump = torch.zeros_like(weights)
        bump[:, 1:3] = 1
        return out, weights + bump

    _, text = told(one_head)
    assert "index 1, 2 along dim=1 (of 5)" in text and "dimension" not in text


def test_an_assert_is_told_that_it_does_refuse():
    def halves(n):
        if n % 2:
            raise ValueError(f"{n} is odd")
        return n // 2

    def asserted(n):
        assert n % 2 == 0, "odd"
        return n // 2

    cases = (
        Case("even", lambda draw: {"n": 4}),
        Case("odd numbers", lambda draw: {"n": 3}, raises=(ValueError,)),
    )
    _, text = told(asserted, Exercise("halves", "9.5", halves, ("half",), cases, differentiable=False))
    assert "you do refuse it" in text and "refuse it yourself" not in text


def test_stacked_grids_say_what_is_marked_too():
    def wide(x):
        return x * 1000500.0

    exercise = Exercise(
        "wide", "9.6", lambda x: x * 1e6, ("y",), (Case("x", lambda draw: {"x": draw.normal(9, 9)}),)
    )
    lines = lines_of(wide, exercise)
    assert sum("yours" in line and "expected" in line for line in lines) == 0  # one below the other
    assert any("✗ marks the numbers that differ" in line for line in lines)


def test_a_card_in_a_terminal_shows_no_markup():
    says = "Each *column* sums to 1, each *row* should: `x * y * z` stays, **never** mind."
    mistake = Misconception("starred", says, wrong=mix_with(dim=-2))
    _, text = told(mix_with(dim=-2), dataclasses.replace(MIX, misconceptions=(mistake,)))
    assert "Each column sums to 1, each row should: `x * y * z` stays" in text


def test_a_loop_without_end_is_shown_with_the_line_it_was_in():
    def never(q, k, v):
        while True:
            pass

    _, text = told(never, dataclasses.replace(MIX, seconds=0.3))
    assert "stopped after 0.3 s" in text and "never, line" in text


def test_a_class_with_a_named_argument_is_seen_on_the_pretended_gpu():
    class Apply(nn.Module):
        def forward(self, x, fn):
            return fn(x)

    class OnTheCpu(nn.Module):
        def forward(self, x, fn):
            return fn(x) + torch.zeros(5)

    case = Case("x", lambda draw: {"x": draw.normal(3, 5), "fn": Named("squared")}, construct={})
    exercise = Exercise("Apply", "9.7", Apply, ("y (N, E)",), (case,), is_class=True)
    assert told(Apply, exercise)[0].status == "right"
    report, text = told(OnTheCpu, exercise)
    assert report.status == "wrong" and "on a GPU it would stop" in text


def test_an_index_that_lies_on_the_gpu_waits_for_nothing():
    def slope(x, h):
        return x * torch.arange(4, dtype=x.dtype, device=x.device)[h]

    case = Case("one head", lambda draw: {"x": draw.normal(3, 5), "h": torch.tensor(2)})
    exercise = Exercise("slope", "9.8", slope, ("y (N, E)",), (case,))
    assert told(slope, exercise)[0].status == "right"
    assert "make everything wait" in told(lambda x, h: x * float(h), exercise)[1]
    assert "make everything wait" in told(lambda x, h: x * torch.arange(4, dtype=x.dtype)[h], exercise)[1]


# ------------------------------------------------------------------------------ declarations with mistakes


@pytest.mark.parametrize(
    ("declare", "said"),
    [
        (lambda: Misconception("no-code", "Nothing is there."), "misconception 'no-code': it has no code"),
        (lambda: Misconception("No Case", "Says.", wrong=mix), "kebab-case"),
        (lambda: Misconception("silent", " ", wrong=mix), "it says nothing"),
        (lambda: Misconception("far", "Says.", wrong=mix, hint=9), "misconception 'far': there is no hint 9"),
        (lambda: Misconception("odd", "Says.", wrong="mix"), "its code cannot be called"),
        (lambda: Property("rows", rows_sum_to_one, hint=0), "property 'rows': there is no hint 0"),
        (lambda: Property("rows", "sum"), "`fails` is no function"),
        (lambda: Property("rows", rows_sum_to_one, about=()), "it would never speak"),
        (
            lambda: dataclasses.replace(MIX, forbidden=("ready-made atention",)),
            "exercise 'mix': nothing is known as",
        ),
        (lambda: dataclasses.replace(MIX, misconceptions=MIX.misconceptions[:1] * 2), "called 'no-scale'"),
        (lambda: dataclasses.replace(MIX, cases=MIX.cases[:1] * 2), "two cases are called 'L and S differ'"),
        (lambda: dataclasses.replace(MIX, styles=MIX.styles * 2), "two styles"),
        (lambda: dataclasses.replace(MIX, assemble=None), "`assemble` has no part scale"),
        (
            lambda: dataclasses.replace(
                MIX, misconceptions=(Misconception("typo", "Says.", part={"scael": float}),)
            ),
            "'typo': `assemble` has no part scael",
        ),
        (lambda: dataclasses.replace(MIX, number="nine"), "no number like 1.3"),
        (lambda: dataclasses.replace(MIX, returns=()), "what is returned"),
        (lambda: dataclasses.replace(MIX, cases=()), "it has no case"),
        (lambda: dataclasses.replace(MIX, builds_on=("mix",)), "builds on itself"),
        (lambda: Question("why", right="e", why={"a": "No."}), "question 'why': there is no option 'e'"),
        (
            lambda: Lesson("09_x", "X", (MIX, MIX)),
            "lesson '09_x': two exercises or questions are called 'mix'",
        ),
        (
            lambda: Lesson("09_x", "X", (MIX, dataclasses.replace(MIX, name="other"))),
            "two exercises are called '9.1'",
        ),
    ],
)
def test_a_declaration_with_a_mistake_fails_by_name_where_it_is_written(declare, said):
    with pytest.raises(DeclarationError) as caught:
        declare()
    assert said in str(caught.value)


def test_every_field_that_is_documented_exists():
    from mha_course.checking import calls, compare, exercise, report

    seen = 0
    for module in (calls, compare, exercise, report):
        for name, kind in vars(module).items():
            if (
                dataclasses.is_dataclass(kind)
                and isinstance(kind, type)
                and kind.__module__ == module.__name__
            ):
                told_ = (kind.__doc__ or "").partition("Args:")[2].partition("\n\n")[0]
                documented = {
                    n.strip()
                    for line in re.findall(r"^ {8}(\w[\w, ]*):", told_, re.M)
                    for n in line.split(",")
                }
                assert documented <= {f.name for f in dataclasses.fields(kind)}, name
                seen += bool(documented)
    assert seen > 10


def everything(q, k, v):
    return sum(x.sum() for x in mix(q, k, v))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (everything, "Everything was reduced to a single number: does a `sum`"),
        (lambda q, k, v: tuple(x.sum() for x in mix(q, k, v)), "Everything was reduced to a single number"),
        (
            lambda q, k, v: mix(q, k, v) if q > 0 else None,
            "`if`, `and`, `or` and `not` ask for one truth value",
        ),
        (lambda q, k, v: q / torch.sqrt(q.shape[-1]), "A size like `x.shape[-1]` is a plain number"),
        (lambda q, k, v: q.view(2, 5, 4 / 2), "`/` makes a float of two ints"),
        (lambda q, k, v: mix(q, None, v), "Something here is None"),
    ],
)
def test_the_commonest_slips_are_told_what_they_are(answer, said):
    assert said in told(answer)[1]


def test_a_warning_is_passed_on_without_where_torch_triggered_it():
    def warns(q, k, v):
        warnings.warn("careful. (Triggered internally at somewhere.cpp:3.)", stacklevel=1)
        return mix(q, k, v)

    assert told(warns)[1].endswith("note: your code warned: careful.")


@pytest.mark.parametrize("colour", report.COLOURS.values())
@pytest.mark.parametrize("page", ["#ffffff", "#111111", "#212121"])
def test_a_sign_can_be_seen_in_every_theme(colour, page):
    def light(colour):
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = (x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return sum(weight * x for weight, x in zip((0.2126, 0.7152, 0.0722), linear))

    dark, bright = sorted((light(colour), light(page)))
    assert (bright + 0.05) / (dark + 0.05) >= 3
