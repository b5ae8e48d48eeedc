"""The lessons: which there are, the learner's own copies of them, and how far the learner is.

A learner never works in ``notebooks/``, which git follows, but in copies under ``work/``, which it ignores:

    work/01_one_head/01_one_head.ipynb   the learner's own
    work/.handed_out.json                for each file what was handed out, as a hash of what a learner can change
    work/progress.json                   which exercises are done
    work/problems.txt                    what went wrong inside the course itself, if anything did
    work/backups/                        what ``mha-course reset`` replaced

Nothing here imports torch: starting the course must not wait for it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HANDED_OUT = ".handed_out.json"
PROGRESS = "progress.json"
PROBLEMS = "problems.txt"
STATUSES = ("borrowed", "quiz", "passed")  # a later one is never replaced by an earlier one
BESIDE = ".new"  # in the name of a new version beside the learner's own, which it is listed after
SIGNS = {"passed": "●", "quiz": "●", "borrowed": "○", "": "·"}


class LessonError(Exception):
    """Something a learner can put right; its text says how."""


# --- which lessons there are --------------------------------------------------------------------


@dataclass(frozen=True)
class Lesson:
    """One lesson as it is released.

    Args:
        folder: its folder's name ("01_one_head").
        title: the first heading of its first notebook, without the number ("One head").
        notebooks: paths of its notebooks, relative to the repository's ``notebooks/`` folder.
        checked: names of its exercises and questions, in their order.
    """

    folder: str
    title: str
    notebooks: tuple[str, ...]
    checked: tuple[str, ...]

    @property
    def number(self) -> str:
        return self.folder.split("_", 1)[0]


def lessons(root: Path | None = None) -> list[Lesson]:
    """All released lessons, in order. ``root`` is the repository's folder; by default this one."""
    root = Path(root or ROOT)
    found = []
    for folder in sorted((root / "notebooks").glob("[0-9]*_*")):
        notebooks = sorted(folder.glob("*.ipynb"))
        if notebooks:
            cells = [cell for notebook in notebooks for cell in read_cells(notebook)]
            paths = tuple(f"{folder.name}/{notebook.name}" for notebook in notebooks)
            found.append(Lesson(folder.name, title_in(cells) or folder.name, paths, checked_in(cells)))
    return found


def find(name: str, root: Path | None = None) -> Lesson:
    """The lesson that is called ``name``: its number ("01", "1"), folder or notebook.

    Raises:
        LessonError: there is none; the text lists what there is.
    """
    wanted = Path(name).name.removesuffix(".ipynb")
    known = lessons(root)
    for lesson in known:
        stems = [Path(path).stem for path in lesson.notebooks]
        if wanted in (lesson.folder, lesson.folder.split("_", 1)[1], lesson.number, *stems):
            return lesson
        if wanted.isdecimal() and int(wanted) == int(lesson.number):
            return lesson
    listed = "".join(f"\n  {lesson.number}  {lesson.title}" for lesson in known) or "\n  none yet"
    raise LessonError(f"There is no lesson {name!r}. There are:{listed}")


def read_cells(notebook: Path) -> list[dict]:
    """A notebook's cells as plain dicts; none where the file cannot be read."""
    try:
        return json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def title_in(cells: list[dict]) -> str | None:
    """The text of the first heading: "One head" for ``# 01 · One head``."""
    for cell in cells:
        if cell.get("cell_type") == "markdown":
            heading = re.search(r"^#+\s+(?:\d+\s*[·.:-]\s*)?(.+?)\s*$", "".join(cell["source"]), re.MULTILINE)
            if heading:
                return heading[1]
    return None


def checked_in(cells: list[dict]) -> tuple[str, ...]:
    """Names of what is checked, from the grade ids of the check cells ("check_attend")."""
    marks = [cell.get("metadata", {}).get("nbgrader") or {} for cell in cells]
    ids = [mark.get("grade_id", "") for mark in marks if mark.get("grade")]
    return tuple(name.removeprefix("check_") for name in ids if name.startswith("check_"))


# --- the learner's own copies -------------------------------------------------------------------


def open_workspace(root: Path | None = None, name: str | None = None) -> tuple[Path, list[str]]:
    """Hand out every lesson into ``work/``, without ever replacing what a learner has changed.

    A file that is still as it was handed out follows the release. Of a changed one the new version is
    laid beside it, once. A deleted one is handed out again.

    Args:
        root: the repository's folder; by default this one.
        name: the lesson that is to be opened ("01", "one_head"); by default the next unfinished one.

    Returns:
        the path of that lesson's notebook in ``work/``, and what there is to tell the learner, line by line.

    Raises:
        LessonError: there is no (such) lesson, or ``work/`` cannot be written.
    """
    root = Path(root or ROOT)
    known = lessons(root)
    if not known:
        raise LessonError(f"There are no lessons in {root / 'notebooks'}. Is the course complete?")
    chosen = find(name, root) if name else None
    work = root / "work"
    with writing_in(work):
        first_time = not (work / HANDED_OUT).exists()
        handed_out = read_json(work / HANDED_OUT)
        messages = []
        for lesson in known:
            for path in released_files(root, lesson):
                messages += hand_out(root, path, handed_out)
        write_json(work / HANDED_OUT, handed_out)
    if first_time:
        messages = ["Your own copies of the lessons are in work/. Change them as you like: git ignores them."]
    return work / (chosen or next_lesson(root)).notebooks[0], messages


