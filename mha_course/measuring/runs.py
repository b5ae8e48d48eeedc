"""The measurement: every way, precision, direction and length, in turn, until the time is used up."""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mha_course.checking.calls import TooSlow, time_limit
from mha_course.counting import moved_bytes

from . import ways as all_ways
from .machine import Machine, machine_for
from .record import FORMAT, Record, now, save
from .ways import COMPILED, WAYS, Attention, Setting, Way

PRECISIONS = ("float32", "tf32", "bfloat16")
DIRECTIONS = ("forward", "forward+backward")

# Shape, tile, lengths, sizes of the ceilings' operands and samples, by kind of device: what shows the differences there.
PLANS = {
    "cuda": {"N": 2, "H": 16, "D": 64, "block": 512, "sizes": tuple(2**i for i in range(7, 15))},
    "mps": {"N": 1, "H": 8, "D": 64, "block": 256, "sizes": tuple(2**i for i in range(7, 13))},
    "cpu": {"N": 1, "H": 4, "D": 32, "block": 128, "sizes": (64, 128, 256, 512, 1024)},
}
COPIED = {"cuda": 2**30, "mps": 2**28, "cpu": 2**27}  # bytes: far beyond any cache
MULTIPLIED = {"cuda": 8192, "mps": 4096, "cpu": 1024}  # rows and columns
SAMPLE = {"cuda": 2e-3, "mps": 2e-3, "cpu": 1e-3}  # seconds a sample takes at least, by calling several times
ROUNDS = (3, 25)  # samples at least, at most
CELL = {"cuda": 0.5, "mps": 0.5, "cpu": 0.2}  # seconds that the samples of one figure should take, at most


def measure(
    device: str | torch.device = "cpu",
    sizes: Sequence[int] | None = None,
    *,
    ways: Iterable[str] | None = None,
    own: Mapping[str, Attention] | None = None,
    precisions: Iterable[str] | None = None,
    directions: Iterable[str] = DIRECTIONS,
    shape: tuple[int, int, int] | None = None,
    block: int | None = None,
    budget_s: float = 40.0,
    save_to: Path | str | None = None,
    record: Record | None = None,
    says: Callable[[str], None] | None = None,
) -> Record:
    """Measure attention on a machine.

    Args:
        device: "cuda", "mps" or "cpu".
        sizes: lengths L; by default what fits the kind of device.
        ways: names from `WAYS`; by default all, on a CPU without the compiled ones.
        own: further ways, name → function of q, k, v (N, H, L, D) that gives the output, or (output, …).
        precisions: from `PRECISIONS`; by default what the device is made for.
        directions: from `DIRECTIONS`.
        shape: N, H, D of the inputs.
        block: tile of the tiled version.
        budget_s: seconds that all of it may take; no way may take more
            than about twice an equal share. What does not fit is left out.
        save_to: a file that always holds what is known so far.
        record: one that has been begun (with ``checks``) and is to be filled.
        says: is told each finished line, e.g. ``print``.

    Returns:
        the record (see the package's docstring). After Ctrl-C: what there was, with ``ended: "interrupted"``.

    Raises:
        ValueError: there is no such device here, or a name is unknown.
    """
    machine = machine_for(device)
    plan = PLANS[machine.device.type]
    chosen = _chosen(machine, ways, own or {})
    precisions = _known(precisions or _usual(machine), PRECISIONS, "precision")
    directions = _known(directions, DIRECTIONS, "direction")
    N, H, D = shape or (plan["N"], plan["H"], plan["D"])
    block, sizes = block or plan["block"], sorted(sizes or plan["sizes"])

    record = begin(machine, {} if record is None else record)
    record["settings"] = {
        "N": N,
        "H": H,
        "D": D,
        "block": block,
        "sizes": list(sizes),
        "precisions": list(precisions),
        "ways": {name: way.says for name, way in chosen.items()},
        "mask": None,
        "dropout": 0.0,
        "inference_fast_path": False,
        "budget_s": budget_s,
    }
    run = _Run(machine, record, save_to, says or (lambda _line: None), time.monotonic() + budget_s)
    with _fast_path_off():
        try:
            _all(run, chosen, precisions, directions, sizes, (N, H, D, block))
            record["ended"] = "complete"
        except KeyboardInterrupt:
            record["ended"] = "interrupted"
            run.says(f"Interrupted: {len(record['points'])} points are kept.")
    run.save()
    return record


