"""The same figure for a dark page: paper and ink change places, what colours *say* stays.

Cells and images keep the colour that stands for their value, and what is written on them. All else, words, lines,
bars, is drawn in the same hue with its lightness turned round.
"""

from __future__ import annotations

import colorsys
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

PAPER = "#111111"  # JupyterLab's and nbconvert's dark page
FAINTEST = 0.2  # lightness: a line of the grid can still be seen


@contextlib.contextmanager
def darkened(fig: Figure, lines: set[str]) -> Iterator[None]:
    """Inside, the figure is coloured for a dark page; afterwards as before.

    Args:
        fig: a figure on an Agg canvas.
        lines: colours of lines and bars, as "#rrggbb": shapes filled with these change, others say something.
    """
    undo: list[Callable[[], Any]] = []
    try:
        _darken(fig, lines, undo)
        yield
    finally:
        for step in reversed(undo):
            step()


def turned(colour: Any) -> tuple[float, ...]:
    """A colour with its lightness turned round, as (red, green, blue, alpha): white becomes the dark paper."""
    from matplotlib.colors import to_rgba

    *rgb, alpha = to_rgba(colour)
    if alpha == 0:
        return (*rgb, alpha)
    if min(rgb) > 0.99:
        return (*to_rgba(PAPER)[:3], alpha)
    hue, lightness, saturation = colorsys.rgb_to_hls(*rgb)
    return (*colorsys.hls_to_rgb(hue, max(1 - lightness, FAINTEST), saturation), alpha)


def _darken(fig: Figure, lines: set[str], undo: list[Callable[[], Any]]) -> None:
    import numpy
    from matplotlib.collections import Collection
    from matplotlib.colors import to_hex
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.spines import Spine
    from matplotlib.text import Text

    fig.draw_without_rendering()  # everything gets its place
    renderer = fig.canvas.get_renderer()

    def change(artist: Artist, *colours: str, how: Callable[[Any], Any] = turned) -> None:
        before = [getattr(artist, f"get_{name}")() for name in colours]  # all first: one may follow another
        for name, colour in zip(colours, before):
            put = getattr(artist, f"set_{name}")
            undo.append(lambda put=put, colour=colour: put(colour))
            put(how(colour))

    def is_ink(colour: Any) -> bool:
        return to_hex(colour) in lines or to_hex(colour) == "#ffffff"

    backgrounds = {fig.patch, *(ax.patch for ax in fig.axes)}
    boxes = {text.get_bbox_patch() for text in fig.findobj(Text)} - {None}
    frames = {ax.get_legend().get_frame() for ax in fig.axes if ax.get_legend()}
    shapes = [
        patch
        for patch in fig.findobj(Patch)
        if patch not in backgrounds | boxes | frames and not isinstance(patch, Spine) and patch.get_fill()
    ]
    kept = [patch for patch in shapes if not is_ink(patch.get_facecolor())] + fig.findobj(AxesImage)
    extents = [artist.get_window_extent(renderer).extents for artist in kept]
    extents = numpy.array(extents).reshape(-1, 4)

    def on_kept(x: float, y: float) -> bool:
        left, low, right, high = extents.T
        return bool(((left <= x) & (x <= right) & (low <= y) & (y <= high)).any())

    for patch in [*backgrounds, *boxes, *frames]:
        change(patch, "facecolor")
    for patch in shapes:
        if patch not in kept:
            change(patch, "facecolor")
        if is_ink(patch.get_edgecolor()):
            change(patch, "edgecolor")
    for spine in fig.findobj(Spine):
        change(spine, "edgecolor")
    for text in fig.findobj(Text):
        box = text.get_window_extent(renderer)
        if text.get_bbox_patch() or not on_kept((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2):
            change(text, "color")
    for line in fig.findobj(Line2D):
        points = line.get_transform().transform(line.get_xydata()) if len(line.get_xydata()) else []
        ends = (
            [points[0] + part * (points[-1] - points[0]) for part in (0.1, 0.5, 0.9)] if len(points) else []
        )
        if not ends or not all(on_kept(*point) for point in ends):
            change(line, "color", "markerfacecolor", "markeredgecolor")
    for collection in fig.findobj(Collection):
        if collection.get_array() is None:
            change(collection, "facecolor", "edgecolor", how=lambda colours: [*map(turned, colours)])
