"""Formulas for feedback pages: from TeX, as lessons and learners write it, to MathML, which browsers show by themselves.

No script and no request to anybody is needed for it. What is not known here stays TeX: `mathml` gives ``None``.
MathML Core: https://www.w3.org/TR/mathml-core/
"""

from __future__ import annotations

import re
from html import escape

LONGEST = 2_000  # characters of a formula
DEEPEST = 30  # braces in braces

_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\d+(?:\.\d+)?|\s+|.", re.DOTALL)
_LETTERS = """alpha beta gamma delta epsilon varepsilon theta lambda mu nu xi pi rho sigma tau phi varphi chi psi omega
eta kappa zeta Gamma Delta Theta Lambda Pi Sigma Phi Psi Omega ell infty partial nabla"""
_GREEK = dict(zip(_LETTERS.split(), "αβγδϵεθλμνξπρστϕφχψωηκζΓΔΘΛΠΣΦΨΩℓ∞∂∇", strict=True))
_NAMES = """cdot times le leq ge geq ne neq approx in to rightarrow longrightarrow Rightarrow leftarrow mapsto top dots
ldots cdots circ odot otimes pm lfloor rfloor lceil rceil mid sim ll gg propto forall equiv lbrace rbrace langle rangle
sum prod int Vert | { } _ % # $ &"""
_SIGNS = dict(zip(_NAMES.split(), "⋅×≤≤≥≥≠≠≈∈→→⟶⇒←↦⊤……⋯∘⊙⊗±⌊⌋⌈⌉∣∼≪≫∝∀≡{}⟨⟩∑∏∫‖‖{}_%#$&", strict=True))
_FUNCTIONS = {"max", "min", "exp", "log", "ln", "sin", "cos", "tan", "tanh", "lim", "arg", "det", "dim"}
_SPACES = {",": 0.17, ":": 0.22, ";": 0.28, " ": 0.33, "quad": 1, "qquad": 2, "!": -0.17}
_BOLD, _TYPED = "font-weight:bold", "font-family:monospace"
_TEXTS = dict.fromkeys(("text", "textrm", "mathrm", "operatorname", "mathit"), "")
_TEXTS |= {"textbf": _BOLD, "mathbf": _BOLD, "texttt": _TYPED}
_BIG = {f"{size}{side}" for size in ("big", "Big", "bigg", "Bigg") for side in ("", "l", "r", "m")}
_ABOVE = {"hat": "^", "bar": "¯", "overline": "‾", "tilde": "~", "vec": "→"}
_FENCES = {
    "pmatrix": "()",
    "bmatrix": "[]",
    "vmatrix": "||",
    "matrix": "  ",
    "cases": "{ ",
    "aligned": "  ",
    "align": "  ",
    "align*": "  ",
}


def mathml(tex: str, block: bool = False) -> str | None:
    """A formula as a ``<math>`` element, or ``None`` if there is something in it that is not known.

    Args:
        tex: without the dollar signs.
        block: on a line of its own.
    """
    if len(tex) > LONGEST:
        return None
    try:
        inside = _Reader(tex).row(())
    except _Unknown:
        return None
    style = ' display="block"' if block else ""
    return f"<math{style}><mrow>{inside}</mrow></math>"


class _Unknown(Exception):
    pass


