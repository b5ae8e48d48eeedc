"""Lesson 07: its functions against torch, its examples by hand, and what it claims about time, bytes and sixteen bits."""

import json
import math
import statistics
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from mha_course import exercises, measuring, plots
from mha_course.checking import LocalAnswer, as_text, examine
from mha_course.checking.diagnose import implementations
from mha_course.devices import RealDevice, SimulatedDevice
from mha_course.grading import wire
from mha_course.reference import (
    CausalMask,
    attend,
    attend_in_parallel,
    attention_bytes,
    attention_flops,
    benchmark,
    causal_mask,
    fused_attention,
    future_leak,
    masked_softmax,
    mixed_precision_gap,
    pick_device,
    roofline,
    split_heads,
    to_device,
)

FOLDER = Path(__file__).parents[1] / "solutions" / "07_gpu"
LESSON = next(lesson for lesson in exercises.lessons() if lesson.folder == "07_gpu")
BFLOAT16, FLOAT16 = torch.bfloat16, torch.float16


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw(N=2, H=3, L=5, S=7, D=4):
    return normal(N, H, L, D), normal(N, H, S, D, seed=1), normal(N, H, S, D, seed=2)


# --------------------------------------------------------------------------------------- devices


def test_cuda_comes_before_mps_and_the_cpu_is_always_there():
    assert [
        str(pick_device(*there)) for there in ((True, True), (True, False), (False, True), (False, False))
    ] == [
        "cuda",
        "cuda",
        "mps",
        "cpu",
    ]
    assert torch.ones(1, device=pick_device()).sum() == 1


def test_a_batch_moves_whole_and_the_one_that_was_given_stays():
    batch = {"x": torch.ones(2), "more": [torch.arange(3), (torch.ones(1), "name", None)], "count": 3}
    moved = to_device(batch, "meta")
    assert moved["x"].device.type == moved["more"][0].device.type == moved["more"][1][0].device.type == "meta"
    assert moved["more"][0].dtype == torch.int64
    assert moved["more"][1][1:] == ("name", None) and moved["count"] == 3
    assert batch["x"].device.type == batch["more"][1][0].device.type == "cpu"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, FLOAT16, BFLOAT16])
def test_the_mask_module_closes_the_future_in_every_dtype_and_keeps_nothing_in_its_state(dtype):
    module = CausalMask(8)
    scores = normal(2, 3, 5, 5).to(dtype)
    masked = module(scores)
    assert masked.dtype == dtype and not module.state_dict()
    assert masked.isinf().equal(~causal_mask(5, 5).expand(2, 3, 5, 5))
    assert masked[masked.isfinite()].equal(scores[masked.isfinite()])


def test_a_buffer_moves_with_its_module_and_a_plain_attribute_does_not():
    module = CausalMask(4)
    module.plain = torch.ones(2)
    module.to("meta")
    assert module.mask.device.type == "meta" and module.plain.device.type == "cpu"


# -------------------------------------------------------------------------------------- measuring


@pytest.mark.parametrize("settings", [{}, {"seconds": 0.06}, {"launch": 0.02}, {"slow": 1}])
@pytest.mark.parametrize("repeats", [3, 4, 5, 6, 7, 20])
def test_the_benchmark_measures_the_truth_on_a_simulated_gpu(settings, repeats):
    gpu = SimulatedDevice(**settings)
    assert benchmark(gpu.kernel, gpu, repeats) == pytest.approx(gpu.seconds + gpu.launch)


def test_a_simulated_gpu_does_not_wait_and_loses_no_work():
    gpu = SimulatedDevice(seconds=0.006, launch=0.001, slow=0, disturbed=(), lucky=())
    for _ in range(3):
        gpu.kernel()
    assert gpu.clock() == pytest.approx(0.003)
    gpu.synchronize()
    assert gpu.clock() == pytest.approx(0.019)
    assert len(gpu.log) == 3 and all(a <= b <= c < d for a, b, c, d in gpu.log)
    gpu.synchronize()
    assert gpu.clock() == pytest.approx(0.019), "nothing is left to wait for"


