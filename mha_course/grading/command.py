"""The command ``mha-course grade``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from mha_course import lessons
from mha_course.options import at_least, whole

from .intake import printable
from .sandbox import Limits

LEAST_MEMORY = 512  # MB: with much less nobody's answers could be called
EXIT_CODES = (
    "Exit codes: 0: everybody who handed in has marks and a page; 2: somebody is set aside, could not be graded, has no page, "
    "or is left over; 1: nothing could be graded; 130: interrupted."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXIT_CODES
    parser.add_argument("lesson", help="the lesson: 01, 01_one_head")
    parser.add_argument("--student", action="append", default=[], help="only this one (may be given again)")
    parser.add_argument(
        "--jobs", type=whole(1), default=0, help="how many at a time; by default one for each core"
    )
    parser.add_argument("--force", action="store_true", help="grade again what is graded and has not changed")
    parser.add_argument("--no-feedback", action="store_true", help="do not make the feedback pages")
    parser.add_argument("--no-outputs", action="store_true", help="do not keep what cells print and draw")
    parser.add_argument(
        "--pictures",
        action="store_true",
        help="run the lesson's own demonstrations too, and draw: by default only learners' cells are run",
    )
    parser.add_argument(
        "--require-sandbox",
        action="store_true",
        help="refuse to run learners' code where it cannot be isolated",
    )
    parser.add_argument(
        "--scheduler", help="address of a Dask scheduler (needs the extra mha-course[cluster])"
    )
    parser.add_argument("--db", help="URL of the gradebook; by default the one in nbgrader_config.py")
    parser.add_argument("--root", type=Path, default=None, help="the course's folder")
    seconds = at_least(1)
    parser.add_argument(
        "--cell-seconds", type=seconds, default=Limits.cell_seconds, help="time for one cell (%(default)g)"
    )
    parser.add_argument(
        "--notebook-seconds",
        type=seconds,
        default=Limits.notebook_seconds,
        help="time for a notebook (%(default)g)",
    )
    parser.add_argument(
        "--memory",
        type=whole(LEAST_MEMORY),
        default=Limits.memory >> 20,
        help="MB for one learner's processes (%(default)s)",
    )
    parser.add_argument(
        "--follow-on",
        type=share,
        default=1.0,
        metavar="SHARE",
        help="of its points for an answer that fails only because an earlier one does, 0 to 1 (default: all)",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def share(text: str) -> float:
    """A number from 0 to 1.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: give a number from 0 to 1")
    return number


def main(args: argparse.Namespace) -> int:
    """Runs ``mha-course grade``. Gives one of `EXIT_CODES`."""
    from .run import GradingError, Options, grade, numbers, table

    root = (args.root or lessons.ROOT).resolve()
    try:
        lesson = lessons.find(args.lesson, root).folder
        limits = replace(
            Limits(),
            cell_seconds=args.cell_seconds,
            notebook_seconds=args.notebook_seconds,
            memory=args.memory << 20,
        )
        options = Options(
            root=root,
            students=tuple(args.student),
            jobs=args.jobs,
            force=args.force,
            feedback=not args.no_feedback,
            outputs=not args.no_outputs,
            pictures=args.pictures,
            require_sandbox=args.require_sandbox,
            db_url=args.db,
            scheduler=args.scheduler,
            follow_on=args.follow_on,
            limits=limits,
        )
        warn_about_isolation()
        bar = Bar()
        summary = grade(lesson, options, bar)
        bar.close()
    except (GradingError, lessons.LessonError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. Run the same command again to go on.", file=sys.stderr)
        return 130
    print(json.dumps(numbers(summary), indent=1, ensure_ascii=True) if args.json else table(summary))
    if summary.stopped == "interrupted":
        return 130
    incomplete = (
        summary.unfinished or summary.pages or any(result.status != "graded" for result in summary.standing)
    )
    return 2 if incomplete else 0


def warn_about_isolation() -> None:
    from .sandbox import available

    works, why = available()
    if not works:
        print(
            f"Warning: learners' code is NOT isolated here: {why}.\n"
            "It runs as a plain process with limits and can read what you can read. "
            "--require-sandbox refuses that.",
            file=sys.stderr,
        )


class Bar:
    """A progress bar on stderr: drawn over itself in a terminal, a line now and then elsewhere."""

    def __init__(self, stream: Any = None):
        self.stream = stream or sys.stderr
        self.started = time.monotonic()
        self.told = 0.0
        self.terminal = self.stream.isatty()

    def __call__(self, done: int, whole: int, result: Any) -> None:
        now = time.monotonic()
        if done < whole and now - self.told < (0.1 if self.terminal else 10):
            return
        self.told = now
        left = (now - self.started) / done * (whole - done)
        columns = os.get_terminal_size(self.stream.fileno()).columns if self.terminal else 0
        columns = columns or 80  # some terminals do not know how wide they are
        told = f"{done}/{whole}  {duration(left)} left"
        wide = max(0, min(30, columns - len(told) - 4))  # the count and the time left come first
        filled = wide * done // whole
        line = f"[{'█' * filled}{'·' * (wide - filled)}] {told}  {printable(result.student, 24)}"
        if self.terminal:
            print(f"\r\x1b[K{line[: columns - 1]}", end="", file=self.stream, flush=True)
        else:
            print(line, file=self.stream, flush=True)

    def close(self) -> None:
        if self.terminal and self.told:
            print("\r\x1b[K", end="", file=self.stream, flush=True)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
