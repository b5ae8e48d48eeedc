"""What a learner handed in, read defensively, and the notebook rebuilt from the release.

Only *sources* are taken from a submission: of the answer cells, of cells the learner may change, of cells the
learner added. Everything else (which cells there are, tests, points, ids, metadata) is the release's. What can
be repaired is, with a line that says so; what cannot be read is set aside with the reason.
"""

from __future__ import annotations

import ast
import codecs
import copy
import errno
import functools
import itertools
import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mha_course import notebook_rules as rules

MAX_FILE = 128 << 20  # bytes; a notebook with many pictures in it has perhaps 50 MB
MAX_STRUCTURE = 8_000_000  # brackets and commas
MAX_SOURCE = 200_000  # characters of one cell
MAX_CELLS = 2000
MAX_FOLDER = 2000  # entries looked at in a submission's folder
MAX_LEVELS = 3  # folders inside folders, as archives make them
MAX_READ = 256 << 20  # bytes of all notebooks of one submission
MAX_TEXT = 5_000_000  # characters of all cells of one notebook
WORK = {  # what may be work in another form than a notebook, by the end of its name
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".7z", ".rar"), "an archive"),
    ".py": "a Python file",
    **dict.fromkeys((".html", ".htm", ".mhtml", ".pdf"), "a printed notebook"),
    **dict.fromkeys((".doc", ".docx", ".odt", ".rtf", ".tex"), "a text document"),
}


class SetAside(Exception):
    """A submission that cannot be graded by a machine. The text says why."""


# -------------------------------------------------------------------------------------- the release


@dataclass(frozen=True)
class ReleasedNotebook:
    """One notebook as it was handed out, cells as plain dicts."""

    stem: str
    cells: tuple[dict, ...]
    metadata: dict

    def ids(self) -> set[str]:
        return {name for cell in self.cells if (name := grade_id(cell))}


@dataclass(frozen=True)
class Release:
    """A lesson as it was handed out.

    Args:
        lesson: its folder's name.
        notebooks: by stem.
        files: other files' paths below the lesson's folder.
    """

    lesson: str
    notebooks: dict[str, ReleasedNotebook]
    files: tuple[str, ...] = ()


def read_release(folder: Path) -> Release:
    """Read a lesson's release from ``notebooks/``.

    Raises:
        FileNotFoundError: there is no notebook in it.
    """
    notebooks = {}
    for path in sorted(folder.glob("*.ipynb")):
        content = json.loads(path.read_text(encoding="utf-8"))
        cells = tuple({**cell, "source": text_of(cell["source"])} for cell in content["cells"])
        notebooks[path.stem] = ReleasedNotebook(path.stem, cells, content["metadata"])
    if not notebooks:
        raise FileNotFoundError(f"there is no notebook in {folder}")
    others = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix not in (".ipynb", ".py")
    ]
    files = tuple(
        path.relative_to(folder).as_posix() for path in others if ".ipynb_checkpoints" not in path.parts
    )
    return Release(folder.name, notebooks, files)


def marks(cell: dict) -> dict:
    found = cell.get("metadata", {}).get("nbgrader")
    return found if isinstance(found, dict) else {}


def grade_id(cell: dict) -> str:
    name = marks(cell).get("grade_id")
    return name if isinstance(name, str) else ""


def is_answer(cell: dict) -> bool:
    return bool(marks(cell).get("solution"))


def is_graded(cell: dict) -> bool:
    return bool(marks(cell).get("grade"))


def is_task(cell: dict) -> bool:
    return bool(marks(cell).get("task"))


def text_of(source: Any) -> str:
    if isinstance(source, list):
        return "".join(part for part in source if isinstance(part, str))
    return source if isinstance(source, str) else ""


# ------------------------------------------------------------------------------- reading a folder


@dataclass
class Submission:
    """What one learner handed in for one lesson, ready to be run.

    Args:
        notebooks: the rebuilt cells, by the released notebook's stem; `None` where it was not handed in.
        repairs: what was put right, one sentence each.
        timestamp: when it was handed in, as written by the exchange.
    """

    notebooks: dict[str, list[RebuiltCell] | None] = field(default_factory=dict)
    repairs: list[str] = field(default_factory=list)
    timestamp: str | None = None


@dataclass(frozen=True)
class RebuiltCell:
    """One cell of a rebuilt notebook.

    Args:
        cell: as it will stand in the autograded notebook (nbformat, no outputs).
        run: the source to run in the learner's process, ``None``: nothing is run.
        check: names of the exercises that this released cell checks.
        unless: run it only if this name is not defined yet (a stub must not take an answer's place).
        own: written by the learner.
    """

    cell: dict
    run: str | None = None
    check: tuple[str, ...] = ()
    unless: str = ""
    own: bool = False


