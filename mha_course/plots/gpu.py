"""Pictures of lesson 07: time, memory, and the two ceilings, from a record of `mha_course.measuring`.

Every picture of a measurement says on which machine it was made, when, and with which torch. Two others are of what
was predicted (`two_terms`) and simulated (`timeline`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mha_course.plots import INK, QUIET, figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]

# What is drawn unless something else is asked for, and under which name.
DRAWN = {
    "materialised": "own, with the L × L matrix",
    "compiled": "own, compiled",
    "tiles": "flash in plain PyTorch",
    "flex": "FlexAttention",
    "fused": "fused kernel",
}
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)))
MARKS = "osD^vPX"


def origin(record: Record) -> str:
    """Machine, date and torch version, in one line."""
    machine = record["machine"]
    parts = [machine["name"], record["date"][:10], f"torch {machine['torch']}"]
    if record["ended"] != "complete":
        parts.append("not complete")
    return " · ".join(parts)


@styled
def attention_curves(
    record: Record,
    ways: Sequence[str] | Mapping[str, str] = DRAWN,
    precision: str = "float32",
    direction: str = "forward",
) -> Figure:
    """Time and memory against the length L, both axes logarithmic.

    The band around a line of times is the middle half of the samples. A mark above the picture stands at the L at which a
    way ran out of memory.

    Args:
        record: from `measuring.measure` or `measuring.latest_record`.
        ways: which, and how they are called in the picture; those without figures are not drawn. A reader's own
            (``own`` of `measure`) by their names.
        precision, direction: as in the record.

    Raises:
        ValueError: the record has no figure for any of them.
    """
    named = ways if isinstance(ways, Mapping) else {way: DRAWN.get(way, way) for way in ways}
    curves = _curves(record, named, precision, direction)
    fig, (time, memory) = figure(1, 2, height=4.4)
    tall = max(point["L"] for points in curves.values() for point in points)
    ended, looks = 0, _looks(named)
    for way, points in curves.items():
        look, measured = looks[way], [point for point in points if "seconds" in point]
        L = [point["L"] for point in measured]
        times = [[1e3 * point["seconds"][name] for point in measured] for name in ("low", "median", "high")]
        time.fill_between(L, times[0], times[2], color=look["color"], alpha=0.2, linewidth=0)
        time.plot(L, times[1], label=named[way], **look)
        held = [(point["L"], point["peak_bytes"] / 2**20) for point in measured if point["peak_bytes"]]
        if held:
            memory.plot(*zip(*held), **look)
        if L_failed := [point["L"] for point in points if point.get("failed") == "out of memory"]:
            for ax in (time, memory):
                _out_of_memory(ax, L_failed[0], look, row=ended)
            ended += 1
    time.set(ylabel="time of one call, ms")
    memory.set(ylabel="memory at its highest, MiB")
    for ax in (time, memory):
        _by_length(ax, tall, [point["L"] for points in curves.values() for point in points])
    _head(fig, record, precision, direction)
    fig.legend(loc="outside lower center", ncols=min(3, len(curves)), handlelength=3.2)
    return fig


@styled
def roofline(
    record: Record,
    ways: Sequence[str] | Mapping[str, str] = DRAWN,
    precision: str = "float32",
    direction: str = "forward",
) -> Figure:
    """Achieved FLOP/s against FLOP per byte moved, under the machine's two measured ceilings.

    A line joins the lengths of one way; the longer, the larger the mark. Ways whose traffic is only known from below
    (``bytes_at_least``) have no place here.

    Args:
        record, ways, precision, direction: as for `attention_curves`.

    Raises:
        ValueError: the record has no figure for any of them, or no ceilings.

    Source: Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model".
    """
    named = ways if isinstance(ways, Mapping) else {way: DRAWN.get(way, way) for way in ways}
    placed = [point for point in record["points"] if not point.get("bytes_at_least")]
    curves = _curves({"points": placed}, named, precision, direction)
    bytes_per_s, flops_per_s = _two_ceilings(record, precision)
    fig, ax = figure(height=5.0)
    ridge = flops_per_s / bytes_per_s
    seen = [point for points in curves.values() for point in points if "seconds" in point]
    xs = [point["flops"] / point["bytes"] for point in seen]
    left, right = min(min(xs), ridge) / 12, max(max(xs), ridge) * 4
    low = min(point["flops_per_s"]["median"] for point in seen) / 3
    ax.set(xscale="log", yscale="log", xlim=(left, right), ylim=(low, flops_per_s * 3))
    ax.set(xlabel="FLOP per byte read or written", ylabel="FLOP per second")
    ax.plot(
        [left, ridge, right], [left * bytes_per_s, flops_per_s, flops_per_s], "-", color=INK, linewidth=2.5
    )
    ax.plot([ridge, ridge], [low, flops_per_s], ":", color=QUIET, linewidth=1.2)
    _name_ceilings(ax, bytes_per_s, flops_per_s)
    looks = {way: look for way, look in _looks(named).items() if way in curves}
    for way, points in curves.items():
        look, measured = looks[way], [point for point in points if "seconds" in point]
        x = [point["flops"] / point["bytes"] for point in measured]
        y = [point["flops_per_s"]["median"] for point in measured]
        ax.plot(x, y, **(look | {"marker": "", "linewidth": 1.3}))
        size = [20 + 90 * (i + 1) / len(x) for i in range(len(x))]
        ax.scatter(x, y, size, color=look["color"], marker=look["marker"], edgecolor="white", zorder=3)
    _by_number(ax.xaxis)
    lengths = sorted(point["L"] for point in seen)
    _head(fig, record, precision, direction, f"marks grow with L, from {lengths[0]} to {lengths[-1]}")
    names = [named[way] for way in curves]
    columns = min(3, len(names))
    fig.legend(
        _legend_lines(looks.values()), names, loc="outside lower center", ncols=columns, handlelength=3.2
    )
    return fig


# ------------------------------------------------------------------------- not from a record


@styled
def timeline(log: Sequence[tuple[float, float, float, float]], clock: Mapping[str, float]) -> Figure:
    """What the host and a `SimulatedDevice` do at the same time, and when the clock was read.

    Args:
        log: of the device: for each call when it was asked, when that was done, when the work began and ended.
        clock: words → the time at which the clock was read.
    """
    fig, ax = figure(height=2.5)
    dark, pale = "#00336f", "#c8b76b"
    for number, (asked, launched, begun, done) in enumerate(log):
        ax.broken_barh(
            [(1e3 * asked, 1e3 * (launched - asked))], (1.15, 0.7), facecolor=dark, edgecolor="white"
        )
        ax.broken_barh(
            [(1e3 * begun, 1e3 * (done - begun))], (0.15, 0.7), facecolor=pale, edgecolor="white", hatch="//"
        )
        ax.text(
            5e2 * (begun + done),
            0.5,
            f"work {number}",
            ha="center",
            va="center",
            bbox={"fc": "white", "ec": "none"},
        )
    end = 1e3 * max(done for *_, done in log)
    for (words, moment), height in zip(clock.items(), (2.75, 2.25)):
        ax.plot([1e3 * moment] * 2, [0, height - 0.05], "--", color=INK, linewidth=1.5)
        left = moment * 1e3 < 0.7 * end
        ax.text(1e3 * moment, height, words, ha="left" if left else "right", va="center")
    ax.set(ylim=(0, 3.1), xlim=(-0.02 * end, 1.02 * end), xlabel="milliseconds")
    ax.set_yticks([1.5, 0.5], ["Python asks", "the GPU works"])
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return fig


@styled
def two_terms(L: Sequence[int], parts: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """For each kind of attention the times of its two terms against L; the longer one counts, and is thick.

    Args:
        L: lengths.
        parts: title → {"computing": seconds, "moving": seconds}, in the order of ``L``.
    """
    fig, axes = figure(1, len(parts), height=3.6, sharey=True)
    looks = {"computing": ("#00336f", "-"), "moving": ("#c2850c", "--")}
    for ax, (title, terms) in zip(axes, parts.items()):
        longest = [max(times) for times in zip(*terms.values())]
        ax.plot(
            L, [1e6 * time for time in longest], color=QUIET, alpha=0.25, linewidth=9, label="the longer one"
        )
        for name, times in terms.items():
            colour, line = looks[name]
            ax.plot(L, [1e6 * time for time in times], line, color=colour, label=name)
        sides = ["moving" if m > c else "computing" for c, m in zip(terms["computing"], terms["moving"])]
        if sides[0] != sides[-1]:
            where = next(i for i, side in enumerate(sides) if side == sides[-1])
            ax.axvline(L[where], linestyle=":", color=INK, linewidth=1.5)
            ax.annotate(
                f"from L = {L[where]} on:\n{sides[-1]}",
                (L[where], 0.04),
                (6, 0),
                xycoords=ax.get_xaxis_transform(),
                textcoords="offset points",
            )
        else:
            ax.annotate(f"{sides[0]}, at every length", (0.5, 0.06), xycoords="axes fraction", ha="center")
        ax.set(xscale="log", yscale="log", xlabel="length L", title=title)
        ax.set_xticks(L[::2], map(str, L[::2]))
        ax.set_xticks([], minor=True)
        _by_number(ax.yaxis)
    axes[0].set_ylabel("microseconds, at the least")
    axes[0].legend(loc="upper left", frameon=True, facecolor="white", edgecolor="none", framealpha=1)
    return fig


# ------------------------------------------------------------------------------------- parts of them


def _curves(
    record: Record, ways: Mapping[str, str], precision: str, direction: str
) -> dict[str, list[Mapping[str, Any]]]:
    """For each way with figures its points by rising L, failed ones included."""
    found = {}
    for way in ways:
        points = [
            point
            for point in record["points"]
            if (point["way"], point["precision"], point["direction"]) == (way, precision, direction)
        ]
        if any("seconds" in point for point in points):
            found[way] = sorted(points, key=lambda point: point["L"])
    if not found:
        raise ValueError(f"the record has no figure for {', '.join(ways)} ({precision}, {direction})")
    return found


def _two_ceilings(record: Record, precision: str) -> tuple[float, float]:
    ceilings = record["ceilings"]
    if not ceilings["bytes_per_s"] or precision not in ceilings["flops_per_s"]:
        raise ValueError(f"the record has no ceilings for {precision}")
    return ceilings["bytes_per_s"]["best"], ceilings["flops_per_s"][precision]["best"]


def _looks(ways: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A colour, a line style and a mark for each way: cividis without its palest part."""
    from matplotlib import colormaps

    ways = list(ways)
    return {
        way: {
            "color": colormaps["cividis"](0.75 * i / max(1, len(ways) - 1)),
            "linestyle": LINES[i % len(LINES)],
            "marker": MARKS[i % len(MARKS)],
        }
        for i, way in enumerate(ways)
    }


