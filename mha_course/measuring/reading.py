"""Questions put to a record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .record import Record


def points(
    record: Record,
    way: str | Sequence[str] | None = None,
    precision: str | None = None,
    direction: str | None = None,
    *,
    measured: bool = True,
) -> list[dict[str, Any]]:
    """The points of a record that fit, by rising L.

    Args:
        record: from `measure` or `latest_record`.
        way: one or several ways; ``None``: all.
        precision, direction: ``None``: all.
        measured: only those with figures; False: also those that failed or were left out.
    """
    ways = (way,) if isinstance(way, str) else way
    found = [
        point
        for point in record["points"]
        if (ways is None or point["way"] in ways)
        and precision in (None, point["precision"])
        and direction in (None, point["direction"])
        and ("seconds" in point or not measured)
    ]
    return sorted(found, key=lambda point: point["L"])


def crossover(
    record: Record, slow: str, fast: str, precision: str = "float32", direction: str = "forward"
) -> int | None:
    """The smallest measured L from which on ``fast`` stays faster than ``slow``; ``None`` if there is none.

    Faster means: its upper quartile is below the other's lower one, so that noise does not decide. Lengths at
    which only one of them has a figure are not compared.
    """
    times = [
        {point["L"]: point["seconds"] for point in points(record, way, precision, direction)}
        for way in (slow, fast)
    ]
    first = None
    for L in sorted(times[0].keys() & times[1].keys()):
        faster = times[1][L]["high"] < times[0][L]["low"]
        first = (first or L) if faster else None
    return first


def ridge(record: Record, precision: str = "float32") -> float:
    """FLOP per byte at which the two ceilings meet: below it memory is the limit, above it arithmetic.

    Raises:
        ValueError: the record has no ceilings for this precision.

    Source: Williams, Waterman and Patterson 2009, "Roofline".
    """
    ceilings = record["ceilings"]
    if precision not in ceilings["flops_per_s"] or not ceilings["bytes_per_s"]:
        raise ValueError(f"this record has no ceilings for {precision}")
    return ceilings["flops_per_s"][precision]["best"] / ceilings["bytes_per_s"]["best"]