def timed(calls, warm, wait, summary):
    gpu, times = SimulatedDevice(), []
    for _ in range(warm):
        gpu.kernel()
    gpu.synchronize()
    for _ in range(calls):
        started = gpu.clock()
        gpu.kernel()
        if wait:
            gpu.synchronize()
        times.append(gpu.clock() - started)
    return 1000 * summary(times)


def test_the_usual_ways_to_time_are_as_wrong_as_the_lesson_says():
    assert timed(20, 3, False, statistics.median) == pytest.approx(0.3)
    assert timed(1, 0, True, statistics.median) == pytest.approx(120.3)
    assert timed(3, 3, True, statistics.mean) == pytest.approx(5.5, abs=0.01)
    assert timed(20, 3, True, statistics.mean) > 16
    assert timed(20, 3, True, statistics.median) == pytest.approx(6.3)


def test_of_any_three_calls_one_is_disturbed_or_lucky_and_the_median_never_minds():
    gpu = SimulatedDevice()
    usual = [10.0 if i % 11 in gpu.disturbed else 0.6 if i % 11 in gpu.lucky else 1.0 for i in range(40)]
    for start in range(22):
        assert statistics.mean(usual[start : start + 3]) != 1.0
        for n in range(3, 18):
            assert statistics.median(usual[start : start + n]) == 1.0


def test_a_real_device_has_the_same_two_methods():
    here = RealDevice("cpu")
    assert 0 < benchmark(lambda: torch.ones(10).sum(), here, repeats=3) < 1
    assert {name for name in vars(RealDevice) if not name.startswith("_")} <= set(dir(SimulatedDevice()))


# ---------------------------------------------------------------------------- work, bytes, the roof


@pytest.mark.parametrize("shape", [(2, 3, 7, 5), (1, 1, 4, 2), (3, 2, 16, 8)])
def test_flops_are_what_torch_counts(shape):
    q, k, v = torch.randn(3, *shape)
    with FlopCounterMode(display=False) as counter:
        attend(q, k, v)
    assert counter.get_total_flops() == attention_flops(*shape)


def test_bytes_are_those_of_the_tensors_that_travel():
    for dtype in (torch.float32, BFLOAT16, torch.float64):
        small, large = torch.empty(2, 3, 7, 5, dtype=dtype), torch.empty(2, 3, 7, 7, dtype=dtype)
        assert attention_bytes(2, 3, 7, 5, dtype, fused=True) == 4 * small.nbytes
        assert attention_bytes(2, 3, 7, 5, dtype, fused=False) == 4 * small.nbytes + 4 * large.nbytes


def test_the_examples_by_hand():
    assert attention_flops(1, 1, 4, 2) == 128
    assert attention_bytes(1, 1, 4, 2, torch.float32, fused=True) == 128
    assert attention_bytes(1, 1, 4, 2, torch.float32, fused=False) == 384
    assert roofline(128, 384, 100, 20) == (pytest.approx(19.2), "memory")
    assert roofline(128, 128, 100, 20) == (pytest.approx(6.4), "memory")
    assert 16 * 16384**2 * BFLOAT16.itemsize == 8 * 2**30
    assert pytest.approx(206, abs=0.5) == 989 / 4.8


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
@pytest.mark.parametrize("D", [16, 64, 128])
def test_intensity_grows_with_the_length_when_fused_and_is_bounded_when_not(D, dtype):
    b = dtype.itemsize
    for L in (2, 64, 4096, 2**20):
        flops = attention_flops(2, 4, L, D)
        assert flops / attention_bytes(2, 4, L, D, dtype, fused=True) == pytest.approx(L / b)
        bounded = flops / attention_bytes(2, 4, L, D, dtype, fused=False)
        assert bounded == pytest.approx(L * D / (L + D) / b) and bounded < D / b