def _legend_lines(looks: Iterable[Mapping[str, Any]]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], **look) for look in looks]


def _out_of_memory(ax: Axes, L: int, look: Mapping[str, Any], row: int) -> None:
    """The mark of a way above the picture, at the L where its line ends, and what ended it."""
    from matplotlib.patheffects import withStroke

    place, across = (L, 1.05 + 0.08 * row), ax.get_xaxis_transform()
    ax.plot(*place, **look, transform=across, zorder=5, clip_on=False)
    halo = [withStroke(linewidth=3, foreground="white")]
    where = {"xycoords": across, "textcoords": "offset points", "ha": "right", "va": "center"}
    ax.annotate("out of memory", place, (-8, 0), fontsize=9, zorder=4, path_effects=halo, **where)


def _by_length(ax: Axes, tall: int, lengths: Sequence[int]) -> None:
    lengths = sorted(set(lengths))
    every = 1 if len(lengths) <= 5 else 2
    shown = lengths[::-1][::every]
    ax.set(xscale="log", yscale="log", xlabel="length L", xlim=(min(lengths) / 1.2, tall * 1.2))
    ax.set_xticks(shown, map(str, shown))
    ax.set_xticks([], minor=True)
    _by_number(ax.yaxis)


def _name_ceilings(ax: Axes, bytes_per_s: float, flops_per_s: float) -> None:
    """What stands beside the two ceilings and at the ridge between them."""
    ridge, (left, right) = flops_per_s / bytes_per_s, ax.get_xlim()
    middle = (ridge * right) ** 0.5
    product = f"a large matrix product: {_amount(flops_per_s)}FLOP/s"
    ax.annotate(product, (middle, flops_per_s), (0, 6), textcoords="offset points", ha="center")
    there = left**0.3 * ridge**0.7
    copy = f"a large copy:\n{_amount(bytes_per_s)}B/s"
    ax.annotate(copy, (there, there * bytes_per_s), (-8, 4), textcoords="offset points", ha="right")
    leftwards = ridge > (left * right) ** 0.5
    ax.annotate(
        f"the ridge: {ridge:.3g} FLOP per byte",
        (ridge, ax.get_ylim()[0]),
        xytext=(-6 if leftwards else 6, 6),
        textcoords="offset points",
        ha="right" if leftwards else "left",
        color=QUIET,
    )


def _by_number(axis: Any) -> None:
    """Ticks that say 0.1, 1, 10, 100 instead of powers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1e4 else f"{value:.0f}"))
    axis.set_minor_formatter(NullFormatter())


def _amount(value: float) -> str:
    """ "4.1 T": three digits and the SI prefix."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g} "


def _head(fig: Figure, record: Record, *what: str) -> None:
    s = record["settings"]
    precision, direction, *more = what
    first = "; ".join([f"{direction}, {precision}, (N, H, L, D) = ({s['N']}, {s['H']}, L, {s['D']})", *more])
    fig.suptitle(f"{first}\n{origin(record)}", fontsize=10, x=0.01, ha="left", color=INK)
