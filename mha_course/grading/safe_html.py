"""What others wrote, as HTML that can be opened: nothing runs, nothing is fetched, and no link is more than a link.

`nbgrader_config.py` puts these two into nbgrader's own pages (formgrader, `generate_feedback`), `pages` uses them too.
The rules are bleach's, which nbconvert brings; formulas become MathML, so no page needs a script for them.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from functools import cache
from html import escape
from typing import Any
from urllib.parse import quote

from bleach.css_sanitizer import CSSSanitizer
from bleach.html5lib_shim import Filter
from bleach.sanitizer import Cleaner
from jinja2 import pass_context
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from .mathml import mathml

_NAMES = """a abbr b blockquote br caption code col colgroup dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i img kbd
li mark ol p pre q s samp small span strong sub summary sup table tbody td tfoot th thead tr tt u ul"""
_STYLES = """background background-color border border-bottom border-collapse border-left border-radius border-right
border-top color display flex-wrap font-family font-size font-style font-weight gap line-height margin margin-bottom
margin-left margin-right margin-top max-width overflow-x padding text-align vertical-align white-space"""
TAGS = set(_NAMES.split())
SIZES = {
    "td": ("colspan", "rowspan"),
    "th": ("colspan", "rowspan", "scope"),
    "ol": ("start",),
    "details": ("open",),
}
BAD_STYLE = re.compile(
    r"(?i)url|image|expression|\\|/\*|@|[:\s]-"
)  # what fetches, hides itself, or moves over others
PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]+")
COLOURED = re.compile(r"highlight|[a-z][a-z0-9]{0,2}")  # classes that colour code
MARK = f"formula-{secrets.token_hex(8)}"  # nobody can write it, because nobody knows it
FORMULA = re.compile(f'<span class="{MARK}">(\\d+)</span>')


def clean(html: Any) -> str:
    """HTML of which only harmless elements are left; what is not allowed is shown as text."""
    text = html.decode("utf-8", "replace") if isinstance(html, bytes) else str(html)
    return _cleaner().clean(text)


@pass_context
def markdown(context: Any, source: str) -> str:
    """Markdown as harmless HTML. A filter for templates of nbconvert's.

    Args:
        context: the template's; a cell there may have pictures attached.
        source: the text.
    """
    cell = context.get("cell") or {}
    return from_markdown(source, cell.get("attachments") or {})


def from_markdown(source: str, attachments: dict[str, dict[str, str]] | None = None) -> str:
    """Markdown as harmless HTML, formulas as MathML (or as TeX, where one is not understood).

    Args:
        source: the text.
        attachments: pictures by name, each by its type, in base64.
    """
    renderer = _Renderer(attachments or {})
    page = clean(MarkdownWithMath(renderer=renderer).render(source))
    return FORMULA.sub(lambda found: renderer.formulas[int(found[1])], page)


class _Renderer(IPythonRenderer):
    def __init__(self, attachments: dict[str, dict[str, str]]):
        super().__init__(escape=False, exclude_anchor_links=True, attachments=attachments)
        self.formulas: list[str] = []

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        """One level down, for the page has a title of its own; with the id that links to it use."""
        name = quote(re.sub(r"<[^>]*>", "", text).replace(" ", "-"), safe="?/:@!$&'()*+,;=")
        return f'<h{min(level + 1, 6)} id="{escape(name)}">{text}</h{min(level + 1, 6)}>\n'

    def inline_math(self, body: str) -> str:
        return self._formula(body, f"${body}$", block=False)

    def block_math(self, body: str) -> str:
        return self._formula(body, f"$${body}$$", block=True)

    def latex_environment(self, name: str, body: str) -> str:
        text = f"\\begin{{{name}}}{body}\\end{{{name}}}"
        return self._formula(text, text, block=True)

    def _formula(self, tex: str, written: str, block: bool) -> str:
        # a word joiner after each dollar sign: what a page's own MathJax does not find, it cannot make a link of
        as_text = escape(written).replace("$", "$\u2060").replace("\\", "\\\u2060")
        self.formulas.append(mathml(tex, block) or f"<code>{as_text}</code>")
        return f'<span class="{MARK}">{len(self.formulas) - 1}</span>'

    def _embed_image_or_attachment(self, src: str) -> str:
        if src.startswith("attachment:"):
            for kind, data in self.attachments.get(src.removeprefix("attachment:"), {}).items():
                return f"data:{kind};base64,{data}"
        return src


def _allowed(tag: str, name: str, value: str) -> bool:
    if name == "style":
        return not BAD_STYLE.search(value)
    if name == "class":
        return value == MARK or all(COLOURED.fullmatch(each) for each in value.split())
    if name in ("id", "title", "lang", "dir"):
        return True
    if tag == "a":
        return name == "href"
    if tag == "img":
        return name in ("alt", "width", "height") or (name == "src" and bool(PICTURE.fullmatch(value)))
    return name in SIZES.get(tag, ())


class _OurOwn(Filter):
    """Names get a prefix, so that they are none of the page's own; links say nothing of where they were followed."""

    def __iter__(self) -> Iterator[dict]:
        for token in Filter.__iter__(self):
            attributes = token.get("data")
            if isinstance(attributes, dict):
                for key, value in list(attributes.items()):
                    if key[1] == "id":
                        attributes[key] = f"text-{value}"
                    if key[1] == "href" and value.startswith("#"):
                        attributes[key] = f"#text-{value[1:]}"
                    elif key[1] == "href":
                        attributes[(None, "rel")] = "noopener noreferrer nofollow"
            yield token


@cache
def _cleaner() -> Cleaner:
    return Cleaner(
        tags=TAGS,
        attributes=_allowed,
        protocols={"http", "https", "mailto", "data"},  # data: for pictures alone, see `_allowed`
        css_sanitizer=CSSSanitizer(allowed_css_properties=_STYLES.split()),
        filters=[_OurOwn, _NoDataLinks],
    )


class _NoDataLinks(Filter):
    """A link to a page that is written in the link itself is no link."""

    def __iter__(self) -> Iterator[dict]:
        for token in Filter.__iter__(self):
            if token.get("name") == "a" and isinstance(token.get("data"), dict):
                href = token["data"].get((None, "href"), "")
                if not re.match(r"(?i)https?://|mailto:|#", href):
                    token["data"].pop((None, "href"), None)
            yield token