def test_the_crossover_is_at_bytes_per_number_times_the_ridge():
    peak_flops, peak_bandwidth = 2e14, 1e12  # ridge 200
    for L, side in ((399, "memory"), (401, "compute")):
        work = attention_flops(1, 1, L, 64), attention_bytes(1, 1, L, 64, BFLOAT16, fused=True)
        assert roofline(*work, peak_flops, peak_bandwidth)[1] == side
    for L in (64, 2**14, 2**20):
        work = attention_flops(1, 1, L, 64), attention_bytes(1, 1, L, 64, BFLOAT16, fused=False)
        assert roofline(*work, peak_flops, peak_bandwidth)[1] == "memory"


# --------------------------------------------------------------------------- the fused kernel


@pytest.mark.parametrize("is_causal", [False, True])
def test_fused_attention_agrees_with_attention_by_hand_in_values_and_gradients(is_causal):
    inputs = [x.requires_grad_() for x in draw()]
    q, k, v = inputs
    mask = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(3)) < 0.7
    mask[1, :, 3] = False  # nothing to see, causal or not
    open_ = mask & causal_mask(5, 7) if is_causal else mask
    by_hand = masked_softmax(q @ k.mT / 2, open_) @ v
    fused = fused_attention(q, k, v, mask, is_causal=is_causal)
    torch.testing.assert_close(fused, by_hand, rtol=0, atol=1e-12)
    assert not fused[1, :, 3].any()
    cotangent = normal(*fused.shape, seed=4)
    for mine, theirs in zip(
        torch.autograd.grad(fused, inputs, cotangent), torch.autograd.grad(by_hand, inputs, cotangent)
    ):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("L_and_S", [(5, 5), (3, 6), (6, 3)])
def test_causal_without_a_mask_is_lesson_02s_mask_from_the_upper_left(L_and_S):
    L, S = L_and_S
    q, k, v = draw(L=L, S=S)
    by_mask = fused_attention(q, k, v, causal_mask(L, S))
    torch.testing.assert_close(fused_attention(q, k, v, is_causal=True), by_mask, rtol=0, atol=1e-12)


def test_all_of_it_is_lesson_03s_attention():
    x, y = normal(2, 5, 12), normal(2, 7, 12, seed=1)
    theirs, _ = attend_in_parallel(x, y, y, 3)
    mine = fused_attention(split_heads(x, 3), split_heads(y, 3), split_heads(y, 3))
    torch.testing.assert_close(mine.transpose(1, 2).flatten(2), theirs, rtol=0, atol=1e-12)


def test_the_fused_example_by_hand():
    q = k = torch.zeros(1, 1, 2, 1)
    v = torch.tensor([[[[4.0], [8.0]]]])
    second = torch.tensor([False, True]).view(1, 1, 1, 2)
    assert fused_attention(q, k, v).flatten().tolist() == [6, 6]
    assert fused_attention(q, k, v, is_causal=True).flatten().tolist() == [4, 6]
    assert fused_attention(q, k, v, second, is_causal=True).flatten().tolist() == [0, 8]


def test_dropout_is_for_training_only():
    q, k, v = draw()
    still = fused_attention(q, k, v)
    assert fused_attention(q, k, v, dropout_p=0.9).equal(still)
    assert not fused_attention(q, k, v, dropout_p=0.9, training=True).allclose(still)


def test_what_torch_leaves_to_its_caller():
    q, k, v = draw(S=5)
    assert not F.scaled_dot_product_attention(q, k, v, dropout_p=0.5).allclose(fused_attention(q, k, v))
    assert (
        "An error is thrown if both attn_mask and is_causal are set" in F.scaled_dot_product_attention.__doc__
    )
    mask = torch.ones(5, 5, dtype=torch.bool)
    with pytest.raises(
        RuntimeError, match="is_causal"
    ):  # with dropout; without, a CPU's fast kernel takes both
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.5, is_causal=True)


