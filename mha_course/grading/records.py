"""What grading keeps of its own: results before and after they are written, the secret of the seeds, a lock.

grading/marks/secret                       for the seeds; made at the first run
grading/marks/01_one_head/pending/…json    results that are not wholly written yet
grading/marks/01_one_head/done/…json       what was given for what, with seeds and repairs
grading/marks/01_one_head/again/…json      what the next run tries again: there, something was the grader's own fault
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout  # comes with torch

WAIT = 2.0  # seconds: processes of a run that was just killed may still be ending


class CannotWrite(Exception):
    """Something about the folders or the gradebook that a person must put right; the text says what."""


@dataclass
class Result:
    """All there is to write about one submission. Plain data.

    Args:
        status: "graded", "set aside", or "failed": it could not be graded, and not through a fault of its own.
        reason: why it was set aside, or failed.
        fingerprint: of what was handed in; see `run.fingerprint`.
        notebooks: by stem the fields of `score.Marks`; of a set-aside one nothing.
        seeds: of the inputs, by exercise.
        seconds: how long it took.
        entered: what the gradebook got, by notebook and grade id; ``None``: a person has to give it.
        written: SHA-256 of the autograded notebooks, by stem.
    """

    student: str
    lesson: str
    status: str
    fingerprint: str = ""
    reason: str = ""
    repairs: list[str] = field(default_factory=list)
    timestamp: str | None = None
    notebooks: dict[str, dict] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    scores: dict[str, list[float]] = field(default_factory=dict)
    entered: dict[str, float | None] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)

    def shed(self) -> None:
        """Leave out what stands in the autograded notebook anyway."""
        for notebook in self.notebooks.values():
            notebook.pop("cells", None)
            for outcomes in notebook["outcomes"].values():
                for outcome in outcomes:
                    outcome.pop("html", None)

    def faulty(self) -> bool:
        """Whether something in it was the grader's own fault, so that it is to be tried again."""
        outcomes = [o for n in self.notebooks.values() for listed in n["outcomes"].values() for o in listed]
        return self.status == "failed" or any(outcome["status"] == "trouble" for outcome in outcomes)


class Records:
    """The results of one lesson that are kept.

    Args:
        root: the course's folder.
        lesson: its folder's name.
    """

    def __init__(self, root: Path, lesson: str):
        self.root = root
        self.folder = root / "grading" / "marks" / lesson
        self.unreadable: list[str] = []

    def path_of(self, kind: str, student: str) -> Path:
        name = student.encode()
        short = name[:100].decode(errors="ignore")  # bytes count for what a file may be called
        return self.folder / kind / f"{short}-{hashlib.sha256(name).hexdigest()[:8]}.json"

    def results(self, kind: str) -> Iterator[Result]:
        """Results that are "pending", "done" or to be tried "again".

        One that is not understood is kept under another name, and listed in `unreadable`.
        """
        folder = self.folder / kind
        self.unreadable += map(str, sorted(folder.glob("*.unreadable")))
        for path in sorted(folder.glob("*.json")):
            try:
                result = Result(**json.loads(path.read_text(encoding="utf-8")))
                plain = (result.student, result.lesson, result.status, result.fingerprint)
                if not all(isinstance(text, str) for text in plain):
                    raise TypeError("no record of marks")
                yield result
            except (ValueError, TypeError, RecursionError):
                number = len(list(folder.glob(f"{path.stem}.*.unreadable"))) + 1
                os.replace(path, kept := folder / f"{path.stem}.{number}.unreadable")
                self.unreadable.append(str(kept))


def the_secret(root: Path) -> bytes:
    """What the seeds are made with: 32 random bytes, kept for the instructor's eyes alone."""
    path = root / "grading" / "marks" / "secret"
    with contextlib.suppress(FileNotFoundError):
        kept = path.read_bytes()
        if len(kept) >= 32:
            return kept
    path.parent.mkdir(parents=True, exist_ok=True)
    made = secrets.token_bytes(32)
    partial = path.with_name(f"secret.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(made)
        os.fsync(file.fileno())
    os.replace(partial, path)
    return made


def keep(path: Path, content: Any) -> None:
    """Write a JSON file so that it is there wholly or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name[:80]}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(content, file, ensure_ascii=True, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


@contextlib.contextmanager
def only_writer(root: Path) -> Iterator[None]:
    """One run of grading at a time in one course folder.

    Raises:
        CannotWrite: another one is under way.
    """
    path = root / "grading" / "marks" / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=WAIT)
    except Timeout:
        raise CannotWrite(f"another run of grading is under way in {root / 'grading'}") from None
    try:
        yield
    finally:
        lock.release()
