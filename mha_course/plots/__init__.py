"""Every picture of the course. Each is shown with a text that says what is to be seen in it.

    fig = plots.heat_maps({"head 1": weights}, words)
    plots.show(fig, alt="Each word looks at the word before it.")

Here is what all lessons share: how a picture is shown, the common style, and a few general drawings. Pictures of
one lesson are in a file of their own, ``plots.one_head`` for lesson 01.

matplotlib is loaded when the first picture is drawn. Nothing global is changed: no backend is chosen, no setting
is left behind. Pictures are 800 CSS pixels wide at most; colours come from cividis and viridis, and whatever they
say is said by a number, a label or a line style, too. Each is there twice, for a light page and for a dark one.
"""

from __future__ import annotations

import base64
import functools
import html
import importlib
import io
import math
import os
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ._dark import darkened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

WIDTH = 8.0  # inches; 800 CSS pixels
CSS_DPI = 100  # CSS pixels per inch of a figure
# How a page says that it is dark: JupyterLab and nbconvert, VS Code, Colab, Sphinx.
DARK_PAGE = (
    '[data-jp-theme-light="false"],.vscode-dark,.vscode-high-contrast,[theme="dark"],[data-theme="dark"]'
)
CHOOSE = (
    f"<style>:is({DARK_PAGE}) .mha-light{{display:none!important}} "
    f":is({DARK_PAGE}) .mha-dark{{display:inline!important}}</style>"
)
PIXELS = 2  # image pixels per CSS pixel: crisp on dense screens
INK = "#1a1a1a"
QUIET = "#6b6b6b"
# Dark enough for lines on white, told apart by every kind of colour vision, and by their line style.
LINES = (("#00336f", "-"), ("#c2850c", "--"), ("#2a788e", "-."), ("#7a0f5c", ":"))

Drawing = TypeVar("Drawing", bound=Callable[..., Any])


# ------------------------------------------------------------------------------ style and showing


def _style() -> dict[str, Any]:
    from cycler import cycler

    colours, styles = zip(*LINES)
    return {
        "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.labelsize": 10,
        "xtick.labelsize": 10,
        "ytick.labelsize": 10,
        "legend.fontsize": 10,
        "figure.facecolor": "white",
        "savefig.facecolor": "auto",
        "axes.facecolor": "white",
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": QUIET,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e4e4e4",
        "grid.linewidth": 0.8,
        "lines.linewidth": 2,
        "axes.prop_cycle": cycler(color=colours) + cycler(linestyle=styles),
        "image.cmap": "cividis",
        "legend.frameon": False,
    }


def styled(draw: Drawing) -> Drawing:
    """Decorate a function that draws: inside it the course's style holds, outside nothing changes."""

    @functools.wraps(draw)
    def drawn(*args, **kwargs):
        import matplotlib

        with matplotlib.rc_context(_style()):
            return draw(*args, **kwargs)

    return drawn


@styled
def figure(
    rows: int = 1, columns: int = 1, *, height: float = 3.0, width: float = WIDTH, **subplots: Any
) -> tuple[Figure, Any]:
    """An empty figure in the course's style, and its axes (an array of them where there are several).

    Args:
        rows, columns: how many axes.
        height, width: of the whole figure, in inches (100 CSS pixels each).
        subplots: passed on to ``Figure.subplots``.
    """
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), layout="constrained")
    fig.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    return fig, fig.subplots(rows, columns, **subplots)


def show(fig: Figure, alt: str = "") -> None:
    """Show a figure in the notebook, and close it.

    There are two pictures of it, and a page shows the one that fits its theme. Both carry ``alt`` with them.
    JupyterLab and nbconvert drop the alt text of a plain PNG, so they get an ``<img>`` of their own, which keeps it;
    whoever shows no HTML gets the PNG.

    Args:
        fig: any matplotlib figure.
        alt: what is to be seen, for a reader who cannot see it: one or two sentences.

    Raises:
        ValueError: ``alt`` is missing or empty.
    """
    if not isinstance(alt, str) or not alt.strip():
        raise ValueError(
            "plots.show needs alt text: one or two sentences that say what is to be seen. "
            'For example: plots.show(fig, alt="Each row sums to 1; the largest weight is on the diagonal.")'
        )
    from IPython.display import display

    alt = " ".join(alt.split())
    if os.environ.get("MHA_COURSE_PICTURES") == "no":  # a whole class is marked: words do
        display({"text/plain": f"[picture, not drawn while marking] {alt}"}, raw=True)
        return
    width, words = round(fig.get_figwidth() * CSS_DPI), html.escape(alt)

    def image(data: bytes, more: str) -> str:
        source = base64.b64encode(data).decode()
        return f'<img {more} width="{width}" alt="{words}" src="data:image/png;base64,{source}">'

    if os.environ.get("NBGRADER_EXECUTION") == "autograde":  # a whole class: one small picture is enough
        small = png(fig, pixels=1)
        shown = image(small, 'class="mha-light"')
    else:
        light = png(fig)
        with darkened(fig, {colour for colour, _ in LINES}):
            dark = png(fig)
        small = halved(light)
        shown = (
            image(light, 'class="mha-light"') + image(dark, 'class="mha-dark" style="display:none"') + CHOOSE
        )
    bundle = {
        "text/html": shown,
        "image/png": small,
        "text/plain": f"[picture] {alt}",
    }
    display(bundle, raw=True, metadata={"image/png": {"alt": alt}})
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(fig)


