"""Feedback pages in a real browser: nothing of what a learner wrote runs or fetches, and everybody can read them."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path

import lab
import pytest
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from mha_course.building import ROOT
from mha_course.grading import pages, safe_html
from mha_course.grading.writer import course_config

RUN = "window.ran=(window.ran||[]).concat('it')"
SCRIPT = f"<script>{RUN}</script>"
AWAY = "http://elsewhere.test/seen"

MARKDOWN = [
    "[notes](javascript:RUN)",
    "[notes](JaVaScRiPt:RUN)",
    "[notes](javascript&colon;RUN)",
    "[notes](javascript&#58;RUN)",
    "[notes](&#106;avascript:RUN)",
    "[notes](java&Tab;script:RUN)",
    "[notes](java&NewLine;script:RUN)",
    "[notes](&#1;javascript:RUN)",
    "[notes](<java\tscript:RUN>)",
    "[notes](data&colon;text/html,SCRIPT)",
    "[notes](data:text/html;base64,PHNjcmlwdD4xPC9zY3JpcHQ+)",
    "[notes](data:image/svg+xml,<svg/onload=RUN>)",
    "[notes](vbscript:RUN)",
    "[notes](view-source:javascript:RUN)",
    "[notes][1]\n\n[1]: javascript:RUN 'title'",
    "<javascript:RUN>",
    "![picture](AWAY)",
    "![picture](//elsewhere.test/seen)",
    "![picture](javascript:RUN)",
    "![picture](data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9IndpbmRvdy5yYW49MSIvPg==)",
    '![a" onerror="RUN](x)',
    '![a](x "t\\" onerror=\\"RUN")',
    '[a](x "t\\" onmouseover=\\"RUN")',
    "![a][2]\n\n[2]: AWAY",
    "$\\href{javascript:RUN}{x}$",
    "$$\\href{javascript:RUN}{x}$$",
    "\\\\(\\href{javascript:RUN}{x}\\\\)",
    "\\begin{align}\\href{javascript:RUN}{x}\\end{align}",
    "$\\unicode{<img src=x onerror=RUN>}$",
    "$\\text{<img src=x onerror=RUN>}$",
    "$<img src=x onerror=RUN>$",
    '![$\\text{" onerror="RUN}$](x)',
    "`<img src=x onerror=RUN>`",
    "```<img src=x onerror=RUN>\n<img src=x onerror=RUN>\n```",
    "# <img src=x onerror=RUN>",
    '# "><img src=x onerror=RUN>',
    "| <img src=x onerror=RUN> |\n|---|\n| [a](javascript:RUN) |",
]
HTML = [
    "SCRIPT",
    "<img src=x onerror=RUN>",
    "<img src=AWAY>",
    "<img srcset='AWAY 1x'>",
    "<picture><source srcset=AWAY><img></picture>",
    "<video poster=AWAY></video><audio src=AWAY autoplay></audio>",
    "<a href='java\nscript:RUN'>x</a>",
    "<a href=' javascript:RUN'>x</a>",
    "<a href='data:text/html,SCRIPT'>x</a>",
    "<a href=x ping=AWAY onclick=RUN>x</a>",
    "<svg onload=RUN><a xlink:href='javascript:RUN'><text>x</text></a></svg>",
    "<svg><animate onbegin=RUN attributeName=x dur=1s></svg>",
    "<svg><use href='data:image/svg+xml,SCRIPT#x'/><image href=AWAY /></svg>",
    "<math><maction actiontype='statusline#AWAY' xlink:href='javascript:RUN'>x</maction></math>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=x onerror=RUN&gt;'>",
    "<math><mi xlink:href='javascript:RUN'>x</mi></math>",
    "<iframe src='javascript:RUN'></iframe><iframe srcdoc='SCRIPT'></iframe>",
    "<iframe src=AWAY></iframe><object data=AWAY></object><embed src=AWAY>",
    "<form action='javascript:RUN'><button autofocus onfocus=RUN>x</button></form>",
    "<form action=AWAY><input type=image src=AWAY></form>",
    "<style>@import 'AWAY'; body{background:url(AWAY)}</style>",
    "<div style='background:url(AWAY)'>x</div>",
    "<div style='background:u\\72l(AWAY)'>x</div>",
    "<div style='background-image:image-set(\"AWAY\" 1x)'>x</div>",
    '<div style="color:red;background:URL(AWAY)">x</div>',
    "<link rel=stylesheet href=AWAY><link rel=prefetch href=AWAY>",
    "<meta http-equiv=refresh content='0;url=AWAY'><base href=AWAY>",
    "<body onload=RUN><details open ontoggle=RUN>x</details>",
    "<input autofocus onfocus=RUN><select autofocus onfocus=RUN>",
    "<marquee onstart=RUN>x</marquee><xss tabindex=1 autofocus onfocus=RUN>",
    "<noscript><p title='</noscript><img src=x onerror=RUN>'>",
    "<template><img src=x onerror=RUN></template><textarea></textarea><title><img src=x onerror=RUN>",
    "<p title='\"><img src=x onerror=RUN>'>x</p>",
    "<!--><img src=x onerror=RUN>--><![CDATA[<img src=x onerror=RUN>]]>",
    "<table background=AWAY><td background=AWAY>x",
    "<scr<script>ipt>RUN</scr</script>ipt>",
]
TEXTS = [
    "</pre>SCRIPT",
    "\x1b]8;;javascript:RUN\x07x\x1b]8;;\x07",
    "\x1b[31m<img src=x onerror=RUN>\x1b[0m",
    "</title>SCRIPT",
]


def real(text: str) -> str:
    return text.replace("SCRIPT", SCRIPT).replace("RUN", RUN).replace("AWAY", AWAY)


def shown(kind: str, data: str, **metadata) -> dict:
    return new_output("display_data", {kind: data}, metadata=metadata)


def outputs() -> list[dict]:
    made = [shown("text/html", real(each)) for each in HTML]
    made += [shown("text/html", real(each), **{"text/html": {"isolated": True}}) for each in HTML[:1]]
    made += [shown("text/markdown", real(each)) for each in MARKDOWN]
    made += [shown("text/plain", real(each)) for each in TEXTS + HTML[:2]]
    made += [new_output("stream", name="stdout", text=real(each)) for each in TEXTS]
    made += [
        new_output("error", ename=real(each), evalue=real(each), traceback=[real(each)]) for each in TEXTS
    ]
    made += [shown("text/latex", real(each)) for each in ("$$\\href{javascript:RUN}{x}$$", "SCRIPT")]
    made += [
        shown("image/svg+xml", real(f"<svg xmlns='http://www.w3.org/2000/svg' onload=\"RUN\">{each}</svg>"))
        for each in HTML[:12]
    ]
    made += [shown("application/javascript", RUN), shown("application/vnd.jupyter.widget-view+json", "{}")]
    made += [shown("image/png", f'"><img src=x onerror={RUN}>')]
    pixel = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
    made += [
        shown("image/png", pixel, **{"image/png": {"alt": real(f'x" onerror="{each}')}})
        for each in ("RUN", "SCRIPT")
    ]
    return made


def marked(cell, name: str, points: float = 2, score: float = 1.0, **more):
    told = {"grade_id": name, "grade": True, "solution": False, "points": points, "score": score, **more}
    cell.metadata["nbgrader"] = told
    return cell


def hostile_notebook(grade_id: str = "x"):
    """All the vectors, everywhere a learner can put them."""
    cells = [new_markdown_cell(real(each)) for each in [*MARKDOWN, *HTML]]
    cells += [new_code_cell("1", outputs=outputs())]
    cells += [new_code_cell(real(each)) for each in TEXTS]
    comment = {"solution": True, "comment": real("\n\n".join(MARKDOWN[:12]))}
    cells += [marked(new_code_cell("check(x)"), grade_id, **comment)]
    cells += [marked(new_code_cell("check(y)", outputs=[shown("text/plain", real("✗ </td>SCRIPT"))]), "y")]
    return new_notebook(cells=cells)


OURS = (
    "body header nav main math mrow mi mo mn mtext mspace mfrac msqrt msub msup msubsup mover mtable mtr mtd"
)
ALLOWED = {*OURS.split(), *safe_html.TAGS}
NBGRADERS = {"score": 1.0, "max_score": 2.0, "late_penalty": 0.0}


def told(notebook, score: float = 1.0) -> dict:
    """What the gradebook would say of a notebook whose cells know their scores; see `writer.marks_told`."""
    marks = [cell.metadata["nbgrader"] for cell in notebook.cells if "nbgrader" in cell.metadata]
    scores = {mark["grade_id"]: (mark["score"], mark["points"]) for mark in marks}
    comments = {mark["grade_id"]: mark["comment"] for mark in marks if mark.get("comment")}
    whole = {"score": score, "most": 2.0, "penalty": 0.0, "version": "v"}
    return {"scores": scores, "comments": comments, **whole}


def our_page(
    notebook=None, student: str = "Ada Lovelace", stem: str = "01_one_head", score: float = 1.0
) -> str:
    notebook = ordinary_notebook() if notebook is None else notebook
    return pages.html_of(notebook, stem, student, "2026-11-20 12:00", told(notebook, score))


def hostile_page() -> str:
    notebook = hostile_notebook(real('x" onclick="RUN'))
    return our_page(notebook, real('"><img src=x onerror=RUN>'), real("</title>SCRIPT"))


def nbgraders_page(template: str) -> str:
    """What nbgrader makes of it with the configuration of the course."""
    import nbgrader

    config = course_config(ROOT)
    folder = Path(nbgrader.__file__).parent / "server_extensions" / "formgrader" / "templates"
    static = folder.parent / "static" / "node_modules" / "bootstrap" / "dist" / "css"
    config.HTMLExporter.extra_template_basedirs = [str(folder)]
    config.HTMLExporter.extra_template_paths = [str(static)]
    config.HTMLExporter.template_name = template
    told = {
        "nbgrader": {"notebook": "n", **NBGRADERS},
        "base_url": "",
        "submission_id": "1",
        "index": 0,
        "total": 1,
    }
    told |= {
        "student": "s",
        "first_name": "",
        "last_name": "",
        "notebook_path": "",
        "assignment_id": "a",
        "notebook_id": "n",
    }
    return HTMLExporter(config=config).from_notebook_node(hostile_notebook(), resources=told)[0]


@pytest.fixture(scope="module")
def chromium():
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if lab.find_chromium() is None:
        pytest.skip("there is no Chromium here")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(lab.find_chromium()), args=lab.FLAGS)
        yield browser
        browser.close()


def opened(chromium, html: str, **context):
    """The page in the browser, everything that it asked for, and what went wrong."""
    asked: list[str] = []

    def answer(route):
        if route.request.url == "http://feedback.test/":
            route.fulfill(body=html, content_type="text/html; charset=utf-8")
        else:
            asked.append(route.request.url)
            route.abort()

    page = chromium.new_context(**context).new_page()
    page.route("**/*", answer)
    page.context.on("page", lambda other: asked.append(f"a window: {other.url}"))
    page.goto("http://feedback.test/")
    return page, asked


def pressed_everywhere(page) -> None:
    """Follow every link that stays in the page, open everything, point at everything."""
    page.evaluate(
        """() => { for (const each of document.querySelectorAll('main *, header *, nav *')) {
             if (each.open === false) each.open = true;
             for (const kind of ['mouseover', 'focus', 'click', 'toggle', 'begin'])
               if (kind !== 'click' || !/^(http|mailto)/i.test(each.href || '')) each.dispatchEvent(new Event(kind, {bubbles: true, cancelable: true}));
             if (each.href && !/^(http|mailto)/i.test(each.href)) each.click();
        } }"""
    )
    page.wait_for_timeout(300)


WITHOUT = re.compile(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>")


@pytest.mark.browser
@pytest.mark.parametrize("policy", [True, False], ids=["as it is", "without its policy"])
def test_nothing_that_a_learner_wrote_runs_or_fetches_in_a_page(chromium, policy):
    html = hostile_page()
    assert WITHOUT.search(html)
    page, asked = opened(chromium, html if policy else WITHOUT.sub("", html))
    pressed_everywhere(page)
    assert page.evaluate("window.ran") is None
    assert asked == []
    assert page.url.startswith("http://feedback.test/")
    found = page.evaluate(
        "[...document.querySelectorAll('body *')].map(e => [e.localName, e.getAttributeNames(), e.getAttribute('href') || ''])"
    )
    assert {name for name, _, _ in found} <= ALLOWED
    assert not [name for _, names, _ in found for name in names if name.startswith("on") or ":" in name]
    assert [href for _, _, href in found if href and not re.match("#|https?://|mailto:", href)] == []
    page.context.close()


@pytest.mark.browser
@pytest.mark.parametrize("template", ["feedback", "formgrade"])
def test_nothing_that_a_learner_wrote_runs_in_nbgraders_own_pages(chromium, template):
    page, asked = opened(chromium, nbgraders_page(template))
    pressed_everywhere(page)
    assert page.evaluate("window.ran") is None
    assert [each for each in asked if "elsewhere" in each] == []
    page.context.close()


def ordinary_notebook():
    card = '<div style="border-left:5px solid #d55e00;padding:6px 14px"><b>attend</b>: right shape, wrong values.</div>'
    cells = [
        new_markdown_cell(
            "# 01 · One head\n\nThe scores are $q \\cdot k / \\sqrt D$, in all $\\frac{1}{2}$.\n\n$$a_{ij} = \\sum_s w_s$$"
        ),
        new_markdown_cell("## Build"),
        new_markdown_cell(
            "### 1.3 The look-up: attend\n\n<details><summary>Hint 1</summary>\n\nLook at `dim`.\n\n</details>"
        ),
        new_code_cell("def attend(q, k, v):\n    return 'a' + str(1)  # a comment " + "word " * 60),
        marked(
            new_code_cell(
                "check(attend)",
                outputs=[
                    new_output(
                        "display_data",
                        {"text/plain": "✗ attend: right shape, wrong values.", "text/html": card},
                    ),
                    new_output("display_data", {"text/plain": "A table: " + "a long description, " * 40}),
                ],
            ),
            "check_attend",
        ),
        new_markdown_cell("| q | k |\n|---|---|\n| 1 | 2 |\n\nA [link](https://pytorch.org)."),
        marked(
            new_code_cell("check(why=why)", outputs=[new_output("stream", text="✓ why: 1 thing checked\n")]),
            "check_why",
            score=None,
        ),
    ]
    return new_notebook(cells=cells)


def test_a_page_says_whose_it_is_and_names_every_exercise():
    html = our_page()
    assert "<title>Ada Lovelace: 01 · One head</title>" in html
    assert "1.3 The look-up: attend: attend" in html.replace("</a>", "") and "✗ attend: right shape" in html
    assert "Test cell" not in html and "1 of 2 points" in html and "not yet" in html
    assert 'style="border-left:5px solid #d55e00;padding:6px 14px;"' in html  # the card keeps its looks


@pytest.mark.parametrize("status", ["set aside", "failed"])
def test_a_page_of_what_was_not_marked_says_what_to_do_and_shows_no_score(status):
    notebook = ordinary_notebook()
    notebook.metadata["mha_course"] = {"status": status, "reason": "01.ipynb: is not readable as JSON"}
    html = our_page(notebook, score=0.0)
    assert "is not readable as JSON" in html and ("hand in" in html or "nothing for you to do" in html)
    assert "Score" not in html and "of 2 points" not in html and "0 of" not in html


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_can_be_read_by_everybody(chromium, scheme):
    html = our_page()
    page, asked = opened(
        chromium, WITHOUT.sub("", html), color_scheme=scheme, viewport={"width": 500, "height": 700}
    )
    assert asked == []
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # alt texts and code wrap
    assert page.locator("math msqrt").count() == 1 and page.locator("math[display=block]").count() == 1
    assert page.evaluate("getComputedStyle(document.querySelector('summary')).display") == "list-item"
    assert page.locator("nav, main, header").count() == 3
    for link in page.locator("a[href^='#']").all():
        assert page.evaluate("id => !!document.getElementById(id)", link.get_attribute("href")[1:])
    if axe := os.environ.get("MHA_COURSE_AXE"):  # a copy of axe.min.js, from npm's axe-core
        page.add_script_tag(content=Path(axe).read_text(encoding="utf-8"))
        found = page.evaluate("axe.run().then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.html)]))")
        assert found == []
    page.context.close()
