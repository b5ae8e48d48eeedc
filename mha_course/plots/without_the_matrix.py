"""Pictures of lesson 08: tiles in the order in which they are visited, and what is never stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mha_course.plots import INK, LINES, QUIET, figure, ink_on, size, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKS = ("o", "s", "^", "D")


@styled
def tiles(
    visited: Sequence[tuple[int, int, int, int]],
    L: int,
    S: int,
    row: int,
    maxima: Sequence[float],
    sums: Sequence[float],
) -> Figure:
    """The tiles of the scores in the order of their visits, and one query's running maximum and sum.

    Args:
        visited: (first query, behind the last, first key, behind the last) of each tile, in order.
        L, S: queries and keys.
        row: the query whose numbers are drawn on the right; a line marks it on the left.
        maxima, sums: its running maximum and sum after each of its tiles.
    """
    import matplotlib
    from matplotlib.patches import Rectangle

    fig, axes = figure(1, 3, height=3.4, gridspec_kw={"width_ratios": (2.0, 1, 1)})
    left, middle, right = axes
    colours = matplotlib.colormaps["cividis"]
    for n, (i, after_i, j, after_j) in enumerate(visited):
        fill = colours(0.1 + 0.9 * n / max(len(visited) - 1, 1))
        size = (after_j - j, after_i - i)
        left.add_patch(Rectangle((j, i), *size, facecolor=fill, edgecolor="white", linewidth=2))
        centre = ((j + after_j) / 2, (i + after_i) / 2)
        left.text(*centre, str(n + 1), ha="center", va="center", color=ink_on(fill), fontsize=13)
    left.plot((0, S), (row + 0.5, row + 0.5), "-", color="white", linewidth=4)
    left.plot((0, S), (row + 0.5, row + 0.5), "--", color=INK, linewidth=1.5)
    left.set(xlim=(0, S), ylim=(L, 0), xlabel="key", ylabel="query", aspect="equal")
    left.grid(False)
    left.set_title("Tiles, in the order of their visits", loc="left")
    steps = range(1, len(maxima) + 1)
    panels = (middle, maxima, f"query {row}: maximum"), (right, sums, "… and sum")
    for (ax, numbers, title), (colour, line) in zip(panels, LINES):
        ax.plot(steps, numbers, line, color=colour, marker="o")
        for step, number in zip(steps, numbers):
            ax.annotate(
                f"{number:.2f}", (step, number), (0, 7), textcoords="offset points", ha="center", color=colour
            )
        ax.set_title(title, loc="left")
        ax.set(xlabel="tiles of its row seen", xticks=list(steps))
        ax.margins(x=0.2, y=0.25)
        ax.tick_params(axis="y", colors=QUIET)
    return fig


@styled
def memory(lengths: Sequence[int], peaks: Mapping[str, Sequence[int]]) -> Figure:
    """The most memory that a call takes, against the length, both axes logarithmic.

    Args:
        lengths: L = S of each call.
        peaks: name → bytes at each length.
    """
    fig, ax = figure(1, 1, height=3.5)
    for (name, numbers), (colour, line), mark in zip(peaks.items(), LINES, MARKS):
        ax.plot(lengths, numbers, line, color=colour, marker=mark)
        ax.annotate(
            name, (lengths[-1], numbers[-1]), (9, 0), textcoords="offset points", va="center", color=colour
        )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    low, high = (f(map(f, peaks.values())) for f in (min, max))
    ticks = [1 << n for n in range(10, 50, 2) if low / 4 <= 1 << n <= high * 4]
    ax.set_yticks(ticks, [size(tick) for tick in ticks])
    ax.set_xticks(lengths, [f"{n:,}" for n in lengths])
    ax.set_xlim(lengths[0] * 0.85, lengths[-1] * 4)
    ax.set(xlabel="L, queries and keys", ylabel="memory at its highest")
    return fig


@styled
def errors_by_blocks(
    blocks: Sequence[int], errors: Mapping[str, Sequence[float]], floor: float = 1e-17
) -> Figure:
    """The largest error against the number of blocks, both axes logarithmic.

    Args:
        blocks: how many blocks the keys were cut into.
        errors: name → largest absolute difference from the direct formula.
        floor: what exact zeros are drawn at.
    """
    fig, ax = figure(1, 1, height=3.2)
    for (name, numbers), (colour, line), mark in zip(errors.items(), LINES, MARKS):
        ax.plot(blocks, [max(x, floor) for x in numbers], line, color=colour, marker=mark, label=name)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(blocks, list(map(str, blocks)))
    ax.set(xlabel="number of blocks", ylabel="largest error", ylim=(floor, 100))
    ax.legend(loc="center right", bbox_to_anchor=(1, 0.5))
    return fig
