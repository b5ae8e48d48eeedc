"""What a command's options take: numbers within bounds, refused in one sentence. Standard library only.

parser.add_argument("--jobs", type=whole(1))
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def whole(least: int) -> Callable[[str], int]:
    """Read a whole number that is at least this."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"a whole number from {least} up, not {text!r}")
        return number

    return read


def above(limit: float) -> Callable[[str], float]:
    """Read a number that is above this; neither "inf" nor "nan" is one."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not limit < number < math.inf:
            raise argparse.ArgumentTypeError(f"a number above {limit:g}, not {text!r}")
        return number

    return read


def at_least(limit: float) -> Callable[[str], float]:
    """Read a number from this one up; neither "inf" nor "nan" is one."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not limit <= number < math.inf:
            raise argparse.ArgumentTypeError(f"a number from {limit:g} up, not {text!r}")
        return number

    return read


def each(read: Callable[[str], int]) -> Callable[[str], list[int]]:
    """Read several of them, with commas between: "128,1024"."""
    return lambda text: [read(part.strip()) for part in text.split(",")]