def test_a_causal_mask_that_depends_on_training_leaks_the_future_in_use():
    x = normal(6, 8)
    for training, leaks in ((True, False), (False, True)):
        careless = future_leak(
            lambda x, t=training: F.scaled_dot_product_attention(*[x[None, None]] * 3, is_causal=t)[0, 0], x
        )
        assert bool((careless.triu(1) > 1e-9).any()) == leaks
        right = future_leak(
            lambda x, t=training: fused_attention(*[x[None, None]] * 3, training=t, is_causal=True)[0, 0], x
        )
        assert not right.triu(1).any()


# ---------------------------------------------------------------------------------- sixteen bits


def self_attention(x):
    return attend(x, x, x)[0]


def over_the_queries(x):
    return torch.softmax(x @ x.mT / math.sqrt(x.shape[-1]), dim=-2) @ x


def test_the_gaps_example_by_hand():
    given = {
        torch.float64: torch.tensor([2.0, 4.0], dtype=torch.float64),
        BFLOAT16: torch.tensor([2, 4.03125]),
    }
    gap = mixed_precision_gap(lambda x: given[x.dtype].to(x.dtype), torch.zeros(1), BFLOAT16)
    assert gap == 1.0 and torch.finfo(BFLOAT16).eps == 0.0078125


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16, FLOAT16])
@pytest.mark.parametrize("seed", range(5))
def test_a_right_result_is_a_few_steps_off_in_every_dtype(dtype, seed):
    assert 0 < mixed_precision_gap(self_attention, normal(4, 32, 64, scale=0.5, seed=seed), dtype) < 8


@pytest.mark.parametrize("seed", range(5))
def test_a_tolerance_that_lets_bfloat16_pass_lets_a_bug_pass_and_steps_tell_them_apart(seed):
    x = normal(4, 32, 64, scale=0.5, seed=seed)
    truth = self_attention(x)
    right, wrong = (fn(x.to(BFLOAT16)).double() for fn in (self_attention, over_the_queries))
    assert not right.allclose(truth) and right.allclose(truth, atol=0.1) and wrong.allclose(truth, atol=0.1)
    steps = [(y - truth).abs().max() / truth.abs().max() / 0.0078125 for y in (right, wrong)]
    assert steps[0] < 2 and steps[1] > 6


def test_float16_ends_at_65504_and_refuses_a_billion():
    assert torch.finfo(FLOAT16).max == 65504 and torch.finfo(BFLOAT16).max > 1e38
    closed = torch.tensor([True, False])
    with pytest.raises(RuntimeError, match="overflow"):
        torch.zeros(2, dtype=FLOAT16).masked_fill(closed, -1e9)
    assert torch.zeros(2, dtype=FLOAT16).masked_fill(closed, -math.inf).tolist() == [-math.inf, 0]
    assert torch.zeros(2, dtype=BFLOAT16).masked_fill(closed, -1e9).isfinite().all()


def test_scaling_last_overflows_in_float16_where_scaling_first_does_not():
    x = normal(2, 8, 64, scale=50)

    def last(x):
        return x @ x.mT / 8

    def first(x):
        return (x / 8) @ x.mT

    assert mixed_precision_gap(last, x, FLOAT16) == math.inf
    assert mixed_precision_gap(first, x, FLOAT16) < 4
    assert mixed_precision_gap(last, x, BFLOAT16) < 4


def test_autocast_on_a_cpu_leaves_the_softmax_in_bfloat16():
    with torch.autocast("cpu", dtype=BFLOAT16):
        tokens = torch.randn(2, 5, 8)
        scores = tokens @ tokens.mT
        assert scores.dtype == torch.softmax(scores, -1).dtype == BFLOAT16


# ------------------------------------------------------------------------- exercises and pictures