class _Reader:
    def __init__(self, tex: str):
        self.tokens = _TOKEN.findall(tex)
        self.at = self.depth = 0

    def peek(self, spaces: bool = False) -> str:
        while not spaces and self.at < len(self.tokens) and self.tokens[self.at].isspace():
            self.at += 1
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def next(self, spaces: bool = False) -> str:
        token = self.peek(spaces)
        self.at += 1
        return token

    def row(self, ends: tuple[str, ...]) -> str:
        """Everything before one of these tokens, or before the end."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise _Unknown
        made = []
        while (token := self.peek()) not in ends:
            if not token:
                if ends:
                    raise _Unknown
                break
            made.append(self.scripted())
        self.depth -= 1
        return "".join(made)

    def scripted(self) -> str:
        base = "<mrow></mrow>" if self.peek() in ("_", "^") else self.atom()
        scripts: dict[str, str] = {}
        while (sign := self.peek()) in ("_", "^", "'"):
            self.next()
            part = "<mo>′</mo>" if sign == "'" else self.argument()
            sign = "^" if sign == "'" else sign
            scripts[sign] = f"<mrow>{scripts[sign]}{part}</mrow>" if sign in scripts else part
        if len(scripts) == 2:
            return f"<msubsup>{base}{scripts['_']}{scripts['^']}</msubsup>"
        for sign, part in scripts.items():
            tag = "msub" if sign == "_" else "msup"
            return f"<{tag}>{base}{part}</{tag}>"
        return base

    def argument(self) -> str:
        """What stands in braces, or the next sign alone: of a number its first digit."""
        token = self.peek()
        if token == "{":
            self.next()
            inside = self.row(("}",))
            self.next()
            return f"<mrow>{inside}</mrow>"
        if len(token) > 1 and token[0].isdigit():
            self.tokens[self.at] = token[1:]
            return f"<mn>{token[0]}</mn>"
        return self.atom()

    def raw(self) -> str:
        """The text in braces."""
        if self.next() != "{":
            raise _Unknown
        text = []
        while (token := self.next(spaces=True)) != "}":
            if not token or token == "{" or (token[0] == "\\" and token[1:] not in _SIGNS):
                raise _Unknown
            text.append(token[1:] if token[0] == "\\" else token)
        return "".join(text)

    def atom(self) -> str:
        token = self.next()
        if token == "{":
            self.at -= 1
            return self.argument()
        if token.startswith("\\"):
            return self.command(token[1:])
        if token in ("", "}", "&", "$", "#", "%"):
            raise _Unknown
        if token[0].isdigit():
            return f"<mn>{token}</mn>"
        if token.isalpha():
            return f"<mi>{escape(token)}</mi>"
        if token in "()[]|":  # as high as they are written; those after \left grow
            return f'<mo stretchy="false">{token}</mo>'
        return f"<mo>{escape({'-': '−', '*': '∗'}.get(token, token))}</mo>"

    def command(self, name: str) -> str:
        if name in _GREEK:
            return f"<mi>{_GREEK[name]}</mi>"
        if name in _SIGNS:
            return f"<mo>{escape(_SIGNS[name])}</mo>"
        if name in _FUNCTIONS:
            return f"<mi>{name}</mi>"
        if name in _SPACES:
            return f'<mspace width="{_SPACES[name]}em"></mspace>'
        if name in _BIG:
            return self.atom()
        if name in _TEXTS:
            style = f' style="{_TEXTS[name]}"' if _TEXTS[name] else ""
            tag = "mi" if name == "operatorname" else "mtext"
            text = escape(self.raw())
            return f"<{tag}{style}>{text.replace(' ', chr(160))}</{tag}>"
        if name in _ABOVE:
            return f"<mover>{self.argument()}<mo>{_ABOVE[name]}</mo></mover>"
        if name in ("frac", "tfrac", "dfrac"):
            return f"<mfrac>{self.argument()}{self.argument()}</mfrac>"
        if name == "sqrt":
            return f"<msqrt>{self.argument()}</msqrt>"
        if name == "left":
            opened = self.fence()
            inside = self.row(("\\right",))
            self.next()
            return f"<mrow>{opened}{inside}{self.fence()}</mrow>"
        if name == "begin":
            return self.table()
        raise _Unknown

    def fence(self) -> str:
        sign = self.next()
        return "" if sign == "." else f"<mo>{escape(_SIGNS.get(sign.lstrip(chr(92)), sign))}</mo>"

    def table(self) -> str:
        name = self.raw()
        if name not in _FENCES:
            raise _Unknown
        rows, cells = [], []
        while True:
            cells.append(f"<mtd>{self.row(('&', chr(92) * 2, chr(92) + 'end'))}</mtd>")
            mark = self.next()
            if mark != "&":
                rows.append(f"<mtr>{''.join(cells)}</mtr>")
                cells = []
            if mark == "\\end":
                break
        if self.raw() != name:
            raise _Unknown
        opened, closed = (f"<mo>{sign.strip()}</mo>" if sign.strip() else "" for sign in _FENCES[name])
        return f"<mrow>{opened}<mtable>{''.join(rows)}</mtable>{closed}</mrow>"