def begin(machine: Machine, record: Record) -> Record:
    """What every record has from the start."""
    record.setdefault("format", FORMAT)
    record.setdefault("made_by", "mha_course.measuring")
    record.setdefault("date", now())
    record.setdefault("ended", "running")
    record.setdefault("machine", machine.describe())
    record.setdefault("ceilings", {"bytes_per_s": {}, "flops_per_s": {}})
    record.setdefault("points", [])
    record.setdefault("checks", [])
    return record


def _chosen(machine: Machine, names: Iterable[str] | None, own: Mapping[str, Attention]) -> dict[str, Way]:
    if names is None:
        names = [name for name in WAYS if machine.device.type != "cpu" or name not in COMPILED]
    if twice := own.keys() & WAYS.keys():
        raise ValueError(f"{', '.join(sorted(twice))}: the course's own ways have that name already")
    return {name: WAYS[name] for name in _known(names, tuple(WAYS), "way")} | all_ways.own(own)


def _usual(machine: Machine) -> list[str]:
    return [name for name, reason in machine.precisions().items() if reason is None]


def _known(names: Iterable[str], known: tuple[str, ...], what: str) -> list[str]:
    names = list(names)
    if strange := [name for name in names if name not in known]:
        raise ValueError(f"there is no {what} {strange[0]!r}; there are {', '.join(known)}")
    return names


# ------------------------------------------------------------------------------------- the run


@dataclass
class _Run:
    """What a measurement carries along."""

    machine: Machine
    record: Record
    save_to: Path | str | None
    says: Callable[[str], None]
    deadline: float  # by time.monotonic()
    given_up: dict[tuple, str] = field(
        default_factory=dict
    )  # (way, precision, direction) → why, for every larger L
    share: float = 0.0  # seconds that each way has in the present block
    spent: dict[str, float] = field(default_factory=dict)
    cell_ends: float = 0.0  # when the present length should be done

    def save(self) -> None:
        if self.save_to is not None:
            save(self.record, self.save_to)

    def left(self) -> float:
        return self.deadline - time.monotonic()


def _all(
    run: _Run,
    chosen: dict[str, Way],
    precisions: list[str],
    directions: list[str],
    sizes: list[int],
    shape: tuple[int, int, int, int],
) -> None:
    N, H, D, block = shape
    run.record["ceilings"] = ceilings(run.machine, precisions)
    run.save()
    run.says(_ceilings_in_words(run.record["ceilings"]))
    # Compiled code last: if compiling takes all the time that is left, everything else is there already.
    passes = [{name: way for name, way in chosen.items() if way.compiled == late} for late in (False, True)]
    blocks = [(group, precision) for group in passes if group for precision in precisions]
    for done, (group, precision) in enumerate(blocks):
        run.share = 2 / (len(group) + 1) * max(0.0, run.left()) / (len(blocks) - done)  # twice an equal share
        run.spent = dict.fromkeys(group, 0.0)
        cells = [(L, direction) for L in sizes for direction in directions]
        if late := any(way.compiled for way in group.values()):
            cells = [(L, direction) for direction in directions for L in sizes]
        # The longest sequences have the larger part of the time, a training step three times a forward pass's.
        weights = [L**0.7 * (3 if direction == DIRECTIONS[1] else 1) for L, direction in cells]
        block_ends = time.monotonic() + run.left() / (len(blocks) - done)
        with using(precision):
            for number, (L, direction) in enumerate(cells):
                if late and (number == 0 or direction != cells[number - 1][1]):
                    torch.compiler.reset()  # torch.compile keeps a few variants of a function, and not one more
                share = weights[number] / sum(weights[number:])
                run.cell_ends = time.monotonic() + (block_ends - time.monotonic()) * share
                backward = direction == DIRECTIONS[1]
                setting = Setting(run.machine.device, precision, backward, N, H, L, D, block)
                _one_length(run, group, setting, direction)
    before, after = run.record["ceilings"], ceilings(run.machine, precisions)
    run.record["ceilings"] = higher(before, after)  # something else may have kept the machine busy
    run.record["ceilings_measured"] = {"before": before, "after": after}


