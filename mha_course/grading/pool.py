"""Trusted processes that do one task at a time, each within limits of time and memory.

What learners handed in is read, compared and drawn in these, so any task may hang, hunger or bring its process down.
Then the process is ended, another takes its place, and the task comes back with a `Failed` that says what became of
it. Every task comes back exactly once. A process that was ended from outside may have been innocent: its task is
tried once more.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import psutil  # comes with ipykernel

TRIES = 2
LOOK = 0.25  # seconds between two looks at who takes too much


@dataclass(frozen=True)
class Bounds:
    """What one task may use.

    Args:
        seconds: from when it is given to a process until it is done.
        cpu: seconds that the process itself computes; what it waits for is not counted. Not on Windows.
        memory: bytes more than its process had before.
    """

    seconds: float = 900.0
    cpu: int = 180
    memory: int = 1536 << 20


class Failed(Exception):
    """What became of a task that gave nothing. A fault of the grader, or of something nobody thought of."""


class Worker(Protocol):
    """What a process does. Made where the pool is, then copied into the process."""

    def handed_over(self) -> None:
        """The process has its copy: let go of what only it needs."""

    def __call__(self, task: Any) -> Any:
        """Do one task.

        Raises:
            Failed: it cannot be done now.
        """

    def close(self) -> None:
        """There is nothing more to do."""


@dataclass
class _Post:
    """One process, and what it is doing."""

    process: Any
    task: Any = None
    until: float = 0.0
    before: int = 0  # bytes it held when it was given the task
    first: int = 0


class Pool:
    """Processes for tasks.

    Args:
        count: how many processes.
        make: gives what the next process does.
    """

    def __init__(self, count: int, make: Callable[[], Worker]):
        self.make = make
        # Forked ones have everything loaded. Elsewhere than on Linux, forking a process that uses torch is not safe.
        self.context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self.posts: dict[Connection, _Post] = {}
        for _ in range(max(1, count)):
            self._add()

    def run(self, tasks: Iterable[Any], bounds: Bounds) -> Iterator[tuple[Any, Any]]:
        """Do tasks in any order; gives each with what came of it, or with a `Failed`."""
        waiting = deque(enumerate(tasks))
        tries: Counter = Counter()
        while True:
            for pipe, post in list(self.posts.items()):
                if post.task is None and waiting:
                    self._give(pipe, post, waiting, bounds)
            busy = {pipe: post for pipe, post in self.posts.items() if post.task is not None}
            if not busy and not waiting:
                return
            ready = wait(list(busy), timeout=LOOK)
            for pipe, post in busy.items():
                (number, task), answer = post.task, None
                if pipe in ready:
                    try:
                        answer = pipe.recv()
                    except (EOFError, OSError):
                        code = self._replace(pipe)
                        tries[number] += 1
                        if code == -getattr(signal, "SIGXCPU", 24):
                            answer = Failed(f"it took the grader more than {bounds.cpu} s of computing")
                        elif tries[number] < TRIES:
                            waiting.append((number, task))
                        else:
                            answer = Failed(f"the grader's own process died, twice (exit code {code})")
                    else:
                        post.task = None
                        if _held(post.process) - post.first > bounds.memory // 2:  # it never shrinks again
                            self._replace(pipe)
                elif time.monotonic() > post.until:
                    self._replace(pipe)
                    answer = Failed(f"it took the grader longer than {bounds.seconds:g} s")
                elif _held(post.process) - post.before > bounds.memory:
                    self._replace(pipe)
                    answer = _too_much(bounds)
                if answer is not None:
                    yield task, answer[0] if isinstance(answer, tuple) else answer

    def _give(self, pipe: Connection, post: _Post, waiting: deque, bounds: Bounds) -> None:
        chosen = waiting.popleft()
        try:
            pipe.send((chosen[1], bounds))
        except OSError:  # it died while it had nothing to do
            waiting.appendleft(chosen)
            self._replace(pipe)
            return
        post.task, post.until = chosen, time.monotonic() + bounds.seconds
        post.before = _held(post.process)
        post.first = post.first or post.before

    def _add(self) -> None:
        ours, theirs = self.context.Pipe()
        worker = self.make()
        others = [ours, *self.posts] if sys.platform == "linux" else []  # which a fork inherits
        arguments = (theirs, others, worker, os.getpid())
        process = self.context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        theirs.close()
        worker.handed_over()
        self.posts[ours] = _Post(process)

    def _replace(self, pipe: Connection) -> int | None:
        """End a process and put another in its place; gives the exit code."""
        process = self.posts.pop(pipe).process
        pipe.close()
        process.join(0.05)
        process.kill()
        process.join()
        self._add()
        return process.exitcode

    def close(self) -> None:
        """End all processes: at once, whatever they are doing."""
        for pipe in self.posts:
            pipe.close()  # who waits for a task ends by itself, and tidies up
        end = time.monotonic() + 1
        for post in self.posts.values():
            post.process.join(max(end - time.monotonic(), 0))
            post.process.kill()
            post.process.join()
        self.posts.clear()


def _too_much(bounds: Bounds) -> Failed:
    return Failed(f"it took the grader more than {bounds.memory >> 20} MB of memory")


def _held(process: Any) -> int:
    """Bytes that a process holds, libraries and files apart; 0 when it is gone."""
    try:
        memory = psutil.Process(process.pid).memory_info()
    except psutil.Error:
        return 0
    return memory.rss - getattr(memory, "shared", 0)


# ------------------------------------------------------------------------------------ in the process


def _work(pipe: Connection, others: list[Connection], worker: Worker, parent: int) -> None:
    """Do what is asked until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's business
    if (
        sys.platform == "linux"
    ):  # as soon as the main process is killed, so is this one, and its locks are free
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            return
    for other in others:
        other.close()
    with contextlib.suppress(EOFError, OSError):
        hungry = False
        while not hungry:
            task, bounds = pipe.recv()
            _limit(bounds)
            try:
                answer: Any = (worker(task),)  # a tuple: what it gave
            except Failed as error:
                answer = error
            except MemoryError:
                answer, hungry = _too_much(bounds), True
            except Exception:
                answer = Failed(f"the grader stumbled: {traceback.format_exc(limit=-2)}")
            pipe.send(answer)
    worker.close()


def _limit(bounds: Bounds) -> None:
    """Let the system hold the limits for the next task, where it can: at once, not four times a second."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        used = int(time.process_time()) + 1
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (used + bounds.cpu, resource.RLIM_INFINITY))
        if sys.platform == "linux":
            now = psutil.Process().memory_info().data
            resource.setrlimit(resource.RLIMIT_DATA, (now + bounds.memory, resource.RLIM_INFINITY))
