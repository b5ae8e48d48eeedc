"""Where learners' cells run: bubblewrap around a parent process that forks one process for each notebook.

Two walls. bubblewrap gives the parent (and all it forks) a file system with nothing in it but Python, this
course without its answers, and the released files; no network; no other processes. Each forked process then
makes namespaces of its own, so that two learners never share /tmp, memory or processes (see `worker`).

``available()`` says whether that works here. Only the standard library is needed for it. Linux only; elsewhere,
or without bubblewrap, there is a plain process with limits, which is no isolation.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import shutil
import signal
import site
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
INSIDE = "/course"  # where the trimmed package is, inside
KEPT = "/kept"  # where folders under /tmp are a second time: every learner's process gets a /tmp of its own
# All of mha_course that a learner's process gets to see. Never reference/, exercises/, or the engine's comparing.
STAGED = (
    "__init__.py",
    "counting.py",
    "devices.py",
    "flex.py",
    "progress_bar.py",
    "quiet.py",
    "watching.py",
    "checking/calls.py",
    "checking/callables.py",
    "checking/exercise.py",
    "checking/guards.py",
    "checking/kinds.py",
    "checking/plain.py",
    "grading/rehearsal.py",
    "grading/seccomp.py",
    "grading/switches.py",
    "grading/wire.py",
    "grading/worker.py",
)
FIRST_UID = 1_600_000_000  # users that nobody has; one for each run of a notebook, when we are root
START_SECONDS = 120


@dataclass(frozen=True)
class Limits:
    """What a learner's process may use.

    Args:
        address_space: bytes of each process (RLIMIT_AS).
        memory: bytes of the whole process tree, looked at four times a second.
        processes: how many at a time, threads included.
        file_size: bytes of each file.
        scratch: bytes of the private /tmp, and of /dev/shm.
        cell_seconds: time for one cell.
        notebook_seconds: time for a notebook, all cells and checks together.
        cpu_seconds: of each process.
    """

    address_space: int = 6 << 30
    memory: int = 3 << 30
    processes: int = 40
    file_size: int = 64 << 20
    scratch: int = 128 << 20
    cell_seconds: float = 120.0
    notebook_seconds: float = 300.0
    cpu_seconds: int = 900


class SandboxError(Exception):
    """The parent of the learners' processes cannot be started or has died; the text says why."""


# --------------------------------------------------------------------------------- does it work here


@functools.cache
def available() -> tuple[bool, str]:
    """Whether learners' code can be confined here, and how, or why not."""
    if sys.platform != "linux":
        return False, f"there is no bubblewrap for {sys.platform}: use Linux, or a container"
    if shutil.which("bwrap") is None:
        return False, "bubblewrap is not installed (Debian, Ubuntu: apt install bubblewrap)"
    reasons = []
    for way in _ways():
        reason = _probe(way)
        if not reason:
            return True, f"bubblewrap, {WAYS[way]}"
        reasons.append(f"{WAYS[way]}: {reason}")
    return False, "bubblewrap is installed and does not work here (" + "; ".join(reasons) + ")"


WAYS = {
    "root": "a user of their own for every learner",
    "user": "namespaces of their own for every learner",
    "single": "a sandbox started afresh for every learner",
    "none": "no isolation: a process with limits",
}


def _ways() -> list[str]:
    return ["root", "user", "single"] if os.geteuid() == 0 else ["user", "single"]


def best_way(sandbox: bool = True) -> str:
    """The first of `WAYS` that works here."""
    if sandbox and available()[0]:
        return next(way for way in _ways() if not _probe(way))
    return "none"


@functools.cache
def _probe(way: str) -> str:
    """Start and end one confined process without torch; "" if that went well, else what went wrong."""
    try:
        with staged_course() as course:
            nursery = Nursery(course, way=way, probe=True)
            try:
                nursery.start(seconds=20)
                nursery.fork().close()
                nursery.kill()
            finally:
                nursery.close()
    except (SandboxError, OSError) as error:
        return " ".join(str(error).split())[:300]
    return ""