def _one_length(run: _Run, group: dict[str, Way], setting: Setting, direction: str) -> None:
    """All ways of a group on the same inputs, their samples in turn."""
    ready: dict[str, _Sampler] = {}
    for name, way in group.items():
        point = {"way": name, "precision": setting.precision, "direction": direction, "L": setting.L}
        key = (name, setting.precision, direction)
        reason = run.given_up.get(key) or _too_much(run, point)
        if reason:
            run.given_up[key] = reason
            run.record["points"].append(point | {"left_out": reason})
            continue
        with _spending(run, name):
            try:
                ready[name] = _Sampler(run, way, setting, point)
            except _CannotBeMeasured as error:
                run.given_up[key] = f"L = {setting.L} failed already: {error}"
                run.record["points"].append(point | {"failed": str(error)})
                run.machine.tidy()
    for number in range(ROUNDS[1]):
        if number >= ROUNDS[0] and time.monotonic() > run.cell_ends:
            break
        for name in list(ready)[:: 1 if number % 2 == 0 else -1]:
            over = number >= ROUNDS[0] and run.spent[name] > run.share
            if number < ready[name].rounds and not over:
                with _spending(run, name):
                    ready[name].sample()
    run.record["points"] += [sampler.point() for sampler in ready.values()]
    ready.clear()
    run.machine.tidy()
    points = run.record["points"]
    points[-len(group) :] = sorted(points[-len(group) :], key=lambda point: list(group).index(point["way"]))
    run.save()
    run.says(_line(points[-len(group) :]))


@contextlib.contextmanager
def _spending(run: _Run, name: str) -> Iterator[None]:
    started = time.monotonic()
    try:
        yield
    finally:
        run.spent[name] += time.monotonic() - started


def _too_much(run: _Run, point: dict[str, Any]) -> str | None:
    """Why this point is not even tried: it would take too long, or more memory than there is."""
    before = [
        p for p in run.record["points"] if "seconds" in p and all(p[k] == point[k] for k in point if k != "L")
    ]
    left = min(run.share - run.spent[point["way"]], run.left())
    if left <= 0:
        return f"no time left (each way has {run.share:.0f} s at most)"
    if not before:
        return None
    growth = (point["L"] / before[-1]["L"]) ** 2
    expected = before[-1]["seconds"]["median"] * growth * (ROUNDS[0] + 4)
    if expected > left:
        return f"would take {expected:.1f} s, {left:.1f} s are left"
    if not run.machine.survives_running_out() and (free := run.machine.free()) is not None:
        needed = (before[-1]["peak_bytes"] or 0) * growth
        if needed > 0.7 * free:
            return f"could need {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free"
    return None


class _CannotBeMeasured(Exception):
    """One line: why a way has no figure here."""


class _Sampler:
    """One way on one setting: made, called for the first times, then sampled."""

    def __init__(self, run: _Run, way: Way, setting: Setting, point: dict[str, Any]):
        self.machine, self.name_and_place = run.machine, point
        kind = run.machine.device.type
        self.fn, self.peak, self.moved, once = _tried(run, point["way"], way, setting)
        self.flops = all_ways.flops(way, setting)
        if way.compiled and not way.one_kernel:
            self.name_and_place = point | {"bytes_at_least": True}
        self.times = max(1, min(100, round(SAMPLE[kind] / max(once, 1e-7))))
        self.rounds = max(ROUNDS[0] + 2, min(ROUNDS[1], int(CELL[kind] / (once * self.times))))
        self.samples: list[float] = []
        self.failed = ""

    def sample(self) -> None:
        if self.failed:
            return
        try:
            self.samples.append(self.machine.seconds(self.fn, self.times))
        except Exception as error:
            self.failed = why(error)

    def point(self) -> dict[str, Any]:
        if self.failed:
            return self.name_and_place | {"failed": self.failed}
        seconds = spread(self.samples)
        return self.name_and_place | {
            "seconds": seconds,
            "peak_bytes": self.peak,
            "flops": self.flops,
            "bytes": self.moved,
            "flops_per_s": rate(self.flops, seconds),
            "bytes_per_s": rate(self.moved, seconds),
        }


def _tried(
    run: _Run, name: str, way: Way, setting: Setting
) -> tuple[Callable[[], Any], int | None, int, float]:
    """A function that works here; the memory it takes, the bytes it moves, about how long it takes.

    Raises:
        _CannotBeMeasured: it does not work here.
    """
    machine, said = run.machine, []
    limit = max(1.0, min(run.share - run.spent[name], run.left()))
    try:
        with warnings.catch_warnings(record=True) as said, time_limit(limit):
            warnings.simplefilter("always")
            fn = all_ways.prepare(way, setting)
            fn()  # the first call compiles, loads kernels, chooses algorithms
            machine.wait()
            if way.compiled:
                peak, moved = machine.compiled_peak(fn), all_ways.least_bytes(setting)
            else:
                peak, moved = machine.peak(fn), moved_bytes(fn)
            return fn, peak, moved, min(machine.seconds(fn) for _ in range(2))
    except (Exception, TooSlow) as error:
        reason = why(error, [str(warning.message) for warning in said])
    # outside the handler: what was raised holds on to the tensors of the frames it passed
    raise _CannotBeMeasured(reason)


