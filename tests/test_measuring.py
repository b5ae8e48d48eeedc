"""What `mha-course gpu` does: right numbers, honest gaps, nothing lost. No test asserts how long anything takes."""

import contextlib
import json
import time
from dataclasses import replace
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
    for way in WAYS.values():
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
    given = {"ceilings": {"bytes_per_s": {"best": 4.0}, "flops_per_s": {"float32": {"best": 50.0}}}}
    assert measuring.ridge(given) == 12.5
    with pytest.raises(ValueError, match="no ceilings for tf32"):
        measuring.ridge(tiny, "tf32")


def test_the_better_ceiling_counts_of_before_and_after():
    def found(copy, product):
        return {"bytes_per_s": {"best": copy}, "flops_per_s": {"float32": {"best": product}}}

    assert runs.higher(found(3, 40), found(4, 20)) == found(4, 40)


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


def test_what_would_take_too_long_is_not_tried():
    lengths = set()

    def slow(q, k, v):
        lengths.add(q.shape[-2])
        time.sleep(0.01)
        return F.scaled_dot_product_attention(q, k, v)

    record = quick({"slow": slow}, sizes=(8, 512), budget_s=10.0)
    points = {p["L"]: p for p in record["points"] if p["way"] == "slow"}
    assert points[512]["left_out"].startswith("would take") and lengths == {8}


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


# ----------------------------------------------------------------------- a CUDA device that is simulated


class SimulatedCuda:
    """What `machine.Cuda` asks of ``torch.cuda``: a queue with a clock, and an allocator that remembers its peak."""

    def __init__(self):
        self.host = self.idle_at = 0.0  # seconds: the host's clock, and when the queue will be empty
        self.allocated = self.peak = 7_000
        self.emptied = 0
        simulated = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                simulated.launch(1e-7)
                self.at = max(simulated.host, simulated.idle_at)

            def synchronize(self):
                simulated.host = max(simulated.host, self.at)

            def elapsed_time(self, later):
                if simulated.host < later.at:
                    raise RuntimeError("Both events must be completed before calculating elapsed time.")
                return 1000 * (later.at - self.at)

        self.Event = Event

    def launch(self, seconds):
        self.host += 1e-6
        self.idle_at = max(self.host, self.idle_at) + seconds

    def take(self, size):
        self.allocated += size
        self.peak = max(self.peak, self.allocated)

    def synchronize(self, device):
        self.host = max(self.host, self.idle_at)

    def memory_allocated(self, device):
        return self.allocated

    def max_memory_allocated(self, device):
        return self.peak

    def reset_peak_memory_stats(self, device):
        self.peak = self.allocated

    def empty_cache(self):
        self.emptied += 1

    def mem_get_info(self, device):
        return 2**37, 2**37

    def get_device_capability(self, device):
        return 9, 0

    def get_device_properties(self, device):
        return SimpleNamespace(
            name="Simulated GPU",
            uuid="1234",
            major=9,
            minor=0,
            multi_processor_count=132,
            total_memory=2**37,
        )

    @contextlib.contextmanager
    def device(self, device):
        yield


@pytest.fixture
def cuda(monkeypatch):
    simulated = SimulatedCuda()
    for name in [name for name in dir(simulated) if hasattr(torch.cuda, name) and not name.startswith("_")]:
        monkeypatch.setattr(torch.cuda, name, getattr(simulated, name))
    monkeypatch.setattr(machine, "_said", lambda *words: f"said by {words[0]} {words[1]}")
    return simulated


def test_on_cuda_time_is_the_devices_not_the_launchs(cuda):
    on = machine.Cuda(torch.device("cuda"))
    assert on.seconds(lambda: cuda.launch(5e-3), times=4) == pytest.approx(5e-3, rel=1e-3)
    assert on.seconds(lambda: [cuda.launch(1e-3) for _ in range(3)]) == pytest.approx(3e-3, rel=1e-2)


def test_on_cuda_what_was_queued_before_does_not_count(cuda):
    cuda.launch(60.0)
    assert machine.Cuda(torch.device("cuda")).seconds(lambda: cuda.launch(5e-3)) == pytest.approx(
        5e-3, rel=1e-3
    )


