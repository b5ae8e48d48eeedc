"""Grading a class: who is to be graded, by whom, in which order, and what there is to say at the end.

The main process alone writes. Each of the ``jobs`` has two processes: a trusted one that reads submissions and
compares, and behind it the confined one in which learners' cells run. When a trusted one dies, another takes
its place and the submission is tried once more; after that it is set aside with the reason.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from .intake import Release, SetAside, read_release, read_submission
from .records import CannotWrite, Records, Result, only_writer, the_secret
from .sandbox import Limits, Nursery, SandboxError, available, best_way, staged_course

TRIES = 2


class GradingError(Exception):
    """Something that stops the whole run; the text says what to do."""


@dataclass
class Options:
    """How to grade; see the command's help for what each is.

    Args:
        root: the course's folder.
        students: only these; empty: all who handed in.
        way: one of `sandbox.WAYS`; "": the best that works.
    """

    root: Path
    students: tuple[str, ...] = ()
    jobs: int = 0
    force: bool = False
    feedback: bool = True
    outputs: bool = True
    pictures: bool = False
    require_sandbox: bool = False
    way: str = ""
    db_url: str | None = None
    scheduler: str | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass
class Summary:
    """What there is to say after a lesson was graded.

    Args:
        results: of this run, `records.Result` without cells.
        skipped: students whose marks were up to date.
        seconds: how long it took.
        sandbox: how learners' cells were confined.
        unfinished: students that were not reached, or could not be written.
        stopped: why the run ended early.
    """

    lesson: str
    results: list[Any] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0
    sandbox: str = ""
    unfinished: list[str] = field(default_factory=list)
    stopped: str = ""


# ---------------------------------------------------------------------------------- what to grade


def students_of(root: Path, lesson: str) -> dict[str, Path]:
    """Who handed in something for a lesson: the folders in ``grading/submitted/``."""
    submitted = root / "grading" / "submitted"
    folders = sorted(submitted.iterdir()) if submitted.is_dir() else []
    return {
        path.name: path / lesson
        for path in folders
        if not path.name.startswith(".") and os.path.lexists(path / lesson)
    }


def fingerprint(folder: Path, ours: str) -> str:
    """Of what a learner handed in, and for which release: the same again means that nothing is to be done."""
    digest = hashlib.sha256(ours.encode())
    if folder.is_symlink() or not folder.is_dir():
        return digest.hexdigest()
    for path in sorted(folder.rglob("*"))[:4000]:
        status = path.lstat()
        digest.update(
            f"{path.relative_to(folder)!s:.300}\0{status.st_mode}\0{status.st_size}".encode(
                "utf-8", "replace"
            )
        )
        if path.suffix == ".ipynb" or path.name == "timestamp.txt":
            with contextlib.suppress(OSError):
                if path.is_file() and not path.is_symlink() and status.st_size <= 128 << 20:
                    digest.update(hashlib.sha256(path.read_bytes()).digest())
        else:
            digest.update(str(status.st_mtime_ns).encode())
    return digest.hexdigest()


def release_version(release: Release) -> str:
    """Changes whenever the released notebooks change. (A change of the checks alone grades nobody again by itself.)"""
    cells = [notebook.cells for notebook in release.notebooks.values()]
    return hashlib.sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()


# --------------------------------------------------------------------------------- one submission


@dataclass
class Job:
    """One submission to be graded. Goes to a worker; nothing in it is secret but the seeds."""

    student: str
    folder: Path
    fingerprint: str
    seeds: dict[str, int]


def grade_one(job: Job, release: Release, marker: Any) -> dict:
    """Read, run and mark one submission. Gives the fields of a `records.Result`.

    Raises:
        SandboxError: there is no process to run it in.
    """
    started = time.perf_counter()
    result = {
        "student": job.student,
        "lesson": release.lesson,
        "status": "graded",
        "fingerprint": job.fingerprint,
        "seeds": job.seeds,
    }
    try:
        submission = read_submission(job.folder, release)
    except (SetAside, OSError, MemoryError, RecursionError) as error:
        reason = (
            str(error) if isinstance(error, SetAside) else f"cannot be read ({type(error).__name__}: {error})"
        )
        return {**result, "status": "set aside", "reason": reason}
    result.update(repairs=list(dict.fromkeys(submission.repairs))[:50], timestamp=submission.timestamp)
    marks = marker.mark(release, submission, job.seeds)
    result["notebooks"] = {stem: asdict(marked) for stem, marked in marks.items()}
    return {**result, "seconds": round(time.perf_counter() - started, 3)}


def _work(
    pipe: Connection,
    others: list[Connection],
    release: Release,
    nursery: Nursery,
    outputs: bool,
    pictures: bool,
) -> None:
    """A trusted worker process: grades what it is given until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for other in others:
        other.close()
    import torch

    torch.set_num_threads(1)
    from .score import Marker

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            job = pipe.recv()
            for attempt in range(TRIES + 1):
                try:
                    pipe.send(("graded", grade_one(job, release, Marker(nursery, outputs, pictures))))
                    break
                except SandboxError as error:
                    nursery.close()
                    nursery = Nursery(nursery.course, nursery.files, nursery.limits, nursery.way)
                    if attempt == TRIES:
                        pipe.send(("failed", f"its process could not be started: {error}"))
                except Exception:
                    nursery.close()
                    pipe.send(("failed", f"the grader stumbled: {traceback.format_exc(limit=-2)}"))
                    break
    nursery.close()


