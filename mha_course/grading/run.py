"""Grading a class: who is to be graded, by whom, in which order, and what there is to say at the end.

The main process alone writes. Each of the ``jobs`` has two processes: a trusted one that reads submissions and
compares, and behind it the confined one in which learners' cells run. First come everybody's marks, then the pages.

The rule, and `settle` holds it: an exception, a hang or a hunger that belongs to one submission sets that one aside,
with its reason, and the run goes on. Only a full disk, a locked or broken gradebook, or the instructor stops a run.
What a run could not do, the next one tries again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .intake import (
    Release,
    SetAside,
    Submission,
    handed_in_at,
    is_notebook,
    listing,
    name_trouble,
    printable,
    read_file,
    read_release,
    read_submission,
)
from .pool import TRIES, Bounds, Failed, Pool
from .records import CannotWrite, Records, Result, only_writer, the_secret
from .sandbox import Limits, Nursery, SandboxError, available, best_way, staged_course

PAGE = Bounds(seconds=60, cpu=40, memory=768 << 20)  # for a learner's feedback pages
HASHED = 64 << 20  # bytes of one submission; of what is more, the time of the last change has to do


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
    follow_on: float = 1.0
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
        pages: students without feedback pages of these marks, and why; the next run makes them.
        unreadable: records of earlier runs that cannot be read; they are kept.
        kept: `records.Result` of those that were skipped.
        restored: students whose marks were not in the gradebook any more, and were written there again.
        due: when the lesson had to be handed in, if that is in the gradebook.
        late: students who were late: "seconds", and the "penalty" in points.
        missing: students who have handed in nothing, as far as they are known.
    """

    lesson: str
    results: list[Any] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0
    sandbox: str = ""
    unfinished: list[str] = field(default_factory=list)
    stopped: str = ""
    pages: dict[str, str] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    due: str = ""
    late: dict[str, dict[str, float]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def standing(self) -> list[Any]:
        """Everybody's last result, from this run or an earlier one."""
        return [*self.kept, *self.results]


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
    """Of what a learner handed in, and for which release: the same again means that nothing is to be done.

    Gives "" where it cannot be told now; that is never the same.
    """
    digest = hashlib.sha256(ours.encode())
    said: list[str] = []
    room = HASHED
    try:
        for path in listing(folder, said):
            status = path.lstat()
            mark = f"{status.st_mode} {status.st_size} {status.st_mtime_ns}"
            looked_into = is_notebook(path) or path.name == "timestamp.txt"
            if looked_into and status.st_size <= room:
                room -= status.st_size
                try:
                    mark = f"{status.st_mode} {hashlib.sha256(read_file(path)).hexdigest()}"
                except SetAside as error:
                    mark = str(error)
            digest.update(os.fsencode(path.relative_to(folder)) + f"\0{mark}\0".encode())
    except SetAside as error:
        said.append(str(error))
    except OSError:
        return ""
    digest.update(json.dumps(said).encode())
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


def read_one(job: Job, release: Release) -> tuple[dict, Submission | None]:
    """Read one submission: the fields of a `records.Result` so far, and what is to be run, if anything is."""
    result = {
        "student": job.student,
        "lesson": release.lesson,
        "status": "graded",
        "fingerprint": job.fingerprint,
        "seeds": job.seeds,
    }
    try:
        submission = read_submission(job.folder, release)
    except SetAside as error:
        result.update(status="set aside", reason=str(error), timestamp=_when(job.folder))
        return result, None
    result.update(repairs=list(dict.fromkeys(submission.repairs))[:50], timestamp=submission.timestamp)
    return result, submission


def _when(folder: Path) -> str | None:
    """When a submission that cannot be read was handed in, if that can be told."""
    with contextlib.suppress(OSError):
        return handed_in_at(folder, [])
    return None


class Grader:
    """What a trusted process does: it grades a `Job`, or makes the feedback pages of a student.

    Args:
        release, options: what and how.
        nursery: where learners' processes come from; ``None`` where submissions are only read, not run.
    """

    def __init__(self, release: Release, options: Options, nursery: Nursery | None):
        self.release, self.options, self.nursery = release, options, nursery
        self.pages: Any = None

    def handed_over(self) -> None:
        if self.nursery is not None and self.nursery.control is not None:
            self.nursery.control.close()

    def __call__(self, task: Job | str) -> Any:
        if isinstance(task, str):
            return self._page(task)
        started = time.perf_counter()
        result, submission = read_one(task, self.release)
        if self.nursery is None:
            return result, submission
        if submission is not None:
            result["notebooks"] = {stem: asdict(marks) for stem, marks in self._marks(submission, task.seeds)}
            result["seconds"] = round(time.perf_counter() - started, 3)
        return result

    def _marks(self, submission: Submission, seeds: dict[str, int]) -> Iterable[tuple[str, Any]]:
        import torch

        torch.set_num_threads(1)
        from .score import Marker

        for attempt in range(TRIES + 1):
            options = self.options
            marker = Marker(self.nursery, options.outputs, options.pictures, options.follow_on)
            try:
                return marker.mark(self.release, submission, seeds).items()
            except SandboxError as error:
                self.nursery = self.nursery.anew()
                if attempt == TRIES:
                    raise Failed(f"its process could not be run: {error}") from None
            except BaseException:
                self.nursery = self.nursery.anew()
                raise
        raise AssertionError("not reached")

    def _page(self, student: str) -> None:
        from . import pages, writer

        if self.pages is None:
            config = writer.course_config(self.options.root, self.options.db_url)
            self.pages = pages.FeedbackMaker(self.release.lesson, config)
        self.pages.make(student)

    def close(self) -> None:
        if self.nursery is not None:
            self.nursery.close()


def bounds_of(release: Release, limits: Limits) -> Bounds:
    """What the grader itself may use for one submission: time for its notebooks, for starting processes, for itself."""
    return Bounds(seconds=300 + 2 * limits.notebook_seconds * len(release.notebooks))


class House:
    """Where learners' processes of one run come from: what is staged for them, and their first parent.

    Args:
        release, options: what and how.

    Raises:
        SandboxError: the parent cannot be started.
    """

    def __init__(self, release: Release, options: Options):
        self.release, self.options = release, options
        with contextlib.ExitStack() as stack:
            course = stack.enter_context(staged_course())
            way = options.way or best_way()
            self.parent = Nursery(course, self._files(course), options.limits, way)
            stack.callback(self.parent.close)
            self.parent.launch()
            self.stack = stack.pop_all()

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
        self.parent.start()

    def nursery(self) -> Nursery:
        """For one trusted process."""
        if self.parent.way in ("root", "user"):
            with contextlib.suppress(SandboxError):
                return self.parent.branch()
        return Nursery(self.parent.course, self.parent.files, self.parent.limits, self.parent.way)

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

    def close(self) -> None:
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
    try:
        release = read_release(options.root / "notebooks" / lesson)
    except (OSError, ValueError, KeyError) as error:
        raise GradingError(f"cannot read the release of {lesson}: {error}. Run: mha-course build") from None
    summary = Summary(lesson, sandbox=_sandbox(options))
    chosen = _chosen(lesson, options)
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_interrupt())
        try:
            stack.enter_context(only_writer(options.root))
            _grade(chosen, release, options, summary, progress, stack)
        except SandboxError as error:
            raise GradingError(f"learners' processes cannot be started: {error}") from None
        except CannotWrite as error:
            raise GradingError(str(error)) from None
        except OSError as error:
            where = error.filename or options.root / "grading"
            raise GradingError(f"cannot read or write {where}: {error.strerror or error}") from None
    summary.seconds = time.perf_counter() - started
    return summary


