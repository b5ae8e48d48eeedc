"""How pictures are drawn and shown: alt text, one style, nothing global changed, the same bytes each time."""

import ast
import base64
import io
import json
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
import torch
from matplotlib import colormaps, rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from mha_course import plots
from mha_course.plots._dark import PAPER, darkened, turned

ROOT = Path(__file__).parents[1]
PAIRS = sorted(ROOT.glob("solutions/*/*.ipynb"))
WORDS = ["Ada", "found", "the", "ring", "where", "she", "lost", "it"]


def weights(L, S, seed=0):
    return torch.randn(L, S, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def drawings():
    x = torch.arange(12).view(3, 4)
    return {
        "grid": lambda: plots.grid(x, "x (3, 4)", rows=["we", "see", "it"], columns=list("abcd")),
        "grids": lambda: plots.grids(plots.panel(x, "x"), "→", x.view(2, 3, 2), "=", x > 5),
        "wide grids": lambda: plots.grids(torch.arange(20), "@", torch.arange(20)),
        "heat maps": lambda: plots.heat_maps({"one": weights(8, 8), "two": weights(8, 8, 1)}, WORDS),
        "heat map": lambda: plots.heat_maps(weights(3, 5)),
        "arcs": lambda: plots.arcs({"one": weights(8, 8), "two": weights(8, 8, 1)}, WORDS),
        "subtraction": lambda: plots.start_here.subtraction(x[0], x[1], x[0][:, None] - x[1]),
        "dot products": lambda: plots.start_here.dot_products(x, x, x @ x.T),
        "regrouped": lambda: plots.start_here.regrouped(x, {"view": x.view(2, 3, 2)}, ["we", "see", "it"]),
    }


@pytest.fixture
def shown(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "IPython.display.display", lambda bundle, **options: calls.append((bundle, options["metadata"]))
    )
    return calls


def contrast(one, other):
    def luminance(colour):
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("alt", ["", "   ", None])
def test_a_picture_without_alt_text_is_refused(alt, shown):
    fig, _ = plots.figure()
    with pytest.raises(ValueError, match=r"plots\.show needs alt text.*For example"):
        plots.show(fig, alt=alt)
    with pytest.raises(ValueError, match="alt text"):
        plots.show(fig)
    assert not shown


def test_a_picture_is_shown_with_its_alt_text_and_width(shown):
    plots.show(plots.grid(torch.arange(4)), alt="Four cells,\n   0 to 3.")
    [(bundle, metadata)] = shown
    assert metadata["image/png"]["alt"] == "Four cells, 0 to 3."
    assert bundle["text/plain"] == "[picture] Four cells, 0 to 3."
    assert 'alt="Four cells, 0 to 3."' in bundle["text/html"]
    width = int(re.search(r'width="(\d+)"', bundle["text/html"])[1])
    crisp = Image.open(io.BytesIO(base64.b64decode(bundle["text/html"].split("base64,")[1].split('"')[0])))
    assert abs(crisp.width - 2 * width) <= 1
    assert abs(Image.open(io.BytesIO(bundle["image/png"])).width - width) <= 1


def test_alt_text_may_hold_any_sign(shown):
    plots.show(plots.grid(torch.arange(4)), alt='a < b & "c" > d')
    [(bundle, _)] = shown
    assert 'alt="a &lt; b &amp; &quot;c&quot; &gt; d"' in bundle["text/html"]


def test_a_pyplot_figure_is_closed_after_it_was_shown(shown):
    import matplotlib.pyplot as plt

    fig = plt.figure()
    plots.show(fig, alt="Nothing.")
    assert not plt.fignum_exists(fig.number)


@pytest.mark.parametrize("name", drawings())
def test_a_drawing_has_the_same_bytes_each_time_and_no_words_in_it(name):
    draw = drawings()[name]
    png = plots.png(draw())
    assert png == plots.png(draw())
    for chunk in (b"tEXt", b"iTXt", b"zTXt", b"tIME", b"Software", b"atplotlib"):
        assert chunk not in png
    assert len(png) < 150_000


@pytest.mark.parametrize("name", drawings())
def test_a_drawing_fits_the_page_and_its_text_can_be_read(name):
    fig = drawings()[name]()
    FigureCanvasAgg(fig)
    fig.canvas.draw()
    assert fig.get_figwidth() <= plots.WIDTH + 1e-9
    assert to_rgb(fig.get_facecolor()) == (1, 1, 1)
    box = fig.bbox
    for text in fig.findobj(Text):
        if text.get_visible() and text.get_text():
            assert text.get_fontsize() >= 10, text
            assert contrast(text.get_color(), "white") >= 4.5 or text.get_color() in ("white", "#ffffff"), (
                text
            )
            place = text.get_window_extent()
            assert box.x0 <= place.x0 and place.x1 <= box.x1 + 1, f"{text} is cut off"
            assert box.y0 <= place.y0 and place.y1 <= box.y1 + 1, f"{text} is cut off"


def text_and_ground(fig):
    """Each visible text, and the colour of what it stands on: a filled shape, a picture, or the paper."""
    fig.draw_without_rendering()
    renderer = fig.canvas.get_renderer()
    paper = {fig.patch, *(ax.patch for ax in fig.axes)}
    shapes = [patch for patch in fig.findobj(Rectangle) if patch.get_fill() and patch not in paper]
    for text in fig.findobj(Text):
        if not (text.get_visible() and text.get_text()):
            continue
        box = text.get_window_extent(renderer)
        x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
        under = [shape for shape in shapes if shape.get_window_extent(renderer).contains(x, y)]
        if not any(image.get_window_extent(renderer).contains(x, y) for image in fig.findobj(AxesImage)):
            yield text, (under or [fig.patch])[-1].get_facecolor()


@pytest.mark.parametrize("name", drawings())
def test_on_a_dark_page_all_text_can_be_read_and_afterwards_nothing_has_changed(name):
    fig = drawings()[name]()
    FigureCanvasAgg(fig)
    before = colours_of(fig)
    with darkened(fig, {colour for colour, _ in plots.LINES}):
        assert to_rgb(fig.get_facecolor()) == to_rgb(PAPER)
        for text, ground in text_and_ground(fig):
            assert contrast(text.get_color(), ground) >= 4.5, text
        lines = [line for line in fig.findobj(Line2D) if line.get_linewidth() >= 2 and line.get_visible()]
        for line in lines:
            assert contrast(line.get_color(), PAPER) >= 3 or name in ("arcs", "heat maps", "heat map"), line
        assert colours_of(fig) != before
    assert colours_of(fig) == before


def colours_of(fig):
    """All colours of all artists that have any."""
    names = ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor")
    return [
        str(getattr(artist, f"get_{name}")())
        for artist in fig.findobj()
        for name in names
        if hasattr(artist, f"get_{name}") and getattr(artist, "get_array", lambda: None)() is None
    ]


def test_a_picture_is_there_for_a_light_and_for_a_dark_page(shown):
    plots.show(plots.grid(torch.arange(4)), alt="Four cells.")
    light, dark = re.findall(r"<img [^>]*>", shown[0][0]["text/html"])
    assert "display:none" not in light and "display:none" in dark, "where the choice is left out"
    corners = []
    for tag in (light, dark):
        data = base64.b64decode(re.search(r"base64,([^\"]+)", tag)[1])
        corners.append(Image.open(io.BytesIO(data)).convert("RGB").getpixel((0, 0)))
    assert corners == [(255, 255, 255), (0x11, 0x11, 0x11)]


def test_what_a_colour_says_is_said_on_a_dark_page_too():
    fig = plots.heat_maps(torch.tensor([[0.0, 1.0]]))
    FigureCanvasAgg(fig)
    ax = fig.axes[0]
    [image] = ax.images
    before = image.cmap, image.get_array().tolist(), [text.get_color() for text in ax.texts]
    with darkened(fig, set()):
        assert (image.cmap, image.get_array().tolist(), [text.get_color() for text in ax.texts]) == before


@pytest.mark.parametrize("colour", [colour for colour, _ in plots.LINES] + [plots.INK, plots.QUIET])
def test_ink_stands_out_on_the_dark_page_as_it_does_on_the_light_one(colour):
    assert contrast(turned(colour)[:3], PAPER) >= 4.5


@pytest.mark.parametrize("name", ["cividis", "viridis"])
def test_numbers_can_be_read_on_every_colour_of_the_map(name):
    for shade in range(256):
        fill = colormaps[name](shade)
        assert contrast(fill, plots.ink_on(fill)) >= 4.5


def test_lines_differ_in_style_too_and_stand_out_on_white():
    assert len({style for _, style in plots.LINES}) == len(plots.LINES)
    assert all(contrast(colour, "white") >= 3 for colour, _ in plots.LINES)


def test_importing_loads_nothing_and_drawing_changes_nothing():
    code = """
import sys
from mha_course import plots
assert not {"matplotlib", "torch", "numpy"} & set(sys.modules), "imported too early"
from matplotlib import rcParams
names = set(rcParams) - {"backend"}  # asking for the backend would choose one
before = {name: rcParams[name] for name in names}
plots.png(plots.heat_maps([[0.25, 0.75]]))
plots.png(plots.grids([1, 2], "+", [3, 4]))
assert {name: rcParams[name] for name in names} == before, "a setting is left behind"
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_decorator_gives_a_drawing_the_style():
    @plots.styled
    def size():
        return rcParams["axes.titlesize"], rcParams["image.cmap"]

    assert size() == (11, "cividis")
    assert size.__name__ == "size"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.0, "3"),
        (-1, "−1"),
        (0.25, "0.25"),
        (float("nan"), "NaN"),
        (float("-inf"), "−∞"),
        (True, "✓"),
        (False, "·"),
    ],
)
def test_a_number_is_written_as_people_write_it(value, text):
    assert plots.number(value) == text


def test_any_tensor_can_be_drawn():
    for x in (torch.ones(2, 2, requires_grad=True), torch.ones(3, dtype=torch.bfloat16), torch.eye(2).bool()):
        assert plots.plain(x).shape == x.shape
    plots.png(plots.grid(torch.tensor([0.5, torch.nan, -torch.inf])))
    plots.png(plots.grid(torch.ones(2, 2)))
    with pytest.raises(ValueError, match="1, 2 or 3 dimensions, not 4"):
        plots.grid(torch.ones(1, 1, 1, 1))


def test_a_heat_map_says_its_numbers_in_the_cells_or_in_a_bar():
    small = plots.heat_maps(torch.tensor([[0.25, 0.75]]))
    assert {".25", ".75"} <= {text.get_text() for text in small.findobj(Text)}
    large = plots.heat_maps(weights(30, 30))
    assert "attention weight" in {text.get_text() for text in large.findobj(Text)}


def test_a_strong_weight_ends_in_a_dot_and_a_weak_one_does_not():
    [ax] = plots.arcs(torch.tensor([[0.9, 0.1]]), ["q"], ["k", "l"]).axes
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [tuple(dot.get_ydata()) for dot in dots] == [(0,)]


def test_a_lessons_pictures_are_found_by_name():
    assert plots.start_here.__name__ == "mha_course.plots.start_here"
    assert "start_here" in dir(plots)
    with pytest.raises(AttributeError, match="no attribute 'start_there'"):
        plots.start_there  # noqa: B018


def test_plots_know_nothing_of_the_course_but_plots():
    for file in (ROOT / "mha_course" / "plots").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1, file.name
                names = [node.module or ""]
            for name in names:
                assert not name.startswith("mha_course") or name.startswith("mha_course.plots"), file.name


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.stem)
def test_every_picture_of_a_lesson_has_alt_text_in_exported_html(pair):
    from nbconvert import HTMLExporter

    alts = []
    for cell in json.loads(pair.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                assert "".join(output["data"]["text/html"]).startswith("<img "), "show pictures by plots.show"
                alts.append(output["metadata"]["image/png"]["alt"])
    page, _ = HTMLExporter(template_name="lab").from_filename(str(pair))
    pictures = [tag for tag in re.findall(r"<img [^>]*>", page) if "data:image/png" in tag]
    told = [unescape(re.search(r'alt="([^"]*)"', tag)[1]) for tag in pictures]
    assert told == [alt for alt in alts for _ in ("light", "dark")]
    assert ["display:none" in tag.replace(" ", "") for tag in pictures] == [False, True] * len(alts), (
        "where styles are left out"
    )
    assert all(len(alt) > 40 for alt in alts), "say what is to be seen"
    assert all(int(re.search(r'width="(\d+)"', tag)[1]) <= 800 for tag in pictures)