# ------------------------------------------------------------------------------------- what is inside


@contextlib.contextmanager
def staged_course() -> Iterator[Path]:
    """A folder with what learners' processes may import of this course, and nothing else of it."""
    with tempfile.TemporaryDirectory(prefix="mha-course-") as folder:
        target = Path(folder, "course", "mha_course")
        for part in (*STAGED, *_optional_parts()):
            if (PACKAGE / part).exists():
                (target / part).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(PACKAGE / part, target / part)
        for package in ("checking", "grading"):
            (target / package / "__init__.py").write_text("")
        for name in ("tutor.py", "doctor.py", "measuring.py"):
            shutil.copyfile(PACKAGE / "grading" / "stand_in.py", target / name)
        for path in (Path(folder), *Path(folder).rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield target.parent


def _optional_parts() -> list[str]:
    """Drawing and data: needed by cells, and no answers."""
    found = [PACKAGE / "plots.py", *PACKAGE.glob("plots/**/*"), *PACKAGE.glob("data/**/*")]
    return [
        path.relative_to(PACKAGE).as_posix()
        for path in found
        if path.is_file() and "__pycache__" not in path.parts
    ]


def _readable_folders() -> list[Path]:
    """Folders that Python needs, shortest first, none inside another."""
    wanted = {
        sys.prefix,
        sys.base_prefix,
        sys.exec_prefix,
        sys.base_exec_prefix,
        os.path.dirname(sys.executable),
    }
    wanted |= {os.path.dirname(os.path.realpath(sys.executable))}
    wanted |= {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    wanted |= {folder for folder in site.getsitepackages() if folder in sys.path}
    import importlib.util

    for name in ("torch", "numpy", "IPython", "matplotlib"):
        with contextlib.suppress(ImportError, ValueError, AttributeError):
            wanted.add(str(Path(importlib.util.find_spec(name).origin).parents[1]))
    kept: list[Path] = []
    for path in sorted({Path(path) for path in wanted if os.path.isdir(path)}, key=lambda p: len(p.parts)):
        if path != Path("/") and not any(path.is_relative_to(other) for other in (*kept, Path("/usr"))):
            kept.append(path)
    return kept


def _folders_under_tmp() -> list[Path]:
    return [folder for folder in _readable_folders() if folder.is_relative_to("/tmp")]


def _bubblewrap(way: str, course: Path, files: Path | None) -> list[str]:
    command = [shutil.which("bwrap") or "bwrap"]
    if (
        way == "root"
    ):  # bubblewrap itself needs no user namespace then; these three are for making learners' users
        command += ["--cap-drop", "ALL"]
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_KILL"):
            command += ["--cap-add", capability]
    else:
        command += ["--unshare-user", "--cap-drop", "ALL"]
    command += [
        "--unshare-ipc",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-uts",
        "--hostname",
        "mha-course",
    ]
    command += ["--die-with-parent", "--new-session", "--clearenv"]
    command += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if os.path.islink(f"/{name}"):
            command += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
        elif os.path.isdir(f"/{name}"):
            command += ["--ro-bind", f"/{name}", f"/{name}"]
    for path in (
        "/etc/ld.so.cache",
        "/etc/ld.so.conf",
        "/etc/ld.so.conf.d",
        "/etc/localtime",
        "/etc/alternatives",
    ):
        command += ["--ro-bind-try", path, path]
    command += ["--perms", "1777", "--tmpfs", "/tmp"]
    folders = _readable_folders()
    parents = {parent for folder in folders for parent in folder.parents} - {Path("/"), Path("/tmp")}
    for parent in sorted(parents, key=lambda path: len(path.parts)):
        command += ["--perms", "0755", "--dir", str(parent)]
    for folder in folders:
        command += ["--ro-bind", str(folder), str(folder)]
    command += ["--perms", "0755", "--dir", KEPT]
    for number, folder in enumerate(_folders_under_tmp()):
        command += ["--ro-bind", str(folder), f"{KEPT}/{number}"]
    bound = (*folders, Path("/usr"))
    for secret in {PACKAGE, PACKAGE.parent}:  # where the course is installed inside one of these folders
        inside = any(secret != folder and secret.is_relative_to(folder) for folder in bound)
        holds = any(folder.is_relative_to(secret) for folder in bound)
        if inside and not holds:
            command += ["--tmpfs", str(secret)]
            for number, folder in enumerate(_folders_under_tmp()):
                if secret.is_relative_to(folder):
                    command += ["--tmpfs", f"{KEPT}/{number}/{secret.relative_to(folder).as_posix()}"]
    command += ["--proc", "/proc", "--dev", "/dev"]
    command += ["--ro-bind", str(course), INSIDE]
    if files is not None:
        command += ["--ro-bind", str(files), "/files"]
    command += ["--remount-ro", "/", "--chdir", "/tmp"]
    return command


def _environment(course: str) -> dict[str, str]:
    return {
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), "/usr/bin", "/bin"]),
        "LANG": "C.UTF-8",
        "PYTHONPATH": course,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "MPLCONFIGDIR": "/tmp/matplotlib",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "NBGRADER_EXECUTION": "autograde",
        "MHA_COURSE_PICTURES": "no",
        "USER": "learner",
        "LOGNAME": "learner",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