def test_on_cuda_memory_is_the_allocators_peak_beyond_what_was_there(cuda):
    cuda.take(90_000)
    cuda.take(-80_000)  # an earlier peak

    def call():
        cuda.take(300)
        cuda.take(500)
        cuda.take(-300)
        cuda.take(100)

    on = machine.Cuda(torch.device("cuda"))
    assert on.peak(call) == 800
    assert on.compiled_peak(call) == 800


def test_on_cuda_a_whole_run_goes_through_events_and_the_allocator(cuda, monkeypatch):
    """The tensors are on the CPU, the clock and the allocator are simulated: times are known beforehand."""
    monkeypatch.setattr(runs, "machine_for", lambda device: machine.Cuda(CPU))

    def own(q, k, v):
        L = q.shape[-2]
        if L == 32:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        cuda.launch(1e-5 * L**2)
        cuda.take(4 * L**2)
        cuda.take(-4 * L**2)
        return F.scaled_dot_product_attention(q, k, v)

    record = quick({"own": own}, sizes=(8, 16, 32, 64), names=("fused",), precisions=runs.PRECISIONS)
    assert record["ended"] == "complete"
    about = record["machine"]
    assert about["name"] == "Simulated GPU" and about["capability"] == "9.0"
    assert about["driver"] == "said by nvidia-smi --id=GPU-1234"
    for precision in runs.PRECISIONS:
        points = {p["L"]: p for p in record["points"] if (p["way"], p["precision"]) == ("own", precision)}
        for L in (8, 16):
            assert points[L]["seconds"]["median"] == pytest.approx(1e-5 * L**2, rel=0.05)
            assert points[L]["peak_bytes"] == 4 * L**2
        assert points[32]["failed"] == "out of memory" and "left_out" in points[64]
    assert cuda.emptied


