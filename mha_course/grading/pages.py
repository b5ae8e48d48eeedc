"""Feedback pages: a marked notebook as one HTML file, for whoever wrote it.

Everything in it that somebody else wrote goes through `safe_html`, or is text. Over that, the page itself forbids the
browser to run or fetch anything (its Content-Security-Policy). It holds no script, and needs nothing from outside.
"""

from __future__ import annotations

import base64
import os
import re
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from nbconvert.filters import strip_ansi
from nbgrader.api import Gradebook
from nbgrader.coursedir import CourseDirectory
from traitlets.config import Config

from mha_course import notebook_rules as rules
from mha_course.building import quiet_log

from .intake import printable
from .mathml import mathml
from .safe_html import PICTURE, clean, from_markdown
from .writer import REASON, exchange_files, marks_told

COLOURED = 20_000  # characters of a cell
LINE = 1_000  # characters of a line of it: colouring takes time with the square of that
DRAWN = 50_000  # characters of a cell's prose
WHOLE = 200_000  # characters of a page that are coloured or drawn; the longest lesson has a quarter of that
TODO = {
    "set aside": (
        "This could not be read, so it was set aside.",
        "What to do: open your notebook in JupyterLab. If it opens, save it, and hand in that very file again, "
        "under the name it was given out with. If it does not open, go back to an earlier copy, or ask your instructor.",
    ),
    "failed": (
        "This could not be graded yet.",
        "There is nothing for you to do: it will be tried again. If this page stays as it is, tell your instructor.",
    ),
}


class FeedbackMaker:
    """Makes feedback pages, one learner at a time. What is in a page may take it any time and memory.

    Args:
        lesson: its folder's name.
        config: from `writer.course_config`.
    """

    def __init__(self, lesson: str, config: Config):
        self.lesson = lesson
        log, _ = quiet_log()
        self.course = CourseDirectory(config=config, log=log)

    def make(self, student: str) -> list[Path]:
        """Write a learner's pages; gives their paths."""
        source, target, submitted = (
            Path(self.course.format_path(folder, student, self.lesson))
            for folder in (
                self.course.autograded_directory,
                self.course.feedback_directory,
                self.course.submitted_directory,
            )
        )
        target.mkdir(parents=True, exist_ok=True)
        files = exchange_files(submitted)
        for name, text in files.items():
            (target / name).write_text(text)
        made = []
        for path in sorted(source.glob("*.ipynb")):
            page = self.page(path, student, files["timestamp.txt"])
            partial = target / f".{path.stem}.partial"
            partial.write_text(page, encoding="utf-8")
            os.replace(partial, target / f"{path.stem}.html")
            made.append(target / f"{path.stem}.html")
        return made

    def page(self, path: Path, student: str, handed_in: str = "") -> str:
        """One autograded notebook as a page."""
        notebook = nbformat.read(path, as_version=4)
        with Gradebook(self.course.db_url, self.course.course_id) as gradebook:
            told = marks_told(gradebook, self.lesson, student, path.stem)
        return html_of(notebook, path.stem, student, handed_in, told)


def html_of(notebook: Any, stem: str, student: str, handed_in: str, told: dict[str, Any]) -> str:
    """A notebook as a page.

    Args:
        notebook: nbformat's.
        stem: what it is called.
        student: whose it is.
        handed_in: when.
        told: from `writer.marks_told`.
    """
    cells, heading, room = [], "", WHOLE
    for cell in notebook.cells:
        if cell.get("id") == REASON and "mha_course" in notebook.metadata:
            continue  # the page says it in its own words
        if cell.cell_type == "markdown":
            heading = (re.findall(r"(?m)^#+ +(.+)$", cell.source[:DRAWN]) or [heading])[-1]
        room -= len(cell.source)
        cells.append(_cell(cell, heading, room >= 0, told))
    mark = notebook.metadata.get("mha_course", {})
    trouble = None
    if mark.get("status") in TODO:
        what, todo = TODO[mark["status"]]
        trouble = {"what": what, "todo": todo, "reason": mark.get("reason", "")}
    titles = [
        line for cell in notebook.cells[:5] for line in re.findall(r"(?m)^# +(.+)$", cell.source[:DRAWN])
    ]
    page = {
        "student": printable(student, 200),
        "title": printable(titles[0] if titles else stem, 200),
        "handed_in": handed_in,
        "trouble": trouble,
        "cells": cells,
        "index": [cell for cell in cells if cell["label"]],
    }
    return _template().render(page=page, told=told)