@styled
def png(fig: Figure, pixels: float = PIXELS) -> bytes:
    """The figure as a PNG: the same bytes for the same picture, no date and no version in it.

    Args:
        fig: any matplotlib figure.
        pixels: of the image, for one CSS pixel.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    FigureCanvasAgg(fig)
    drawn = io.BytesIO()
    fig.savefig(drawn, format="png", dpi=CSS_DPI * pixels)
    return packed(Image.open(drawn))  # written again: fewer bytes, and without matplotlib's version


def halved(data: bytes) -> bytes:
    """A PNG of `png`, half as wide and high."""
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB")
    return packed(image.resize((round(image.width / 2), round(image.height / 2)), Image.Resampling.BOX))


def packed(image: Image) -> bytes:
    """A picture as a small PNG with nothing in it but the picture."""
    from PIL import Image

    few = image.convert("RGB").quantize(colors=256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    data = io.BytesIO()
    few.save(data, format="PNG", optimize=True)
    return data.getvalue()


def plain(x: Any) -> Any:
    """A tensor (or nested list) as a NumPy array, wherever it lives and whatever graph it belongs to."""
    import numpy

    for method in ("detach", "cpu"):
        x = getattr(x, method, lambda x=x: x)()
    if str(getattr(x, "dtype", "")) in ("torch.bfloat16", "torch.float16"):
        x = x.float()
    return numpy.asarray(x)


def number(value: Any) -> str:
    """A number as it stands in a cell: 3, 0.25, −1, ✓ for True and · for False."""
    import numpy

    if isinstance(value, (bool, numpy.bool_)):
        return "✓" if value else "·"
    if value != value:
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.0f}" if float(value).is_integer() else f"{value:.2f}"
    return text.replace("-", "−")


def size(n: float) -> str:
    """A number of bytes in words: 1536 → "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:g} {unit}"
        n /= 1024
    return f"{n:g} TiB"


def ink_on(colour: Sequence[float]) -> str:
    """Black or white, whichever reads better on this colour (red, green, blue in 0 … 1).

    Contrast as in WCAG 2.2, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance.
    """
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if luminance < 0.179 else "black"


# ------------------------------------------------------------------------------- numbered grids


@dataclass(frozen=True)
class Panel:
    """One tensor, drawn cell by cell: see `panel`."""

    x: Any
    caption: str = ""
    text: Any = None
    colour: Any = None
    mark: Any = None
    faded: Any = None
    rows: Sequence[str] = ()
    columns: Sequence[str] = ()


def panel(x: Any, caption: str = "", **options: Any) -> Panel:
    """A tensor to be drawn by `grids`, with what is written on it.

    Args:
        x: at most 3 dimensions: (columns), (rows, columns), or (slices, rows, columns), drawn one below the other.
        caption: stands above; may have several lines.
        text: what stands in the cells instead of the numbers, shaped like ``x``.
        colour: numbers that decide the cells' colours instead of ``x``, shaped like ``x``.
        mark: bool, shaped like ``x``: cells with a thick frame.
        faded: bool, shaped like ``x``: cells that are only thought of (copies made by broadcasting), drawn pale.
        rows, columns: labels beside and above.
    """
    return Panel(x, caption, **options)


