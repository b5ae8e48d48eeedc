"""Pictures of lesson 03: where every number goes, and what a model makes of a wrong merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mha_course.plots import LINES, figure, grids, panel, plain, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def numbered(L: int, E: int) -> Any:
    """Tokens (1, L, E) whose number says who they are: E · token + feature, int64."""
    import torch

    return torch.arange(L * E).view(1, L, E)


def where_numbers_go(made: Mapping[str, Any], E: int) -> Figure:
    """Tensors made of `numbered` tokens; every number is labelled "token,feature" and coloured by its token.

    A number that stands in the row of another token has a thick frame.

    Args:
        made: caption → (1, L, E) or (1, H, L, D), whose rows should be tokens.
        E: features of a token.
    """
    import numpy

    parts = []
    for caption, x in made.items():
        x = plain(x)[0]  # (L, E) or (H, L, D)
        token, feature = x // E, x % E
        text = numpy.array([f"{t},{f}" for t, f in zip(token.flat, feature.flat)]).reshape(x.shape)
        rows = numpy.arange(x.shape[-2])[:, None]
        shape = f"({', '.join(map(str, (1, *x.shape)))})"
        labels = [str(row) for row in range(x.shape[-2])]
        astray = token != rows
        parts.append(panel(x, f"{caption}\n{shape}", text=text, colour=token, mark=astray, rows=labels))
    return grids(*parts)


def leaks(maps: Mapping[str, Any]) -> Figure:
    """How much each output depends on each token; dependence on a later token has a thick frame.

    Args:
        maps: caption → (L, L), from ``future_leak``.
    """
    import numpy

    parts = []
    for caption, x in maps.items():
        x = plain(x)
        L = len(x)
        later = numpy.arange(L)[None, :] > numpy.arange(L)[:, None]
        text = numpy.array([f"{value:.1f}" if value > 1e-9 else "·" for value in x.flat]).reshape(x.shape)
        places = [str(i) for i in range(L)]
        outputs = [f"output {i}" for i in range(L)]
        ahead = later & (x > 1e-9)
        parts.append(
            panel(x, f"{caption}\ndepends on token", text=text, mark=ahead, rows=outputs, columns=places)
        )
    return grids(*parts)


@styled
def training_and_lengths(
    steps: Sequence[int],
    while_training: Mapping[str, Sequence[float]],
    lengths: Sequence[int],
    by_length: Mapping[str, Sequence[float]],
) -> Figure:
    """Accuracy while training, and beside it the trained models' accuracy on sequences of other lengths.

    Args:
        steps: at which training was measured.
        while_training: name → accuracies at those steps.
        lengths: of the sequences, the longest the one that was trained on.
        by_length: name → accuracies at those lengths.
    """
    fig, axes = figure(1, 2, height=3.2, sharey=True)
    for ax, xs, curves in zip(axes, (steps, lengths), (while_training, by_length)):
        for (name, numbers), (colour, line), mark in zip(curves.items(), LINES, "os^D"):
            ax.plot(xs, numbers, line, color=colour, marker=mark, label=name, clip_on=False)
    axes[0].set(ylim=(0, 1.04), ylabel="share of words copied rightly", xlabel="step of training")
    axes[0].set_title("In training: no difference …", loc="left")
    axes[0].legend(loc="lower right")
    axes[1].set(xlabel=f"length of the sequence (trained on {max(lengths)})", xticks=list(lengths))
    axes[1].set_title("… on other lengths: found out", loc="left")
    return fig
