"""What a lesson's notebook must keep to, and how it is brought into one fixed form.

Everything here works on the notebook itself (an ``nbformat`` node): no kernel, no nbgrader, no files.
`building` and the nbgrader steps in `nbgrader_steps` both use it, so that ``mha-course build`` and the
plain nbgrader commands refuse the same things and write the same bytes.
"""

from __future__ import annotations

import ast
import base64
import binascii
import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
STUB = "raise NotImplementedError()"
UNGRADED = "ungraded"  # tag of a cell that calls check() only to show what a check does
NOT_WHEN_GRADED = (
    "not-when-graded"  # a cell that takes long and answers nothing: it is left out while marking
)

CODE_WIDTH = 88  # characters: what a page of JupyterLab shows without scrolling sideways
DOC_WIDTH = 80  # of docstrings and of drawings in prose: they are read line by line

METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
    },
}


@dataclass(frozen=True)
class Problem:
    """Something that must be put right before a lesson is released: where, and what."""

    file: str
    cell: str
    says: str

    def __str__(self) -> str:
        return f"{self.file}, {self.cell}: {self.says}" if self.cell else f"{self.file}: {self.says}"


class Refused(Exception):
    """A lesson that cannot be built. ``problems`` says where and why."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))


# --- reading a cell -----------------------------------------------------------------------------


def marks(cell) -> dict:
    """nbgrader's metadata of a cell, an empty dict where it has none."""
    return cell.metadata.get("nbgrader") or {}


def grade_id(cell) -> str | None:
    return marks(cell).get("grade_id") or None


def is_answer(cell) -> bool:
    """The learner writes in this cell."""
    return bool(marks(cell).get("solution"))


def is_graded(cell) -> bool:
    return bool(marks(cell).get("grade"))


