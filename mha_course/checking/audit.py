"""The checks, checked: every known wrong answer is put to them, and every correct style.

``mha-course audit`` prints the matrix; a test asserts it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from .calls import LocalAnswer
from .diagnose import implementations
from .examine import examine
from .exercise import Exercise


@dataclass
class Audit:
    """What the audit of one exercise found.

    Args:
        name: the exercise's.
        wrong: how many known wrong answers were tried.
        caught, named: how many were refused, and how many by their right name.
        styles, passed: how many correct styles were tried, and how many passed.
        problems: a sentence for each that went otherwise than it should.
        seconds: how long each examination took.
    """

    name: str
    wrong: int = 0
    caught: int = 0
    named: int = 0
    styles: int = 0
    passed: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.problems


def audit(exercise: Exercise, seed: int = 0) -> Audit:
    """Try everything that is known about an exercise against its own check."""
    result = Audit(exercise.name)
    for misconception in exercise.misconceptions:
        for number, wrong in enumerate(implementations(exercise, misconception), 1):
            label = misconception.id + (f" (form {number})" if number > 1 else "")
            report = examine(exercise, LocalAnswer(wrong), seed, reference_allowed=True)
            result.wrong += 1
            result.seconds.append(report.seconds)
            if report.status != "wrong":
                result.problems.append(f"{label}: not caught ({report.status})")
                continue
            result.caught += 1
            if report.cause == misconception.id:
                result.named += 1
            else:
                result.problems.append(f"{label}: named {report.cause!r} instead ({report.card.headline})")
    for name, right in [
        ("the reference", exercise.reference),
        *((s.name, s.answer) for s in exercise.styles),
    ]:
        forbidden = (
            () if right is exercise.reference else exercise.forbidden
        )  # the reference may be the fast way
        asked = replace(exercise, forbidden=forbidden)
        report = examine(asked, LocalAnswer(right), seed, reference_allowed=True)
        result.styles += 1
        result.seconds.append(report.seconds)
        if report.status == "right":
            result.passed += 1
        else:
            said = " ".join((report.card.headline, *report.card.lines, report.card.cause))
            result.problems.append(f"style {name}: refused ({report.cause}: {said})")
    return result


def table(audits: Iterable[Audit]) -> str:
    """The matrix as text: exercise × caught, named, styles, median and longest seconds."""
    audits = list(audits)
    width = max((len(a.name) for a in audits), default=8)
    lines = [f"{'exercise':<{width}}  caught   named    styles   median s  longest s"]
    for a in audits:
        lines.append(
            f"{a.name:<{width}}  {f'{a.caught}/{a.wrong}':<7}  {f'{a.named}/{a.wrong}':<7}  "
            f"{f'{a.passed}/{a.styles}':<7}  {statistics.median(a.seconds):<8.3f}  {max(a.seconds):.3f}"
        )
    wrong, styles = sum(a.wrong for a in audits), sum(a.styles for a in audits)
    every = [s for a in audits for s in a.seconds]
    lines.append(
        f"{'all':<{width}}  {f'{sum(a.caught for a in audits)}/{wrong}':<7}  "
        f"{f'{sum(a.named for a in audits)}/{wrong}':<7}  {f'{sum(a.passed for a in audits)}/{styles}':<7}  "
        f"{statistics.median(every) if every else 0:<8.3f}  {max(every, default=0):.3f}"
    )
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="LESSON or EXERCISE", help="default: all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the cases (default: 0, the learner's)")


def main(args: argparse.Namespace) -> int:
    """Print the matrix and every problem; exit code 1 if there is one."""
    import torch

    from mha_course import exercises

    torch.set_num_threads(1)
    for file, error in exercises.broken().items():
        print(f"exercises/{file}.py cannot be loaded: {type(error).__name__}: {error}", file=sys.stderr)
    if exercises.broken():
        return 1
    chosen = select(exercises.lessons(), args.names)
    if not chosen:
        known = ", ".join(lesson.folder for lesson in exercises.lessons())
        print(
            f"No lesson or exercise is called {' or '.join(args.names)}. Lessons: {known}.", file=sys.stderr
        )
        return 2
    first = next((exercise for exercise in chosen if exercise.device_safe), chosen[0])
    examine(
        replace(first, forbidden=()), LocalAnswer(first.reference), reference_allowed=True
    )  # first-time work
    audits = [audit(exercise, args.seed) for exercise in chosen]
    print(table(audits))
    for result in audits:
        for problem in result.problems:
            print(f"{result.name}: {problem}")
    return int(any(not result.clean for result in audits))


def select(lessons: Iterable, names: Iterable[str]) -> list[Exercise]:
    """Exercises by name, number ("1.3"), lesson folder or lesson number; all of them for no names."""
    names = list(names)
    return [
        exercise
        for lesson in lessons
        for exercise in lesson.exercises
        if not names or {lesson.folder, lesson.number, exercise.name, exercise.number} & set(names)
    ]
