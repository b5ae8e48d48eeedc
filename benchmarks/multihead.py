"""`mha_course.reference.MultiheadAttention` beside ``torch.nn.MultiheadAttention`` on the CPU: time and memory.

    python benchmarks/multihead.py                    # everything, some minutes
    python benchmarks/multihead.py --shape 32,32,64,4 --rounds 200

Every number is ours / PyTorch's: below 1 is faster, or smaller. Time: both are called in turn, in one process, on one
thread, and the medians are divided. *wall* is the clock on the wall, *cpu* the processor's time, which other programs
on the machine disturb less. Memory: by how much one call makes a fresh process grow at most.
"""

from __future__ import annotations

import argparse
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from mha_course.reference import MultiheadAttention

SHAPES = {(8, 128, 256, 8): 120, (32, 32, 64, 4): 400, (2, 1024, 512, 8): 15, (1, 4096, 512, 8): 7}  # rounds
MODULES = {"torch": nn.MultiheadAttention, "ours": MultiheadAttention}
WAYS = ("forward", "forward+backward", "inference")


def make_call(
    module: nn.Module, x: torch.Tensor, way: str, need_weights: bool, masks: dict
) -> Callable[[], None]:
    """Self-attention: in train mode, with or without the backward pass; inference = eval mode, no gradients."""
    module.train(way != "inference")

    def call() -> None:
        with torch.set_grad_enabled(way != "inference"):
            output, _ = module(x, x, x, need_weights=need_weights, **masks)
        if way == "forward+backward":
            output.sum().backward()
            module.zero_grad()

    return call


def make_masks(kind: str, N: int, L: int) -> dict:
    """Nothing; the causal mask; or both masks, padding different for every sample."""
    if kind == "none":
        return {}
    masks = {"attn_mask": torch.ones(L, L, dtype=torch.bool).triu(1)}
    if kind == "both":
        masks["key_padding_mask"] = torch.arange(L) >= L - torch.arange(N).unsqueeze(1)  # (N, L)
    return masks


def time_in_turn(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Ratios of the median times, ours to torch's."""
    wall = {name: [] for name in calls}
    cpu = {name: [] for name in calls}
    for call in calls.values():
        call()
    for number in range(rounds):
        for name in sorted(calls, reverse=number % 2 == 0):  # a b, b a, a b …
            began, cpu_began = time.perf_counter(), time.process_time()
            calls[name]()
            wall[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - cpu_began)
    median = statistics.median
    return {
        "wall": median(wall["ours"]) / median(wall["torch"]),
        "cpu": median(cpu["ours"]) / median(cpu["torch"]),
        "ms": median(wall["torch"]) * 1e3,
    }


def peak_growth(name: str, shape: tuple[int, ...], way: str, need_weights: bool) -> float:
    """MiB by which one call makes a fresh process grow at its highest."""
    command = [sys.executable, __file__, "--grow", name, "--shape", ",".join(map(str, shape)), "--way", way]
    command += ["--need-weights"] * need_weights
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def grow(name: str, shape: tuple[int, ...], way: str, need_weights: bool) -> float:
    """MiB by which one call makes this process grow at its highest."""
    N, L, E, H = shape
    module = MODULES[name](E, H, batch_first=True)
    small = torch.randn(1, 2, E)
    make_call(module, small, way, need_weights, {})()  # libraries loaded, buffers made
    x = torch.randn(N, L, E)
    call = make_call(module, x, way, need_weights, {})
    before = high_water_mark()
    call()
    return high_water_mark() - before


def high_water_mark() -> float:
    """The most memory that this process ever had, MiB. (On Linux ``ru_maxrss`` would count the parent's, too.)"""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**10
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", help="N,L,E,H: only this one")
    parser.add_argument("--rounds", type=int, help="how often each is called (default: by shape)")
    parser.add_argument("--masks", choices=("none", "causal", "both"), default="none")
    parser.add_argument("--layout", choices=("batch first", "length first"), default="batch first")
    parser.add_argument("--only", choices=("time", "memory"))
    parser.add_argument("--grow", choices=tuple(MODULES), help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, default="forward", help=argparse.SUPPRESS)
    parser.add_argument("--need-weights", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shapes = [tuple(int(n) for n in options.shape.split(","))] if options.shape else list(SHAPES)
    if options.grow:
        print(grow(options.grow, shapes[0], options.way, options.need_weights))
        return

    print(
        f"torch {torch.__version__}, {platform.machine()}, one thread, float32, {options.layout}, masks: {options.masks}\n"
    )
    if options.only != "memory":
        print("| N, L, E, H | weights | way | PyTorch's ms | wall | cpu |\n|---|---|---|---:|---:|---:|")
        for shape in shapes:
            for need_weights in (False, True):
                for way in WAYS:
                    print_time(shape, need_weights, way, options)
        print()
    if options.only != "time":
        print("| N, L, E, H | weights | way | PyTorch's MiB | ours / PyTorch's |\n|---|---|---|---:|---:|")
        for shape in shapes:
            for need_weights in (False, True):
                for way in WAYS:
                    theirs, ours = (max(0.1, peak_growth(name, shape, way, need_weights)) for name in MODULES)
                    print(
                        f"{_row(shape, need_weights, way)} {theirs:.1f} | {ours / theirs:.2f} |", flush=True
                    )


def print_time(shape: tuple[int, ...], need_weights: bool, way: str, options: argparse.Namespace) -> None:
    N, L, E, H = shape
    batch_first = options.layout == "batch first"
    x = torch.randn((N, L, E) if batch_first else (L, N, E))
    masks = make_masks(options.masks, N, L)
    calls = {
        name: make_call(module(E, H, batch_first=batch_first), x, way, need_weights, masks)
        for name, module in MODULES.items()
    }
    t = time_in_turn(calls, options.rounds or SHAPES.get(shape, 20))
    print(f"{_row(shape, need_weights, way)} {t['ms']:.1f} | {t['wall']:.2f} | {t['cpu']:.2f} |", flush=True)


def _row(shape: tuple[int, ...], need_weights: bool, way: str) -> str:
    return f"| {', '.join(map(str, shape))} | {'with' if need_weights else 'without'} | {way} |"


if __name__ == "__main__":
    main()