# ----------------------------------------------------------------------------------- a local pool


class LocalPool:
    """Trusted worker processes on this machine.

    Args:
        jobs: how many at a time.
        release, options: what and how.
    """

    def __init__(self, jobs: int, release: Release, options: Options):
        self.jobs, self.release, self.options = max(1, jobs), release, options
        self.stack = contextlib.ExitStack()
        self.workers: dict[Connection, tuple[Any, Job | None, int]] = {}
        course = self.stack.enter_context(staged_course())
        self.way = options.way or best_way()
        self.parent = Nursery(course, self._files(course), options.limits, self.way)
        try:
            self.parent.launch()
        except SandboxError:
            self.close()
            raise

    def open(self) -> None:
        """Get ready to run: the constructor has started learners' parent process and not waited for it.

        Raises:
            SandboxError: it does not come up.
        """
        import torch

        torch.set_num_threads(1)  # before anything is computed: workers are forked from here

        from . import rehearsal, score

        for name in score.checked_in(self.release):
            score._find(name)
        rehearsal.rehearse("cpu")
        method = "fork" if sys.platform == "linux" else "spawn"
        self.context = multiprocessing.get_context(method)
        self.parent.start()
        for _ in range(self.jobs):
            self._add()

    def _files(self, course: Path) -> Path | None:
        """A copy of the released files, readable for learners' processes."""
        if not self.release.files:
            return None
        import shutil

        target = course.parent / "files"
        for name in self.release.files:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.options.root / "notebooks" / self.release.lesson / name, target / name)
        for path in (target, *target.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        return target

    def _add(self) -> None:
        ours, theirs = self.context.Pipe()
        try:
            shared = self.parent.way in ("root", "user")
            nursery = self.parent.branch() if shared else Nursery(*self._nursery_arguments())
        except SandboxError:
            nursery = Nursery(*self._nursery_arguments())
        others = [ours, *self.workers]
        arguments = (theirs, others, self.release, nursery, self.options.outputs, self.options.pictures)
        process = self.context.Process(target=_work, args=arguments, daemon=False)
        process.start()
        theirs.close()
        if nursery.control is not None:
            nursery.control.close()
        self.workers[ours] = (process, None, 0)

    def _nursery_arguments(self) -> tuple:
        return self.parent.course, self.parent.files, self.parent.limits, self.parent.way

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, dict | None, str]]:
        """Grade jobs in any order; gives each with its result, or with what failed."""
        waiting = list(jobs)[::-1]
        tries: Counter = Counter()
        while True:
            for pipe, (process, job, _) in list(self.workers.items()):
                if job is None and waiting:
                    chosen = waiting.pop()
                    try:
                        pipe.send(chosen)
                    except (BrokenPipeError, OSError):
                        waiting.append(chosen)
                        self._replace(pipe)
                        continue
                    self.workers[pipe] = (process, chosen, 0)
            busy = {pipe: job for pipe, (_, job, _) in self.workers.items() if job is not None}
            if not busy:
                if waiting:
                    continue
                return
            for pipe in wait(list(busy), timeout=1.0):
                job = busy[pipe]
                try:
                    kind, content = pipe.recv()
                except (EOFError, ConnectionResetError, OSError):
                    self._replace(pipe)
                    tries[job.student] += 1
                    if tries[job.student] < TRIES:
                        waiting.append(job)
                    else:
                        yield job, None, "the grader's own process died, twice"
                    continue
                process = self.workers[pipe][0]
                self.workers[pipe] = (process, None, 0)
                yield job, content if kind == "graded" else None, "" if kind == "graded" else content

    def _replace(self, pipe: Connection) -> None:
        process, _, _ = self.workers.pop(pipe)
        pipe.close()
        process.kill()
        process.join()
        self._add()

    def close(self) -> None:
        for pipe, (process, _, _) in self.workers.items():
            pipe.close()
            process.join(0.2)
            if process.is_alive():
                process.kill()
                process.join()
        self.parent.close()
        self.stack.close()


