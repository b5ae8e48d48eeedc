"""Grading on a Dask cluster: the confined runs go there, the writer stays here.

A task is one submission, already read here; what comes back is a result as from a local process. Dask gives a
lost worker's tasks to another one; a submission whose result arrives twice is written once. The cluster's
machines are the instructor's own: exercises and references are on them, outside their sandboxes.

Needs ``mha-course[cluster]`` here and on the workers. Source: https://distributed.dask.org
"""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mha_course import __version__

from .intake import Release, Submission
from .pool import TRIES, Bounds, Failed, Pool
from .run import GradingError, Job, Options
from .sandbox import Limits, Nursery, SandboxError, best_way, staged_course

# ------------------------------------------------------------------------------- on the cluster's side

_idle: dict[tuple, queue.SimpleQueue] = {}
_lock = threading.Lock()
_stack = contextlib.ExitStack()
_course: Path | None = None


@contextlib.contextmanager
def _nursery(
    release: Release, files: dict[str, bytes], limits: Limits, require_sandbox: bool
) -> Iterator[Nursery]:
    """One of this worker's own parents of learners' processes; kept for the next task."""
    global _course
    key = (release.lesson, limits)
    with _lock:
        if _course is None:
            _course = _stack.enter_context(staged_course())
            atexit.register(_stack.close)
        waiting = _idle.setdefault(key, queue.SimpleQueue())
        folder = _course.parent / f"files-{release.lesson}" if files else None
        if folder is not None and not folder.exists():
            for name, data in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
            for path in (folder, *folder.rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)
    try:
        nursery = waiting.get_nowait()
    except queue.Empty:
        way = best_way()
        if way == "none" and require_sandbox:
            raise GradingError("a worker of the cluster has no working sandbox") from None
        nursery = Nursery(_course, folder, limits, way)
        atexit.register(nursery.close)
    try:
        yield nursery
    except BaseException:
        nursery.close()
        raise
    waiting.put(nursery)


def grade_remotely(
    version: str,
    submission: Submission,
    release: Release,
    files: dict[str, bytes],
    seeds: dict[str, int],
    how: tuple[Limits, bool, bool, bool],
) -> dict[str, Any]:
    """The task: marks of one submission, by notebook. Runs on a worker of the cluster."""
    if version != __version__:
        raise GradingError(f"a worker of the cluster has mha_course {__version__}, here it is {version}")
    import torch

    torch.set_num_threads(1)
    from .score import Marker

    limits, outputs, pictures, require_sandbox = how
    for attempt in range(TRIES + 1):
        try:
            with _nursery(release, files, limits, require_sandbox) as nursery:
                marks = Marker(nursery, outputs, pictures).mark(release, submission, seeds)
                return {stem: asdict(marked) for stem, marked in marks.items()}
        except SandboxError:
            if attempt == TRIES:
                raise
    raise AssertionError("not reached")


# ------------------------------------------------------------------------------------- on this side


class ClusterPool:
    """Hands submissions to a Dask scheduler; the same interface as `pool.Pool`.

    Args:
        reader: processes here in which submissions are read.
        address: the scheduler's address, or (for tests) a `distributed` cluster or client.
    """

    def __init__(
        self, address: Any, release: Release, options: Options, reader: Pool | None, seconds: float = 30
    ):
        try:
            from distributed import Client
        except ImportError:
            raise GradingError("--scheduler needs Dask: pip install 'mha-course[cluster]'") from None
        self.release, self.options, self.reader = release, options, reader
        try:
            self.client = Client(address, timeout=seconds)
        except (OSError, TimeoutError) as error:
            raise GradingError(f"no Dask scheduler answers at {address}: {error}") from None
        folder = options.root / "notebooks" / release.lesson
        self.files = {name: (folder / name).read_bytes() for name in release.files}

    def run(self, jobs: Iterable[Job], bounds: Bounds) -> Iterator[tuple[Job, Any]]:
        """Grade jobs in any order; gives each with its result, or with a `Failed`."""
        from distributed import as_completed

        options = self.options
        how = (options.limits, options.outputs, options.pictures, options.require_sandbox)
        asked: dict[Any, tuple[Job, dict, float]] = {}
        for job, read in self.reader.run(jobs, bounds):
            if isinstance(read, Failed) or read[1] is None:
                yield job, read if isinstance(read, Failed) else read[0]
                continue
            result, submission = read
            future = self.client.submit(
                *(grade_remotely, __version__, submission, self.release, self.files, job.seeds, how),
                pure=False,
                retries=TRIES,
            )
            asked[future] = (job, result, time.perf_counter())
        for future in as_completed(list(asked)):
            job, result, started = asked.pop(future)
            error = future.exception()
            if error is not None:
                says = f"the cluster could not grade it: {type(error).__name__}: {str(error)[:200]}"
                yield job, Failed(says)
            else:
                seconds = round(time.perf_counter() - started, 3)
                yield job, {**result, "notebooks": future.result(), "seconds": seconds}
            future.release()

    def close(self) -> None:
        self.client.close()