def test_on_cuda_the_usual_precisions_are_those_of_the_chip(cuda, monkeypatch):
    on = machine.Cuda(torch.device("cuda"))
    assert runs._usual(on) == ["float32", "tf32", "bfloat16"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert runs._usual(on) == ["float32"]
    assert runs._usual(machine.Machine(CPU)) == ["float32"]


def test_on_mps_the_clock_waits_and_memory_is_counted(monkeypatch):
    """The tensors are on the CPU; what torch.mps would be asked is noted."""
    asked = []
    monkeypatch.setattr(runs, "machine_for", lambda device: machine.Mps(CPU))
    monkeypatch.setattr(machine, "_said", lambda *words: None)
    for name, value in (
        ("synchronize", None),
        ("empty_cache", None),
        ("recommended_max_memory", 2**33),
        ("driver_allocated_memory", 0),
    ):
        monkeypatch.setattr(torch.mps, name, lambda name=name, value=value: asked.append(name) or value)

    def own(q, k, v):
        asked.append("own")
        return F.scaled_dot_product_attention(q, k, v)

    record = quick({"own": own}, sizes=(8,), names=("materialised",))
    assert record["machine"]["name"] == "Apple GPU" and record["settings"]["precisions"] == [
        "float32",
        "bfloat16",
    ]
    (point,) = measuring.points(record, "materialised", "float32")
    assert point["peak_bytes"] == measuring.points(quick(sizes=(8,)), "materialised")[0]["peak_bytes"]
    last = len(asked) - asked[::-1].index("own") - 1
    assert asked[last - 1] == asked[last + 1] == "synchronize"


def test_compiled_ways_are_made_for_one_length_after_the_other(monkeypatch):
    """Compiled last, and one direction after the other: a variant is compiled once and serves every length."""
    order = []

    def stub(run, group, setting, direction):
        order.append((tuple(group), setting.precision, direction, setting.L))

    monkeypatch.setattr(runs, "_one_length", stub)
    monkeypatch.setattr(torch.compiler, "reset", lambda: order.append("reset"))
    quick(names=("fused", "flex"), directions=measuring.DIRECTIONS, sizes=(8, 16))
    assert [step if step == "reset" else (step[0][0], step[2], step[3]) for step in order] == [
        ("fused", "forward", 8),
        ("fused", "forward+backward", 8),
        ("fused", "forward", 16),
        ("fused", "forward+backward", 16),
        "reset",
        ("flex", "forward", 8),
        ("flex", "forward", 16),
        "reset",
        ("flex", "forward+backward", 8),
        ("flex", "forward+backward", 16),
    ]


def test_there_is_a_reason_for_every_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert "built without CUDA" in machine.why_not("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert "no NVIDIA driver" in machine.why_not("cuda")
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert "no usable GPU" in machine.why_not("cuda")
    assert machine.why_not("cpu") is None
    with pytest.raises(ValueError, match="no usable GPU"):
        measuring.measure("cuda")
    with pytest.raises(ValueError, match="not meta"):
        measuring.measure("meta")


# ------------------------------------------------------------------------------------- records on disk


def test_the_latest_record_is_the_newest_of_its_device_or_none(tmp_path):
    assert measuring.latest_record(folder=tmp_path) is None
    for device, day in (("cuda", "2026-01-02"), ("cuda", "2026-03-01"), ("mps", "2026-05-01")):
        record = {
            "format": 1,
            "date": f"{day}T10:00:00+00:00",
            "machine": {"device": device, "name": "A (B)™"},
        }
        measuring.save(record, tmp_path / records.file_name(record))
    assert measuring.latest_record(folder=tmp_path)["date"].startswith("2026-03-01")
    assert measuring.latest_record("mps", tmp_path)["date"].startswith("2026-05-01")
    assert measuring.latest_record("cpu", tmp_path) is None
    assert sorted(path.name for path in tmp_path.iterdir())[0] == "cuda-a-b-2026-01-02.json"


def test_what_is_shipped_was_measured_to_the_end_by_the_command():
    for path in records.RECORDED.glob("*.json"):
        record = measuring.load(path)
        assert record["made_by"] == "mha-course gpu" and record["ended"] == "complete", path.name
        assert record["machine"]["device"] in path.name and record["machine"]["driver"]
        assert record["checks"] and all(check["result"] != "failed" for check in record["checks"])


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 0}'])
def test_a_file_that_is_no_record_is_refused(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match=r"other\.json is no record"):
        measuring.load(tmp_path / "other.json")


def test_a_new_recording_overwrites_nothing(tmp_path):
    assert command.unused(tmp_path, "a.json").name == "a.json"
    (tmp_path / "a.json").touch()
    (tmp_path / "a-2.json").touch()
    assert command.unused(tmp_path, "a.json").name == "a-3.json"


# ------------------------------------------------------------------------------ checks on the device


@pytest.mark.parametrize(
    "name", ["attend", "masked_softmax", "SingleHead", "MultiHeadAttention", "to_may_attend"]
)
def test_the_references_pass_where_the_cpu_is_the_device(name):
    on_device.check_answer(exercises.find(name), exercises.find(name).reference, CPU)


def test_wrong_answers_are_found_on_the_device():
    exercise = exercises.find("attend")
    with pytest.raises(AssertionError, match="wrong values"):
        on_device.check_answer(exercise, lambda q, k, v: [2 * x for x in reference.attend(q, k, v)], CPU)
    with pytest.raises(AssertionError, match="no such thing"):
        on_device.check_answer(exercise, raises, CPU)


def raises(q, k, v):
    raise RuntimeError("no such thing")


def test_an_answer_that_comes_back_on_another_device_is_found():
    exercise = exercises.find("attention_scores")

    def elsewhere(q, k):
        return reference.attention_scores(q, k).to("meta")

    with pytest.raises(AssertionError, match="on meta, not on cpu"):
        on_device.check_answer(exercise, elsewhere, CPU)


def test_without_float64_the_device_is_compared_in_float32(monkeypatch):
    """As on MPS: no float64 goes in, on the device or in what is expected."""
    seen = set()

    def noted(q, k):
        seen.add(q.dtype)
        return reference.attention_scores(q, k)

    exercise, pretended = exercises.find("attention_scores"), SimpleNamespace(type="mps")
    doubles = [
        trial for trial in on_device.prepare(exercise, 0) if trial.call.inputs["q"].dtype == torch.float64
    ]
    monkeypatch.setattr(on_device, "prepare", lambda exercise, seed: doubles)
    monkeypatch.setattr(on_device, "_on", lambda call, device: replace(call, forbidden=()))
    monkeypatch.setattr(on_device, "_moved", lambda answer, device: answer)
    with pytest.raises(AssertionError, match="on cpu, not on mps"):  # which is where they are, in truth
        on_device.check_answer(exercise, noted, pretended)
    assert seen == {torch.float32}


def test_the_solutions_answers_are_found_and_nothing_else_of_them_is_run(tmp_path):
    marks = '{"grade": false, "grade_id": "double", "locked": false, "schema_version": 3, "solution": true, "task": false}'
    (tmp_path / "one.py").write_text(
        "# %%\nimport torch\nraise SystemExit\n\n"
        f"# %% nbgrader={marks}\ndef double(x):\n    return 2 * x\n\n"
        "# %%\ndouble = None\n"
    )
    assert on_device.answers_in(tmp_path / "one.py")["double"](3) == 6
    assert on_device.answers_in(tmp_path / "two.py") == {}
    written = on_device.answers_in(on_device.SOLUTIONS / "01_one_head" / "01_one_head.py")
    assert {"attend", "SingleHead"} <= written.keys()


def test_a_check_that_raises_is_a_result():
    def broken():
        raise RuntimeError("a\nb")

    def nothing():
        raise on_device.LeftOut("no queue")

    assert on_device._result("x", broken) == {"name": "x", "result": "failed", "says": "a b"}
    assert on_device._result("x", nothing) == {"name": "x", "result": "left out", "says": "no queue"}
    assert on_device._result("x", lambda: None) == {"name": "x", "result": "ok", "says": ""}


def test_checks_of_the_device_itself_hold_on_a_cpu_or_have_nothing_to_say():
    results = {}
    for check in on_device.DEVICE_CHECKS:
        results[check.__name__] = on_device._result("", lambda check=check: check(machine.Machine(CPU)))
    assert not [name for name, result in results.items() if result["result"] == "failed"]
    assert results["flash_equals_the_direct_formula"]["result"] == "ok"


def test_flash_that_forgets_something_is_found(monkeypatch):
    monkeypatch.setattr(on_device, "flash_backward", lambda q, k, v, *rest: (q, k, v))
    result = on_device._result("", lambda: on_device.flash_equals_the_direct_formula(machine.Machine(CPU)))
    assert result["result"] == "failed"


def test_a_wrong_allocator_is_found(cuda, monkeypatch):
    on = machine.Cuda(CPU)
    on.device = SimpleNamespace(type="cuda")
    monkeypatch.setattr(on_device, "_normal", lambda *_: [torch.zeros(1, 2, 64, 8)] * 3)
    with pytest.raises(AssertionError, match="the allocator says 0 bytes"):
        on_device.the_allocators_peak_is_the_counted_one(on)


@pytest.mark.gpu
@needs_gpu
def test_everything_is_right_on_the_device_that_is_here():
    assert not [result for result in on_device.check_everything(HERE) if result["result"] == "failed"]


@pytest.mark.gpu
@needs_gpu
def test_every_way_can_be_measured_on_the_device_that_is_here():
    record = measuring.measure(HERE, (64, 128), shape=(1, 2, 32), budget_s=240)
    assert record["ended"] == "complete"
    measured = {p["way"] for p in measuring.points(record)}
    assert {"materialised", "fused", "tiles", "module", "nn.MultiheadAttention"} <= measured


# ------------------------------------------------------------------------------------- the command


@pytest.fixture
def fast(monkeypatch):
    """The command's own way through, with little to measure and to check."""
    monkeypatch.setitem(runs.PLANS, "cpu", runs.PLANS["cpu"] | {"sizes": (8, 16), "H": 2, "D": 4})
    monkeypatch.setattr(command, "check_everything", lambda device: iter(CHECKED))


CHECKED = [
    {"name": "a", "result": "ok", "says": ""},
    {"name": "b", "result": "left out", "says": "no queue"},
]


def test_without_a_gpu_the_command_says_so_and_what_can_be_done(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["gpu"]) == 1
    said = capsys.readouterr().err
    assert "There is no CUDA device here" in said and "Nothing was measured" in said
    assert "mha-course gpu --device cpu" in said and "under a minute" in said


def test_the_command_measures_saves_and_says_where(fast, tmp_path, capsys):
    path = tmp_path / "deep" / "record.json"
    assert cli.main(["gpu", "--device", "cpu", "--save", str(path)]) == 0
    record, said = measuring.load(path), capsys.readouterr().out
    assert record["ended"] == "complete" and record["made_by"] == "mha-course gpu"
    assert str(path) in said and f"{len(measuring.points(record))} figures" in said
    assert "Not measured, from L = 8 on no such kernel" in said


def test_the_command_fails_when_a_check_does(fast, tmp_path, capsys, monkeypatch):
    failed = {"name": "attend, reference", "result": "failed", "says": "wrong values"}
    monkeypatch.setattr(command, "check_everything", lambda device: iter([*CHECKED, failed]))
    path = tmp_path / "record.json"
    assert cli.main(["gpu", "--device", "cpu", "--only", "checks", "--save", str(path)]) == 1
    assert "✗ attend, reference: wrong values" in capsys.readouterr().out
    assert measuring.load(path)["checks"][-1] == failed


@pytest.mark.parametrize("when", ["checking", "measuring"])
def test_an_interrupted_command_keeps_its_file(fast, tmp_path, capsys, monkeypatch, when):
    def checks(device):
        yield CHECKED[0]
        if when == "checking":
            raise KeyboardInterrupt

    def sample(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "check_everything", checks)
    monkeypatch.setattr(runs._Sampler, "sample", sample)
    path = tmp_path / "record.json"
    only = ["--only", "checks" if when == "checking" else "measurements"]
    assert cli.main(["gpu", "--device", "cpu", "--save", str(path), *only]) == 130
    assert measuring.load(path)["ended"] == "interrupted"
    assert "It was interrupted" in capsys.readouterr().out


def test_a_bad_command_line_is_refused(capsys):
    for wrong in (["--sizes", "0"], ["--sizes", "many"], ["--device", "abacus"], ["--ways", "telepathy"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["gpu", *wrong])
        assert ended.value.code == 2
    assert "abacus" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- the pictures


def words_in(fig):
    return "\n".join(text.get_text() for text in fig.findobj(lambda artist: hasattr(artist, "get_text")))


@pytest.mark.parametrize("draw", [plots.gpu.attention_curves, plots.gpu.roofline])
@pytest.mark.parametrize("direction", measuring.DIRECTIONS)
def test_a_picture_says_where_when_and_with_which_torch(tiny, draw, direction):
    fig = draw(tiny, direction=direction)
    said = words_in(fig)
    for fact in (tiny["machine"]["name"], tiny["date"][:10], f"torch {torch.__version__}", direction):
        assert fact in said
    assert "not complete" not in said
    assert "not complete" in words_in(draw({**tiny, "ended": "interrupted"}))
    assert plots.png(fig).startswith(b"\x89PNG")


def test_a_picture_needs_something_to_draw(tiny):
    for draw in (plots.gpu.attention_curves, plots.gpu.roofline):
        with pytest.raises(ValueError, match="no figure for"):
            draw(tiny, ["flex"])
        with pytest.raises(ValueError, match="no figure for"):
            draw(tiny, precision="bfloat16")
    with pytest.raises(ValueError, match="no ceilings"):
        plots.gpu.roofline({**tiny, "ceilings": {"bytes_per_s": {}, "flops_per_s": {}}})


def test_where_memory_ran_out_is_written_above_the_picture(tiny):
    short, long = measuring.points(tiny, "materialised", direction="forward")
    failed = {key: long[key] for key in ("way", "precision", "direction", "L")} | {"failed": "out of memory"}
    points = [point for point in tiny["points"] if point is not long]
    assert "out of memory" not in words_in(plots.gpu.attention_curves(tiny))
    assert "out of memory" in words_in(plots.gpu.attention_curves({**tiny, "points": [*points, failed]}))


def test_every_way_has_its_own_colour_line_and_mark(tiny):
    fig = plots.gpu.attention_curves(tiny)
    looks = [
        (line.get_color(), line.get_linestyle(), line.get_marker())
        for line in fig.axes[0].lines
        if len(line.get_xdata()) > 1
    ]
    assert len(looks) == 3
    for part in zip(*looks):
        assert len(set(part)) == 3


def test_what_is_only_known_from_below_has_no_place_under_the_roof(tiny):
    points = [
        {**point, "bytes_at_least": True} if point["way"] == "fused" else point for point in tiny["points"]
    ]
    named = words_in(plots.gpu.roofline({**tiny, "points": points}))
    assert "fused kernel" not in named and "flash in plain PyTorch" in named


def test_a_readers_own_way_is_drawn_by_its_name():
    record = quick({"mine": reference.attend})
    assert "mine" in words_in(plots.gpu.attention_curves(record, ["mine", "fused"]))