# ----------------------------------------------------------------------------------- a whole class


def grade(lesson: str, options: Options, progress: Callable[[int, int, Any], None] | None = None) -> Summary:
    """Grade what was handed in for a lesson and is not graded yet.

    Args:
        lesson: its folder's name.
        options: see there.
        progress: called after each submission with how many are done, how many there are, and the result.

    Raises:
        GradingError: nothing could be graded; the text says what to do.
    """
    started = time.perf_counter()
    root = options.root
    try:
        release = read_release(root / "notebooks" / lesson)
    except (OSError, ValueError, KeyError) as error:
        raise GradingError(f"cannot read the release of {lesson}: {error}. Run: mha-course build") from None
    summary = Summary(lesson, sandbox=_sandbox(options))
    folders = students_of(root, lesson)
    if unknown := [student for student in options.students if student not in folders]:
        raise GradingError(f"nothing was handed in for {lesson} by {', '.join(unknown)}")
    chosen = {
        student: folder
        for student, folder in folders.items()
        if not options.students or student in options.students
    }
    if not chosen:
        raise GradingError(
            f"nothing was handed in for {lesson}: {root / 'grading' / 'submitted'} has no folder for it"
        )

    jobs = min(
        options.jobs or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2, len(chosen)
    )
    records = Records(root, lesson)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(only_writer(root))
            ours = release_version(release)
            secret = the_secret(root)
            version = {student: fingerprint(folder, ours) for student, folder in chosen.items()}
            kept = [] if options.force else [r for r in records.results("pending") if r.student in version]
            # what an earlier run was interrupted in while it wrote it
            pending = [result for result in kept if version[result.student] == result.fingerprint]
            done = set() if options.force else {(r.student, r.fingerprint) for r in records.results("done")}
            done |= {(result.student, result.fingerprint) for result in pending}
            summary.skipped = [student for student in chosen if (student, version[student]) in done]
            left = [student for student in chosen if student not in summary.skipped]
            pool = None
            if left:  # first of all: learners' processes load torch while this one loads nbgrader
                pool = _pool(jobs, release, options)
                stack.callback(pool.close)
            from . import lighter  # noqa: F401  (before whatever imports nbformat)
            from . import writer as writing

            writer = writing.Writer(
                root, release, writing.course_config(root, options.db_url), options.feedback
            )
            stack.callback(writer.close)
            writer.prepare()
            for result in pending:
                writer.write(result)
        except CannotWrite as error:
            raise GradingError(str(error)) from None
        if pool is not None:
            from . import score

            names = score.checked_in(release)
            todo = [
                Job(s, chosen[s], version[s], {name: score.seed_for(secret, s, name) for name in names})
                for s in left
            ]
            try:
                pool.open()
            except SandboxError as error:
                raise GradingError(f"learners' processes cannot be started: {error}") from None
            _write_all(pool, todo, release, writer, summary, progress)
    summary.seconds = time.perf_counter() - started
    return summary


def _write_all(
    pool: Any, todo: list[Job], release: Release, writer: Any, summary: Summary, progress: Any
) -> None:
    left = {job.student for job in todo}
    try:
        for job, content, failure in pool.run(todo):
            if content is None:
                content = {
                    "student": job.student,
                    "lesson": release.lesson,
                    "status": "set aside",
                    "reason": failure,
                    "fingerprint": job.fingerprint,
                    "seeds": job.seeds,
                }
            if content["student"] not in left:
                continue  # a lost worker was not so lost: each submission is written once
            result = writer.write(Result(**content))
            left.discard(result.student)
            for notebook in result.notebooks.values():  # what was written need not be kept as well
                notebook.pop("cells", None)
                for outcomes in notebook["outcomes"].values():
                    for outcome in outcomes:
                        outcome.pop("html", None)
            summary.results.append(result)
            if progress is not None:
                progress(len(summary.results), len(todo), result)
    except KeyboardInterrupt:
        summary.stopped = "interrupted"
    except CannotWrite as error:
        summary.stopped = str(error)
    summary.unfinished = sorted(left)


