"""Pictures of lesson 04."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from . import INK, LINES, QUIET, figure, plain, styled


@styled
def row_sums(training: object, evaluating: object, p: float) -> Figure:
    """How the sums of the rows of weights scatter with dropout, and that they do not without.

    Args:
        training: row sums in train mode, any shape.
        evaluating: row sums in eval mode, any shape.
        p: the dropout probability, for the title.
    """
    fig, axes = figure(1, 2, height=3.2, sharex=True)
    titles = (f"train mode, p = {p}", "eval mode")
    for ax, sums, title, (colour, _) in zip(axes, (training, evaluating), titles, LINES):
        sums = plain(sums).ravel()
        ax.hist(sums, bins=[(i - 0.5) / 20 for i in range(42)], color=colour, edgecolor="white")
        ax.axvline(sums.mean(), color=INK, linestyle=":", linewidth=1.5)
        ax.annotate(
            f"mean {sums.mean():.2f}",
            (sums.mean(), 0.93),
            (8, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
        )
        ax.set(title=title, xlabel="sum of a row of weights", xlim=(0, 2))
    axes[0].set_ylabel("rows")
    return fig


@styled
def flow(
    steps: Sequence[tuple[str, Sequence[tuple[str, tuple[int, ...]]]]],
    arrows: Sequence[tuple[tuple[int, int], tuple[int, int]]],
) -> Figure:
    """The way of the tensors through the module, from top to bottom, with the shape of each.

    Args:
        steps: rows of the drawing: (what happens, the tensors after it: (name, shape)).
        arrows: from (row, place in the row) to (row, place in the row).
    """
    fig, ax = figure(1, 1, height=0.75 * len(steps) + 0.3)

    def place(row: int, index: int) -> float:
        return 0.32 + 0.68 * (index + 0.5) / len(steps[row][1])

    for (row, index), (to_row, to_index) in arrows:
        style = {"arrowstyle": "-|>", "color": QUIET, "linewidth": 1.2, "shrinkA": 18, "shrinkB": 20}
        ax.annotate("", (place(to_row, to_index), to_row), (place(row, index), row), arrowprops=style)
    for row, (what, tensors) in enumerate(steps):
        ax.text(0.0, row, what, ha="left", va="center", color=QUIET)
        for index, (name, shape) in enumerate(tensors):
            text = f"{name}\n({', '.join(map(str, shape))})"
            box = {"boxstyle": "round,pad=0.35", "facecolor": "#eef1f5", "edgecolor": LINES[0][0]}
            ax.text(place(row, index), row, text, ha="center", va="center", fontsize=10, bbox=box)
    ax.set(xlim=(-0.02, 1.02), ylim=(len(steps) - 0.5, -0.5))
    ax.axis("off")
    return fig