# ------------------------------------------------------------------------------------- the parent


class Nursery:
    """The parent of learners' processes, and the one process of a learner that runs at a time.

    Args:
        course: the staged package's folder, from `staged_course`.
        files: a folder with what was released beside the notebook, copied into the learner's folder.
        limits: see `Limits`.
        way: one of `WAYS`.
    """

    _uids = itertools.count(FIRST_UID + (os.getpid() % 10_000) * 10_000)

    def __init__(
        self,
        course: Path,
        files: Path | None = None,
        limits: Limits = Limits(),
        way: str = "none",
        probe: bool = False,
    ):
        self.course, self.files, self.limits, self.way, self.probe = course, files, limits, way, probe
        self.process: subprocess.Popen | None = None
        self.control: socket.socket | None = None
        self.scratch: tempfile.TemporaryDirectory | None = None
        self.used = self.ready = False

    def start(self, seconds: float = START_SECONDS) -> None:
        """Start the parent and wait until it has loaded everything.

        Raises:
            SandboxError: it does not come up.
        """
        if self.control is None:
            self.launch()
        if not self.ready and not self._told(seconds).get("ready"):
            raise SandboxError("the parent process did not say that it is ready")
        self.ready = True

    def branch(self) -> Nursery:
        """Another parent, forked from this one: it has everything loaded already, and forks for itself.

        Raises:
            SandboxError: this one is gone.
        """
        other = Nursery(self.course, self.files, self.limits, self.way)
        other.control, theirs = socket.socketpair()
        try:
            socket.send_fds(self.control, [b'{"do": "branch"}'], [theirs.fileno()])
            self._told(30)
        except OSError as error:
            raise SandboxError(f"the parent process is gone: {error.strerror}") from None
        finally:
            theirs.close()
        other.ready = True
        return other

    def anew(self) -> Nursery:
        """Another one of the same kind, in place of this one, which is ended."""
        self.close()
        return Nursery(self.course, self.files, self.limits, self.way)

    def launch(self) -> None:
        """Start the parent, and do not wait for it."""
        ours, theirs = socket.socketpair()
        plain = self.way == "none"
        settings = {
            **asdict(self.limits),
            "confine": "limits" if self.way in ("single", "none") else "namespaces",
            "files": (str(self.files) if plain else "/files") if self.files else "",
            "probe": self.probe,
            "kept": {f"{KEPT}/{n}": str(folder) for n, folder in enumerate(_folders_under_tmp())},
        }
        if plain and sys.platform == "linux":
            settings["processes"] = 4096  # counts everything that this user runs
        inside = str(self.course) if plain else INSIDE
        command = [sys.executable, "-c", "from mha_course.grading.worker import main; main()"]
        command += [str(theirs.fileno()), json.dumps(settings)]
        environment = _environment(inside)
        if not plain:
            wrapped = _bubblewrap(self.way, self.course, self.files)
            for name, value in environment.items():
                wrapped += ["--setenv", name, value]
            command = [*wrapped, *command]
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        # Never as root, bubblewrap's own way apart: whoever may not read this Python gets an error instead.
        user = {"user": 65534, "group": 65534, "extra_groups": []} if self.way != "root" else {}
        try:
            self.process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
                env=environment if plain else {"PATH": os.environ.get("PATH", os.defpath)},
                cwd="/",
                start_new_session=True,
                **(user if os.geteuid() == 0 else {}),
            )
        except OSError as error:
            theirs.close()
            ours.close()
            why = "the user nobody, as which root runs learners' code, may not run it: " if user else ""
            raise SandboxError(f"{why}{command[0]}: {error.strerror}") from None
        theirs.close()
        self.control, self.used, self.ready = ours, False, False

    def fork(self) -> socket.socket:
        """Fork a confined process; gives the socket to talk to it.

        Raises:
            SandboxError: it cannot be confined, or the parent is gone.
        """
        if self.used and self.way == "single":
            self.close()
        self.start()
        ours, theirs = socket.socketpair()
        request: dict = {"do": "fork"}
        if os.geteuid() == 0 and self.way == "root":
            request["uid"] = next(Nursery._uids)
        if self.way == "none":
            self.scratch = tempfile.TemporaryDirectory(dir=self.course.parent, ignore_cleanup_errors=True)
            request["scratch_folder"] = self.scratch.name
            if os.geteuid() == 0:
                os.chown(self.scratch.name, 65534, 65534)
        try:
            socket.send_fds(self.control, [json.dumps(request).encode()], [theirs.fileno()])
        except OSError as error:
            raise SandboxError(f"the parent process is gone: {error.strerror}") from None
        finally:
            theirs.close()
        self.used = True
        told = self._told(30)
        if "ok" not in told:
            raise SandboxError(str(told.get("error", "no process was forked")))
        ours.setblocking(False)
        return ours

    def kill(self) -> None:
        """End the learner's process and everything it started.

        Raises:
            SandboxError: the parent is gone (and with it everything inside bubblewrap), or the process was ended
                because the machine had no memory left, and not through a fault of its own.
        """
        try:
            self.control.sendall(b'{"do": "kill"}')
            if self._told(30).get("starved"):
                raise SandboxError("the machine had no memory left")
        except OSError as error:
            raise SandboxError(f"the parent process is gone: {error.strerror}") from None
        finally:
            if self.scratch is not None:
                self.scratch.cleanup()
                self.scratch = None
            if self.way == "single":
                self.close()

    def close(self) -> None:
        """End the parent too."""
        if self.control is not None:
            self.control.close()
            self.control = None
        self.ready = False
        if self.process is not None:
            if self.way == "none":
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(5)  # it ends what it forked, then itself
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
            self.errors.close()
        if self.scratch is not None:
            self.scratch.cleanup()
            self.scratch = None

    def _told(self, seconds: float) -> dict:
        """The parent's next line."""
        line = b""
        end = time.monotonic() + seconds
        while not line.endswith(b"\n"):
            self.control.settimeout(max(end - time.monotonic(), 0.001))
            try:
                part = self.control.recv(65536)
            except TimeoutError:
                raise SandboxError(f"the parent process did not answer within {seconds:g} s") from None
            except OSError:  # it was killed
                part = b""
            if not part:
                raise SandboxError(self._last_words())
            line += part
        try:
            return json.loads(line)
        except ValueError:
            raise SandboxError("the parent process was ended while it answered") from None

    def _last_words(self) -> str:
        if self.process is None:
            return "the parent process is gone"
        with contextlib.suppress(Exception):
            self.process.wait(2)
        self.errors.seek(0)
        lines = self.errors.read()[-4000:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "the parent process ended without a word"
