"""What a learner sees: one line when all is right, one short card when it is not.

A card is data first; `as_text` and `as_html` draw it. Nothing depends on colour alone, and nothing is
written to stderr (nbgrader takes that for a failure).
"""

from __future__ import annotations

import html
import math
import re
import textwrap
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .compare import wrong_cells
from .kinds import Status

WIDTH = 78
ROWS, COLUMNS = 6, 7


@dataclass(frozen=True)
class Grid:
    """A small table of numbers: at most `ROWS` × `COLUMNS` of them.

    Args:
        title: "yours" or "expected".
        cells: what to print, row by row.
        marked: which cells are wrong.
        more: whether the tensor has more rows or columns than are drawn.
    """

    title: str
    cells: tuple[tuple[str, ...], ...]
    marked: tuple[tuple[bool, ...], ...]
    more: bool = False


@dataclass(frozen=True)
class Card:
    """One message.

    Args:
        status: the outcome.
        title: the exercise's name.
        headline: what is the matter, in half a line.
        lines: what was seen and expected, a sentence each.
        grids: yours and expected, side by side.
        grid_note: what part of which tensor the grids show.
        cause: the likely cause, in a tutor's words; two mistakes at once, two lines.
        hint: what to open or do next.
        code: the learner's own lines that raised: (function, line number, code).
        notes: warnings and prints of the answer.
        numbers: yours and expected, where they are single numbers.
        tried: the inputs, in a few words.
    """

    status: Status
    title: str
    headline: str
    lines: tuple[str, ...] = ()
    grids: tuple[Grid, ...] = ()
    grid_note: str = ""
    cause: str = ""
    hint: str = ""
    code: tuple[tuple[str, int, str], ...] = ()
    notes: tuple[str, ...] = ()
    numbers: str = ""
    tried: str = ""


SIGNS = {"right": "✓", "wrong": "✗", "not written": "○", "borrowed": "◇", "broken": "!"}
# After Okabe and Ito's palette, told apart by people with any kind of colour vision; at least 3 : 1 on white and on
# JupyterLab's dark #111111 (WCAG 1.4.11).
COLOURS = {
    "right": "#009e73",
    "wrong": "#d55e00",
    "not written": "#7f7f7f",
    "borrowed": "#3d87b5",
    "broken": "#cc79a7",
}


# ----------------------------------------------------------------------------------------- grids


def grids(seen: Any, expected: Any, tolerance: float, what: str = "") -> tuple[tuple[Grid, ...], str]:
    """Yours beside expected, cut down to the part where the first wrong number stands.

    Args:
        seen: the learner's tensor (or number).
        expected: the right one.
        tolerance: the absolute difference allowed.
        what: the name of what is shown ("weights").

    Returns:
        the grids, and a note saying which part they show.
    """
    if not isinstance(seen, Tensor) or not isinstance(expected, Tensor):
        return (), ""
    if any(x.device.type != "cpu" or x.numel() == 0 for x in (seen, expected)):
        return (), ""
    if seen.shape != expected.shape:
        return _shapes_only(seen, expected, what)
    wrong = (
        wrong_cells(seen, expected, tolerance)
        if seen.dtype == expected.dtype
        else torch.zeros_like(seen).bool()
    )
    first = wrong.nonzero()[0].tolist() if bool(wrong.any()) else [0] * seen.dim()
    lead, rows, columns = first[:-2], *[0, 0, *first][-2:]
    a, b, w = (_two_dimensional(x, lead) for x in (seen, expected, wrong))
    top, left = _window(rows, a.shape[0], ROWS), _window(columns, a.shape[1], COLUMNS)
    cut = (slice(top, top + ROWS), slice(left, left + COLUMNS))
    more = a.shape[0] > ROWS or a.shape[1] > COLUMNS
    a, b, w = a[cut], b[cut], w[cut]
    decimals = _decimals(a[w], b[w])  # enough to see the wrong numbers differ
    marked = tuple(tuple(row) for row in w.tolist())
    blank = tuple(tuple(False for _ in row) for row in w.tolist())
    pairs = [
        [
            pair(x, y, decimals) if bad else (number(x, decimals), number(y, decimals))
            for x, y, bad in zip(*rows_)
        ]
        for rows_ in zip(a.tolist(), b.tolist(), marked)
    ]
    parts = [f"{what}[{', '.join(map(str, lead))}, …]" if lead else what]
    if more:
        parts += [_span("row", top, a.shape[0]), _span("column", left, a.shape[1])]
    return (
        Grid("yours", tuple(tuple(x for x, _ in row) for row in pairs), marked, more),
        Grid("expected", tuple(tuple(y for _, y in row) for row in pairs), blank, more),
    ), ", ".join(filter(None, parts))


def _span(what: str, first: int, count: int) -> str:
    return f"{what} {first}" if count == 1 else f"{what}s {first}–{first + count - 1}"