def checked_names(source: str) -> list[str] | None:
    """Names of the exercises and questions that a cell's ``check(...)`` calls are about.

    Gives ``None`` where the source is not plain Python (a magic, a syntax error).
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "check":
            names += [arg.id if isinstance(arg, ast.Name) else ast.unparse(arg) for arg in node.args]
            names += [keyword.arg or ast.unparse(keyword.value) for keyword in node.keywords]
    return names


def solution_regions(source: str) -> list[list[str]]:
    """The answers in a cell: for each pair of markers, the lines between them, without indentation."""
    regions, inside = [], None
    for line in source.splitlines():
        if line.strip() == BEGIN:
            inside = []
        elif line.strip() == END and inside is not None:
            regions.append([text for text in inside if text])
            inside = None
        elif inside is not None:
            inside.append(line.strip())
    return regions


def without_answers(source: str) -> str:
    """What is left of a cell for a learner: the lines outside the markers."""
    kept, inside = [], False
    for line in source.splitlines():
        inside = inside or line.strip() == BEGIN
        if not inside:
            kept.append(line)
        inside = inside and line.strip() != END
    return "\n".join(kept)


def describe(index: int, cell) -> str:
    """How a cell is named in a message; cells are counted from 1."""
    name = grade_id(cell)
    return f"cell {index + 1} ({name})" if name else f"cell {index + 1}"


# --- what is refused ----------------------------------------------------------------------------


def problems_in_source(nb, file: str, find: Callable[[str], object] | None = None) -> list[Problem]:
    """What is wrong with a lesson's source, before anything is run.

    Args:
        nb: the notebook, with its answers.
        file: how the file is called in the messages.
        find: gives the exercise or question of a name, raises ``LookupError`` if there is none.
    """
    found: list[Problem] = []
    seen: dict[str, int] = {}
    answered: set[str] = set()

    for index, cell in enumerate(nb.cells):

        def refuse(says: str, where: str = describe(index, cell)) -> None:
            found.append(Problem(file, where, says))

        name = grade_id(cell)
        if marks(cell) and not name:
            refuse("has nbgrader marks but no grade_id")
        if name in seen:
            refuse(f"the grade_id {name!r} is already used by cell {seen[name] + 1}")
        elif name:
            seen[name] = index
        if is_graded(cell) and not has_points(cell):
            refuse("is graded but has no points (a number above 0)")
        for says in [*marker_problems(cell), *width_problems(cell)]:
            refuse(says)
        if is_answer(cell) and name:
            answered.add(name)
        if cell.cell_type != "code":
            continue

        names = checked_names(cell.source)
        if names is None and is_graded(cell):
            refuse("is graded but is not plain Python")
        if not names or UNGRADED in cell.metadata.get("tags", []):
            continue
        if not is_graded(cell) or is_answer(cell):
            refuse(f"calls check() but is no graded cell with points (or tag it {UNGRADED!r})")
        for checked in names:
            if checked not in answered:
                refuse(f"checks {checked!r}, but no answer cell before it has that grade_id")
            elif not re.search(rf"\b{re.escape(checked)}\b", without_answers(nb.cells[seen[checked]].source)):
                refuse(f"checks {checked!r}, which the answer cell does not name outside its markers")
            if find is not None and not is_known(find, checked):
                refuse(f"checks {checked!r}, which no file in mha_course/exercises declares")
    return found


def has_points(cell) -> bool:
    points = marks(cell).get("points")
    return isinstance(points, int | float) and not isinstance(points, bool) and points > 0


def is_known(find: Callable[[str], object], name: str) -> bool:
    try:
        return find(name) is not None
    except LookupError:
        return False


def marker_problems(cell) -> list[str]:
    """What is wrong with a cell's solution markers.

    nbgrader turns an answer cell without a marker that it knows *wholly* into a stub, signature and
    docstring included, and says nothing: so a marker must be exactly right.
    """
    says, inside, pairs = [], False, 0
    for number, line in enumerate(cell.source.splitlines(), start=1):
        text = line.strip()
        if text == BEGIN:
            if inside:
                says.append(f"line {number}: {BEGIN!r} inside another one")
            inside = True
        elif text == END:
            if not inside:
                says.append(f"line {number}: {END!r} without {BEGIN!r}")
            inside, pairs = False, pairs + 1
        elif resembles_marker(text):
            says.append(f"line {number}: {text!r} looks like a marker; write {BEGIN!r} or {END!r}")
    if inside:
        says.append(f"{BEGIN!r} without {END!r}")
    if pairs and not is_answer(cell):
        says.append("an answer between markers, in a cell that is no nbgrader solution cell")
    if cell.cell_type == "code" and is_answer(cell) and not pairs and not says:
        says.append("is an answer cell without markers: nbgrader would turn all of it into a stub")
    return says


def width_problems(cell) -> list[str]:
    """Lines that make a reader scroll sideways: in code and docstrings, and in drawings in the prose.

    Alt text may be as wide as it likes.
    """
    lines, says = cell.source.splitlines(), []
    if cell.cell_type == "code":
        free, documented = wide_lines(cell.source)
        for number, line in enumerate(lines, start=1):
            allowed = DOC_WIDTH if number in documented else CODE_WIDTH
            if len(line) > allowed and number not in free:
                says.append(
                    f"line {number} has {len(line)} characters, {allowed} can be read without scrolling"
                )
        return says
    fenced = False
    for number, line in enumerate(lines, start=1):
        fenced ^= line.lstrip().startswith("```")
        if fenced and len(line) > DOC_WIDTH:
            says.append(
                f"line {number} has {len(line)} characters, {DOC_WIDTH} can be read without scrolling"
            )
    return says


def wide_lines(source: str) -> tuple[set[int], set[int]]:
    """Numbers of the lines of alt texts, and of docstrings; none where the source is not plain Python."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except SyntaxError:
        return set(), set()
    alts = [node.value for node in nodes if isinstance(node, ast.keyword) and node.arg == "alt"]
    kinds = (ast.FunctionDef, ast.ClassDef)
    docs = [node.body[0] for node in nodes if isinstance(node, kinds) and ast.get_docstring(node) is not None]
    covered = (
        {line for node in found for line in range(node.lineno, node.end_lineno + 1)} for found in (alts, docs)
    )
    return next(covered), next(covered)


def resembles_marker(text: str) -> bool:
    """A comment so near to a marker that it was surely meant as one."""
    if "BEGIN SOLUTION" in text or "END SOLUTION" in text:
        return True
    if not text.startswith("#") or len(text) > 30:
        return False
    words = re.sub(r"[\W_]+", " ", text).strip().upper()
    return any(
        difflib.SequenceMatcher(None, words, known).ratio() > 0.8
        for known in ("BEGIN SOLUTION", "END SOLUTION")
    )