def _chosen(lesson: str, options: Options) -> dict[str, Path]:
    """Whose submissions are looked at, and where they are.

    Raises:
        GradingError: there are none, or not of everybody who was named.
    """
    folders = students_of(options.root, lesson)
    if unknown := [student for student in options.students if student not in folders]:
        raise GradingError(f"nothing was handed in for {lesson} by {', '.join(map(printable, unknown))}")
    if not folders:
        submitted = options.root / "grading" / "submitted"
        raise GradingError(f"nothing was handed in for {lesson}: {submitted} has no folder for it")
    return {student: folders[student] for student in options.students or folders}


def _grade(
    chosen: dict[str, Path],
    release: Release,
    options: Options,
    summary: Summary,
    progress: Callable[[int, int, Any], None] | None,
    stack: contextlib.ExitStack,
) -> None:
    """`grade`, as the only one who writes. What is put on the ``stack`` is closed at the end."""

    def open_house() -> House:
        made = House(release, options)
        stack.callback(made.close)
        return made

    for student in [student for student in chosen if name_trouble(student)]:
        reason = f"its folder cannot be used: {name_trouble(student)}. Please rename it"
        summary.results.append(Result(printable(student, 200), release.lesson, "set aside", reason=reason))
        del chosen[student]
    records = Records(options.root, release.lesson)
    secret, ours = the_secret(options.root), release_version(release)
    version = {student: fingerprint(folder, ours) for student, folder in chosen.items()}
    done = {r.student: r for r in records.results("done") if r.fingerprint}
    graded = {(r.student, r.fingerprint) for r in done.values()}
    pending = [] if options.force else list(records.results("pending"))
    summary.unreadable = records.unreadable
    # what an earlier run was interrupted in while it wrote it
    pending = [r for r in pending if version.get(r.student) and version[r.student] == r.fingerprint]
    current = set() if options.force else {s for s in chosen if (s, version[s]) in graded}
    current |= {result.student for result in pending}
    house = None
    if set(chosen) - current and not options.scheduler:
        house = open_house()  # first of all: learners' processes load torch while this one loads nbgrader

    from . import lighter  # noqa: F401  (before whatever imports nbformat)
    from . import writer as writing
    from .score import checked_in, seed_for

    writer = writing.Writer(options.root, release, writing.course_config(options.root, options.db_url))
    stack.callback(writer.close)
    writer.prepare()
    names = checked_in(release)
    jobs = {
        s: Job(s, chosen[s], version[s], {name: seed_for(secret, s, name) for name in names}) for s in chosen
    }
    for result in pending:
        done[result.student] = settle(jobs[result.student], result, writer, graded)
        if done[result.student].status == "failed":
            current.remove(result.student)
    current -= _written_again([done[s] for s in chosen if s in current], jobs, writer, summary, graded)
    summary.skipped = [student for student in chosen if student in current]
    summary.kept = [done[student] for student in summary.skipped]
    left = [jobs[student] for student in chosen if student not in current]
    if not left and not (options.feedback and writer.pages_missing(summary.skipped)):
        _look_around(writer, chosen, options, summary)
        return
    if left and not options.scheduler:
        house = house or open_house()
        house.open()
    count = how_many(options.jobs, len(chosen))
    pool = runner = Pool(count, lambda: Grader(release, options, house and house.nursery()))
    stack.callback(pool.close)
    if left and options.scheduler:
        from .cluster import ClusterPool

        runner = ClusterPool(options.scheduler, release, options, pool)
        stack.callback(runner.close)
    answers = runner.run(left, bounds_of(release, options.limits))
    try:
        _write_marks(answers, left, writer, summary, graded, progress)
        if options.feedback:
            _make_pages(pool, writer, summary)
        _look_around(writer, chosen, options, summary)
    except KeyboardInterrupt:
        summary.stopped = "interrupted"
    except CannotWrite as error:
        summary.stopped = str(error)