def _shapes_only(seen: Tensor, expected: Tensor, what: str) -> tuple[tuple[Grid, ...], str]:
    if not 0 < seen.dim() <= 3 or not 0 < expected.dim() <= 3:
        return (), ""
    drawn = []
    for title, x in (("yours", seen), ("expected", expected)):
        flat = _two_dimensional(x, [0] * (x.dim() - 2))
        cut = flat[:ROWS, :COLUMNS]
        blank = tuple(tuple(False for _ in row) for row in cut.tolist())
        more = flat.shape[0] > ROWS or flat.shape[1] > COLUMNS
        drawn.append(Grid(f"{title} {tuple(x.shape)}", _cells(cut, 2), blank, more))
    first = "the first of the batch" if max(seen.dim(), expected.dim()) > 2 else ""
    return tuple(drawn), ", ".join(filter(None, (what, first)))


def _two_dimensional(x: Tensor, lead: list[int]) -> Tensor:
    x = x[tuple(lead)] if lead else x
    while x.dim() < 2:
        x = x.unsqueeze(0)
    return x


def _window(index: int, size: int, shown: int) -> int:
    return max(0, min(index - shown // 2, size - shown)) if size > shown else 0


def _decimals(a: Tensor, b: Tensor) -> int:
    if not a.is_floating_point():
        return 0
    gap = (a.double() - b.double()).abs()
    gap = gap[torch.isfinite(gap) & (gap > 0)]
    if not gap.numel():
        return 2
    return min(9, max(2, math.ceil(-math.log10(float(gap.max()))) + 1))


def _cells(x: Tensor, decimals: int) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(number(value, decimals) for value in row) for row in x.tolist())


def number(value: Any, decimals: int = 3) -> str:
    """A number as a person would write it: ∞, NaN, True, no needless digits."""
    if isinstance(value, bool) or not isinstance(value, float):
        return f"{value!s:.80}"
    if value != value:
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if abs(value) >= 1e5:
        return f"{value:.{max(decimals, 2)}g}"
    return f"{value:.{decimals}f}"


def pair(yours: Any, expected: Any, decimals: int) -> tuple[str, str]:
    """Two numbers that differ, with as many digits as it takes to see that."""
    for digits in range(decimals, 18):
        shown = number(yours, digits), number(expected, digits)
        if shown[0] != shown[1]:
            return shown
    for digits in (3, 9, 17):  # so small that only an exponent shows them
        shown = (f"{yours:.{digits}g}", f"{expected:.{digits}g}") if isinstance(yours, float) else shown
        if shown[0] != shown[1]:
            break
    return shown


# ------------------------------------------------------------------------------------------ text


def as_text(card: Card) -> str:
    """The card for a terminal, at most `WIDTH` columns wide."""

    def fill(text: str, indent: str = "  ", more: str = "  ") -> str:
        return textwrap.fill(_unmarked(text), WIDTH, initial_indent=indent, subsequent_indent=more)

    out = [fill(f"{SIGNS[card.status]} {card.title}: {card.headline}", "")]
    out += [fill(f"→ {cause}", more="    ") for cause in card.cause.splitlines()]
    out += [fill(line) for line in card.lines]
    out += [f"    {function}, line {line}:  {code}" for function, line, code in card.code]
    if card.numbers:
        out.append(fill(card.numbers))
    if card.grids:
        out += ["", *_grids_as_text(card), ""]
    out += [fill(text) for text in (card.tried, card.hint) if text]
    out += [fill(f"note: {note}") for note in card.notes]
    return "\n".join(out)


def _unmarked(text: str) -> str:
    """Text for a terminal: *stress* is left out, `code` stays as it is."""
    return "".join(
        piece if index % 2 else _STRESSED.sub(r"\1", piece)
        for index, piece in enumerate(re.split("(`[^`]*`)", text))
    )


_STRESSED = re.compile(r"(?<![\w*])\*(\w[^*]*?\w|\w)\*(?![\w*])")


def _grids_as_text(card: Card) -> list[str]:
    blocks = [_grid_as_text(grid) for grid in card.grids]
    note = [f"    {text}" for text in _grid_notes(card)]
    if sum(len(block[0]) for block in blocks) + 4 * len(blocks) + 4 > WIDTH:
        return [line for block in blocks for line in [*("    " + text.rstrip() for text in block), ""]][
            :-1
        ] + note
    height = max(map(len, blocks))
    padded = [block + [" " * len(block[0])] * (height - len(block)) for block in blocks]
    return ["    " + "     ".join(parts).rstrip() for parts in zip(*padded)] + note


def _grid_notes(card: Card) -> list[str]:
    """What stands below the grids."""
    marked = any(mark for grid in card.grids for row in grid.marked for mark in row)
    return [*filter(None, [card.grid_note]), *["✗ marks the numbers that differ"] * marked]


def _grid_as_text(grid: Grid) -> list[str]:
    texts = [
        [cell + ("✗" if bad else " ") for cell, bad in zip(row, marks)]
        for row, marks in zip(grid.cells, grid.marked)
    ]
    width = max((len(text) for row in texts for text in row), default=1)
    lines = ["│ " + " ".join(text.rjust(width) for text in row) + "│" for row in texts]
    if grid.more:
        lines.append("│ …")
    size = max(len(grid.title), *(len(line) for line in lines))
    return [grid.title.ljust(size), *(line.ljust(size) for line in lines)]


# ------------------------------------------------------------------------------------------ html

_BOX = (
    "border-left:5px solid {colour};padding:6px 14px;margin:4px 0;max-width:760px;line-height:1.5;"
    "font-family:var(--jp-content-font-family,system-ui,sans-serif);font-size:var(--jp-content-font-size1,14px);"
    "color:var(--jp-content-font-color1,inherit);background:var(--jp-layout-color1,transparent)"
)
_MONO = "font-family:var(--jp-code-font-family,monospace);font-size:var(--jp-code-font-size,13px)"
_SOFT = "color:var(--jp-content-font-color2,inherit)"


def as_html(card: Card) -> str:
    """The card for a notebook: readable in JupyterLab's light and dark themes and in exported HTML.

    Everything that came from the learner's code is escaped; only inline styles are used.
    """
    colour = COLOURS[card.status]
    parts = [
        f'<div><span style="color:{colour};font-weight:700">{SIGNS[card.status]}</span> '
        f"<b>{html.escape(card.title)}</b>: {_inline(card.headline)}</div>"
    ]
    parts += [f'<div style="margin-top:2px">→ {_inline(cause)}</div>' for cause in card.cause.splitlines()]
    soft = [*card.lines, *filter(None, [card.numbers])]
    parts += [f'<div style="{_SOFT}">{_inline(line)}</div>' for line in soft]
    parts += [
        f'<div style="{_MONO};margin:4px 0 4px 1em">{html.escape(function)}, line {line}: &nbsp;'
        f"<b>{html.escape(code)}</b></div>"
        for function, line, code in card.code
    ]
    if card.grids:
        boxes = "".join(_grid_as_html(grid) for grid in card.grids)
        parts.append(f'<div style="display:flex;flex-wrap:wrap;gap:28px;margin:8px 0 2px 0">{boxes}</div>')
        if note := "; ".join(_grid_notes(card)):
            parts.append(f'<div style="{_SOFT};font-size:0.9em">{_inline(note)}</div>')
    if card.tried:
        parts.append(f'<div style="{_SOFT}">{_inline(card.tried)}</div>')
    if card.hint:
        parts.append(f'<div style="margin-top:2px">{_inline(card.hint)}</div>')
    parts += [f'<div style="{_SOFT};font-size:0.9em">note: {_inline(note)}</div>' for note in card.notes]
    return f'<div style="{_BOX.format(colour=colour)}">{"".join(parts)}</div>'


def _inline(text: str) -> str:
    """Escaped text in which `code`, *stress* and `` ` `` work as in Markdown."""
    pieces = html.escape(text).split("`")
    if len(pieces) % 2 == 0:
        return html.escape(text)
    out = []
    for index, piece in enumerate(pieces):
        if index % 2:
            out.append(f'<code style="{_MONO}">{piece}</code>')
        else:
            out.append(_stressed(piece))
    return "".join(out)


def _stressed(text: str) -> str:
    return _STRESSED.sub(r"<em>\1</em>", text)


def _grid_as_html(grid: Grid) -> str:
    rows = []
    for cells, marks in zip(grid.cells, grid.marked):
        row = "".join(
            f'<td style="padding:1px 7px;text-align:right;border:{"2px solid #d55e00" if bad else "1px solid rgba(128,128,128,.35)"};'
            f'{"font-weight:700" if bad else ""}">{html.escape(cell)}{" ✗" if bad else ""}</td>'
            for cell, bad in zip(cells, marks)
        )
        rows.append(
            f"<tr style='background:transparent'>{row}{'<td style=border:none>…</td>' if grid.more else ''}</tr>"
        )
    return (
        f'<div><div style="{_SOFT};font-size:0.9em">{html.escape(grid.title)}</div>'
        f'<table style="border-collapse:collapse;margin:2px 0;{_MONO};color:inherit">{"".join(rows)}</table></div>'
    )


@dataclass(frozen=True)
class Report:
    """The outcome of one examination.

    Args:
        name: the exercise's name.
        status: the outcome.
        cause: the misconception's id (two joined by " + "), or the kind of difference; "" when right.
        checked: how many things were compared.
        seconds: how long it took.
        card: what to show.
        named: whether `cause` is one of the exercise's misconceptions.
        details: for whoever looks into it later; ``"why"`` where the check itself stumbled.
    """

    name: str
    status: Status
    card: Card
    cause: str = ""
    checked: int = 0
    seconds: float = 0.0
    named: bool = False
    details: dict[str, Any] = field(default_factory=dict)