@cache
def _template() -> Any:
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    environment.filters["number"] = lambda value: f"{round(float(value or 0), 2):g}"
    return environment.get_template("feedback.html.j2")


def _cell(cell: Any, heading: str, room: bool, told: dict[str, Any]) -> dict[str, Any]:
    name = rules.grade_id(cell)
    comment = told["comments"].get(name)
    made = {
        "code": cell.cell_type == "code",
        "html": Markup((_code if cell.cell_type == "code" else _prose)(cell.source, room)),
        "outputs": [Markup(shown) for output in _outputs(cell) if (shown := _output(output))],
        "comment": Markup(_prose(comment, True)) if comment else "",
        "label": "",
    }
    if name in told["scores"]:
        score, points = told["scores"][name]
        made |= {
            "label": printable(_label(cell, heading), 200),
            "anchor": f"graded-{name}",
            "score": score,
            "points": points,
            "short": printable(_short(cell), 200),
        }
    return made


def _label(cell: Any, heading: str) -> str:
    """ "1.1 How alike? The scores: attention_scores"."""
    names = rules.checked_names(cell.source) if cell.cell_type == "code" else None
    return ": ".join(filter(None, (heading, ", ".join(names or [])))) or str(rules.grade_id(cell))


def _short(cell: Any) -> str:
    """The first line of what its check says."""
    for output in cell.get("outputs", []):
        text = output.get("text") or output.get("data", {}).get("text/plain") or ""
        for line in text.splitlines():
            if line[:1] in "✓✗○◇!" and line.strip():
                return line
    return ""


# ---------------------------------------------------------------------------------------- the parts


def as_it_is(source: str) -> str:
    """A text for a page, neither coloured nor laid out; a very long one is cut."""
    rest = "" if len(source) <= DRAWN else f"\n… and {len(source) - DRAWN} more characters"
    return f"<pre>{escape(source[:DRAWN])}{rest}</pre>"


def _prose(source: str, room: bool) -> str:
    return from_markdown(source) if len(source) <= DRAWN and room else as_it_is(source)


def _code(source: str, room: bool) -> str:
    from nbconvert.filters.highlight import Highlight2HTML

    short = len(source) <= COLOURED and max(map(len, source.splitlines()), default=0) <= LINE
    return Highlight2HTML(pygments_lexer="ipython3")(source) if short and room else as_it_is(source)


def _outputs(cell: Any) -> list[Any]:
    """A cell's outputs; below a check's card not once more what nbgrader needs to see that it failed."""
    outputs = list(cell.get("outputs", []))
    card = rules.is_graded(cell) and any("text/html" in output.get("data", {}) for output in outputs)
    return [output for output in outputs if not (card and output.output_type == "error")]


def _output(output: Any) -> str:
    """One output, of its forms the one that says most."""
    if output.output_type == "stream":
        return _text(output.text)
    if output.output_type == "error":
        return _text("\n".join(output.traceback) or f"{output.ename}: {output.evalue}")
    data, alt = output.get("data", {}), _alt(output)
    if "text/html" in data and len(data["text/html"]) <= DRAWN:
        return clean(data["text/html"])
    for kind in ("image/png", "image/jpeg"):
        source = f"data:{kind};base64,{''.join(str(data.get(kind, '')).split())}"
        if kind in data and PICTURE.fullmatch(source):
            return f'<img src="{source}" alt="{escape(alt)}">'
    if "image/svg+xml" in data:  # in an image, nothing of it runs, and nothing is fetched
        source = base64.b64encode(data["image/svg+xml"].encode()).decode()
        return f'<img src="data:image/svg+xml;base64,{source}" alt="{escape(alt)}">'
    if "text/markdown" in data:
        return _prose(data["text/markdown"], True)
    if "text/latex" in data:
        tex = data["text/latex"].strip().strip("$")
        return mathml(tex, block=True) or _text(data["text/latex"])
    return _text(data.get("text/plain", ""))


def _text(text: str) -> str:
    lines = "\n".join(printable(line, DRAWN) for line in strip_ansi(str(text)).expandtabs().split("\n"))
    return f"<pre>{escape(lines)}</pre>" if lines.strip() else ""


def _alt(output: Any) -> str:
    told = output.get("metadata", {}).get("image/png", {})
    return str(told.get("alt") or output.get("data", {}).get("text/plain", ""))