def read_submission(folder: Path, release: Release) -> Submission:
    """Read what is in a learner's folder.

    Raises:
        SetAside: nothing in it can be graded.
    """
    found = Submission()
    files = list(listing(folder, found.repairs))
    found.timestamp = handed_in_at(folder, found.repairs)
    expected = [f"{stem}.ipynb" for stem in release.notebooks]
    notebooks = [path for path in files if is_notebook(path)]
    read: dict[Path, list[dict]] = {}
    trouble: dict[Path, str] = {}
    room = MAX_READ
    for path in sorted(notebooks, key=lambda path: (path.name not in expected, len(path.parts))):
        try:
            room -= path.lstat().st_size
            if room < 0:
                raise SetAside(f"was not read: {MAX_READ >> 20} MB of notebooks are enough")
            read[path] = read_notebook(path, found.repairs)
        except SetAside as error:
            trouble[path] = str(error)
    written = False
    for stem, released in release.notebooks.items():
        best = _choose(released, folder, read, trouble, release, found.repairs)
        found.notebooks[stem] = best and best.cells
        written |= best is not None and best.written > 0
    others = [f"{printable(path.name)} is {what}" for path in files if (what := _other_work(path, release))][
        :5
    ]
    if others and not written:
        is_blank = any(found.notebooks.values())
        blank = "the notebook is as it was handed out, but " if is_blank else "there is no notebook, but "
        raise SetAside(f"{blank}{', '.join(others)}: the notebook itself (.ipynb) is to be handed in")
    reasons = [f"{printable(path.name)}: {reason}" for path, reason in trouble.items()][:5]
    missing = [stem for stem, cells in found.notebooks.items() if cells is None]
    if len(missing) == len(found.notebooks):
        told = [line for line in found.repairs if "symbolic link" in line or "was not looked into" in line]
        nothing = "there is no notebook in the folder"
        if seen := [printable(path.name) for path in files][:5]:
            nothing += f", but {', '.join(seen)}"
        raise SetAside("; ".join(reasons or told[:3]) or nothing)
    if trouble and (missing or not written):
        raise SetAside("; ".join(reasons))
    found.repairs += [f"{printable(path.name)} was not used: {reason}" for path, reason in trouble.items()]
    found.repairs += [f"{other}: not looked into" for other in others]
    found.repairs += [f"{stem}.ipynb was not handed in: 0 points for it" for stem in missing]
    return found


def is_notebook(path: Path) -> bool:
    """Whether it is meant as a notebook: 01.ipynb, and what browsers and mail make of that (01.ipynb.txt)."""
    return ".ipynb" in path.name.lower() and not path.name.startswith("._")


def _other_work(path: Path, release: Release) -> str:
    """What a file is that may be work in another form; "" if it is none."""
    ours = any(path.as_posix().endswith(f"/{name}") for name in release.files)
    return "" if ours or is_notebook(path) else WORK.get(path.suffix.lower(), "")


def listing(folder: Path, repairs: list[str]) -> Iterator[Path]:
    """Files in the folder and up to `MAX_LEVELS` below, links never followed.

    Raises:
        SetAside: it is no folder.
    """
    if folder.is_symlink() or folder.parent.is_symlink():
        raise SetAside("the folder is a symbolic link, which is not followed")
    if not folder.is_dir():
        raise SetAside("is no folder")
    seen = 0
    levels = [(folder, 0)]
    for level, depth in levels:  # grows while it is gone through
        if level.name in (".ipynb_checkpoints", "__pycache__", "__MACOSX", "feedback"):
            continue
        with os.scandir(level) as entries:
            some = list(itertools.islice(entries, MAX_FOLDER + 1 - seen))
        for entry in sorted(some, key=lambda entry: entry.name):
            seen += 1
            if seen > MAX_FOLDER:
                repairs.append(f"more than {MAX_FOLDER} files were handed in; the rest was not looked at")
                return
            if entry.is_symlink():
                repairs.append(f"{printable(entry.name)} is a symbolic link, which is not followed")
            elif entry.is_file(follow_symlinks=False):
                yield Path(entry.path)
            elif not entry.is_dir(follow_symlinks=False):
                repairs.append(f"{printable(entry.name)} is no regular file and was not opened")
            elif depth < MAX_LEVELS:
                levels.append((Path(entry.path), depth + 1))
            else:
                repairs.append(f"the folder {printable(entry.name)} lies too deep and was not looked into")