def _sandbox(options: Options) -> str:
    """How learners' cells are confined; a refusal where they must be and cannot.

    Raises:
        GradingError: see there.
    """
    from .sandbox import WAYS

    if options.way:
        return WAYS[options.way]
    works, how = available()
    if not works and options.require_sandbox:
        raise GradingError(f"refused: {how}. Without --require-sandbox, cells run in a plain process.")
    return how if works else f"NOT ISOLATED: {how}"


def _pool(jobs: int, release: Release, options: Options) -> Any:
    if options.scheduler:
        from .cluster import ClusterPool

        return ClusterPool(options.scheduler, release, options)
    try:
        return LocalPool(jobs, release, options)
    except SandboxError as error:
        raise GradingError(f"learners' processes cannot be started: {error}") from None


# ------------------------------------------------------------------------------------- the report


def numbers(summary: Summary) -> dict[str, Any]:
    """The summary for machines: plain data."""
    graded = [result for result in summary.results if result.status == "graded"]
    scores = [sum(score for score, _ in result.scores.values()) for result in graded]
    exercises: dict[str, dict[str, Any]] = {}
    for result in graded:
        for notebook in result.notebooks.values():
            for outcomes in notebook["outcomes"].values():
                for outcome in outcomes:
                    row = exercises.setdefault(
                        outcome["name"], {"asked": 0, "right": 0, "not written": 0, "causes": Counter()}
                    )
                    row["asked"] += 1
                    row["right"] += outcome["status"] == "right"
                    row["not written"] += outcome["status"] == "not written"
                    if outcome["status"] == "wrong":
                        row["causes"][
                            outcome["cause"] + ("" if outcome["named"] else " (no known misconception)")
                        ] += 1
    for row in exercises.values():
        row["causes"] = dict(row["causes"].most_common())
    return {
        "lesson": summary.lesson,
        "sandbox": summary.sandbox,
        "graded": len(graded),
        "repaired": {result.student: result.repairs for result in summary.results if result.repairs},
        "set_aside": {
            result.student: result.reason for result in summary.results if result.status == "set aside"
        },
        "up_to_date": summary.skipped,
        "unfinished": summary.unfinished,
        "stopped": summary.stopped,
        "time_outs": sum(n["late"] for result in graded for n in result.notebooks.values()),
        "process_deaths": sum(n["deaths"] for result in graded for n in result.notebooks.values()),
        "by_hand": {
            result.student: names
            for result in graded
            if (names := [name for n in result.notebooks.values() for name in n["trouble"]])
        },
        "mean": sum(scores) / len(scores) if scores else None,
        "maximum": max((sum(m for _, m in result.scores.values()) for result in graded), default=None),
        "scores": {result.student: result.scores for result in graded},
        "exercises": exercises,
        "seconds": round(summary.seconds, 2),
    }


def table(summary: Summary) -> str:
    """The summary for people."""
    told = numbers(summary)
    mean = "" if told["mean"] is None else f", mean {told['mean']:.1f} of {told['maximum']:g} points"
    lines = [
        f"{summary.lesson}: {told['graded']} graded{mean}, in {told['seconds']:.0f} s",
        f"  confined by: {told['sandbox']}",
    ]
    for label, key in (
        ("repaired", "repaired"),
        ("set aside", "set_aside"),
        ("to look at by hand", "by_hand"),
    ):
        if told[key]:
            lines.append(f"  {label}: {len(told[key])}")
            for student, what in list(told[key].items())[:20]:
                lines.append(f"    {student}: {what if isinstance(what, str) else '; '.join(what)}")
            if len(told[key]) > 20:
                lines.append(f"    … and {len(told[key]) - 20} more (--json lists all)")
    if told["up_to_date"]:
        lines.append(f"  already graded and unchanged: {len(told['up_to_date'])} (--force grades them again)")
    if told["time_outs"] or told["process_deaths"]:
        lines.append(f"  time-outs: {told['time_outs']}, processes that died: {told['process_deaths']}")
    if told["exercises"]:
        wide = max(len(name) for name in told["exercises"])
        lines += ["", f"  {'exercise':<{wide}}  not right  most met"]
        for name, row in told["exercises"].items():
            share = 1 - row["right"] / row["asked"]
            causes = ", ".join(f"{cause} ×{count}" for cause, count in list(row["causes"].items())[:3])
            if row["not written"]:
                causes = ", ".join(filter(None, (causes, f"not written ×{row['not written']}")))
            lines.append(f"  {name:<{wide}}  {share:>8.0%}   {causes}".rstrip())
    if told["stopped"]:
        lines += [
            "",
            f"  Stopped: {told['stopped']}. {len(told['unfinished'])} are left; run the same command again to go on.",
        ]
    return "\n".join(lines)
