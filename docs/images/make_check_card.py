"""Takes README's picture: lesson 01 in JupyterLab, a softmax over the wrong dimension, and what check() says of it.

python docs/images/make_check_card.py [FILE]
"""

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

import lab  # noqa: E402  (tests/lab.py drives JupyterLab)

ANSWERS = {
    "attention_scores": """def attention_scores(q, k):
    return q @ k.mT / math.sqrt(q.shape[-1])""",
    "stable_softmax": """def stable_softmax(x, dim):
    e = (x - x.amax(dim, keepdim=True)).exp()
    return e / e.sum(dim, keepdim=True)""",
    "attend": """def attend(q, k, v):
    weights = stable_softmax(attention_scores(q, k), dim=1)
    return weights @ v, weights""",
}


def take(file: Path) -> None:
    """Run the lesson up to the wrong answer, and photograph the card."""
    with tempfile.TemporaryDirectory() as folder:
        root = lab.make_root(Path(folder) / "course", "notebooks")
        with lab.server(root) as address, lab.browser(width=900, height=1200, sharpness=2) as page:
            notebook = lab.Notebook(page, address, "notebooks/01_one_head/01_one_head.ipynb")
            page.evaluate("() => jupyterapp.shell.collapseLeft()")
            cells = notebook.cells()
            first_code = next(cell for cell in cells if notebook.is_code(cell))
            notebook.run(first_code)
            for cell, source in ANSWERS.items():
                notebook.write(cell, source)
                notebook.run(cell)
            notebook.run("check_attend")
            page.wait_for_timeout(500)
            check = notebook.locate("check_attend")
            check.scroll_into_view_if_needed()
            page.mouse.move(5, 5)
            box = check.bounding_box()
            box["height"] -= 4  # without the line that JupyterLab draws below the cell just run
            page.screenshot(path=str(file), clip=box)


if __name__ == "__main__":
    take(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "check-card.png")
