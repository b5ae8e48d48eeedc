"""`mha-course grade` beside plain ``nbgrader autograde``: speed, memory, and how both grow.

    python benchmarks/grading.py                     # 20 submissions both ways, then 10, 100 and 1000 of ours
    python benchmarks/grading.py --count 8 --growth 10 30

A class hands in lesson 01, each notebook with a comment of its own. Plain nbgrader grades them as its own command does,
one after the other; ours runs as its own command does, with the sandbox, writing the same gradebook. Both include their
start. The scores must be equal. Seconds are the clock's, on this machine, side by side; the ratio is what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LESSON = "01_one_head"


def make_class(folder: Path, count: int) -> Path:
    """A course folder with the lesson's release and ``count`` submissions; a third of them have something wrong."""
    root = folder / "course"
    shutil.copytree(ROOT / "notebooks" / LESSON, root / "notebooks" / LESSON)
    shutil.copytree(
        ROOT / "solutions" / LESSON, root / "solutions" / LESSON, ignore=shutil.ignore_patterns("*.py")
    )
    shutil.copyfile(ROOT / "nbgrader_config.py", root / "nbgrader_config.py")
    solved = json.loads((ROOT / "solutions" / LESSON / f"{LESSON}.ipynb").read_text(encoding="utf-8"))
    for number in range(count):
        for cell in solved["cells"]:
            cell["outputs"] = [] if cell["cell_type"] == "code" else cell.pop("outputs", None)
            if cell["outputs"] is None:
                del cell["outputs"]
        text = json.dumps(solved)
        if number % 3 == 2:
            text = text.replace("math.sqrt(q.shape[-1])", "math.sqrt(k.shape[-2])")  # √S where √D is meant
        text = text.replace("import math\\n", f"import math  # learner {number}\\n", 1)
        target = root / "grading" / "submitted" / f"learner{number:04}" / LESSON
        target.mkdir(parents=True)
        (target / f"{LESSON}.ipynb").write_text(text, encoding="utf-8")
    return root


def run(command: list[str], root: Path) -> tuple[float, float]:
    """Seconds that a command takes, and the most memory (MiB) that it and its children hold together."""
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
    }
    highest = 0.0
    began = time.perf_counter()
    log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with this process)
    process = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log)
    over = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not over.wait(0.5):
            highest = max(highest, sum(proportional(pid) for pid in family(process.pid)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    seconds = time.perf_counter() - began
    over.set()
    watcher.join()
    if code not in (0, 2):
        log.seek(0)
        raise SystemExit(log.read().decode(errors="replace")[-3000:])
    return seconds, highest


def family(pid: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(words[1]), []).append(int(path.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def proportional(pid: int) -> float:
    """Memory of a process in MiB, pages that it shares counted by its share of them."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def scores(root: Path) -> dict[str, float]:
    sys.path.insert(0, str(ROOT))
    from nbgrader.api import Gradebook

    from mha_course.grading.writer import course_config

    with Gradebook(course_config(root).CourseDirectory.db_url, "mha_course") as gradebook:
        return {s.student.id: s.score for s in gradebook.assignment_submissions(LESSON)}


def plain(root: Path) -> tuple[float, float]:
    run([sys.executable, "-m", "nbgrader", "generate_assignment", LESSON, "--force"], root)
    return run([sys.executable, "-m", "nbgrader", "autograde", LESSON], root)


def ours(root: Path, *more: str) -> tuple[float, float]:
    return run([sys.executable, "-m", "mha_course", "grade", LESSON, "--root", str(root), *more], root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20, help="submissions that both grade")
    parser.add_argument(
        "--growth", type=int, nargs="*", default=[10, 100, 1000], help="numbers that ours grades alone"
    )
    parser.add_argument("--feedback", action="store_true", help="ours makes the feedback pages, too")
    args = parser.parse_args()
    more = () if args.feedback else ("--no-feedback",)
    print(
        f"{os.cpu_count()} cores, {args.count} submissions of {LESSON}, ours {'with' if args.feedback else 'without'} feedback"
    )
    with tempfile.TemporaryDirectory(prefix="grading-") as folder:
        first, second = (make_class(Path(folder, name), args.count) for name in ("plain", "ours"))
        plain_seconds, plain_memory = plain(first)
        our_seconds, our_memory = ours(second, *more)
        a, b = scores(first), scores(second)
        if a != b:
            raise SystemExit(
                f"the scores differ: {[(k, a.get(k), b.get(k)) for k in a if a.get(k) != b.get(k)][:5]}"
            )
        print("\n| | seconds | a submission | memory at its highest |\n|---|---|---|---|")
        for name, seconds, memory in (
            ("nbgrader autograde", plain_seconds, plain_memory),
            ("mha-course grade", our_seconds, our_memory),
        ):
            print(f"| {name} | {seconds:.0f} | {seconds / args.count:.2f} | {memory:.0f} MiB |")
        print(f"\nthroughput: {plain_seconds / our_seconds:.1f} times, {args.count} equal scores", flush=True)
    if args.growth:
        print(
            "\n| submissions | seconds | a submission | memory at its highest |\n|---|---|---|---|",
            flush=True,
        )
    for count in args.growth:
        with tempfile.TemporaryDirectory(prefix="grading-") as folder:
            root = make_class(Path(folder), count)
            seconds, memory = ours(root, *more)
            print(f"| {count} | {seconds:.0f} | {seconds / count:.2f} | {memory:.0f} MiB |", flush=True)


if __name__ == "__main__":
    main()