def next_lesson(root: Path | None = None) -> Lesson:
    """The first lesson in which something is not done yet; what was borrowed counts as gone on with.

    Where everything is done: the first with something borrowed, or else the last lesson. There must be one.
    """
    far = progress(root)
    for wanted in ("", "borrowed"):
        for lesson, statuses in far:
            if wanted in statuses.values():
                return lesson
    return far[-1][0]


def hand_out(root: Path, path: str, handed_out: dict) -> list[str]:
    """Bring one file of ``notebooks/`` to ``work/`` and note it. Gives what to tell the learner."""
    released, own = root / "notebooks" / path, root / "work" / path
    new, entry = fingerprint(released), handed_out.setdefault(path, {})
    given = entry.get("given")

    if not own.exists():
        hand_copy(released, own)
        handed_out[path] = {"given": new}
        return [f"work/{path} was gone: here is a fresh one."] if given else []
    entry = {key: renewed(note, own, released) for key, note in entry.items()}
    handed_out[path], given, current = entry, entry.get("given"), fingerprint(own)
    if current == new or given is None:  # given is None: the notes were lost; what is there is the learner's
        handed_out[path] = {"given": new}
    elif given != new and current == given:
        hand_copy(released, own)
        handed_out[path] = {"given": new}
        return [f"work/{path} was updated; you had not changed it."]
    elif given != new and entry.get("beside") != new:
        beside = unused(own.with_name(f"{own.stem}{BESIDE} {today()}{own.suffix}"))
        hand_copy(released, beside)
        entry["beside"] = new
        return [
            f"There is a new version of work/{path}. You have written in yours, so it stays as it is; "
            f"the new one is beside it: {beside.name}"
        ]
    return []


def fingerprint(path: Path) -> str:
    """A hash of what a learner can change in a file: of a notebook the cells' text, of another file every byte.

    Opening, running and saving a notebook changes its outputs, counters and metadata: those do not count.
    """
    cells = read_cells(path) if path.suffix == ".ipynb" else []
    try:
        written = [[cell["cell_type"], "".join(cell["source"]), cell.get("attachments")] for cell in cells]
    except (KeyError, TypeError):  # not as a notebook should be
        written = []
    if not written:
        return f"bytes {hash_of(path)}"
    return f"cells {hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()}"


def renewed(note: str, own: Path, released: Path) -> str:
    """A note of an earlier version, which was the hash of a file's bytes, as the fingerprint it stands for.

    Where nothing here has those bytes, the note stays: then the learner's file counts as changed, and is kept.
    """
    if " " in note:
        return note
    if note in (hash_of(own), hashlib.sha256(as_released(own)).hexdigest()):
        return fingerprint(own)
    return fingerprint(released) if note == hash_of(released) else note


