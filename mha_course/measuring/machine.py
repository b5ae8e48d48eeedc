"""What differs between CUDA, MPS and a CPU: waiting, timing, counting memory. All else is the same code."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mha_course.counting import peak_bytes

Fn = Callable[[], Any]

RESOLUTION = 1e-9  # seconds; no clock here is finer, and nothing takes no time at all


def machine_for(device: str | torch.device) -> Machine:
    """The machine behind a device's name.

    Raises:
        ValueError: torch sees no such device here, or it is of a kind that is not measured.
    """
    device = torch.device(device)
    kinds = {"cuda": Cuda, "mps": Mps, "cpu": Machine}
    if device.type not in kinds:
        raise ValueError(f"only cuda, mps and cpu can be measured, not {device.type}")
    if (reason := why_not(device.type)) is not None:
        raise ValueError(reason)
    return kinds[device.type](device)


def why_not(kind: str) -> str | None:
    """Why there is no such device here, in one sentence; ``None`` if there is one."""
    if kind == "cuda" and not torch.cuda.is_available():
        if torch.version.cuda is None and torch.version.hip is None:
            return f"this PyTorch ({torch.__version__}) was built without CUDA"
        if shutil.which("nvidia-smi") is None:
            return f"PyTorch {torch.__version__} could use CUDA, but no NVIDIA driver is installed here"
        return (
            f"PyTorch {torch.__version__} could use CUDA, but finds no usable GPU (does nvidia-smi show one?)"
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        return "there is no Apple GPU here (MPS), or this PyTorch cannot use it"
    return None


class Machine:
    """A CPU; and what the other machines have in common.

    Args:
        device: where tensors are made.
    """

    memory_is = "counted: what the tensors made during the call hold at its highest point"

    def __init__(self, device: torch.device):
        self.device = device

    def wait(self) -> None:
        """Until everything that was asked for has been done."""

    def seconds(self, fn: Fn, times: int = 1) -> float:
        """How long one call of ``fn`` takes, from ``times`` calls in a row, in seconds."""
        self.wait()
        started = time.perf_counter()
        for _ in range(times):
            fn()
        self.wait()
        return max(time.perf_counter() - started, RESOLUTION) / times

    def peak(self, fn: Fn) -> int | None:
        """Bytes that one call takes at its highest point, beyond what is there before it."""
        return peak_bytes(fn)

    def compiled_peak(self, fn: Fn) -> int | None:
        """The same for compiled code, whose tensors only the device's own bookkeeping sees; else ``None``."""
        return None

    def free(self) -> int | None:
        """Bytes of memory that could still be had, where that is known."""
        with contextlib.suppress(Exception):
            import psutil

            return psutil.virtual_memory().available
        return None

    def tidy(self) -> None:
        """Give back what nobody uses."""
        gc.collect()

    def survives_running_out(self) -> bool:
        """Whether asking for too much raises an error; a CPU's process may be ended instead."""
        return False

    def precisions(self) -> dict[str, str | None]:
        """For each precision, why it is not measured by default here, or ``None``."""
        no_tf32 = "tf32 is a mode of NVIDIA GPUs from Ampere on"
        return {
            "float32": None,
            "tf32": no_tf32,
            "bfloat16": "many CPUs only imitate bfloat16: name it to try",
        }

    def name(self) -> str:
        with contextlib.suppress(OSError):
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
        return _said("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()

    def describe(self) -> dict[str, Any]:
        """What a reader needs to know about the machine; nothing that names its owner."""
        return {
            "device": self.device.type,
            "name": self.name(),
            "driver": None,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_is": self.memory_is,
        }


class Cuda(Machine):
    """An NVIDIA GPU: timed by events in its own queue, memory by its allocator's peak.

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html, "Asynchronous execution", "Memory management".
    """

    memory_is = (
        "of PyTorch's allocator: torch.cuda.max_memory_allocated beyond what was allocated before the call"
    )

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)

    def seconds(self, fn: Fn, times: int = 1) -> float:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.wait()
        with torch.cuda.device(self.device):
            before.record()
            for _ in range(times):
                fn()
            after.record()
        after.synchronize()
        return max(before.elapsed_time(after) / 1000, RESOLUTION) / times  # elapsed_time is in milliseconds

    def peak(self, fn: Fn) -> int:
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        result = fn()
        self.wait()
        top = torch.cuda.max_memory_allocated(self.device)
        del result
        return top - before

    compiled_peak = peak

    def free(self) -> int:
        return torch.cuda.mem_get_info(self.device)[0]

    def tidy(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()

    def survives_running_out(self) -> bool:
        return True

    def precisions(self) -> dict[str, str | None]:
        ampere = torch.cuda.get_device_capability(self.device) >= (8, 0)
        old = None if ampere else "this GPU is older than Ampere (compute capability 8.0)"
        return {"float32": None, "tf32": old, "bfloat16": old}

    def name(self) -> str:
        return torch.cuda.get_device_properties(self.device).name

    def describe(self) -> dict[str, Any]:
        seen = torch.cuda.get_device_properties(self.device)
        which = f"--id=GPU-{seen.uuid}" if hasattr(seen, "uuid") else f"--id={self.device.index or 0}"

        def ask(what: str) -> str | None:
            return _said("nvidia-smi", which, f"--query-gpu={what}", "--format=csv,noheader")

        return super().describe() | {
            "driver": ask("driver_version"),
            "clocks": ask("clocks.max.sm,clocks.max.mem,power.limit"),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "capability": f"{seen.major}.{seen.minor}",
            "processors": seen.multi_processor_count,
            "memory_bytes": seen.total_memory,
        }


class Mps(Machine):
    """An Apple GPU: timed by the clock on the wall around a wait; memory counted, as on a CPU.

    Source: https://docs.pytorch.org/docs/stable/mps.html
    """

    def wait(self) -> None:
        torch.mps.synchronize()

    def free(self) -> int | None:
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()

    def tidy(self) -> None:
        gc.collect()
        torch.mps.empty_cache()

    def precisions(self) -> dict[str, str | None]:
        return super().precisions() | {"bfloat16": None}

    def name(self) -> str:
        return _said("sysctl", "-n", "machdep.cpu.brand_string") or "Apple GPU"

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"system": f"macOS {platform.mac_ver()[0]} {platform.machine()}"}


def _said(*command: str) -> str | None:
    """The first line that a program prints; ``None`` if there is no such program, or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().partition("\n")[0].strip() or None
