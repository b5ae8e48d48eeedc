"""``mha-course gpu``: run every check that needs a device, measure everything, write it down."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from mha_course.bootstrap import ROOT
from mha_course.options import above, each, whole

from .machine import machine_for, why_not
from .on_device import check_everything
from .reading import crossover, points
from .record import RECORDED, Record, file_name, save
from .runs import PLANS, PRECISIONS, begin, measure
from .ways import WAYS

OWN_FOLDER = ROOT / "work" / "measurements"
MINUTES = {"cuda": 7.0, "mps": 5.0, "cpu": 0.7}  # in all; a GPU's compiled ways take most of it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", choices=PLANS, default="cuda", help="default: cuda; cpu measures in small"
    )
    parser.add_argument("--minutes", type=above(0), help="what it may take (default: cuda 7, mps 5, cpu 0.7)")
    parser.add_argument(
        "--sizes", type=each(whole(1)), metavar="L,L,…", help="sequence lengths, e.g. 128,1024,8192"
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, metavar="WAY", help=f"some of: {', '.join(WAYS)}")
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=PRECISIONS,
        metavar="PRECISION",
        help=f"some of: {', '.join(PRECISIONS)} (default: what the device is made for)",
    )
    parser.add_argument(
        "--only",
        choices=("checks", "measurements"),
        help="one half of it (default: both; on a CPU measurements)",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--save", type=Path, metavar="FILE", help="default: a new file in work/measurements/")
    where.add_argument("--record", action="store_true", help="save where the lessons look for recordings")


def main(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if there is no such device or a check failed; 130 if it was interrupted."""
    if (reason := why_not(args.device)) is not None:
        print(no_device(args.device, reason), file=sys.stderr)
        return 1
    started = time.monotonic()
    machine = machine_for(args.device)
    record = begin(machine, {"made_by": "mha-course gpu"})
    path = args.save or unused(RECORDED if args.record else OWN_FOLDER, file_name(record))
    print(f"{record['machine']['name']}, torch {torch.__version__}. Saved as it comes in {path}", flush=True)
    budget = 60 * (args.minutes or MINUTES[args.device])
    try:
        if args.only == "checks" or (
            args.only is None and args.device != "cpu"
        ):  # the tests' business on a CPU
            _check(args.device, record, path)
        if args.only == "checks":
            record["ended"] = "complete"
            save(record, path)
        else:
            left = budget - (time.monotonic() - started)
            chosen = {"ways": args.ways, "precisions": args.precisions}
            measure(args.device, args.sizes, **chosen, budget_s=left, save_to=path, record=record, says=_say)
    except KeyboardInterrupt:  # while checking; measure() sees to its own
        record["ended"] = "interrupted"
        save(record, path)
    print(summary(record, path, time.monotonic() - started))
    if record["ended"] != "complete":
        return 130
    return int(any(check["result"] == "failed" for check in record["checks"]))


def _say(line: str) -> None:
    print(line, flush=True)


def _check(device: str, record: Record, path: Path) -> None:
    for result in check_everything(device):
        record["checks"].append(result)
        if result["result"] == "failed":
            _say(f"✗ {result['name']}: {result['says']}")
    save(record, path)
    _say(f"{checks_in_words(record['checks'])} on {device}")


def checks_in_words(checks: Sequence[dict[str, str]]) -> str:
    """ "70 checks are right, 2 failed, 15 have nothing to say"."""
    count = {kind: sum(check["result"] == kind for check in checks) for kind in ("ok", "failed", "left out")}
    parts = [f"{count['ok']} checks are right", f"{count['failed']} failed"]
    return ", ".join([*parts, f"{count['left out']} have nothing to say"])


def no_device(kind: str, reason: str) -> str:
    """What to read where there is no such device."""
    others = [
        f"  mha-course gpu --device {other:<5} {says}"
        for other, says in (
            ("cuda", "measures on the NVIDIA GPU that is here"),
            ("mps", "measures on the Apple GPU that is here"),
            ("cpu", "measures in small on this CPU, in under a minute"),
        )
        if other != kind and why_not(other) is None
    ]
    name = {"cuda": "CUDA device", "mps": "MPS device"}.get(kind, kind)
    lines = [f"There is no {name} here: {reason}.", "What can be done:", *others]
    if kind == "cuda":
        lines.append(
            "  on a machine with an NVIDIA GPU, install a PyTorch with CUDA (README, MHA_COURSE_TORCH)"
        )
    return "\n".join([*lines, "Nothing was measured."])


def unused(folder: Path, name: str) -> Path:
    """A path in the folder that overwrites nothing: "…-2.json" if "….json" is there."""
    path, number = folder / name, 1
    while path.exists():
        number += 1
        path = folder / f"{Path(name).stem}-{number}.json"
    return path


def summary(record: Record, path: Path, seconds: float) -> str:
    """What was found, in a few lines."""
    measured = points(record)
    checks = f", {checks_in_words(record['checks'])}" if record["checks"] else ""
    lines = [
        f"{len(measured)} figures{checks}, in {seconds:.0f} s.",
        *(f"Not measured, {reason}: {', '.join(places)}" for reason, places in _reasons(record).items()),
    ]
    if record["ended"] == "complete" and measured:
        L = crossover(record, "materialised", "fused")
        lines.append(
            f"Fused attention is faster than the L × L matrix from L = {L} on (float32, forward)."
            if L
            else "Fused attention is not clearly faster than the L × L matrix here (float32, forward)."
        )
    if record["ended"] != "complete":
        lines.append("It was interrupted: the file holds what there was until then, and says so.")
    return "\n".join([*lines, f"Saved in {path}"])


def _reasons(record: Record) -> dict[str, list[str]]:
    """Why figures are missing: reason → which, each from its first missing length on."""
    found: dict[tuple[str, str], str] = {}
    for point in record["points"]:
        if reason := point.get("failed") or point.get("left_out"):
            place = f"{point['precision']} {point['direction']}"
            found.setdefault((point["way"], place), f"from L = {point['L']} on {reason}")
    places: dict[str, dict[str, list[str]]] = {}
    for (way, place), reason in found.items():
        places.setdefault(reason, {}).setdefault(way, []).append(place)
    return {
        reason: [f"{way} ({', '.join(where)})" for way, where in ways.items()]
        for reason, ways in places.items()
    }
