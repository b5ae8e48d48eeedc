"""From ``solutions/`` to ``notebooks/``: what ``mha-course build`` does.

    solutions/01_one_head/01_one_head.py      what a maintainer edits
    → solutions/01_one_head/01_one_head.ipynb executed, answers and outputs in it ("the pair")
    → notebooks/01_one_head/01_one_head.ipynb what a learner gets ("the release"), made by nbgrader

Whether something is stale is decided by content, never by a file's time:

- A *pair* records a hash of what it was executed from: its cells and the lesson's other files. It is executed
  again when those change, or with ``--force``. A change of the ``mha_course`` package alone does not execute
  lessons again: it would nearly always give the same outputs, and the tests run every solution anyhow.
- A *release* is made afresh each time (that takes a moment) and compared byte by byte.

The release is made in a scratch folder and without a database, so building never touches an instructor's
gradebook. ``nbgrader generate_assignment 01_one_head --force`` gives the same bytes and fills the gradebook.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from . import notebook_rules as rules
from . import quiet
from .lessons import copy, write
from .notebook_rules import Problem, Refused

ROOT = Path(__file__).resolve().parent.parent
SECONDS_PER_CELL = 300
IGNORED = ("*.py", "*.pyc", "*.ipynb", "__pycache__", ".ipynb_checkpoints", ".DS_Store")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "lessons", nargs="*", help="lessons to build (01, 01_one_head); all of them by default"
    )
    parser.add_argument(
        "--check", action="store_true", help="build nothing; say what is stale, exit 1 if anything is"
    )
    parser.add_argument(
        "--force", action="store_true", help="execute the solutions even where nothing has changed"
    )


def main(args: argparse.Namespace) -> int:
    """Runs ``mha-course build``. Gives the exit code: 1 if something is stale or refused."""
    try:
        folders = lesson_folders(ROOT, args.lessons)
    except LookupError as error:
        print(error.args[0], file=sys.stderr)
        return 1
    if args.check:
        problems = [problem for folder in folders for problem in check(folder)]
        problems += [] if args.lessons else orphans(ROOT)
        print_problems(problems)
        print(f"{len(problems)} not up to date." if problems else "Everything is up to date.")
        return 1 if problems else 0
    refused = False
    for folder in folders:
        try:
            for line in build(folder, force=args.force):
                print(line, flush=True)
        except Refused as error:
            print_problems(error.problems)
            refused = True
    for problem in [] if args.lessons else orphans(ROOT):
        print_problems([problem])
        refused = True
    return 1 if refused else 0


def print_problems(problems: list[Problem]) -> None:
    for problem in problems:
        print(problem, file=sys.stderr)


# --- where things are ---------------------------------------------------------------------------


def lesson_folders(root: Path, names: list[str] = ()) -> list[Path]:
    """Folders under ``solutions/`` that hold a source, in order; only those asked for, if any are.

    Raises:
        LookupError: a name is no lesson's.
    """
    folders = sorted({source.parent for source in (root / "solutions").glob("[0-9]*/*.py")})
    if not names:
        return folders
    chosen = []
    for name in names:
        wanted = Path(name).name
        fits = [folder for folder in folders if wanted in (folder.name, folder.name.split("_")[0])]
        if not fits:
            known = ", ".join(folder.name for folder in folders) or "none yet"
            raise LookupError(f"There is no lesson {name!r} in solutions/. There are: {known}.")
        chosen += fits
    return chosen


def sources(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.py"))


def pair_of(source: Path) -> Path:
    return source.with_suffix(".ipynb")


def source_of(pair: Path) -> Path:
    return pair.with_suffix(".py")


def other_files(folder: Path) -> list[Path]:
    """What a lesson brings along beside its notebooks: pictures, small data. Released as it is."""
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        ignored = any(Path(part).match(pattern) for part in parts for pattern in IGNORED)
        if path.is_file() and not ignored:
            found.append(path)
    return found


def release_folder(folder: Path) -> Path:
    return folder.parent.parent / "notebooks" / folder.name


def shown(path: Path, folder: Path) -> str:
    """A path as messages name it: from the repository's root."""
    root = folder.parent.parent
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def find_exercise(name: str):
    from . import exercises  # imports torch, which building a notebook without checks does not need

    return exercises.find(name)


# --- the pair -----------------------------------------------------------------------------------


def read_source(source: Path):
    """The notebook in a py:percent file, in its fixed form, not executed."""
    import jupytext

    nb = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
    nb.metadata.clear()
    return rules.settle(nb, source.stem)


