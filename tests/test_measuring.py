"""What `mha-course gpu` does: right numbers, honest gaps, nothing lost. No test asserts how long anything takes."""

import json
import time
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from mha_course import cli, exercises, measuring, plots, reference
from mha_course.checking import guards
from mha_course.measuring import command, machine, on_device, runs, ways
from mha_course.measuring import record as records
from mha_course.measuring.ways import WAYS, Setting

CPU = torch.device("cpu")
HERE = torch.device(
    "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
)
needs_gpu = pytest.mark.skipif(HERE.type == "cpu", reason="no CUDA or MPS device here")


def setting(L=24, backward=False, precision="float32", device=CPU):
    return Setting(device, precision, backward, N=2, H=3, L=L, D=4, block=10)


def quick(own=None, sizes=(8, 16), names=("materialised", "fused"), **options):
    """A record in about a second."""
    options = {"directions": ("forward",), "shape": (1, 2, 4), "budget_s": 20.0} | options
    return measuring.measure("cpu", sizes, ways=names, own=own, **options)


@pytest.fixture(autouse=True, scope="module")
def small():
    """Small ceilings and few samples: what is looked at here does not depend on them."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(runs, "COPIED", dict.fromkeys(runs.COPIED, 2**16))
        monkeypatch.setattr(runs, "MULTIPLIED", dict.fromkeys(runs.MULTIPLIED, 32))
        monkeypatch.setattr(runs, "SAMPLE", dict.fromkeys(runs.SAMPLE, 0.0))
        monkeypatch.setattr(runs, "CELL", dict.fromkeys(runs.CELL, 0.0))
        yield


@pytest.fixture(scope="module")
def tiny():
    """One small record, for whoever only reads it."""
    return measuring.measure("cpu", (64, 256), shape=(1, 2, 8), block=64, budget_s=60)


# ------------------------------------------------------------------------------------- the ways


@pytest.mark.parametrize("backward", [False, True])
def test_every_way_that_runs_here_computes_the_same_attention(backward):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = ways.prepare(WAYS["materialised"], setting(backward=backward))()
        for name, way in WAYS.items():
            if way.module or way.compiled or way.backend in ("EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
                continue
            seen = ways.prepare(way, setting(backward=backward))()
            torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5, msg=name)


def test_both_modules_compute_the_same_with_and_without_weights():
    outputs = []
    for name, way in WAYS.items():
        if way.module:
            with torch.random.fork_rng():
                torch.manual_seed(3)  # the same initial parameters
                outputs.append(ways.prepare(way, setting())())
    assert len(outputs) == 4
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "backward"), [("materialised", False), ("materialised", True), ("module (weights)", False)]
)
def test_the_operations_are_those_that_torch_counts(name, backward):
    run = ways.prepare(WAYS[name], setting(backward=backward))
    with FlopCounterMode(display=False) as counter:
        run()
    assert ways.flops(WAYS[name], setting(backward=backward)) == counter.get_total_flops()


def test_the_least_traffic_is_what_the_fused_kernel_moves(tiny):
    L, one = 256, 1 * 2 * 256 * 8 * 4
    (point,) = [p for p in measuring.points(tiny, "fused", direction="forward") if p["L"] == L]
    lse = 1 * 2 * 256 * 4  # the fused kernel also writes a number for each row
    assert point["bytes"] == 4 * one + lse
    assert ways.least_bytes(Setting(CPU, "float32", False, 1, 2, L, 8)) == 4 * one
    assert ways.least_bytes(Setting(CPU, "bfloat16", True, 1, 2, L, 8)) == 6 * one


def test_ways_put_everything_on_the_device_they_are_given():
    with guards.pretend_cuda():
        for name in ("materialised", "fused", "tiles"):
            output = ways.prepare(WAYS[name], setting(device=torch.device("cuda")))()
            assert output.device.type == "cuda", name


def test_a_readers_own_function_may_give_its_weights_too():
    own = ways.own({"mine": reference.attend, "yours": F.scaled_dot_product_attention})
    a, b = (ways.prepare(way, setting())() for way in own.values())
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------- the record


def test_a_record_has_every_figure_with_its_spread_and_is_json(tiny):
    assert json.loads(json.dumps(tiny)) == tiny
    assert tiny["ended"] == "complete"
    assert tiny["machine"]["device"] == "cpu" and tiny["machine"]["torch"] == torch.__version__
    for point in measuring.points(tiny):
        seconds = point["seconds"]
        assert 0 < seconds["low"] <= seconds["median"] <= seconds["high"] and seconds["n"] >= 3
        rate = point["flops_per_s"]
        assert rate["low"] <= rate["median"] <= rate["high"]
        assert rate["median"] == pytest.approx(point["flops"] / seconds["median"])
        assert point["bytes_per_s"]["median"] == pytest.approx(point["bytes"] / seconds["median"])
    tried = {(p["way"], p["direction"], p["L"]) for p in tiny["points"]}
    assert tried == {
        (way, direction, L)
        for way in WAYS
        if way not in ways.COMPILED
        for direction in measuring.DIRECTIONS
        for L in (64, 256)
    }


def test_memory_grows_with_the_square_of_L_or_not(tiny):
    def growth(way, direction):
        short, long = measuring.points(tiny, way, direction=direction)
        return long["peak_bytes"] / short["peak_bytes"]

    for direction in measuring.DIRECTIONS:
        assert growth("materialised", direction) > 12  # 4 times as long: up to 16 times as much
        assert growth("fused", direction) < 5
        assert growth("tiles", direction) < 5


def test_a_kernel_that_this_machine_does_not_have_is_recorded_in_one_line(tiny):
    missing = [p for p in tiny["points"] if p["way"] == "fused: cudnn" and p["L"] == 64]
    assert len(missing) == 2
    for point in missing:
        assert "no such kernel" in point["failed"] and "\n" not in point["failed"]


def test_quartiles_are_those_of_the_samples():
    assert runs.spread([5.0, 1.0, 3.0, 2.0, 4.0]) == {"median": 3.0, "low": 2.0, "high": 4.0, "n": 5}
    assert runs.spread([7.0]) == {"median": 7.0, "low": 7.0, "high": 7.0, "n": 1}
    assert runs.rate(12, {"median": 3.0, "low": 2.0, "high": 4.0}) == {"median": 4.0, "low": 3.0, "high": 6.0}


def test_the_crossover_is_the_length_from_which_on_one_stays_faster():
    def point(way, L, low, high):
        seconds = {"median": (low + high) / 2, "low": low, "high": high, "n": 9}
        return {"way": way, "precision": "float32", "direction": "forward", "L": L, "seconds": seconds}

    slow = [point("slow", L, L, 1.1 * L) for L in (64, 128, 256, 512)]
    fast = [point("fast", L, low, low) for L, low in ((64, 50), (128, 130), (256, 200), (512, 300))]
    assert measuring.crossover({"points": slow + fast}, "slow", "fast") == 256
    assert measuring.crossover({"points": slow + fast}, "fast", "slow") is None
    overlapping = [point("fast", 512, 300, 520)]  # its slower quarter is as slow as the other's quicker one
    assert measuring.crossover({"points": slow + overlapping}, "slow", "fast") is None


def test_the_ridge_is_where_the_ceilings_meet(tiny):
    given = {"ceilings": {"bytes_per_s": {"median": 4.0}, "flops_per_s": {"float32": {"median": 50.0}}}}
    assert measuring.ridge(given) == 12.5
    with pytest.raises(ValueError, match="no ceilings for tf32"):
        measuring.ridge(tiny, "tf32")


# ------------------------------------------------------------------------------------- the run


def test_samples_are_taken_in_turn_forwards_and_backwards():
    log = []

    def noted(name):
        def attention(q, k, v):
            log.append(name)
            return F.scaled_dot_product_attention(q, k, v)

        return attention

    quick({name: noted(name) for name in "abc"}, sizes=(8,), names=())
    assert "".join(log[-9:]) == "abccbaabc"
    assert len(set(log[:3])) == 1  # before that each is tried by itself


def test_a_way_that_fails_is_named_and_the_others_go_on():
    def clumsy(q, k, v):
        raise ValueError("this shape\n  does not suit me")

    record = quick({"clumsy": clumsy})
    first, second = (p for p in record["points"] if p["way"] == "clumsy")
    assert first["failed"] == "this shape does not suit me"
    assert second["left_out"] == "L = 8 failed already: this shape does not suit me"
    assert len(measuring.points(record, "fused")) == 2 and record["ended"] == "complete"


def test_running_out_of_memory_is_survived_and_called_that():
    def hungry(q, k, v):
        if q.shape[-2] > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB. GPU 0 has …")
        return F.scaled_dot_product_attention(q, k, v)

    record = quick({"hungry": hungry}, sizes=(8, 16, 32))
    small, large, larger = (p for p in record["points"] if p["way"] == "hungry")
    assert "seconds" in small and large["failed"] == "out of memory"
    assert larger["left_out"] == "L = 16 failed already: out of memory"
    assert len(measuring.points(record, "materialised")) == 3


def test_failing_in_the_middle_of_the_samples_is_a_failure_too():
    calls = []

    def tires(q, k, v):
        calls.append(1)
        if len(calls) > 6:
            raise RuntimeError("tired")
        return F.scaled_dot_product_attention(q, k, v)

    record = quick({"tires": tires}, sizes=(8,))
    (point,) = (p for p in record["points"] if p["way"] == "tires")
    assert point["failed"] == "tired" and "seconds" not in point


def test_an_interrupted_run_keeps_what_it_had_and_says_so(tmp_path):
    def interrupted(q, k, v):
        if q.shape[-2] == 16:
            raise KeyboardInterrupt
        return F.scaled_dot_product_attention(q, k, v)

    said = []
    record = quick({"own": interrupted}, save_to=tmp_path / "record.json", says=said.append)
    assert record["ended"] == "interrupted" and "3 points are kept" in said[-1]
    assert measuring.load(tmp_path / "record.json") == record
    assert [p["L"] for p in measuring.points(record)] == [8, 8, 8]
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_a_run_that_is_killed_has_saved_each_finished_length(tmp_path):
    seen = []

    def looks(q, k, v):
        if q.shape[-2] == 16 and not seen:
            seen.append(measuring.load(tmp_path / "record.json"))
        return F.scaled_dot_product_attention(q, k, v)

    quick({"own": looks}, save_to=tmp_path / "record.json")
    assert seen[0]["ended"] == "running" and [p["L"] for p in seen[0]["points"]] == [8, 8, 8]


def test_without_time_everything_is_left_out_and_says_why():
    record = quick(budget_s=0.0)
    assert not measuring.points(record) and record["ended"] == "complete"
    assert all("no time left" in point["left_out"] for point in record["points"])


def test_a_slow_way_uses_up_its_own_time_only():
    def slow(q, k, v):
        time.sleep(0.05 * q.shape[-2] / 8)
        return F.scaled_dot_product_attention(q, k, v)

    record = quick({"slow": slow}, sizes=(8, 16, 32, 64), budget_s=3.0)
    points = {p["L"]: p for p in record["points"] if p["way"] == "slow"}
    assert "seconds" in points[8] and "left_out" in points[64]
    assert len(measuring.points(record, "fused")) == 4


def test_what_would_not_fit_into_the_memory_of_a_cpu_is_not_tried(monkeypatch):
    monkeypatch.setattr(machine.Machine, "free", lambda self: 20_000)
    record = quick(sizes=(8, 16, 512))
    last = next(p for p in record["points"] if p["way"] == "materialised" and p["L"] == 512)
    assert "GiB of memory" in last["left_out"]


def test_settings_of_torch_are_as_before_whatever_happens():
    def looks(q, k, v):
        raise ValueError(torch.get_float32_matmul_precision())

    before = torch.get_float32_matmul_precision(), torch.backends.mha.get_fastpath_enabled()
    record = quick({"own": looks}, precisions=("tf32",))
    assert next(p for p in record["points"] if p["way"] == "own")["failed"] == "high"
    assert before == (torch.get_float32_matmul_precision(), torch.backends.mha.get_fastpath_enabled())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"names": ("telepathy",)}, "no way 'telepathy'"),
        ({"precisions": ("float8",)}, "no precision 'float8'"),
        ({"directions": ("sideways",)}, "no direction 'sideways'"),
        ({"own": {"fused": reference.attend}}, "have that name already"),
    ],
)
def test_unknown_names_are_refused_before_anything_runs(options, says):
    with pytest.raises(ValueError, match=says):
        quick(**options)
