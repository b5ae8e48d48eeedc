"""What grading keeps of its own: results before and after they are written, the secret of the seeds, a lock.

grading/marks/secret                       for the seeds; made at the first run
grading/marks/01_one_head/pending/…json    results that are not wholly written yet
grading/marks/01_one_head/done/…json       what was given for what, with seeds and repairs
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


class CannotWrite(Exception):
    """Something about the folders or the gradebook that a person must put right; the text says what."""


@dataclass
class Result:
    """All there is to write about one submission. Plain data.

    Args:
        status: "graded" or "set aside".
        reason: why it was set aside.
        fingerprint: of what was handed in; see `run.fingerprint`.
        notebooks: by stem the fields of `score.Marks`; of a set-aside one nothing.
        seeds: of the inputs, by exercise.
        seconds: how long it took.
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


class Records:
    """The results of one lesson that are kept.

    Args:
        root: the course's folder.
        lesson: its folder's name.
    """

    def __init__(self, root: Path, lesson: str):
        self.root = root
        self.folder = root / "grading" / "marks" / lesson

    def path_of(self, kind: str, student: str) -> Path:
        return self.folder / kind / f"{student[:100]}-{hashlib.sha256(student.encode()).hexdigest()[:8]}.json"

    def results(self, kind: str) -> Iterator[Result]:
        """Results that are "pending" or "done"; a damaged file counts as none."""
        for path in sorted((self.folder / kind).glob("*.json")):
            try:
                yield Result(**json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError):
                path.unlink(missing_ok=True)


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
    with path.open("a") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass
        except OSError:
            raise CannotWrite(f"another run of grading is under way in {root / 'grading'}") from None
        yield