def printable(text: str, limit: int = 80) -> str:
    """A text for a terminal or a page: what cannot be shown (line ends, escapes, broken bytes) is spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:limit])


def name_trouble(name: str) -> str:
    """What is wrong with a learner's name, as a folder's; "" if it can be used."""
    if any("\ud800" <= c <= "\udfff" for c in name):
        return "its name is not written in UTF-8"
    if any(unicodedata.category(c) == "Cc" for c in name):
        return "there are control characters in its name"
    return ""


def handed_in_at(folder: Path, repairs: list[str]) -> str | None:
    """When it was handed in, in UTC, as nbgrader writes it. What cannot be understood is told, never guessed."""
    path, text = folder / "timestamp.txt", ""
    try:
        text = read_file(path, 200).decode("utf-8-sig", "replace").strip()
        return moment(text)
    except FileNotFoundError:
        return None
    except SetAside as error:
        why = str(error)
    except Exception as error:  # dateutil's many
        why = f"{str(error)[:100]}: {printable(text, 40)!r}"
    repairs.append(f"timestamp.txt {why}. Whether it was late is not known")
    return None


def moment(text: str) -> str:
    """A time in UTC, in the one form that every tool reads: 2026-11-01 10:00:00 UTC.

    Raises:
        ValueError, OverflowError: it is no time, or one that can be read in two ways (01.11.2026).
    """
    import datetime

    from dateutil import parser, tz

    def zone(name: str | None, offset: int | None) -> datetime.tzinfo:
        found = tz.gettz(name) if offset is None and name else tz.tzoffset(None, offset or 0)
        if found is None:
            raise ValueError(f"has an unknown time zone, {name}")
        return found

    # A part that is missing would be taken from the second argument: then two of them give two times.
    others = [datetime.datetime(2000, 1, 1), datetime.datetime(2001, 2, 2)]
    ways = [False] if re.match(r"\d{4}\D", text) else [False, True]
    try:
        read = {
            parser.parse(text, dayfirst=way, default=other, tzinfos=zone) for way in ways for other in others
        }
    except parser.ParserError:
        raise ValueError("cannot be read as a time") from None
    if len(read) > 1:
        raise ValueError("can be read in two ways")
    (when,) = read
    if when.tzinfo is not None:
        when = (when - when.utcoffset()).replace(tzinfo=None)
    if not 1970 <= when.year <= 9990:
        raise ValueError("is no time of ours")
    return f"{when.isoformat(' ')} UTC"


def read_file(path: Path, limit: int = MAX_FILE) -> bytes:
    """A regular file's bytes; no link is followed, no pipe or device opened."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EACCES, errno.ENODEV):
            raise  # no fault of the file's
        raise SetAside(f"cannot be opened ({error.strerror})") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise SetAside("is no regular file")
        if status.st_size > limit:
            raise SetAside(f"has {status.st_size >> 20} MB; more than {limit >> 20} MB is not read")
        return file.read(limit + 1)


@dataclass
class _Candidate:
    """A file that may be a released notebook.

    Args:
        path: where it lies.
        cells: the notebook rebuilt from it.
        repairs: what was put right for that.
        found: how many of the answer cells are in it, by their ids or by what was written.
        written: in how many of those something was written.
    """

    path: Path
    cells: list[RebuiltCell]
    repairs: list[str]
    found: int
    written: int


def _candidate(released: ReleasedNotebook, path: Path, theirs: list[dict]) -> _Candidate:
    repairs: list[str] = []
    cells = rebuild(released, theirs, repairs)
    stubs = {grade_id(cell): cell["source"].strip() for cell in released.cells}
    answers = [cell.cell for cell in cells if cell.own and is_answer(cell.cell)]
    written = sum(answer["source"].strip() not in ("", stubs[grade_id(answer)]) for answer in answers)
    ours = {name for cell in released.cells if is_answer(cell) for name in (grade_id(cell), cell.get("id"))}
    found = sum(bool({grade_id(cell), cell.get("id")} & (ours - {"", None})) for cell in theirs)
    return _Candidate(path, cells, repairs, max(found, written), written)