def _written_again(
    records: list[Result], jobs: dict[str, Job], writer: Any, summary: Summary, graded: set[tuple[str, str]]
) -> set[str]:
    """The gradebook and the folders are the truth: what is not there any more is written again from the records.

    Gives those of whom not enough is left for that: they are to be graded again.
    """
    lost = set()
    for record in records:
        if writer.still_there(record):
            continue
        whole = writer.with_cells(record)
        if whole is None or settle(jobs[record.student], whole, writer, graded).status == "failed":
            lost.add(record.student)
        else:
            summary.restored.append(record.student)
    return lost


def _look_around(writer: Any, chosen: dict[str, Path], options: Options, summary: Summary) -> None:
    """Who was late, and, if the whole class was asked for, who has handed in nothing."""
    known, summary.due, late = writer.look_around(summary.standing)
    summary.late = {student: late[student] for student in chosen if student in late}
    if not options.students:
        submitted = options.root / "grading" / "submitted"
        folders = [
            path.name for path in submitted.iterdir() if path.is_dir() and not path.name.startswith(".")
        ]
        seen = {*chosen, *(result.student for result in summary.results)}
        summary.missing = sorted({*known, *map(printable, folders)} - seen)


def how_many(asked: int, submissions: int) -> int:
    """Of the processes that grade: as many as were asked for, else one for each core; never more than submissions."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(asked or usable, submissions), 1)


@contextlib.contextmanager
def one_interrupt() -> Iterator[None]:
    """Inside, Ctrl-C is heard once: a second one must not stop the tidying up."""

    def heard(_number: int, _frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    usual = threading.current_thread() is threading.main_thread()
    if not usual or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, heard)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def settle(job: Job, answer: Any, writer: Any, graded: set[tuple[str, str]]) -> Result:
    """Write what came of one submission: the rule of this module, in its one place.

    Args:
        job: the submission.
        answer: its `Result`, the fields of one, or what became of it instead: an exception.
        writer: see `writer.Writer`.
        graded: students and fingerprints of what was graded before.

    Raises:
        CannotWrite: the disk is full, or the gradebook is locked or broken: that stops the run.
    """
    try:
        if isinstance(answer, Exception):
            raise answer
        return writer.write(answer if isinstance(answer, Result) else Result(**answer))
    except CannotWrite:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
        result = Result(job.student, writer.release.lesson, "failed", job.fingerprint, printable(reason, 500))
    if (job.student, job.fingerprint) in graded:
        return result  # what was given for the very same submission stays
    try:
        return writer.write(result)
    except CannotWrite:
        raise
    except Exception:  # not even that can be entered: then it stands in the report alone
        return result


def _write_marks(
    answers: Iterable[tuple[Job, Any]],
    jobs: list[Job],
    writer: Any,
    summary: Summary,
    graded: set[tuple[str, str]],
    progress: Callable[[int, int, Any], None] | None,
) -> None:
    left = {job.student for job in jobs}
    summary.unfinished = sorted(left)
    for job, answer in answers:
        if job.student not in left:
            continue  # a lost worker was not so lost: each submission is written once
        result = settle(job, answer, writer, graded)
        left.discard(job.student)
        summary.unfinished = sorted(left)
        summary.results.append(result)
        if progress is not None:
            progress(len(jobs) - len(left), len(jobs), result)


def _make_pages(pool: Pool, writer: Any, summary: Summary) -> None:
    """Feedback pages of everybody who has none of these marks."""
    students = [*summary.skipped, *(result.student for result in summary.results)]
    for student, answer in pool.run(writer.pages_missing(students), PAGE):
        if isinstance(answer, Failed):
            summary.pages[student] = str(answer)


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


# ------------------------------------------------------------------------------------- the report


def numbers(summary: Summary) -> dict[str, Any]:
    """The summary for machines, plain data: how things stand, whichever run it was that did it."""
    standing = summary.standing
    graded = [result for result in standing if result.status == "graded"]
    scores = [sum(score for score, _ in result.scores.values()) for result in graded]
    exercises: dict[str, dict[str, Any]] = {}
    missing = Counter(name for r in graded for n in r.notebooks.values() for name in n.get("missing", ()))
    for result in graded:
        for notebook in result.notebooks.values():
            for outcomes in notebook["outcomes"].values():
                for outcome in outcomes:
                    row = exercises.setdefault(
                        outcome["name"],
                        {"asked": 0, "right": 0, "not written": 0, "causes": Counter(), "after": Counter()},
                    )
                    row["asked"] += 1
                    row["right"] += outcome["status"] == "right"
                    row["not written"] += outcome["status"] == "not written"
                    if after := outcome.get("after"):
                        row["after"][" and ".join(after)] += 1
                    if outcome["status"] == "wrong":
                        unnamed = outcome.get("says") or f"{outcome['cause']} (no known misconception)"
                        row["causes"][outcome["cause"] if outcome["named"] else unnamed] += 1
    for row in exercises.values():
        row["causes"] = dict(row["causes"].most_common())
        row["after"] = dict(row["after"].most_common())
    return {
        "lesson": summary.lesson,
        "sandbox": summary.sandbox,
        "graded": len(graded),
        "graded_now": sum(result.status == "graded" for result in summary.results),
        "restored": summary.restored,
        "repaired": {result.student: result.repairs for result in standing if result.repairs},
        "set_aside": {result.student: result.reason for result in standing if result.status == "set aside"},
        "not_handed_in": summary.missing,
        "due": summary.due,
        "late": summary.late,
        "failed": {result.student: result.reason for result in summary.results if result.status == "failed"},
        "without_pages": summary.pages,
        "unreadable_records": summary.unreadable,
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
        "not_installed": dict(missing.most_common()),
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
        f"{summary.lesson}: {told['graded']} graded ({told['graded_now']} of them now, in {told['seconds']:.0f} s){mean}",
        f"  confined by: {told['sandbox']}",
    ]
    late = {student: _how_late(**said) for student, said in told["late"].items()}
    for label, what in (
        ("repaired", told["repaired"]),
        ("set aside", told["set_aside"]),
        ("could not be graded; the next run tries again", told["failed"]),
        ("without a feedback page; the next run tries again", told["without_pages"]),
        ("to look at by hand", told["by_hand"]),
        (f"late (due {told['due']})", late),
        ("nothing handed in", dict.fromkeys(told["not_handed_in"], "")),
        ("was missing in the gradebook, written there again", dict.fromkeys(told["restored"], "")),
    ):
        if what:
            lines.append(f"  {label}: {len(what)}")
            for student, said in list(what.items())[:20]:
                says = said if isinstance(said, str) else "; ".join(said)
                lines.append(f"    {student}: {says}" if says else f"    {student}")
            if len(what) > 20:
                lines.append(f"    … and {len(what) - 20} more (--json lists all)")
    if told["up_to_date"]:
        lines.append(f"  graded before and unchanged: {len(told['up_to_date'])} (--force grades them again)")
    if told["time_outs"] or told["process_deaths"]:
        lines.append(f"  time-outs: {told['time_outs']}, processes that died: {told['process_deaths']}")
    if told["not_installed"]:
        names = " ".join(told["not_installed"])
        lines.append(f"  imported by learners and not installed here: {names}")
        lines.append(f"    to allow them: pip install {names}, then grade again with --force")
    if told["exercises"]:
        wide = max(len(name) for name in told["exercises"])
        lines += ["", f"  {'exercise':<{wide}}  not right  most met"]
        for name, row in told["exercises"].items():
            share = 1 - row["right"] / row["asked"]
            causes = ", ".join(f"{cause} ×{count}" for cause, count in list(row["causes"].items())[:3])
            if row["not written"]:
                causes = ", ".join(filter(None, (causes, f"not written ×{row['not written']}")))
            after = ", ".join(f"right but for {earlier} ×{count}" for earlier, count in row["after"].items())
            causes = ", ".join(filter(None, (causes, after)))
            lines.append(f"  {name:<{wide}}  {share:>8.0%}   {causes}".rstrip())
    if told["unreadable_records"]:
        lines += ["  kept, and not understood (a newer version's?):", *told["unreadable_records"]]
    if told["stopped"]:
        lines += [
            "",
            f"  Stopped: {told['stopped']}. {len(told['unfinished'])} are left; run the same command again to go on.",
        ]
    return "\n".join(printable(line, 1000) for line in lines)


def _how_late(seconds: float, penalty: float) -> str:
    """ "2 days 3 h, 1.5 points off"."""
    hours, minutes = divmod(max(round(seconds / 60), 1), 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "day" + "s" * (days != 1)), (hours, "h"), (minutes * (not days), "min")]
    said = " ".join(f"{number} {unit}" for number, unit in parts if number)
    return f"{said}, {penalty:g} points off" if penalty else f"{said}, no penalty"
