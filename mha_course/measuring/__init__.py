"""What attention costs on a real machine: time, memory, FLOP/s and bytes/s of every way to compute it.

    from mha_course import measuring

    record = measuring.measure("cpu", sizes=(64, 128, 256, 512, 1024), budget_s=40)
    record = measuring.measure("cpu", sizes=(64, 256), own={"yours": my_attention})  # (q, k, v) → output
    record = measuring.latest_record()  # shipped with the course; None as long as nobody recorded one

    measuring.points(record, way="fused", direction="forward")   # a list of dicts, by rising L
    measuring.crossover(record, "materialised", "fused")         # the smallest L at which fused is faster, or None
    measuring.ridge(record)                                      # FLOP per byte at which the two ceilings meet

    plots.gpu.attention_curves(record)   # time and memory against L
    plots.gpu.roofline(record)           # achieved FLOP/s against FLOP per byte, under the two ceilings

``mha-course gpu`` runs all of it on a GPU, and every check that needs one. CUDA, MPS and CPU take the same way
through this package; only `machine` knows how each is timed and how its memory is counted.

**A record** is plain JSON data:

* ``machine``: device ("cuda", "mps", "cpu"), name, driver, torch, …; ``date`` (UTC, ISO 8601); ``ended``
  ("complete", "interrupted" or "running").
* ``settings``: N, H, D, sizes, … of the inputs: q, k, v are (N, H, L, D), self-attention, no mask, no dropout.
* ``ceilings``: ``bytes_per_s`` of a large copy and ``flops_per_s`` of a large matrix product by precision: the
  ``best`` sample (what the machine can do), ``median``, quartiles; measured before and after all else, the better counts.
* ``points``: one for each way, precision, direction and L, with

  - ``way`` (a key of `WAYS`, or a name from ``own``), ``precision`` ("float32", "tf32", "bfloat16"), ``direction``
    ("forward", or "forward+backward": one training step), ``L``;
  - ``seconds``: ``median``, ``low`` and ``high`` (the quartiles), ``n`` (how many samples);
  - ``peak_bytes``: memory at the highest point of one call, beyond what was there before it (``None`` where it
    cannot be counted);
  - ``flops``: what attention needs (no recomputation, 4·N·H·L²·D forward), ``bytes``: what the call's kernels
    read and write; ``flops_per_s`` and ``bytes_per_s``: ``median``, ``low``, ``high``;
  - ``bytes_at_least``: true where the code is compiled and its traffic only known from below: what goes in and out;
  - or, where there is no figure, ``failed``: one line that says why ("out of memory: …"), or ``left_out``.

* ``checks``: what was checked on the device (``mha-course gpu`` only).

Nothing in it is estimated; a figure that was not measured is not there.
"""

from .reading import crossover, points, ridge
from .record import latest_record, load, save
from .runs import DIRECTIONS, PRECISIONS, measure
from .ways import WAYS

__all__ = [
    "DIRECTIONS",
    "PRECISIONS",
    "WAYS",
    "crossover",
    "latest_record",
    "load",
    "measure",
    "points",
    "ridge",
    "save",
]
