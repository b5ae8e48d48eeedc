"""Formulas of lessons, and of learners, as MathML."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest

from mha_course import building
from mha_course.grading.mathml import mathml

ELEMENTS = "math mrow mi mo mn mtext mspace mfrac msqrt msub msup msubsup mover mtable mtr mtd"
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![$\\])\$([^$]+?)\$", re.DOTALL)


def formulas() -> set[str]:
    """All that stand in released notebooks."""
    found = set()
    for path in (building.ROOT / "notebooks").glob("*/*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                prose = re.sub(r"```.*?```|`[^`]*`", "", "".join(cell["source"]), flags=re.DOTALL)
                found |= {match[1] or match[2] for match in FORMULA.finditer(prose)}
    return found


def test_every_formula_of_every_lesson_is_known():
    assert len(formulas()) > 100
    assert [tex for tex in formulas() if mathml(tex) is None] == []


@pytest.mark.parametrize(
    ("tex", "shown"),
    [
        (r"\tfrac12", "<mfrac><mn>1</mn><mn>2</mn></mfrac>"),
        (r"\tfrac1{16}", "<mfrac><mn>1</mn><mrow><mn>16</mn></mrow></mfrac>"),
        (r"\sqrt D", "<msqrt><mi>D</mi></msqrt>"),
        ("x_i^2", "<msubsup><mi>x</mi><mi>i</mi><mn>2</mn></msubsup>"),
        ("w'_{ls}", "<msubsup><mi>w</mi><mrow><mi>l</mi><mi>s</mi></mrow><mo>′</mo></msubsup>"),
        ("(x)", '<mo stretchy="false">(</mo><mi>x</mi><mo stretchy="false">)</mo>'),
        (r"\left(x\right]", "<mrow><mo>(</mo><mi>x</mi><mo>]</mo></mrow>"),
        (r"a < b", "<mi>a</mi><mo>&lt;</mo><mi>b</mi>"),
        (r"\text{a <b> c}", "<mtext>a\xa0&lt;b&gt;\xa0c</mtext>"),
    ],
)
def test_what_a_formula_becomes(tex, shown):
    assert mathml(tex) == f"<math><mrow>{shown}</mrow></math>"


@pytest.mark.parametrize(
    "tex",
    [
        *(r"\href{javascript:alert(1)}{x}", r"\require{html}", r"\unicode{60}", r"\class{a}{b}", r"\frac{1}"),
        *("{", "}", "x^", r"\left(", r"\begin{pmatrix} 1", r"\begin{html} x \end{html}", "{" * 40 + "}" * 40),
        *("x" * 3000, r"\text{\href{a}}", r"\begin{pmatrix}1\end{cases}"),
    ],
)
def test_what_is_not_known_is_left_as_it_is(tex):
    assert mathml(tex) is None


@pytest.mark.parametrize(
    "tex", [*sorted(formulas()), "<script>alert(1)</script>", '"onload="x', "a&lt;b", "<!--"]
)
def test_what_comes_out_is_a_closed_element_without_attributes_of_the_learners(tex):
    made = mathml(tex)
    if made is not None:
        found = ET.fromstring(made)
        assert {name for each in found.iter() for name in each.attrib} <= {
            "width",
            "style",
            "display",
            "stretchy",
        }
        assert {each.tag for each in found.iter()} <= set(ELEMENTS.split())