def as_released(path: Path) -> bytes:
    """A notebook's bytes as they were before it was opened and run, if no cell of it was changed."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        notebook["metadata"]["language_info"].pop("version", None)
        for cell in notebook["cells"]:
            for added in ("collapsed", "execution", "jupyter", "scrolled", "trusted"):
                cell["metadata"].pop(added, None)
            if cell["cell_type"] == "code":
                cell |= {"outputs": [], "execution_count": None}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return path.read_bytes()
    return notebook_bytes(notebook)


def hand_copy(released: Path, own: Path) -> None:
    write(own, for_a_learner(released))


def for_a_learner(released: Path) -> bytes:
    """A file's bytes as they are handed out. A notebook gets the version of this Python, as in JupyterLab.

    Otherwise JupyterLab writes it on opening the notebook, and shows it as unsaved at once.
    """
    data = released.read_bytes()
    if released.suffix == ".ipynb":
        with contextlib.suppress(ValueError, KeyError, TypeError):
            notebook = json.loads(data)
            notebook["metadata"]["language_info"]["version"] = platform.python_version()
            return notebook_bytes(notebook)
    return data


def notebook_bytes(notebook: dict) -> bytes:
    """A notebook in the form that nbformat writes."""
    return (json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def reset(name: str, root: Path | None = None) -> list[str]:
    """Put a lesson's released files back into ``work/``, after a backup of what was there.

    Progress is kept, and the last line says so.

    Args:
        name: the lesson ("01", "01_one_head").

    Returns:
        what was done, line by line.

    Raises:
        LessonError: no such lesson, or ``work/`` cannot be written.
    """
    root = Path(root or ROOT)
    lesson = find(name, root)
    work = root / "work"
    own, messages = work / lesson.folder, []
    with writing_in(work):
        handed_out = read_json(work / HANDED_OUT)
        paths = released_files(root, lesson)
        changed = [path for path in paths if not is_fresh(root / "notebooks" / path, work / path)]
        if not changed and own.exists():
            return [f"work/{lesson.folder} is already as it was released."]
        if own.exists():
            backup = unused(work / "backups" / f"{lesson.folder} {datetime.now():%Y-%m-%d %H.%M.%S}")
            shutil.copytree(own, backup)
            messages.append(f"Your version is kept in {backup.relative_to(root).as_posix()}")
        for path in changed:
            hand_copy(root / "notebooks" / path, work / path)
            new, stem = fingerprint(root / "notebooks" / path), Path(path).stem
            for pattern in (f"{stem}{BESIDE} *", f"{stem} (updated *"):  # (updated …): of an earlier version
                for beside in (work / path).parent.glob(pattern):
                    if fingerprint(beside) == new:
                        beside.unlink()  # a second copy of the same; the backup has it
        for path in paths:
            handed_out[path] = {"given": fingerprint(root / "notebooks" / path)}
        write_json(work / HANDED_OUT, handed_out)
    messages.append(
        f"work/{lesson.folder} is as it was released; what counts as done in your progress stays."
    )
    messages.append("Is it open in JupyterLab? Then choose File → Reload Notebook from Disk there.")
    return messages


def is_fresh(released: Path, own: Path) -> bool:
    """Whether a learner's file is as it was handed out, to the byte."""
    return own.exists() and own.read_bytes() in (released.read_bytes(), for_a_learner(released))


def released_files(root: Path, lesson: Lesson) -> list[str]:
    """Paths of everything in a lesson's release, relative to ``notebooks/``."""
    folder = root / "notebooks" / lesson.folder
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    paths = (path.relative_to(root / "notebooks") for path in files)
    return [path.as_posix() for path in paths if ".ipynb_checkpoints" not in path.parts]


def today() -> str:
    return f"{datetime.now():%Y-%m-%d}"


def unused(path: Path) -> Path:
    """This path, or the first of ``name 2``, ``name 3`` … that is not there yet."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem} {number}{path.suffix}")
    return candidate


def where_it_belongs(here: Path | None = None) -> str:
    """What to tell somebody whose notebook runs in ``notebooks/``, which is no place to work in; "" elsewhere.

    Args:
        here: the folder in which the notebook runs; by default the current one.
    """
    try:
        here = Path(here or Path.cwd()).resolve()
    except OSError:  # the current directory may have been deleted
        return ""
    for folder in (here, *here.parents):
        if folder.parent.name == "notebooks" and (folder.parent.parent / "nbgrader_config.py").exists():
            return (
                "**You are in the course's own copy, in notebooks/.** What you write here does not count as progress, "
                f"and gets in the way of an update. Your copy is in work/{folder.name}; this opens it, from the "
                f"course's folder: `python3 -m mha_course lab {folder.name.split('_')[0]}`"
            )
    return ""


# --- progress -----------------------------------------------------------------------------------


def record(name: str, status: str) -> bool:
    """Note that an exercise or a question is done, if a learner is working in ``work/`` just now.

    Nothing is noted while notebooks are validated, graded, built or tested. A note is never worth an error
    in the learner's notebook: where it cannot be written, there is none.

    Args:
        name: the exercise's or question's name.
        status: "passed", "borrowed" (went on with the reference's) or "quiz" (a question answered right).

    Returns:
        whether it was noted.
    """
    if status not in STATUSES:
        raise ValueError(f"status must be one of {', '.join(STATUSES)}, not {status!r}")
    work = workspace()
    if work is None or os.environ.get("NBGRADER_EXECUTION"):
        return False
    try:
        notes = read_json(work / PROGRESS)
        before = notes.get(name, {}).get("status")
        if before not in STATUSES or STATUSES.index(status) > STATUSES.index(before):
            notes[name] = {"status": status, "when": f"{datetime.now():%Y-%m-%d %H:%M}"}
            write_json(work / PROGRESS, notes)
    except OSError:
        return False
    return True


def keep_problem(text: str) -> str | None:
    """Write down what went wrong inside the course, in the learner's folder. Gives where, or ``None`` if nowhere."""
    work = workspace()
    if work is None:
        return None
    path = work / PROBLEMS
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now():%Y-%m-%d %H:%M}  {text.rstrip()}\n\n")
    except OSError:
        return None
    return f"{work.name}/{path.name}"


