"""Pictures of lesson 00: a column minus a row, a table of dot products, features cut into groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mha_course.plots import grids, panel, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def subtraction(queries: Any, keys: Any, table: Any, at: tuple[int, int] = (0, 0)) -> Figure:
    """A column minus a row; the copies that broadcasting only thinks of are drawn pale.

    Args:
        queries: (L,)
        keys: (S,)
        table: (L, S), what was made of them.
        at: the entry whose way is framed.
    """
    import numpy

    queries, keys = plain(queries), plain(keys)
    L, S = len(queries), len(keys)
    column, row = numpy.repeat(queries[:, None], S, 1), numpy.repeat(keys[None, :], L, 0)
    rows, columns, here = numpy.arange(L)[:, None], numpy.arange(S)[None, :], _only((L, S), at)
    return grids(
        panel(column, f"queries as a column\n({L}, 1)", faded=columns + 0 * rows > 0, mark=here),
        "−",
        panel(row, f"keys as a row\n(1, {S})", faded=rows + 0 * columns > 0, mark=here),
        "=",
        panel(table, f"steps back\n({L}, {S})", mark=here),
    )


def dot_products(a: Any, b: Any, table: Any, at: tuple[int, int] = (0, 0)) -> Figure:
    """``a @ b.T``, with one row, one column, and the number that they make framed.

    Args:
        a: (L, D)
        b: (S, D)
        table: (L, S), what was made of them.
        at: the entry whose way is framed.
    """
    import numpy

    a, turned, table = plain(a), plain(b).T, plain(table)
    i, j = at
    row = numpy.zeros(a.shape, bool)
    row[i] = True
    column = numpy.zeros(turned.shape, bool)
    column[:, j] = True
    return grids(
        panel(a, f"a  {a.shape}", mark=row, rows=[f"a[{r}]" for r in range(len(a))]),
        "@",
        panel(
            turned, f"b.T  {turned.shape}", mark=column, columns=[f"b[{c}]" for c in range(turned.shape[1])]
        ),
        "=",
        panel(table, f"dot products\n{table.shape}", mark=_only(table.shape, at)),
    )


def regrouped(x: Any, results: Mapping[str, Any], tokens: Sequence[str]) -> Figure:
    """A numbered tensor and what was made of it; every number keeps the colour of the token it came from.

    Args:
        x: (L, E), numbered 0, 1, 2, … in reading order.
        results: caption → (groups, L, E / groups).
        tokens: L words, written beside the rows.
    """
    x = plain(x)
    E = x.shape[-1]
    parts = [panel(x, f"x\n{x.shape}", colour=x // E, rows=tokens)]
    for caption, made in results.items():
        made = plain(made)
        parts.append("→" if len(parts) == 1 else "  ")
        parts.append(panel(made, f"{caption}\n{made.shape}", colour=made // E, rows=tokens))
    return grids(*parts)


def _only(shape: tuple[int, ...], at: tuple[int, int]) -> Any:
    import numpy

    here = numpy.zeros(shape, bool)
    here[at] = True
    return here
