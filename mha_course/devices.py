"""Devices as `benchmark` sees them: something to call, a clock, and a way to wait until all work is done.

Two kinds have the same two methods: `RealDevice` is the machine in front of you, `SimulatedDevice` is a GPU made of
arithmetic. The simulated one knows how long its kernels take, so it can tell a right measurement from a wrong one,
on any machine and in no time at all.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class RealDevice:
    """A device of this machine.

    Args:
        device: "cuda", "mps" or "cpu", or a `torch.device`.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.name = str(device)

    def clock(self) -> float:
        """Seconds since some moment, on the host."""
        return time.perf_counter()

    def synchronize(self) -> None:
        """Wait until everything that was queued is done. A CPU has no queue: nothing to wait for."""
        import torch

        kind = self.name.split(":")[0]
        if kind == "cuda":
            torch.cuda.synchronize(self.name)
        elif kind == "mps":
            torch.mps.synchronize()

    def __repr__(self) -> str:
        return f"RealDevice({self.name!r})"


class SimulatedDevice:
    """A GPU that is not there: its kernels take simulated time, and Python does not wait for them.

    A call of `kernel` only puts work into the queue; the host's clock moves on by ``launch``. The work itself takes
    ``seconds`` and is done when it is done. Like a real GPU it is slow at first (kernels are loaded and chosen), now and
    then it is disturbed, and now and then everything is in the cache and it is quicker than usual.

    Args:
        seconds: what one call of `kernel` takes on the device, usually.
        launch: what it takes on the host to put it into the queue, in seconds.
        slow: how many calls are slow at first (20 times ``seconds``).
        disturbed, lucky: of which calls, modulo 11, take 10 times, and 0.6 times, ``seconds``.
    """

    def __init__(
        self,
        seconds: float = 6e-3,
        launch: float = 3e-4,
        slow: int = 3,
        disturbed: tuple[int, ...] = (3, 8),
        lucky: tuple[int, ...] = (0, 6),
    ):
        self.seconds, self.launch, self.slow = seconds, launch, slow
        self.disturbed, self.lucky = disturbed, lucky
        self.calls = 0
        self.log: list[
            tuple[float, float, float, float]
        ] = []  # asked, asked for, begun, done: one for each call
        self._now = 0.0  # the host's clock
        self._done = 0.0  # when the device will have done all that is queued

    def clock(self) -> float:
        """The host's clock, in simulated seconds."""
        return self._now

    def synchronize(self) -> None:
        """The host waits until the queue is empty."""
        self._now = max(self._now, self._done)

    def kernel(self) -> None:
        """Queue one piece of work; comes back at once."""
        place = (self.calls - self.slow) % 11
        factor = (
            20
            if self.calls < self.slow
            else 10
            if place in self.disturbed
            else 0.6
            if place in self.lucky
            else 1
        )
        self.calls += 1
        asked = self._now
        self._now += self.launch
        begun = max(self._done, self._now)
        self._done = begun + factor * self.seconds
        self.log.append((asked, self._now, begun, self._done))

    def __repr__(self) -> str:
        return f"SimulatedDevice(seconds={self.seconds:g})"