def workspace() -> Path | None:
    """The ``work/`` folder that the current directory is in, if it is in one."""
    with contextlib.suppress(OSError):  # the current directory may have been deleted
        here = Path.cwd()
        for folder in (here, *here.parents):
            if folder.name == "work" and (folder / HANDED_OUT).exists():
                return folder
    return None


def progress(root: Path | None = None) -> list[tuple[Lesson, dict[str, str]]]:
    """For each lesson, by name of what is checked: "passed", "quiz", "borrowed", or "" for not yet."""
    root = Path(root or ROOT)
    work = root / "work"
    notes = read_json(work / PROGRESS) if work.exists() else {}
    return [
        (lesson, {name: notes.get(name, {}).get("status", "") for name in lesson.checked})
        for lesson in lessons(root)
    ]


def progress_table(root: Path | None = None) -> str:
    """What ``mha-course progress`` prints: a line for each lesson, what the signs mean, and what comes next."""
    rows = []
    for lesson, statuses in progress(root):
        borrowed = sum(status == "borrowed" for status in statuses.values())
        signs = "".join(SIGNS[status] for status in statuses.values())
        note = f"  ({borrowed} borrowed from the reference)" if borrowed else ""
        count = f"{len(statuses) - len(open_in(statuses))} of {len(statuses)}"
        rows.append((f"{lesson.number}  {lesson.title}", count, signs + note))
    if not rows:
        return "There are no lessons yet."
    wide = max(len(title) for title, *_ in rows)
    lines = [f"{title:<{wide}}  {count:>8}  {signs}" for title, count, signs in rows]
    legend = f"{SIGNS['passed']} done   {SIGNS['borrowed']} borrowed   {SIGNS['']} to do"
    following = first_open(root)
    after = f"Next: {following[1]}, in lesson {following[0].number}." if following else "All done."
    return "\n".join([*lines, "", legend, after])


def progress_data(root: Path | None = None) -> dict:
    """What ``mha-course progress --json`` prints."""
    far, following = progress(root), first_open(root)
    return {
        "lessons": [
            {
                "lesson": lesson.folder,
                "title": lesson.title,
                "done": len(statuses) - len(open_in(statuses)),
                "of": len(statuses),
                "exercises": {name: status or "to do" for name, status in statuses.items()},
            }
            for lesson, statuses in far
        ],
        "next": {"lesson": following[0].folder, "exercise": following[1]} if following else None,
    }


def open_in(statuses: dict[str, str]) -> list[str]:
    """Names of what is not done yet, borrowed answers included."""
    return [name for name, status in statuses.items() if status not in ("passed", "quiz")]


def first_open(root: Path | None = None) -> tuple[Lesson, str] | None:
    """What comes next: the first lesson with something not done, and its name; None if all is done."""
    return next(((lesson, name) for lesson, statuses in progress(root) for name in open_in(statuses)), None)


# --- commands -----------------------------------------------------------------------------------


def add_progress_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print it as JSON, for a program")


def main_progress(args: argparse.Namespace) -> int:
    """Runs ``mha-course progress``. Gives the exit code: 1 if the notes cannot be read."""
    try:
        said = json.dumps(progress_data(), indent=1, ensure_ascii=False) if args.json else progress_table()
    except OSError as error:
        print(f"Cannot read your progress: {error.strerror or error}: {error.filename}", file=sys.stderr)
        return 1
    print(said)
    return 0


def add_reset_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lesson", help="which one (01, 01_one_head)")


def main_reset(args: argparse.Namespace) -> int:
    """Runs ``mha-course reset 01``. Gives the exit code: 1 if there is no such lesson."""
    try:
        print("\n".join(reset(args.lesson)))
    except LessonError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


# --- small files --------------------------------------------------------------------------------


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_json(path: Path) -> dict[str, dict]:
    """A file of notes. One that cannot be understood is set aside, beside it, and counts as empty."""
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(notes, dict) and all(isinstance(note, dict) for note in notes.values()):
            return notes
    except FileNotFoundError:
        return {}
    except ValueError:  # not JSON, or not UTF-8
        pass
    with contextlib.suppress(OSError):
        os.replace(path, unused(path.with_name(f"{path.stem} (damaged){path.suffix}")))
    return {}


def write_json(path: Path, notes: dict) -> None:
    write(path, (json.dumps(notes, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def copy(source: Path, target: Path) -> None:
    write(target, source.read_bytes())


def write(path: Path, data: bytes) -> None:
    """Write a file so that no half of it is ever seen, nor left when two do it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)


@contextlib.contextmanager
def writing_in(work: Path) -> Iterator[None]:
    """Turns what can go wrong with files into a sentence for the learner.

    Raises:
        LessonError: see there.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        why = f"{error.strerror or error}. Is the folder read-only, the disk full?"
        raise LessonError(f"Cannot write your lessons into {work}: {why}") from error