CLASSIC = {
    "to_device": {"to-thrown-away"},
    "CausalMask": {"plain-attribute", "made-on-the-cpu", "asks-the-device", "round-trip", "minus-1e9"},
    "benchmark": {"no-synchronise", "first-call-only", "no-warm-up", "mean-of-three"},
    "fused_attention": {
        "dropout-in-eval",
        "causal-in-training-only",
        "mask-made-on-the-cpu",
        "asks-the-device",
    },
    "mixed_precision_gap": {"float32s-tolerance", "overflow-overlooked"},
}


@pytest.mark.parametrize(("name", "mistakes"), CLASSIC.items())
def test_the_classic_mistakes_are_named(name, mistakes):
    assert mistakes <= {m.id for m in exercises.find(name).misconceptions}


def test_what_only_a_gpu_would_show_says_what_to_do():
    exercise = exercises.find("CausalMask")
    for misconception in exercise.misconceptions:
        if misconception.id in ("plain-attribute", "made-on-the-cpu", "asks-the-device", "round-trip"):
            report = examine(exercise, LocalAnswer(misconception.wrong), reference_allowed=True)
            said = as_text(report.card)
            assert "pretended GPU" in said and "Open hint" in said and report.cause == misconception.id


def test_each_check_of_the_lesson_agrees_with_the_reference_when_asked_twice():
    for exercise in LESSON.exercises:
        for _ in range(2):
            report = examine(exercise, LocalAnswer(exercise.reference), reference_allowed=True)
            assert report.status == "right", as_text(report.card)


class BehindAWire:
    """An answer in another process, as a class's submissions are: nothing but packed data reaches it and comes back."""

    def __init__(self, target):
        self.answer = LocalAnswer(target)

    def observe(self, call):
        body, blobs = wire.pack_call(call)
        call = wire.call_from(json.loads(json.dumps(body)), memoryview(b"".join(blobs)))
        body, blobs = wire.pack_observation(self.answer.observe(call))
        return wire.observation_from(json.loads(json.dumps(body)), memoryview(b"".join(blobs)))


@pytest.mark.parametrize("name", ["to_device", "CausalMask", "benchmark"])
def test_the_mistakes_are_named_alike_in_another_process(name):
    exercise = exercises.find(name)
    assert examine(exercise, BehindAWire(exercise.reference), reference_allowed=True).status == "right"
    for misconception in exercise.misconceptions:
        wrong = implementations(exercise, misconception)[0]
        assert examine(exercise, BehindAWire(wrong), reference_allowed=True).cause == misconception.id


def test_the_queue_is_drawn_with_both_readings_of_the_clock():
    gpu = SimulatedDevice(seconds=0.006, launch=0.001, slow=0, disturbed=(), lucky=())
    gpu.kernel()
    ax = plots.gpu.timeline(gpu.log, {"at once": 0.001, "at the end": 0.007}).axes[0]
    written = [text.get_text() for text in ax.texts]
    assert {"at once", "at the end", "work 0"} <= set(written)


def test_the_two_terms_are_drawn_with_the_crossover_where_there_is_one():
    L = [2, 4, 8, 16]
    crossing = {"computing": [1, 4, 16, 64], "moving": [5, 10, 20, 40]}
    apart = {"computing": [1, 4, 16, 64], "moving": [9, 19, 90, 900]}
    left, right = plots.gpu.two_terms(L, {"one": crossing, "other": apart}).axes
    assert [text.get_text() for text in left.texts] == ["from L = 16 on:\ncomputing"]
    assert [text.get_text() for text in right.texts] == ["moving, at every length"]


def test_the_executed_lesson_says_about_recordings_what_is_there():
    cells = json.loads((FOLDER / "07_gpu.ipynb").read_text(encoding="utf-8"))["cells"]
    printed = "".join("".join(output.get("text", ())) for cell in cells for output in cell.get("outputs", ()))
    assert ("No GPU has been recorded yet" in printed) == (measuring.latest_record("cuda") is None)
