"""Pictures of lesson 02."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from . import INK, LINES, QUIET, figure, ink_on, plain, styled


@styled
def leak_maps(maps: Mapping[str, object], tolerance: float = 1e-9) -> Figure:
    """Maps of how outputs depend on inputs, side by side; what leaks from the future is crossed.

    Args:
        maps: title → (L, L), the output of ``future_leak``.
        tolerance: up to here a number counts as 0.
    """
    fig, axes = figure(1, len(maps), height=3.3, squeeze=False)
    for ax, (title, leak) in zip(axes[0], maps.items()):
        leak = plain(leak)
        image = ax.imshow(leak, cmap="cividis", vmin=0, vmax=max(leak.max(), tolerance))
        leaks = 0
        for i in range(len(leak)):
            for j in range(len(leak)):
                if j > i and leak[i, j] > tolerance:
                    leaks += 1
                    ax.text(
                        j,
                        i,
                        "✗",
                        ha="center",
                        va="center",
                        fontsize=13,
                        color=ink_on(image.cmap(image.norm(leak[i, j]))),
                    )
        ax.plot([-0.5, len(leak) - 0.5], [-0.5, len(leak) - 0.5], "--", color="white", linewidth=1)
        ax.set_title(f"{title}\n{leaks or 'no'} leak{'' if leaks == 1 else 's'}", fontsize=10)
        ax.set(xlabel="input j", ylabel="output i")
        ax.grid(False)
    return fig


@styled
def treatments(rows: Sequence[tuple[str, Sequence[float], Sequence[float]]], keys: Sequence[str]) -> Figure:
    """What several treatments make of a row that may see nothing: its weights, and the gradient that comes back.

    Args:
        rows: (treatment, its weights, the gradient of the scores).
        keys: a label for each key.
    """
    fig, axes = figure(1, 2, height=0.42 * len(rows) + 1.0, sharey=True)
    for ax, title, part in zip(axes, ("weights of the row", "gradient of its scores"), (1, 2)):
        for row, treatment in enumerate(rows):
            for column, value in enumerate(treatment[part]):
                _cell(ax, column, row, float(value))
        ax.set(xlim=(0, len(keys)), ylim=(len(rows), 0), title=title)
        ax.set_xticks([i + 0.5 for i in range(len(keys))], keys)
        ax.set_yticks([i + 0.5 for i in range(len(rows))], [row[0] for row in rows])
        ax.tick_params(length=0)
        ax.grid(False)
        ax.spines[:].set_visible(False)
    return fig


def _cell(ax: object, column: int, row: int, value: float) -> None:
    from matplotlib.patches import Rectangle

    nan = value != value
    style = {"facecolor": "#f3d6c6", "hatch": "///"} if nan else {"facecolor": "#eef1f5"}
    ax.add_patch(
        Rectangle((column + 0.03, row + 0.06), 0.94, 0.88, edgecolor="#9a9a9a", linewidth=0.8, **style)
    )
    text = "NaN" if nan else ("0" if value == 0 else f"{value:.2f}")
    ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=INK)


@styled
def mask_grid(masks: Mapping[str, object], queries: Sequence[str], keys: Sequence[str]) -> Figure:
    """Masks as squares: ✓ where a query may look, · where not.

    Args:
        masks: title → bool (L, S), True = may look.
        queries, keys: labels.
    """
    from matplotlib.patches import Rectangle

    fig, axes = figure(1, len(masks), height=0.36 * len(queries) + 1.3, squeeze=False)
    for ax, (title, mask) in zip(axes[0], masks.items()):
        mask = plain(mask)
        for i in range(len(queries)):
            for j in range(len(keys)):
                face = LINES[0][0] if mask[i, j] else "white"
                ax.add_patch(Rectangle((j, i), 1, 1, facecolor=face, edgecolor="#b0b0b0", linewidth=0.8))
                ax.text(
                    j + 0.5,
                    i + 0.5,
                    "✓" if mask[i, j] else "·",
                    ha="center",
                    va="center",
                    color="white" if mask[i, j] else QUIET,
                )
        ax.set(xlim=(0, len(keys)), ylim=(len(queries), 0), title=title)
        ax.set_xticks([i + 0.5 for i in range(len(keys))], keys, rotation=60)
        ax.set_yticks([i + 0.5 for i in range(len(queries))], queries)
        ax.tick_params(length=0)
        ax.grid(False)
        ax.spines[:].set_visible(False)
        ax.set_aspect("equal")
    return fig