def _choose(
    released: ReleasedNotebook,
    folder: Path,
    read: dict[Path, list[dict]],
    trouble: dict[Path, str],
    release: Release,
    repairs: list[str],
) -> _Candidate | None:
    """Which of the files that were handed in is this notebook: the one with most answers, of these the expected one.

    The others with answers are named in ``repairs``; those without any of its cells in ``trouble``.
    """
    expected = folder / f"{released.stem}.ipynb"
    others = [stem for stem in release.notebooks if stem != released.stem]
    free = [_candidate(released, path, cells) for path, cells in read.items() if path.stem not in others]
    for file in free:
        if not file.found and (file.path == expected or len(release.notebooks) == 1):
            trouble[file.path] = "has none of this lesson's answers in it (another lesson's notebook?)"
    known = [file for file in free if file.found]
    if not known:
        return None
    best = max(
        known, key=lambda f: (f.written, f.path == expected, f.path.parent == folder, f.found, f.path.name)
    )
    repairs += best.repairs
    if best.path != expected:
        repairs.append(f"{printable(best.path.name)} was taken for {released.stem}.ipynb")
    repairs += [
        f"{printable(file.path.name)}, with {file.written} answers in it, was not used"
        for file in known
        if file is not best and file.written
    ]
    return best


# ----------------------------------------------------------------------------- reading a notebook


def read_notebook(path: Path, repairs: list[str]) -> list[dict]:
    """The cells of a notebook file: cell_type, source, id and nbgrader's marks, whatever its format.

    Raises:
        SetAside: it is not a notebook.
    """
    name = printable(path.name)
    data = read_file(path)
    if not data.strip(b"\0 \t\r\n"):
        raise SetAside("is empty")
    if sum(data.count(mark) for mark in b"[{,") > MAX_STRUCTURE:
        raise SetAside("is built of too many parts to be a notebook")
    content = _json(_text(data, name, repairs), name, repairs)
    if not isinstance(content, dict):
        raise SetAside("is no notebook: no cells in it")
    cells = content.get("cells")
    if cells is None and isinstance(content.get("worksheets"), list):
        repairs.append(f"{name} is in an old notebook format (3): converted")
        sheets = [sheet.get("cells") for sheet in content["worksheets"] if isinstance(sheet, dict)]
        cells = [cell for sheet in sheets if isinstance(sheet, list) for cell in sheet]
    elif content.get("nbformat") != 4:
        repairs.append(
            f"{name} says that it is in notebook format {str(content.get('nbformat'))[:20]}: read as 4"
        )
    if not isinstance(cells, list):
        raise SetAside("is no notebook: no cells in it")
    if len(cells) > MAX_CELLS:
        repairs.append(f"{name} has {len(cells)} cells; the first {MAX_CELLS} were read")
    kept = [kept for cell in cells[:MAX_CELLS] if (kept := _cell(cell, name, repairs))]
    if sum(len(cell["source"]) for cell in kept) > MAX_TEXT:
        raise SetAside(f"has more than {MAX_TEXT // 1_000_000} million characters in its cells")
    return kept


