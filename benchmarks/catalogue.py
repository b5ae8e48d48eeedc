"""The catalogue of submissions, graded by plain nbgrader and by `mha-course grade`: deserved, given, side effects.

    python benchmarks/catalogue.py                       # lesson 01, target `attend`; some ten minutes
    python benchmarks/catalogue.py --only "ready made"   # those whose name holds these words

The lesson is cut down to its imports, answers and checks. Plain nbgrader is `nbgrader autograde` with nothing configured
but the folders; because hostile submissions run in it as they are, each of its runs is put into bubblewrap as a whole:
the machine is read-only but for that class's folder, processes and memory are bounded, and after a minute it is ended.
What an honest wrong answer gets is measured, and is what a hostile submission deserves.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import grading_catalogue as catalogue  # noqa: E402

MARK = "mha-course-catalogue"
CONFIG = """\
c = get_config()
c.CourseDirectory.course_id = "mha_course"
c.CourseDirectory.source_directory = "solutions"
c.CourseDirectory.release_directory = "notebooks"
c.CourseDirectory.submitted_directory = "grading/submitted"
c.CourseDirectory.autograded_directory = "grading/autograded"
c.CourseDirectory.feedback_directory = "grading/feedback"
c.CourseDirectory.db_url = "sqlite:///grading/gradebook.db"
c.Execute.timeout = 30
"""


def cut_down(path: Path) -> list[dict]:
    """A notebook's imports, answers and checks."""
    kept = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        marked = "nbgrader" in cell["metadata"]
        if marked or (cell["cell_type"] == "code" and "".join(cell["source"]).startswith("import")):
            cell["source"] = "".join(cell["source"])
            if cell["cell_type"] == "code":
                cell |= {"outputs": [], "execution_count": None}
            kept.append(cell)
    return kept


def make_class(
    root: Path, lesson: str, target: str, parameters: str, port: int, only: str
) -> list[catalogue.Entry]:
    """A course folder with every submission of the catalogue in it."""
    released = cut_down(ROOT / "notebooks" / lesson / f"{lesson}.ipynb")
    solved = cut_down(ROOT / "solutions" / lesson / f"{lesson}.ipynb")
    answers = {
        cell["metadata"]["nbgrader"]["grade_id"]: cell["source"]
        for cell in solved
        if cell["metadata"].get("nbgrader", {}).get("solution")
    }
    for folder, cells in (("notebooks", released), ("solutions", solved)):
        path = root / folder / lesson / f"{lesson}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_bytes(catalogue.notebook(cells))
    (root / "nbgrader_config.py").write_text(CONFIG)
    paper = catalogue.Paper(copy.deepcopy(released), answers, target, parameters)
    wrong = paper.right(answer=paper.define(f"return {paper.inputs}"))
    entries = [
        catalogue.Entry("right answers", "honest", catalogue.ALL, paper.right()),
        catalogue.Entry("a wrong answer", "honest", catalogue.REST, wrong),
        *catalogue.hostile(paper, {"root": str(root), "port": str(port), "mark": MARK}),
        *catalogue.broken(paper),
        *catalogue.unusual(paper),
    ]
    entries = [entry for entry in entries if entry.kind == "honest" or only in entry.name]
    for entry in entries:
        entry.hand_in(root / "grading" / "submitted", lesson)
    return entries


def score(root: Path, lesson: str, student: str) -> float | None:
    from nbgrader.api import Gradebook, MissingEntry

    with Gradebook(f"sqlite:///{root}/grading/gradebook.db", "mha_course") as gradebook:
        try:
            return gradebook.find_submission(lesson, student).score
        except MissingEntry:
            return None


def environment() -> dict[str, str]:
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


def by_plain_nbgrader(root: Path, lesson: str, student: str) -> tuple[float | None, str]:
    """Score and side effects of one submission, graded by nbgrader's own command."""
    before = set(root.rglob("*"))
    script = (
        f"ulimit -v {12 << 20} -u 4000; cd {root} && timeout -k 1 60 {sys.executable} -m nbgrader autograde {lesson} "
        f"--student {student!r}; echo CODE $?; grep -lz '^{MARK}$' /proc/[0-9]*/cmdline 2>/dev/null"
    )
    command = [
        "bwrap",
        "--ro-bind",
        "/",
        "/",
        "--tmpfs",
        "/tmp",
        "--tmpfs",
        "/dev/shm",
        "--bind",
        str(root),
        str(root),
    ]
    command += [
        "--unshare-pid",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--die-with-parent",
        "bash",
        "-c",
        script,
    ]
    try:
        done = subprocess.run(
            command, env=environment(), capture_output=True, timeout=90, errors="replace", text=True
        )
        said = done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        said = "CODE 124"
    effects = []
    if "CODE 124" in said or "CODE 137" in said or "CODE" not in said:
        effects.append("the grading hangs")
    text = "".join(
        p.read_text(errors="replace") for p in (root / "grading" / "autograded" / student).rglob("*.ipynb")
    )
    effects += traces(root, text, before)
    if "/cmdline" in said:
        effects.append("left processes")
    return score(root, lesson, student), ", ".join(effects)