def source_hash(source: Path, nb=None) -> str:
    """Hash of what a pair is executed from: its cells and the lesson's other files."""
    nb = read_source(source) if nb is None else nb
    cells = [[cell.cell_type, cell.id, cell.source, cell.metadata] for cell in nb.cells]
    digest = hashlib.sha256(json.dumps(cells, sort_keys=True).encode())
    for path in other_files(source.parent):
        digest.update(path.relative_to(source.parent).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def pair_is_fresh(source: Path) -> bool:
    """Whether the pair beside a source was executed from it and still has its cells."""
    import nbformat

    if not pair_of(source).exists():
        return False
    try:
        pair = nbformat.read(pair_of(source), as_version=4)
    except Exception:  # nbformat fails in many ways on what is no notebook
        return False
    recorded = pair.metadata.get("mha_course", {}).get("source")
    return recorded == source_hash(source) == source_hash(source, pair)


def execute(nb, folder: Path, stem: str):
    """Run a lesson's notebook and see that nothing went wrong. Gives it back with its outputs, in its fixed form.

    Raises:
        Refused: a cell raised, took too long, or wrote to stderr.
    """
    run(nb, folder, stem)
    rules.settle(nb, stem)
    if problems := rules.problems_in_outputs(nb, source_name(folder, stem)):
        raise Refused(problems)
    return nb


def run(nb, folder: Path, stem: str) -> None:
    """Run a notebook in place: in a fresh kernel, in a copy of its lesson's folder, on after errors.

    Raises:
        Refused: a cell took too long, or ended the kernel.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    with tempfile.TemporaryDirectory() as scratch, kernel_environment(folder.parent.parent):
        for path in other_files(folder):
            copy(path, Path(scratch, path.relative_to(folder)))
        client = NotebookClient(
            nb,
            timeout=SECONDS_PER_CELL,
            kernel_name="python3",
            allow_errors=True,
            coalesce_streams=True,
            record_timing=False,
            store_widget_state=False,
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": scratch}},
        )
        try:
            client.execute()
        except (CellTimeoutError, DeadKernelError) as error:
            reached = [index for index, cell in enumerate(nb.cells) if cell.get("execution_count")]
            index = max(reached, default=-1) + 1
            where = rules.describe(index, nb.cells[index]) if index < len(nb.cells) else ""
            problem = Problem(source_name(folder, stem), where, f"{type(error).__name__}: {error}")
            raise Refused([problem]) from None


def source_name(folder: Path, stem: str) -> str:
    return shown(folder / f"{stem}.py", folder)


@contextlib.contextmanager
def kernel_environment(root: Path) -> Iterator[None]:
    """What a kernel started in here sees: this package, one thread's order of sums, no seed, no grading, no talk."""
    path = os.pathsep.join(filter(None, [str(root), str(ROOT), os.environ.get("PYTHONPATH")]))
    wanted = {"PYTHONPATH": path, "PYTHONHASHSEED": "0", "MPLBACKEND": None, "MHA_COURSE_SEED": None}
    wanted |= {"NBGRADER_EXECUTION": None, "OMP_NUM_THREADS": "1"} | dict.fromkeys(quiet.TALKATIVE)
    before = {name: os.environ.get(name) for name in wanted}
    set_environment(wanted)
    try:
        yield
    finally:
        set_environment(before)


def set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


# --- the release --------------------------------------------------------------------------------


def generate_release(folder: Path, scratch: Path) -> Path:
    """Have nbgrader make a lesson's release from its pairs, under ``scratch``. Gives the folder it made.

    Raises:
        Refused: nbgrader or one of our own steps in it did not agree.
    """
    from nbgrader.converters import GenerateAssignment
    from nbgrader.converters.base import NbGraderException
    from nbgrader.coursedir import CourseDirectory
    from traitlets.config import PyFileConfigLoader

    root = folder.parent.parent
    shutil.copytree(
        folder, scratch / "solutions" / folder.name, ignore=shutil.ignore_patterns("*.pyc", "__pycache__")
    )
    config_root = root if (root / "nbgrader_config.py").exists() else ROOT
    config = PyFileConfigLoader("nbgrader_config.py", path=str(config_root)).load_config()
    config.CourseDirectory.root = str(scratch)
    config.CourseDirectory.assignment_id = folder.name
    config.SaveCells.enabled = False
    config.GenerateAssignment.no_database = True
    config.BaseConverter.force = True

    log, messages = quiet_log()
    course = CourseDirectory(config=config, log=log)
    try:
        GenerateAssignment(coursedir=course, config=config, log=log).start()
    except NbGraderException as error:
        says = "\n".join(message for message in messages if message.strip()) or str(error)
        raise Refused([Problem(shown(folder, folder), "", f"nbgrader: {says}")]) from None
    made = scratch / "notebooks" / folder.name
    for path in made.rglob("*.ipynb"):
        path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n"))  # nbgrader writes CRLF on Windows
    return made


def quiet_log() -> tuple[logging.Logger, list[str]]:
    """A log for nbgrader that prints nothing and keeps its errors."""
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    log = logging.Logger("nbgrader", level=logging.ERROR)
    log.addHandler(Keep())
    return log, messages


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder: its path there, its bytes."""
    found = [path for path in folder.rglob("*") if path.is_file() and ".ipynb_checkpoints" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(found)}


# --- build and check ----------------------------------------------------------------------------


def problems_in(folder: Path) -> list[Problem]:
    """What is wrong with a lesson's sources, before anything is run."""
    found = []
    seen: dict[str, str] = {}
    for source in sources(folder):
        nb = read_source(source)
        found += rules.problems_in_source(nb, shown(source, folder), find_exercise)
        for cell in nb.cells:
            name = rules.grade_id(cell)
            if name and seen.setdefault(name, source.name) != source.name:
                says = f"the grade_id {name!r} is already used in {seen[name]}"
                found.append(Problem(shown(source, folder), name, says))
    for pair in sorted(folder.glob("*.ipynb")):
        if not source_of(pair).exists():
            found.append(Problem(shown(pair, folder), "", "has no .py beside it; nbgrader would release it"))
    return found


def build(folder: Path, force: bool = False) -> Iterator[str]:
    """Build one lesson; yields a line for each thing that was done.

    Args:
        folder: the lesson's folder under ``solutions/``.
        force: execute even where nothing has changed.

    Raises:
        Refused: something must be put right first. The release is left as it was.
    """
    import nbformat

    if problems := problems_in(folder):
        raise Refused(problems)
    for source in sources(folder):
        if pair_is_fresh(source) and not force:
            continue
        started = time.monotonic()
        nb = execute(read_source(source), folder, source.stem)
        nb.metadata["mha_course"] = {"source": source_hash(source)}
        nbformat.validate(nb)
        write(pair_of(source), (nbformat.writes(nb) + "\n").encode())
        yield f"{shown(pair_of(source), folder)}: executed in {time.monotonic() - started:.0f} s"

    with tempfile.TemporaryDirectory() as scratch:
        made = generate_release(folder, Path(scratch).resolve())
        refuse_leaks(folder, made)
        fresh, release = contents(made), release_folder(folder)
        old = contents(release)
        if fresh == old:
            yield f"{shown(release, folder)}: up to date"
            return
        for path in old.keys() - fresh.keys():
            (release / path).unlink()
        for path, data in fresh.items():
            write(release / path, data)
        yield f"{shown(release, folder)}: released"


def refuse_leaks(folder: Path, made: Path) -> None:
    """Look at a release once more, whatever made it.

    Raises:
        Refused: a source, or an answer, is in it.
    """
    import nbformat

    release = shown(release_folder(folder), folder)
    wanted = {path.stem for path in sources(folder)}
    found = [Problem(f"{release}/{path.name}", "", "is a source") for path in made.rglob("*.py")]
    for stem in sorted(wanted):
        path = made / f"{stem}.ipynb"
        if not path.exists():
            found.append(Problem(f"{release}/{path.name}", "", "nbgrader did not make it"))
            continue
        nb = nbformat.read(path, as_version=4)
        found += rules.problems_in_release(read_source(folder / f"{stem}.py"), nb, f"{release}/{path.name}")
    if found:
        raise Refused(found)


def check(folder: Path) -> list[Problem]:
    """What about a lesson is stale or refused; an empty list if nothing is. Writes nothing."""
    found = problems_in(folder)
    for source in sources(folder):
        if not pair_is_fresh(source):
            found.append(
                Problem(shown(pair_of(source), folder), "", f"not made from this {source.name}; build it")
            )
    if found:
        return found  # a release of what is stale says nothing new
    with tempfile.TemporaryDirectory() as scratch:
        try:
            made = generate_release(folder, Path(scratch).resolve())
            refuse_leaks(folder, made)
        except Refused as error:
            return error.problems
        fresh, old = contents(made), contents(release_folder(folder))
    release = shown(release_folder(folder), folder)
    for path in sorted(fresh.keys() | old.keys()):
        if path not in old:
            found.append(Problem(f"{release}/{path}", "", "missing; build it"))
        elif path not in fresh:
            found.append(Problem(f"{release}/{path}", "", "no longer part of the lesson; build it"))
        elif fresh[path] != old[path]:
            found.append(Problem(f"{release}/{path}", "", "not what the solution gives; build it"))
    return found


def orphans(root: Path) -> list[Problem]:
    """Folders under ``notebooks/`` that no solution makes."""
    known = {folder.name for folder in lesson_folders(root)}
    released = sorted(
        path for path in (root / "notebooks").glob("*") if path.is_dir() and not path.name.startswith(".")
    )
    return [
        Problem(f"notebooks/{path.name}", "", "has no source in solutions/; remove it")
        for path in released
        if path.name not in known
    ]