def why(error: BaseException, warned: Sequence[str] = ()) -> str:
    """What went wrong, in one line."""
    text = str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        sign in text for sign in ("out of memory", "can't allocate memory", "Invalid buffer size")
    ):
        return "out of memory"
    if isinstance(error, TooSlow):
        return f"no time left: {text}"
    if "No available kernel" in text or "No viable backend" in text:
        reasons = [line.split(" (Triggered")[0].strip() for line in warned]
        text = ": ".join(
            ["no such kernel for this device, dtype or shape", "; ".join(dict.fromkeys(reasons))]
        )
    if "Developer debug context:" in text:  # what torch.compile stumbled over
        text = text.split("Developer debug context:")[1].strip().partition("\n")[0]
    text = text.partition("\n\n")[0]
    line = " ".join(text.split()).rstrip(": ") or type(error).__name__
    return line if len(line) <= 300 else line[:299] + "…"


# ------------------------------------------------------------------------------------- ceilings


def ceilings(machine: Machine, precisions: Iterable[str]) -> dict[str, Any]:
    """What this machine can do at best: bytes per second of a large copy, FLOP/s of a large square product."""
    kind = machine.device.type
    found: dict[str, Any] = {"bytes_per_s": {}, "flops_per_s": {}}
    there = machine.free()
    size = COPIED[kind] if there is None else min(COPIED[kind], there // 8)
    source = torch.ones(size // 4, device=machine.device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() * source.element_size()  # read once, written once
    found["bytes_per_s"] = _ceiling(machine, partial(target.copy_, source), copied)
    del source, target
    n = MULTIPLIED[kind]
    for precision in precisions:
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        with using(precision):
            a, b = (torch.randn(n, n, device=machine.device).to(dtype) for _ in range(2))
            c = torch.empty_like(a)
            found["flops_per_s"][precision] = _ceiling(machine, partial(torch.mm, a, b, out=c), 2 * n**3)
    machine.tidy()
    return found


def _ceiling(machine: Machine, fn: Callable[[], Any], work: int, rounds: int = 9) -> dict[str, Any]:
    for _ in range(2):
        fn()
    samples = [machine.seconds(fn) for _ in range(rounds)]
    return rate(work, spread(samples)) | {"best": work / min(samples), "n": rounds, "work": work}


def higher(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Of two measurements of the ceilings, each figure's better one."""

    def better(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
        return max(a, b, key=lambda figure: figure["best"])

    products = before["flops_per_s"], after["flops_per_s"]
    return {
        "bytes_per_s": better(before["bytes_per_s"], after["bytes_per_s"]),
        "flops_per_s": {name: better(products[0][name], products[1][name]) for name in products[0]},
    }


@contextlib.contextmanager
def using(precision: str) -> Iterator[None]:
    """Products of float32 numbers exactly, or in tf32.

    Source: ``torch.set_float32_matmul_precision``; bfloat16 is a dtype of its own.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def _fast_path_off() -> Iterator[None]:
    """`nn.MultiheadAttention` has one C++ function for inference, whose inside cannot be counted: it takes the
    same way with and without gradients here."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


# --------------------------------------------------------------------------------- numbers and words


def spread(samples: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles of the samples, and how many there are."""
    if len(samples) == 1:
        low = median = high = samples[0]
    else:
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high, "n": len(samples)}


def rate(work: int, seconds: Mapping[str, float]) -> dict[str, float]:
    """Work per second, median and quartiles: the longest time gives the lowest rate."""
    return {
        "median": work / seconds["median"],
        "low": work / seconds["high"],
        "high": work / seconds["low"],
    }


def _ceilings_in_words(found: Mapping[str, Any]) -> str:
    products = ", ".join(
        f"{precision} {numbers['best'] / 1e9:.4g} GFLOP/s"
        for precision, numbers in found["flops_per_s"].items()
    )
    return f"ceilings: copy {found['bytes_per_s']['best'] / 1e9:.4g} GB/s; product {products}"


def _line(points: Sequence[Mapping[str, Any]]) -> str:
    first = points[0]
    figures = [
        f"{point['way']} {point['seconds']['median'] * 1e3:.3g}"
        if "seconds" in point
        else f"{point['way']} –"
        for point in points
    ]
    return f"{first['precision']}, {first['direction']}, L = {first['L']}, ms: {', '.join(figures)}"
