"""Pictures of lesson 01."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from . import LINES, figure, styled

MARKS = ("o", "s", "^", "D")


@styled
def sharpness(
    sizes: Sequence[int],
    raw: Sequence[float],
    scaled: Sequence[float],
    raw_gradient: Sequence[float],
    scaled_gradient: Sequence[float],
    keys: int,
) -> Figure:
    """The largest weight against D, with and without √D, and below it the gradient that is left.

    Args:
        sizes: the values of D.
        raw, scaled: mean largest weight at each.
        raw_gradient, scaled_gradient: mean size of the softmax's gradient at each.
        keys: how many keys there were (the even share is drawn).
    """
    fig, (above, below) = figure(2, 1, height=5.4, sharex=True)
    for ax, pair in ((above, (raw, scaled)), (below, (raw_gradient, scaled_gradient))):
        for name, numbers, (colour, line), mark in zip(("without √D", "with √D"), pair, LINES, MARKS):
            ax.plot(sizes, numbers, line, color=colour, marker=mark, label=name)
            ax.annotate(
                name, (sizes[-1], numbers[-1]), (8, 0), textcoords="offset points", va="center", color=colour
            )
    above.axhline(1 / keys, color="0.6", linewidth=1)
    above.annotate("spread evenly", (sizes[0], 1 / keys), (0, 3), textcoords="offset points", color="0.4")
    above.set(ylim=(0, 1.05), ylabel="largest weight")
    above.set_title("Without √D, one key takes all …", loc="left")
    below.set(ylim=(0, None), ylabel="gradient of the softmax", xlabel="D, features of queries and keys")
    below.set_title("… and hardly anything can be learned any more", loc="left")
    below.set_xscale("log", base=2)
    below.set_xticks(sizes, [str(size) for size in sizes])
    below.set_xlim(sizes[0] * 0.8, sizes[-1] * 2.6)
    return fig


@styled
def losses(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Losses over the steps of a training, a line for each.

    Args:
        curves: name → losses.
    """
    fig, ax = figure(1, 1, height=3.2)
    for (name, numbers), (colour, line) in zip(curves.items(), LINES):
        ax.plot(range(1, len(numbers) + 1), numbers, line, color=colour)
        ax.annotate(
            name, (len(numbers), numbers[-1]), (6, 0), textcoords="offset points", va="center", color=colour
        )
    longest = max(map(len, curves.values()))
    ax.set(ylim=(0, 1.02), xlim=(0, longest * 1.18), xlabel="step", ylabel="loss")
    return fig
