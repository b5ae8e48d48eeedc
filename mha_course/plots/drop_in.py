"""Pictures of lesson 05."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from . import INK, LINES, figure, styled


@styled
def parity(errors: Mapping[str, Mapping[str, float]], allowed: float) -> Figure:
    """A square for each option and each thing compared: ✓ and light where they agree, ✗ and hatched where not.

    Args:
        errors: option → (what is compared → largest absolute difference; NaN where it could not be compared).
        allowed: differences up to this count as equal.
    """
    options, columns = list(errors), list(next(iter(errors.values())))
    fig, ax = figure(1, 1, height=0.36 * len(options) + 0.9)
    for row, option in enumerate(options):
        for column, what in enumerate(columns):
            error = errors[option][what]
            good = error <= allowed
            ax.add_patch(
                _square(column, row, facecolor="#cfe8d8" if good else "#f3d6c6", hatch="" if good else "///")
            )
            text = ("✓ " if good else "✗ ") + (f"{error:.0e}" if error == error else "NaN or error")
            ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=INK)
    ax.set(xlim=(0, len(columns)), ylim=(len(options), 0))
    ax.set_xticks([i + 0.5 for i in range(len(columns))], columns)
    ax.set_yticks([i + 0.5 for i in range(len(options))], options)
    ax.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return fig


@styled
def filling_up(stages: Mapping[str, Mapping[str, Mapping[str, float]]], allowed: float) -> Figure:
    """`parity` at several stages side by side, marks only: ✓ and light where they agree, ✗ and hatched where not.

    Args:
        stages: name → what `parity` takes; the same options in each.
        allowed: differences up to this count as equal.
    """
    options = list(next(iter(stages.values())))
    fig, axes = figure(1, len(stages), height=0.3 * len(options) + 1.2, sharey=True)
    for ax, (stage, errors) in zip(axes, stages.items()):
        columns = list(errors[options[0]])
        for row, option in enumerate(options):
            for column, what in enumerate(columns):
                good = errors[option][what] <= allowed
                look = {"facecolor": "#cfe8d8"} if good else {"facecolor": "#f3d6c6", "hatch": "///"}
                ax.add_patch(_square(column, row, **look))
                ax.text(column + 0.5, row + 0.5, "✓" if good else "✗", ha="center", va="center", color=INK)
        ax.set(xlim=(0, len(columns)), ylim=(len(options), 0))
        ax.set_title(stage, fontsize=10, pad=8)
        ax.set_xticks([i + 0.5 for i in range(len(columns))], columns, rotation=45, ha="right", fontsize=9)
        ax.set_yticks([i + 0.5 for i in range(len(options))], options)
        ax.tick_params(length=0)
        ax.grid(False)
        ax.spines[:].set_visible(False)
    return fig


def _square(column: int, row: int, **style: object):
    from matplotlib.patches import Rectangle

    return Rectangle((column + 0.02, row + 0.04), 0.96, 0.92, edgecolor="#9a9a9a", linewidth=0.8, **style)


@styled
def answers(rows: Sequence[tuple[str, Sequence[float]]], bias: Sequence[float]) -> Figure:
    """What several ways give for a query that may see nothing, feature by feature.

    Args:
        rows: (which way, its output's features; NaN is written as such).
        bias: the output projection's bias, drawn as the first row.
    """
    rows = [("bias of out_proj", bias), *rows]
    fig, ax = figure(1, 1, height=0.38 * len(rows) + 0.5)
    for row, (name, numbers) in enumerate(rows):
        ax.text(-0.1, row + 0.5, name, ha="right", va="center", color=LINES[0][0] if row else INK)
        for column, value in enumerate(numbers):
            nan = value != value
            ax.add_patch(
                _square(column, row, facecolor="#f3d6c6" if nan else "#eef1f5", hatch="///" if nan else "")
            )
            ax.text(
                column + 0.5, row + 0.5, "NaN" if nan else f"{value:.2f}", ha="center", va="center", color=INK
            )
    ax.set(xlim=(-3.2, len(bias)), ylim=(len(rows), 0))
    ax.axis("off")
    return fig