def problems_in_release(source, release, file: str) -> list[Problem]:
    """Answers and outputs that are still in a release.

    An answer counts as left in when all of its lines stand one after the other somewhere in the release,
    prose and hints included, whatever their indentation.

    Args:
        source: the notebook with its answers.
        release: what a learner would get.
        file: how the release is called in the messages.
    """
    found = []
    answers = {
        grade_id(cell): region
        for cell in source.cells
        if is_answer(cell)
        for region in solution_regions(cell.source)
        if region
    }
    for index, cell in enumerate(release.cells):
        where = describe(index, cell)
        lines = [line.strip().strip("`") for line in cell.source.splitlines()]
        lines = [line for line in lines if line]
        for name, answer in answers.items():
            if contains(lines, answer):
                found.append(Problem(file, where, f"the answer to {name!r} is left in the release"))
        if BEGIN in cell.source or END in cell.source:
            found.append(Problem(file, where, "a solution marker is left in the release"))
        if cell.get("outputs") or cell.get("execution_count"):
            found.append(Problem(file, where, "an output is left in the release"))
        if cell.cell_type == "code" and is_answer(cell) and STUB not in cell.source:
            found.append(Problem(file, where, f"an answer cell without the stub {STUB!r}"))
    kept, wanted = ({grade_id(c) for c in nb.cells} - {None} for nb in (release, source))
    for name in sorted(wanted - kept):
        found.append(Problem(file, "", f"the cell {name!r} is missing in the release"))
    return found


def contains(lines: list[str], part: list[str]) -> bool:
    return any(lines[start : start + len(part)] == part for start in range(len(lines) - len(part) + 1))


def problems_in_outputs(nb, file: str) -> list[Problem]:
    """Errors that were not announced by the tag ``raises-exception``, and anything on stderr."""
    found = []
    for index, cell in enumerate(nb.cells):
        for output in cell.get("outputs", []):
            where = describe(index, cell)
            allowed = "raises-exception" in cell.metadata.get("tags", []) and not is_graded(cell)
            if output.output_type == "error" and not allowed:
                error = without_colour("\n".join(output.traceback)) or f"{output.ename}: {output.evalue}"
                found.append(Problem(file, where, f"raises {output.ename}: {output.evalue}\n{error}"))
            elif output.output_type == "stream" and output.name == "stderr":
                found.append(Problem(file, where, f"writes to stderr: {output.text.strip()}"))
            elif output.output_type == "execute_result" and is_graded(cell):
                found.append(Problem(file, where, "ends in a value, which nbgrader takes for the score"))
    return found


def without_colour(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


# --- one fixed form -----------------------------------------------------------------------------


def settle(nb, stem: str):
    """Bring a notebook, in place, into the form that does not depend on the machine it was made on.

    Cell ids come from the grade id, or from the notebook's name and the cell's position. Kernel and language
    are the same whatever Python ran. Outputs lose what differs from run to run.

    Args:
        nb: the notebook.
        stem: the notebook's name without ending ("01_one_head").
    """
    kept = {key: nb.metadata[key] for key in ("mha_course", "title") if key in nb.metadata}
    nb.metadata = type(nb.metadata)({**METADATA, **kept})
    nb.nbformat, nb.nbformat_minor = 4, 5
    for index, cell in enumerate(nb.cells):
        name = grade_id(cell)
        fits = name is not None and re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name)
        cell["id"] = name if fits else f"{stem[:58]}-{index + 1:03d}"
        cell.metadata.pop("execution", None)
        cell.metadata.pop("lines_to_next_cell", None)
        cell.source = cell.source.rstrip()
        if cell.cell_type == "code":
            cell.outputs = [settle_output(output) for output in cell.get("outputs", [])]
    return nb


def settle_output(output):
    """Take out of one output what differs from run to run: times, addresses, process numbers, versions."""
    if output.output_type == "stream":
        output.text = settle_text(output.text)
    elif output.output_type == "error":
        output.evalue = settle_text(output.evalue)
        output.traceback = [settle_text(line) for line in output.traceback]
    else:
        for kind, data in output.data.items():
            if kind == "image/png":
                output.data[kind] = settle_png(data)
            elif isinstance(data, str):
                output.data[kind] = settle_text(data)
    return output


def settle_text(text: str) -> str:
    text = re.sub(r"(checked in) [\d.]+ s\b", r"\1 … s", text)
    text = re.sub(r"\b0x[0-9a-f]{6,16}\b", "0x…", text)
    # from the start of a word only: a picture in base64 is one very long word
    return re.sub(r"(?<![^\s\"'])[^\s\"']*ipykernel_\d+[/\\]\d+\.py", "ipykernel", text)


def settle_png(data: str) -> str:
    """Drop a PNG's text and time chunks (matplotlib writes its version there). Base64 in, base64 out."""
    try:
        png = base64.b64decode(data)
    except binascii.Error:
        return data
    signature, rest, kept = png[:8], png[8:], []
    while len(rest) >= 12:
        size = 12 + int.from_bytes(rest[:4], "big")  # length, type, data, CRC
        if rest[4:8] not in (b"tEXt", b"iTXt", b"zTXt", b"tIME"):
            kept.append(rest[:size])
        rest = rest[size:]
    return base64.b64encode(signature + b"".join(kept)).decode() + ("\n" if data.endswith("\n") else "")