def traces(root: Path, text: str, before: set[Path]) -> list[str]:
    """What a submission saw and left outside its own folder."""
    found = []
    if "CONNECTED" in text and "result = 'CONNECTED'" not in text.split("CONNECTED")[-1]:
        found += ["reached the network"] if "CONNECTED\\n" in text else []
    if "SEEN ['" in text or 'SEEN [\\"' in text:
        found.append("read other files")
    if any(path.name == MARK for path in set(root.rglob("*")) - before):
        found.append("wrote outside")
    if f'document.title = \\"{MARK}' in text.split('"outputs"', 1)[-1] and "application/javascript" in text:
        found.append("script on the page")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lesson", default="01_one_head")
    parser.add_argument("--target", default="attend")
    parser.add_argument("--parameters", default="q, k, v")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    from mha_course.grading.run import Options, grade
    from mha_course.grading.sandbox import Limits

    os.environ.update(environment())  # nbgrader calls alembic by its name
    server = socket.create_server(("127.0.0.1", 0))
    with tempfile.TemporaryDirectory(prefix="catalogue-", dir=Path.home()) as folder:
        roots = [Path(folder, name) for name in ("ours", "plain1", "plain2")]
        port = server.getsockname()[1]
        for root in roots:
            entries = make_class(root, args.lesson, args.target, args.parameters, port, args.only)
        limits = Limits(cell_seconds=4, notebook_seconds=60, scratch=32 << 20, memory=1 << 30)
        before = set(roots[0].rglob("*"))
        grade(args.lesson, Options(roots[0], jobs=2, limits=limits, feedback=False))
        ours = {}
        for entry in entries:
            path = roots[0] / "grading" / "autograded" / entry.student
            text = "".join(p.read_text(errors="replace") for p in path.rglob("*.ipynb"))
            ours[entry.student] = (
                score(roots[0], args.lesson, entry.student),
                ", ".join(traces(roots[0], text, set())),
            )
        left = [p for p in roots[0].rglob(MARK) if p not in before]
        for root in roots[1:]:
            subprocess.run(
                [sys.executable, "-m", "nbgrader", "generate_assignment", args.lesson, "--force"],
                cwd=root,
                env=environment(),
                capture_output=True,
                check=True,
            )

        def half(number: int) -> dict:
            mine = entries[number::2]
            return {e.student: by_plain_nbgrader(roots[1 + number], args.lesson, e.student) for e in mine}

        with ThreadPoolExecutor(2) as pool:
            plain = {k: v for part in pool.map(half, (0, 1)) for k, v in part.items()}
        full, rest = ours["honest_right_answers"][0], ours["honest_a_wrong_answer"][0]
        report(entries, plain, ours, {catalogue.ALL: full, catalogue.REST: rest, catalogue.NOTHING: 0.0})
        print(f"\nLeft behind by any submission graded by `mha-course grade`: {len(left)} files")
    server.close()
    shutil.rmtree(folder, ignore_errors=True)


def report(entries, plain: dict, ours: dict, deserved: dict) -> None:
    """The table, and the count of who got more or less than deserved."""

    def shown(value) -> str:
        return "–" if value is None else f"{value:g}"

    print(
        "| submission | deserved | nbgrader | side effects | mha-course | side effects |\n|---|---|---|---|---|---|"
    )
    counts = {name: {"more": 0, "less": 0, "effects": 0} for name in ("nbgrader", "mha-course")}
    for entry in entries:
        should = deserved.get(entry.deserves)
        row = []
        for name, found in (("nbgrader", plain), ("mha-course", ours)):
            given, effects = found[entry.student]
            aside = entry.deserves == catalogue.ASIDE
            counts[name]["more"] += bool(not aside and given is not None and given > should)
            counts[name]["less"] += bool(
                entry.kind != "hostile" and not aside and (given is None or given < should)
            )
            counts[name]["effects"] += bool(effects)
            row += [shown(given), effects]
        print(
            f"| {entry.kind}: {entry.name} | {shown(should) if should is not None else 'set aside'} | {' | '.join(row)} |"
        )
    print()
    for name, count in counts.items():
        print(
            f"{name}: more than deserved {count['more']}, honest ones with less {count['less']}, harm seen {count['effects']}"
        )


if __name__ == "__main__":
    main()