@styled
def grids(*parts: Panel | str | Any, cell: float = 0.44) -> Figure:
    """Tensors side by side as numbered, coloured grids; the same number has the same colour in all of them.

    Args:
        parts: panels, bare tensors, and strings: signs between two of them ("@", "=", "→").
        cell: largest width of a cell, in inches.

    Returns:
        a figure, as wide as it needs to be and not wider than the page.
    """
    import numpy
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    blocks = [part if isinstance(part, str) else _Block(part) for part in parts]
    drawn = [block for block in blocks if isinstance(block, _Block)]
    gap = 0.5
    sizes = [0.5 + 0.22 * len(block) if isinstance(block, str) else block.width for block in blocks]
    width = sum(sizes) + gap * (len(blocks) + 1)
    above = max(block.above for block in drawn)
    below = max(block.height for block in drawn)
    height = above + below + 0.5
    cell = min(cell, WIDTH / width)

    fig = Figure(figsize=(width * cell, height * cell))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.axis("off")

    shades = numpy.concatenate([block.colour[numpy.isfinite(block.colour)] for block in drawn])
    low, high = (shades.min(), shades.max()) if shades.size else (0, 1)
    colours = colormaps["cividis"]

    def colour(value):
        if not numpy.isfinite(value):
            return (0.92, 0.92, 0.92, 1.0)
        return colours(0.5 if high == low else float((value - low) / (high - low)))

    left = gap
    for block, size in zip(blocks, sizes):
        if isinstance(block, str):
            ax.text(left + size / 2, above + below / 2, block, ha="center", va="center", fontsize=15)
        else:
            _draw_block(ax, block, left, above + (below - block.height) / 2, colour)
        left += size + gap
    return fig


def grid(x: Any, caption: str = "", **options: Any) -> Figure:
    """One tensor as a numbered, coloured grid. The options are those of `panel`."""
    return grids(panel(x, caption, **options))


class _Block:
    """A panel with its measures, in cells."""

    def __init__(self, part: Panel | Any):
        import numpy

        self.panel = part = part if isinstance(part, Panel) else Panel(part)
        x = plain(part.x)
        if not 1 <= x.ndim <= 3:
            raise ValueError(f"a grid has 1, 2 or 3 dimensions, not {x.ndim}")
        shape = (1,) * (3 - x.ndim) + x.shape

        def like(given, default):
            return default if given is None else numpy.asarray(plain(given)).reshape(shape)

        self.x = x.reshape(shape)
        self.text = like(part.text, None)
        self.colour = like(part.colour, self.x).astype(float)
        self.mark = like(part.mark, numpy.zeros(shape, bool))
        self.faded = like(part.faded, numpy.zeros(shape, bool))
        slices, rows, columns = shape
        self.sliced = x.ndim == 3
        self.margin = 0.9 * self.sliced + (
            0.25 * max(map(len, part.rows), default=0) + 0.15 if part.rows else 0
        )
        lines = part.caption.split("\n") if part.caption else []
        self.width = max(self.margin + columns, 0.25 * max(map(len, lines), default=0))
        self.above = 0.6 * len(lines) + 0.3 + 0.7 * bool(part.columns)
        self.height = slices * rows + 0.5 * (slices - 1)


def _draw_block(ax: Axes, block: _Block, left: float, top: float, colour: Callable[[float], Any]) -> None:
    from matplotlib.patches import Rectangle

    slices, rows, columns = block.x.shape
    start = left + block.margin + (block.width - block.margin - columns) / 2
    labels = top - 0.2
    if block.panel.columns:
        for c, label in enumerate(block.panel.columns):
            ax.text(start + c + 0.5, labels, label, ha="center", va="bottom", color=QUIET)
        labels -= 0.7
    if block.panel.caption:
        middle = start + columns / 2 if block.width == block.margin + columns else left + block.width / 2
        ax.text(middle, labels, block.panel.caption, ha="center", va="bottom", linespacing=1.3)
    for s in range(slices):
        y = top + s * (rows + 0.5)
        if block.sliced:
            ax.text(start - block.margin + 0.1, y + rows / 2, f"[{s}]", va="center", color=QUIET)
        for r in range(rows):
            if block.panel.rows:
                ax.text(start - 0.2, y + r + 0.5, block.panel.rows[r], ha="right", va="center", color=QUIET)
            for c in range(columns):
                place = (s, r, c)
                fill = colour(block.colour[place])
                if block.faded[place]:
                    fill = tuple(0.25 * part + 0.75 for part in fill[:3])
                ax.add_patch(Rectangle((start + c, y + r), 1, 1, facecolor=fill, edgecolor="white"))
                text = number(block.x[place]) if block.text is None else str(block.text[place])
                ink = ink_on(fill)
                ax.text(start + c + 0.5, y + r + 0.5, text, ha="center", va="center_baseline", color=ink)
    for s, r, c in zip(*block.mark.nonzero()):
        corner = (start + c + 0.03, top + s * (rows + 0.5) + r + 0.03)
        ax.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor="white", linewidth=5))
        ax.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor="black", linewidth=2))


# ---------------------------------------------------------------------------- attention weights


