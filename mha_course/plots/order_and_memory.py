"""Pictures of lesson 06: positions as vectors and as angles, and what a cache saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mha_course.plots import INK, LINES, QUIET, figure, plain, size, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKS = ("o", "s", "^", "D")


@styled
def position_vectors(table: Any, near: Sequence[int]) -> Figure:
    """A table of position vectors, and how alike each row is to some of them.

    Args:
        table: (L, E).
        near: positions p whose dot product with every row is drawn.
    """
    table = plain(table)
    fig, (left, right) = figure(1, 2, height=3.4)
    image = left.imshow(table, cmap="cividis", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    left.grid(False)
    left.set(xlabel="feature", ylabel="position")
    left.set_title("A row is a position", loc="left")
    fig.colorbar(image, ax=left, ticks=(-1, 0, 1))
    alike = table @ table.T
    for p, (colour, line) in zip(near, LINES):
        right.plot(alike[p], line, color=colour)
        right.plot(p, alike[p, p], "o", color=colour)
        right.annotate(
            f"row {p}", (p, alike[p, p]), (0, 6), textcoords="offset points", ha="center", color=colour
        )
    right.set(xlabel="position", ylabel="dot product with that row", ylim=(None, alike.max() * 1.15))
    right.set_title("Near rows are alike", loc="left")
    return fig


@styled
def by_distance(scores: Mapping[str, Any]) -> Figure:
    """Scores of one query and one key, standing at every pair of places, and the same against the distance.

    Args:
        scores: title → (L, L): row i, the query's place; column j, the key's.
    """
    fig, axes = figure(2, len(scores), height=5.6, gridspec_kw={"height_ratios": (3, 2)})
    for (title, x), above, below, (colour, _) in zip(scores.items(), axes[0], axes[1], LINES):
        x = plain(x)
        L = len(x)
        image = above.imshow(x, cmap="cividis", interpolation="nearest")
        fig.colorbar(image, ax=above, shrink=0.9)
        above.grid(False)
        above.set(xlabel="the key's place j", ylabel="the query's place i")
        above.set_title(title, loc="left")
        distances = [i - j for i in range(L) for j in range(L)]
        below.plot(distances, x.flatten(), "o", color=colour, markersize=2.5)
        below.set(xlabel="distance i − j", ylabel="score")
        below.margins(y=0.12)
    return fig


@styled
def work(steps: Sequence[int], counts: Mapping[str, Sequence[float]]) -> Figure:
    """Multiplications of every step of decoding, and of all steps so far.

    Args:
        steps: how many tokens there are at each step.
        counts: name → multiplications of each step; the first is the one the others are compared with.
    """
    fig, (left, right) = figure(1, 2, height=3.3)
    for (name, numbers), (colour, line), mark in zip(counts.items(), LINES, MARKS):
        left.plot(
            steps, numbers, line, color=colour, marker=mark, markersize=4, markevery=max(len(steps) // 8, 1)
        )
        place = (steps[-1], numbers[-1])
        left.annotate(name, place, (-4, 7), textcoords="offset points", ha="right", color=colour)
    left.set_yscale("log")
    left.set(xlabel="tokens so far", ylabel="multiplications of this step")
    left.set_title("One step", loc="left")
    left.margins(y=0.15)
    (base_name, base), *others = counts.items()
    total, times = 0, []
    sums = [0] * len(others)
    for number, *rest in zip(base, *(numbers for _, numbers in others)):
        total += number
        sums = [a + b for a, b in zip(sums, rest)]
        times.append([total / s for s in sums])
    for index in range(len(others)):
        colour, line = LINES[index + 1]
        curve = [row[index] for row in times]
        right.plot(steps, curve, line, color=colour)
        right.annotate(
            f"{curve[-1]:.1f} times",
            (steps[-1], curve[-1]),
            (-4, 4),
            textcoords="offset points",
            ha="right",
            color=colour,
        )
    right.set(xlabel="tokens so far", ylabel=f"{base_name},\nover {others[0][0]}", ylim=(0, None))
    right.set_title("All steps together", loc="left")
    right.margins(y=0.15)
    return fig


@styled
def errors_by_step(
    steps: Sequence[int], errors: Mapping[str, Sequence[float]], floor: float = 1e-17
) -> Figure:
    """The largest difference from the right output at each step, on a logarithmic axis.

    Args:
        steps: the token's number at each step.
        errors: name → largest absolute difference at each step.
        floor: what exact zeros are drawn at.
    """
    fig, ax = figure(1, 1, height=3.2)
    for (name, numbers), (colour, line), mark in zip(errors.items(), LINES, MARKS):
        heights = [max(x, floor) for x in numbers]
        ax.plot(steps, heights, line, color=colour, marker=mark, markersize=4, label=name)
    ax.legend(loc="center right", bbox_to_anchor=(1, 0.55))
    ax.set_yscale("log")
    ax.set(xlabel="token", ylabel="largest difference", ylim=(floor, 50))
    return fig


@styled
def cache_sizes(
    tokens: Sequence[int], sizes: Mapping[str, Sequence[int]], limit: tuple[str, float]
) -> Figure:
    """Memory that keys and values take, against the number of tokens, both axes logarithmic.

    Args:
        tokens: numbers of tokens.
        sizes: name → bytes at each.
        limit: a name and a number of bytes, drawn as a level line.
    """
    fig, ax = figure(1, 1, height=3.6)
    for (name, numbers), (colour, line), mark in zip(sizes.items(), LINES, MARKS):
        ax.plot(tokens, numbers, line, color=colour, marker=mark, markersize=4)
        ax.annotate(
            name, (tokens[-1], numbers[-1]), (8, 0), textcoords="offset points", va="center", color=colour
        )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.axhline(limit[1], color=INK, linewidth=1)
    ax.annotate(limit[0], (tokens[0], limit[1]), (0, 4), textcoords="offset points", color=INK)
    ticks = [1 << n for n in range(0, 64, 4) if min(map(min, sizes.values())) / 8 < 1 << n < 16 * limit[1]]
    ax.set_yticks(ticks, [size(tick) for tick in ticks])
    ax.set_xticks(tokens[::2], [f"{n:,}" for n in tokens[::2]])
    ax.set(xlabel="tokens in the text", ylabel="keys and values")
    ax.set_xlim(tokens[0] * 0.8, tokens[-1] * 16)
    ax.tick_params(colors=QUIET)
    return fig