def _text(data: bytes, name: str, repairs: list[str]) -> str:
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if data.startswith(mark):
            if encoding != "utf-8-sig":
                repairs.append(f"{name} was saved as {encoding.upper()}: converted")
            return data.decode(encoding, "replace")
    if data[:2] in (b"{\0", b"\0{"):
        repairs.append(f"{name} was saved as UTF-16: converted")
        return data.decode("utf-16-le" if data[:1] == b"{" else "utf-16-be", "replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        repairs.append(f"{name} was not saved as UTF-8: read as Latin-1")
        return data.decode("latin-1")


def _json(text: str, name: str, repairs: list[str]) -> Any:
    text = text.strip("\0 \t\r\n\ufeff")
    begin = re.search(r"^<{7} ", text, re.MULTILINE)
    if begin and re.compile(r"^={7}$", re.MULTILINE).search(text, begin.end()):
        raise SetAside("has conflict marks of a version control system in it")
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    try:  # something after the end, or a comma too many before it
        content, end = json.JSONDecoder(strict=False).raw_decode(text)
        if isinstance(content, dict) and end < len(text):
            repairs.append(f"{name} has something after its end: left out")
            return content
    except (ValueError, RecursionError):
        pass
    try:
        content = json.loads(re.sub(r",(\s*[\]}])", r"\1", text), strict=False)
        repairs.append(f"{name} has commas too many: left out")
        return content
    except (ValueError, RecursionError):
        raise SetAside(f"is not readable as JSON ({reason[:100]})") from None


def _cell(cell: Any, name: str, repairs: list[str]) -> dict | None:
    if not isinstance(cell, dict):
        repairs.append(f"{name} has something among its cells that is no cell: left out")
        return None
    source = text_of(cell.get("source", cell.get("input")))
    if len(source) > MAX_SOURCE:
        repairs.append(f"{name} has a cell of {len(source)} characters: left out")
        return None
    metadata = cell.get("metadata")
    kind = cell.get("cell_type")
    kept: dict[str, Any] = {
        "cell_type": kind if kind in ("code", "markdown", "raw") else "markdown",
        "source": source.encode("utf-8", "replace").decode().replace("\r\n", "\n").replace("\r", "\n"),
        "metadata": {},
    }
    if isinstance(cell.get("id"), str):
        kept["id"] = cell["id"][:64]
    if isinstance(metadata, dict) and isinstance(metadata.get("nbgrader"), dict):
        name_given = metadata["nbgrader"].get("grade_id")
        if isinstance(name_given, str):
            kept["metadata"] = {"nbgrader": {"grade_id": name_given[:200]}}
    return kept


# ------------------------------------------------------------------------------------- rebuilding


def rebuild(released: ReleasedNotebook, theirs: list[dict], repairs: list[str]) -> list[RebuiltCell]:
    """The released notebook with the learner's sources in it.

    Args:
        released: what was handed out.
        theirs: the submission's cells, as `read_notebook` gives them.
        repairs: lines are added here.
    """
    place = _match(released, theirs, repairs)  # their index → released index
    mine = {ours: their for their, ours in place.items()}
    after: dict[int, list[int]] = {}  # released index (−1: before all) → the learner's own cells behind it
    last = -1
    for index in range(len(theirs)):
        if index in place:
            last = place[index]
        else:
            after.setdefault(last, []).append(index)

    rebuilt = [RebuiltCell(cell, source, own=False) for cell, source in _imports(released)]

    def own_cells(behind: int) -> None:
        for index in after.get(behind, ()):
            if theirs[index]["source"].strip() and not _is_stub(released, theirs[index]):
                rebuilt.append(_own(released, theirs[index], index))

    own_cells(-1)
    for index, cell in enumerate(released.cells):
        their = theirs[mine[index]] if index in mine else None
        rebuilt.append(_released(released, cell, their, repairs))
        own_cells(index)
    return rebuilt


def _match(released: ReleasedNotebook, theirs: list[dict], repairs: list[str]) -> dict[int, int]:
    """Which of the learner's cells is which released one: by the grade id, the cell's id, the text."""
    by_grade = {grade_id(cell): index for index, cell in enumerate(released.cells) if grade_id(cell)}
    by_id = {cell.get("id"): index for index, cell in enumerate(released.cells) if cell.get("id")}
    candidates: dict[int, list[int]] = {}
    for index, cell in enumerate(theirs):
        ours = by_grade.get(grade_id(cell), by_id.get(cell.get("id")))
        if ours is not None and (not grade_id(cell) or not is_graded(released.cells[ours])):
            named = by_id.get(cell.get("id"))
            if named is not None and grade_id(cell) not in by_grade:
                ours = named
        if ours is not None:
            candidates.setdefault(ours, []).append(index)
    place: dict[int, int] = {}
    for ours, found in candidates.items():
        chosen = _best_copy(released.cells[ours], [theirs[i] for i in found])
        place[found[chosen]] = ours
        if len(found) > 1:
            which = "the last changed one counts" if is_answer(released.cells[ours]) else "one was used"
            repairs.append(f"cell {_name(released.cells[ours])} was there {len(found)} times: {which}")
    defines = functools.cache(lambda index: _defined(theirs[index]["source"]))
    by_text: dict[str, list[int]] = {}
    for index, cell in enumerate(released.cells):
        if index not in place.values():
            by_text.setdefault(cell["source"].strip(), []).append(index)
    for index, cell in enumerate(theirs):
        same = by_text.get(cell["source"].strip())
        if index not in place and same:
            place[index] = same.pop(0)
    for ours, cell in enumerate(released.cells):
        if is_answer(cell) and ours not in place.values() and cell["cell_type"] == "code":
            defining = [i for i in range(len(theirs)) if i not in place and grade_id(cell) in defines(i)]
            if defining:
                place[defining[-1]] = ours
                repairs.append(f"cell {_name(cell)} had lost its marks: found by what it defines")
    return place


def _best_copy(released: dict, copies: list[dict]) -> int:
    """Of several copies of one cell, the last that was changed."""
    changed = [i for i, cell in enumerate(copies) if cell["source"].strip() != released["source"].strip()]
    changed = [i for i in changed if copies[i]["source"].strip()] or changed
    return (
        changed[-1] if changed and not (is_graded(released) and not is_answer(released)) else len(copies) - 1
    )


def _name(cell: dict) -> str:
    return grade_id(cell) or str(cell.get("id", ""))


def _defined(source: str) -> set[str]:
    """Names that a cell's outermost level defines."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set(re.findall(r"^(?:def|class)\s+(\w+)", source, re.MULTILINE))
    names = {
        node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef))
    }
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def _is_stub(released: ReleasedNotebook, cell: dict) -> bool:
    """A left-over copy of an answer cell in which nothing was written."""
    return any(
        is_answer(ours) and ours["source"].strip() == cell["source"].strip() for ours in released.cells
    )


def _imports(released: ReleasedNotebook) -> Iterator[tuple[dict, str]]:
    """The release's own imports as the first thing to run: they are there even if their cell was damaged."""
    lines = []
    for cell in released.cells:
        if cell["cell_type"] != "code" or is_answer(cell) or is_graded(cell):
            continue
        try:
            body = ast.parse(cell["source"]).body
        except SyntaxError:
            continue
        for node in body:
            if isinstance(
                node, ast.Import | ast.ImportFrom
            ):  # one name at a time: if one is missing, the others come
                lines += [ast.unparse(_with_one_name(node, alias)) for alias in node.names]
    if lines:
        yield (
            {},
            "\n".join(f"try:\n    {line}\nexcept ImportError:\n    pass" for line in dict.fromkeys(lines)),
        )


def _with_one_name(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> ast.stmt:
    return (
        ast.Import([alias])
        if isinstance(node, ast.Import)
        else ast.ImportFrom(node.module, [alias], node.level)
    )


def _released(released: ReleasedNotebook, cell: dict, their: dict | None, repairs: list[str]) -> RebuiltCell:
    shown = copy.deepcopy(cell)
    if cell["cell_type"] == "code":
        shown["outputs"], shown["execution_count"] = [], None
    name = _name(cell)
    if is_answer(cell):
        if their is None:
            repairs.append(f"answer cell {name} was missing: put back empty")
            return RebuiltCell(shown, cell["source"], unless=name)
        if their["cell_type"] != cell["cell_type"]:
            repairs.append(f"answer cell {name} had become {their['cell_type']}: turned back")
        shown["source"] = their["source"]
        if cell["cell_type"] != "code":
            shown["source"] = harmless_markdown(their["source"])
            return RebuiltCell(shown, own=True)
        untouched = their["source"].strip() == cell["source"].strip()
        check = () if not is_graded(cell) else tuple(rules.checked_names(cell["source"]) or ())
        return RebuiltCell(shown, their["source"], check, unless=name if untouched else "", own=True)
    if cell["cell_type"] != "code":
        return RebuiltCell(shown)
    if is_graded(cell):
        if their is None:
            repairs.append(f"check cell {name} was missing: put back")
        elif their["source"].strip() != cell["source"].strip():
            repairs.append(f"check cell {name} was changed: the released one is used")
        return RebuiltCell(shown, check=tuple(rules.checked_names(cell["source"]) or ()))
    unchanged = their is None or their["source"].strip() == cell["source"].strip()
    if unchanged and rules.NOT_WHEN_GRADED in cell["metadata"].get("tags", []):
        return RebuiltCell(shown)
    if marks(cell).get("locked") or their is None or their["cell_type"] != "code":
        return RebuiltCell(shown, cell["source"])
    shown["source"] = their["source"]
    return RebuiltCell(shown, their["source"], own=their["source"] != cell["source"])


def _own(released: ReleasedNotebook, cell: dict, index: int) -> RebuiltCell:
    taken = {c.get("id") for c in released.cells}
    identity = f"own-{index + 1}"
    while identity in taken:
        identity += "x"
    shown = {"cell_type": cell["cell_type"], "id": identity, "metadata": {}, "source": cell["source"]}
    if cell["cell_type"] != "code":
        shown["cell_type"] = "markdown"
        shown["source"] = harmless_markdown(cell["source"])
        return RebuiltCell(shown, own=True)
    shown["outputs"], shown["execution_count"] = [], None
    return RebuiltCell(shown, cell["source"], own=True)


def harmless_markdown(text: str) -> str:
    """A learner's prose, for a page that an instructor will open: no HTML, no links that run something."""
    text = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)
    return re.sub(r"(?i)\b(javascript|vbscript|data)\s*:", r"\1&#58;", text)