@styled
def heat_maps(
    weights: Mapping[str, Any] | Any,
    queries: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    *,
    height: float | None = None,
    largest: float = 1.0,
) -> Figure:
    """Attention weights as heat maps, side by side: a row for each query, a column for each key.

    The weight stands in its cell as a number where there is room, otherwise a colour bar stands beside.

    Args:
        weights: title → (L, S), or one tensor (L, S).
        queries: L labels, the words that look.
        keys: S labels, the words that are looked at; by default the queries'.
        height: of the figure, in inches; by default what the cells need.
        largest: the weight drawn in the brightest colour (0 has the darkest).
    """
    maps = weights if isinstance(weights, Mapping) else {"": weights}
    maps = {title: plain(w) for title, w in maps.items()}
    keys = queries if keys is None else keys
    L, S = next(iter(maps.values())).shape
    side = min(0.5, (WIDTH - 0.8) / len(maps) / (S + 1.5))  # inches per cell
    fig, axes = figure(1, len(maps), height=height or max(2.0, L * side + 0.9), squeeze=False)
    for ax, (title, w) in zip(axes[0], maps.items()):
        image = ax.imshow(w, vmin=0, vmax=largest, cmap="cividis")
        ax.set_title(title)
        ax.grid(False)
        ax.set_xticks([s - 0.5 for s in range(1, S)], minor=True)
        ax.set_yticks([i - 0.5 for i in range(1, L)], minor=True)
        ax.grid(which="minor", color="white", linewidth=1)
        ax.spines[:].set_visible(False)
        ax.tick_params(which="both", length=0)
        ax.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
        ax.set_xticks(range(S), keys or map(str, range(S)))
        ax.set_yticks(range(L), queries or map(str, range(L)))
        if max(map(len, keys or ["0"])) > 3:
            ax.tick_params(axis="x", labelrotation=60)
        ax.set_ylabel("looks" if queries else "query")
        ax.set_xlabel("is looked at" if keys else "key")
        for i in range(L if side >= 0.38 else 0):
            for j in range(S):
                ink = ink_on(image.cmap(image.norm(w[i, j])))
                text = number(round(float(w[i, j]), 2)).removeprefix("0")
                ax.text(j, i, text or "0", ha="center", va="center", color=ink)
    if side < 0.38:
        fig.colorbar(image, ax=axes[0].tolist(), label="attention weight", shrink=0.8)
    return fig


@styled
def arcs(
    weights: Mapping[str, Any] | Any,
    queries: Sequence[str],
    keys: Sequence[str] | None = None,
    *,
    height: float | None = None,
) -> Figure:
    """Attention weights as lines from each word that looks to the words it looks at.

    A line is as wide and as dark as its weight; weights from 0.5 on end in a dot, too.

    Args:
        weights: title → (L, S), or one tensor (L, S).
        queries: L labels, on the left.
        keys: S labels, on the right; by default the queries'.
        height: of the figure, in inches.
    """
    maps = weights if isinstance(weights, Mapping) else {"": weights}
    keys = list(queries) if keys is None else list(keys)
    tall = max(len(queries), len(keys))
    fig, axes = figure(1, len(maps), height=height or 0.34 * tall + 0.9, squeeze=False)
    for ax, (title, w), (colour, _) in zip(axes[0], maps.items(), LINES * len(maps)):
        lines = sorted((weight, i, j) for i, row in enumerate(plain(w)) for j, weight in enumerate(row))
        for weight, i, j in lines:
            ax.plot((0, 1), (i, j), "-", color=_paler(colour, weight), linewidth=0.3 + 4 * weight)
            if weight >= 0.5:
                ax.plot(1, j, "o", color=colour, markersize=7)
        for x, words, side in ((-0.04, queries, "right"), (1.05, keys, "left")):
            for i, word in enumerate(words):
                ax.text(x, i, word, ha=side, va="center_baseline", fontsize=11)
        ax.text(-0.04, -0.9, "looks", ha="right", va="center", color=QUIET)
        ax.text(1.05, -0.9, "is looked at", ha="left", va="center", color=QUIET)
        ax.set(xlim=(-0.55, 1.6), ylim=(tall - 0.4, -1.4), xticks=[], yticks=[])
        ax.set_title(title, fontsize=12, pad=8)
        ax.axis("off")
    return fig


def _paler(colour: str, weight: float) -> tuple[float, ...]:
    """The colour on white paper, as strong as the weight: white at 0, all of it at 1."""
    from matplotlib.colors import to_rgb

    strength = 0.06 + 0.94 * float(weight)
    return tuple(1 - strength * (1 - part) for part in to_rgb(colour))


# -------------------------------------------------------------------------- pictures of one lesson


def __getattr__(name: str) -> Any:
    """A lesson's own pictures, by the name of their file: ``plots.one_head``."""
    if name in _lessons():
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_lessons()})


@functools.cache
def _lessons() -> frozenset[str]:
    return frozenset(module.name for module in pkgutil.iter_modules(__path__) if module.name[0] != "_")
