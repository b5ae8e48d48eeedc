"""What runs inside the sandbox: a parent with torch loaded that forks one process for each run of a notebook.

The parent (`main`) never runs a line of a learner's. It is told what to do over one socket, of which the
processes it forks have no copy. Each of those gets its own socket, namespaces of its own where the system
allows it (process tree, /tmp, System V memory, host name), limits, and then does what `serve` does:
run cells, call answers. When it is over, the parent ends the whole process tree.

    parent, over its socket:   {"do": "fork", ...} with a socket → {"ok": pid} or {"error": …}
                               {"do": "branch"} with a socket → {"branched": true}
                               {"do": "kill"} → {"gone": exit status, "starved": whether it was ended before that
                                                 only because the machine had no memory left}
    learner's process:         {"do": "start" | "run" | "observe" | "value" | "which" | "noticed"} → see `serve`
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
import traceback
import types
from pathlib import Path
from typing import Any, ClassVar

from mha_course.grading import seccomp

NEW_NAMESPACES = 0x00020000 | 0x7C000000  # mount; UTS, IPC, user, PID, network
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = (
    1,
    4,
    24,
    36,
    38,
)
LEAN = 80 << 20, 112 << 20  # bytes of its own, and of all that it maps, where memory is what is asked for
LOW = 200 << 20  # bytes: when the machine has no more left, who holds much is ended, and soon everybody
_used: list[int] = []  # pages, as in /proc/self/statm; a forked process begins with as many
PATIENCE = 12  # looks, four a second
TEXT_LIMIT = 20_000  # characters of one cell's output, for each stream and each value
PICTURES = 6  # of one cell
PICTURE_BYTES = 400_000


# ------------------------------------------------------------------------------------- the parent


def main() -> None:
    """Load what every notebook needs, then serve until the control socket closes.

    Arguments: the control socket's number, and settings as JSON (`sandbox.Limits` and how to confine).
    """
    control = socket.socket(fileno=int(sys.argv[1]))
    settings = json.loads(sys.argv[2])
    with contextlib.suppress(
        OSError
    ):  # when memory runs out, the system ends these processes, the largest first
        Path("/proc/self/oom_score_adj").write_text("900")
    _protect()
    _free_of_limits()
    if not settings["probe"]:
        _preload()
    control.sendall(b'{"ready": true}\n')
    while (control := _attend_to(control, settings)) is not None:
        pass


def _draw_once() -> None:
    """Fonts, formulas and colours are looked up at the first drawing: let that be here."""
    import io

    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, constrained_layout=True)
    axes[0].plot([1, 10], [1, 2], "o-", label=r"$\sqrt{D}$, $x_i^2$")
    axes[0].set(title="title", xlabel="x", ylabel="y", xscale="log")
    axes[0].legend()
    figure.colorbar(axes[1].imshow([[0.0, 1.0], [2.0, 3.0]], cmap="cividis"))
    axes[1].text(0, 0, "text", weight="bold", family="monospace", style="italic")
    figure.savefig(io.BytesIO(), format="png", bbox_inches="tight")
    plt.close("all")


def _attend_to(control: socket.socket, settings: dict) -> socket.socket | None:
    """Do what is asked over one socket until it closes. In a branch: gives the branch's own socket."""
    running: int | None = None
    low = 0  # how often in a row the machine had no memory left
    while True:
        watching = running is not None and low <= PATIENCE
        if watching and not select.select([control], [], [], 0.25)[0]:
            low = low + 1 if _free() < LOW else 0
            if low > PATIENCE or _memory_of(running) > settings["memory"] // (8 if low else 1):
                _end(running, settings)
            continue
        message, descriptors, _, _ = socket.recv_fds(control, 65536, 1)
        if not message:
            break
        request = json.loads(message)
        if request["do"] == "branch":
            if os.fork() == 0:
                control.close()
                _protect()
                return socket.socket(fileno=descriptors[0])
            os.close(descriptors[0])
            control.sendall(b'{"branched": true}\n')
            continue
        if request["do"] == "kill":
            status = _end(running, settings) if running is not None else 0
            control.sendall(json.dumps({"gone": status, "starved": low > PATIENCE}).encode() + b"\n")
            running, low = None, 0
            continue
        running, error = _fork(control, descriptors[0], settings, request)
        os.close(descriptors[0])
        control.sendall(json.dumps({"error": error} if error else {"ok": running}).encode() + b"\n")
    if running is not None:
        _end(running, settings)
    return None


def _protect() -> None:
    """No other process of the same user may look into or stop this one."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # left-over processes become children of this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the grader's business


def _free_of_limits() -> None:
    """What holds for the trusted process that started this one is not for learners."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        for limit in (resource.RLIMIT_CPU, resource.RLIMIT_DATA):
            _, hard = resource.getrlimit(limit)
            resource.setrlimit(limit, (hard, hard))


def _preload() -> None:
    import torch

    torch.set_num_threads(1)  # before anything is computed: a fork after a computation in threads hangs
    torch.set_num_interop_threads(1)
    import matplotlib
    import torch._decomp.decompositions
    import torch._dynamo
    import torch._refs.nn.functional
    import torch._refs.special
    import torch._subclasses.fake_tensor
    import torch.nn.attention.flex_attention

    matplotlib.use("module://matplotlib_inline.backend_inline", force=False)
    import matplotlib.pyplot

    from mha_course import quiet
    from mha_course.grading import rehearsal, switches, wire  # noqa: F401

    quiet.keep_libraries_off_stderr()
    with contextlib.suppress(ImportError):
        from mha_course import plots  # noqa: F401
    _shell()
    torch.compile = _as_it_is
    torch._dynamo.config.fake_tensor_cache_enabled = False  # hardly any shape comes twice in a forked process
    rehearsal.rehearse("cpu", "fake cuda")
    _shell().run("import math\n\ndef a(x): return x\n\nclass A: pass\na(1)", 0, 10)
    _shell().reset(new_session=False)
    _draw_once()
    gc.collect()
    gc.freeze()


def _as_it_is(model: Any = None, **_settings: Any) -> Any:
    """In place of `torch.compile`: what it gives computes the same, and takes a minute to get ready."""
    return model if model is not None else _as_it_is


def _fork(control: socket.socket, channel: int, settings: dict, request: dict) -> tuple[int | None, str]:
    """Fork the keeper of a learner's process. Gives its pid, or why it could not be confined."""
    global _used
    with contextlib.suppress(OSError):  # here, as learners' processes may have no /proc
        _used = [int(number) for number in Path("/proc/self/statm").read_text().split()]
    ready, tell = os.pipe()
    pid = os.fork()
    if pid:
        os.close(tell)
        with os.fdopen(ready, "rb") as pipe:
            word = pipe.read().decode()
        if word == "confined":
            return pid, ""
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return None, word or "the process died while it was being set up"
    try:
        os.close(ready)
        control.close()
        _keep(channel, tell, {**settings, **request})
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(tell, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(1)


def _end(pid: int, settings: dict) -> int:
    """Kill a learner's process tree and wait until it is gone. Gives the first process's exit status."""
    status = None
    for attempt in range(500):  # who forks faster than it is killed is stopped by the limit on processes
        for other in [pid, *_descendants(os.getpid())] if status is None else _descendants(os.getpid()):
            with contextlib.suppress(OSError):
                os.kill(other, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                ended, its_status = os.waitpid(-1, os.WNOHANG)
                if ended == pid:
                    status = its_status
                if not ended:
                    break
        if status is not None and not _descendants(os.getpid()):
            break
        time.sleep(0.002 if attempt < 100 else 0.02)
    return status or 0


def _processes() -> dict[int, tuple[int, int]]:
    """Parent and resident pages of every process that can be seen."""
    found = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                stat = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
                memory = Path("/proc", name, "statm").read_text().split()
                found[int(name)] = (int(stat[1]), int(memory[1]) - int(memory[2]))
    return found


def _descendants(pid: int) -> list[int]:
    processes = _processes()
    found, look = [], [pid]
    while look:
        parent = look.pop()
        children = [child for child, (its_parent, _) in processes.items() if its_parent == parent]
        found += children
        look += children
    return found


def _free() -> int:
    """Bytes that the machine has left."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    return 1 << 62


def _memory_of(pid: int) -> int:
    """Bytes that a process tree holds for itself."""
    processes = _processes()
    ours = processes.get(os.getpid(), (0, 0))[1]  # every fork begins with these pages, and shares them
    tree = [processes[p][1] for p in (pid, *_descendants(pid)) if p in processes]
    return sum(max(pages - ours, 0) for pages in tree) * os.sysconf("SC_PAGE_SIZE")


# ----------------------------------------------------------------------- on the way to the learner


def _keep(channel: int, tell: int, settings: dict) -> None:
    """In the forked process: new namespaces, then the first process in them, then the learner's."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _close_all_but(channel, tell)
    if settings["confine"] == "limits":
        os.setsid()
        _become(settings.get("uid"))
        _limit(settings)
        _enter(settings)
        os.write(tell, b"confined")
        os.close(tell)
        _serve_and_leave(channel, settings)
    libc = ctypes.CDLL(None, use_errno=True)
    _become(settings.get("uid"))
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # /proc/self/uid_map belongs to whom it may be dumped by
    uid, gid = os.getuid(), os.getgid()
    _check(libc.unshare(NEW_NAMESPACES), "unshare")
    _limit(settings)  # now: before, the number of processes would be that of the user outside
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    first = os.fork()
    if first:  # the keeper: gone as soon as the namespace is
        os.close(channel)
        os.close(tell)
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _, status = os.waitpid(first, 0)
        os._exit(1 if status else 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _mounts(libc, settings)
    _drop_capabilities(libc)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    learner = os.fork()
    if learner == 0:
        _enter(settings)
        os.write(tell, b"confined")
        os.close(tell)
        _serve_and_leave(channel, settings)
    os.close(channel)
    os.close(tell)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    while True:  # the first process of the namespace: when the learner's ends, the kernel ends all others
        ended, status = os.wait()
        if ended == learner:
            os._exit(1 if status else 0)


def _become(uid: int | None) -> None:
    """Another user, where the parent may decide that: every learner's process is one of its own."""
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _close_all_but(*kept: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    low = 3
    for number in sorted(kept):
        os.closerange(low, number)
        low = number + 1
    os.closerange(low, 4096)


def _limit(settings: dict) -> None:
    import resource

    limits = {
        "RLIMIT_AS": settings["address_space"],
        "RLIMIT_NPROC": settings["processes"],
        "RLIMIT_FSIZE": settings["file_size"],
        "RLIMIT_NOFILE": 256,
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": settings["cpu_seconds"],
        "RLIMIT_MEMLOCK": 1 << 20,
        "RLIMIT_MSGQUEUE": 1 << 16,
    }
    with contextlib.suppress(
        OSError
    ):  # when memory runs out, the system ends learners' processes, the largest first
        Path("/proc/self/oom_score_adj").write_text("900")
    for name, value in limits.items():
        if hasattr(resource, name) and value is not None:
            with contextlib.suppress(ValueError, OSError):  # a stricter one is already there; macOS takes few
                resource.setrlimit(getattr(resource, name), (value, value))


def _mounts(libc: ctypes.CDLL, settings: dict) -> None:
    def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None) -> int:
        texts = [text.encode() if text else None for text in (source, target, kind)]
        return libc.mount(*texts, ctypes.c_ulong(flags), options.encode() if options else None)

    _check(mount(None, "/", None, MS_REC | MS_PRIVATE, None), "private mounts")
    size = settings["scratch"]
    _check(
        mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"size={size},nr_inodes=20000,mode=700"), "/tmp"
    )
    for kept, folder in settings["kept"].items():  # the environment, where it lies under the /tmp now covered
        os.makedirs(folder, mode=0o755)
        _check(mount(kept, folder, None, MS_BIND | MS_REC, None), folder)
    _check(mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, f"size={size},mode=700"), "/dev/shm")
    if mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, None) == 0:
        for name, value in (
            ("shmall", "4096"),
            ("shmmni", "16"),
            ("msgmni", "16"),
        ):  # not counted by any limit
            with contextlib.suppress(OSError):
                Path("/proc/sys/kernel", name).write_text(value)
        with contextlib.suppress(OSError):
            Path("/proc/sys/user/max_user_namespaces").write_text("0")
    else:  # some kernels allow no second /proc: then rather none than one that shows the parent
        _check(
            mount("tmpfs", "/proc", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k,mode=555"), "/proc"
        )


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    for capability in range(64):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
    _check(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


def _enter(settings: dict) -> None:
    """A scratch folder as home and current folder, with the files that were released with the notebook."""
    seccomp.refuse((*seccomp.NAMESPACES, *seccomp.OTHERS))
    scratch = settings.get("scratch_folder") or "/tmp"
    home = os.path.join(scratch, "work")
    if os.path.isdir(settings.get("files", "")):
        shutil.copytree(settings["files"], home, dirs_exist_ok=True)
    os.makedirs(home, exist_ok=True)
    os.chdir(home)
    os.environ.update(HOME=home, TMPDIR=scratch, MPLCONFIGDIR=os.path.join(scratch, "matplotlib"))


def _serve_and_leave(channel: int, settings: dict) -> None:
    with contextlib.suppress(BaseException):
        gc.enable()
        serve(socket.socket(fileno=channel))
    os._exit(0)


# ------------------------------------------------------------------------------ a learner's process


def serve(channel: socket.socket) -> None:
    """Do what the grader asks, one thing after the other, until it hangs up.

    start: {"off": groups, "reference", "quiet", "pictures", "lent", "lean"} → {}
    run: {"source", "number", "seconds"}                        → {"outputs": [...], "late": bool, "fault": … or null}
    observe: {"name", "call"} + tensors                         → {"observation": ...} or {"missing": true}
    value: {"name"}                                             → {"value": ...}
    which: {"names"}                                            → {"which": [ids of the objects]}
    noticed: {}                                                 → {"noticed": whether a thing switched off was called}
    """
    from mha_course.checking import calls
    from mha_course.grading import switches, wire

    shell = _shell()
    while True:
        request, data = wire.read(channel)
        what = request["do"]
        blobs: list[bytes] = []
        if what == "start":
            _provide_reference(request["reference"])
            reference = sys.modules["mha_course.reference"]
            shell.lent = {name: getattr(reference, name) for name in request["lent"]}
            for group in request["off"]:
                switches.switch_off(group)
            if request["lean"]:
                _be_lean()
            if request["off"]:
                seccomp.refuse(seccomp.PROGRAMS)  # another Python would have everything
            os.environ["MHA_COURSE_PICTURES"] = "yes" if request["pictures"] else "no"
            if request["quiet"]:
                _no_pictures()
            reply: Any = {}
        elif what == "run":
            reply = shell.run(request["source"], request["number"], request["seconds"])
        elif what == "observe":
            target = shell.user_ns.get(request["name"], ...)
            if callable(target):
                with calls.usual_settings():  # from the first tensor on, whatever cells have set
                    seen = calls.LocalAnswer(target).observe(wire.call_from(request["call"], data))
                    reply, blobs = wire.pack_observation(seen)
            else:
                reply = {"missing": True, "kind": None if target is ... else type(target).__name__}
        elif what == "value":
            value = shell.user_ns.get(request["name"])
            reply = {
                "value": value[:200] if isinstance(value, str) else None,
                "kind": type(value).__name__[:80],
            }
        elif what == "noticed":
            reply = {"noticed": switches.noticed}
        else:
            reply = {"which": [id(shell.user_ns.get(name)) for name in request["names"]]}
        try:
            wire.write(channel, reply, blobs)
        except (TypeError, ValueError):
            wire.write(channel, {"error": "the reply could not be written"})


def _be_lean() -> None:
    """From now on little more memory than before the first cell. Nobody can take that back."""
    import resource

    if not _used:
        return
    for limit, used, more in (("RLIMIT_DATA", _used[5], LEAN[0]), ("RLIMIT_AS", _used[0], LEAN[1])):
        bytes_ = used * os.sysconf("SC_PAGE_SIZE") + more
        resource.setrlimit(getattr(resource, limit), (bytes_, bytes_))


def _fault(error: BaseException | None) -> tuple[str, str, int] | None:
    """What a cell raised: the exception's class, what it says, and the line of the cell (0: not known)."""
    if error is None:
        return None
    line, says = 0, str(error)[:500]
    if isinstance(error, SyntaxError):
        line, says = error.lineno or 0, str(error.msg)[:500]
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "<module>":
            line = number
    return type(error).__name__[:100], says, line


def _provide_reference(modules: dict[str, Any]) -> None:
    """The parts of `mha_course.reference` that this notebook may use; calling any other one raises."""
    import mha_course

    reference = types.ModuleType(
        "mha_course.reference", "The course's own answers, as far as they are allowed here."
    )
    reference.__path__ = []
    sys.modules["mha_course.reference"] = mha_course.reference = reference
    for name in modules["switched_off"]:
        setattr(reference, name, _switched_off(name))
    folder = Path(mha_course.__file__).parent / "reference"
    for stem, source in modules["sources"].items():  # in the order in which they import one another
        module = types.ModuleType(f"mha_course.reference.{stem}")
        module.__package__ = "mha_course.reference"
        sys.modules[module.__name__] = module
        exec(compile(source, str(folder / f"{stem}.py"), "exec"), vars(module))
        setattr(reference, stem, module)
    for stem, name in modules["allowed"]:
        setattr(reference, name, getattr(sys.modules[f"mha_course.reference.{stem}"], name))
    for stem, names in modules["modules"].items():
        module = sys.modules.setdefault(
            f"mha_course.reference.{stem}", types.ModuleType(f"mha_course.reference.{stem}")
        )
        setattr(reference, stem, module)
        for name in names:
            if not hasattr(module, name):
                setattr(module, name, _switched_off(name))


def _switched_off(name: str):
    from mha_course.checking.guards import SwitchedOff

    class NotLent:
        def __new__(cls, *_args, **_kwargs):
            raise SwitchedOff(f"mha_course.reference.{name}")

    NotLent.__name__ = NotLent.__qualname__ = name
    NotLent.__module__ = "mha_course.reference"
    return NotLent


def _no_pictures() -> None:
    """Where outputs are not kept: nothing is drawn."""
    from unittest.mock import MagicMock

    import mha_course

    mha_course.plots = sys.modules["mha_course.plots"] = MagicMock(name="mha_course.plots")
    import matplotlib

    matplotlib.use("agg")


_the_shell = None


def _shell():
    """The IPython shell, made once in the parent: magics, ``await`` and displays work as in a notebook."""
    global _the_shell
    if _the_shell is None:
        _the_shell = _make_shell()
    return _the_shell


def _make_shell():
    from IPython.core.displayhook import DisplayHook
    from IPython.core.displaypub import DisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets import Type

    from mha_course.checking.calls import TooSlow, time_limit

    outputs: list[dict] = []

    class Stream:
        """What is printed, up to a limit."""

        encoding, errors, closed, newlines = "utf-8", "replace", False, None

        def __init__(self, name: str):
            self.name = name

        def write(self, text) -> int:
            text = str(text)
            if outputs and outputs[-1].get("name") == self.name:
                room = TEXT_LIMIT - len(outputs[-1]["text"])
                outputs[-1]["text"] += text[: max(room, 0)]
            elif len(outputs) < 200:
                outputs.append({"output_type": "stream", "name": self.name, "text": text[:TEXT_LIMIT]})
            return len(text)

        def writelines(self, lines) -> None:
            for line in lines:
                self.write(line)

        def flush(self) -> None:
            pass

        def isatty(self) -> bool:
            return False

        def writable(self) -> bool:
            return True

        def fileno(self) -> int:
            import io

            raise io.UnsupportedOperation("fileno")

    def keep(kind: str, data: dict, metadata: dict | None) -> None:
        if len(outputs) >= 200:
            return
        kept: dict[str, str] = {}
        if isinstance(data.get("text/plain"), str):
            kept["text/plain"] = data["text/plain"][:TEXT_LIMIT]
        picture = data.get("image/png")
        drawn = sum("image/png" in output.get("data", {}) for output in outputs)
        if picture is not None and drawn < PICTURES:
            import base64

            text = picture if isinstance(picture, str) else base64.b64encode(picture).decode()
            if len(text) <= PICTURE_BYTES * 4 // 3:
                kept["image/png"] = text
        alt = ((metadata or {}).get("image/png") or {}).get("alt") if isinstance(metadata, dict) else None
        outputs.append({"output_type": kind, "data": kept, "alt": alt if isinstance(alt, str) else ""})

    class Publisher(DisplayPublisher):
        def publish(self, data, metadata=None, source=None, *, transient=None, update=False, **kwargs):
            keep("display_data", data, metadata)

        def clear_output(self, wait=False):
            outputs.clear()

    class Hook(DisplayHook):
        def start_displayhook(self):
            pass

        def write_output_prompt(self):
            pass

        def write_format_data(self, format_dict, md_dict=None):
            keep("execute_result", format_dict, md_dict)

        def finish_displayhook(self):
            pass

    class Shell(InteractiveShell):
        lent: ClassVar[dict[str, Any]] = {}  # what stands in the place of the learner's
        display_pub_class = Type(Publisher)
        displayhook_class = Type(Hook)

        def _showtraceback(self, etype, evalue, stb):
            text = "\n".join(str(line) for line in stb) if isinstance(stb, list) else str(stb)
            name = getattr(etype, "__name__", str(etype))
            outputs.append(
                {
                    "output_type": "error",
                    "ename": name[:200],
                    "evalue": str(evalue)[:2000],
                    "text": text[:TEXT_LIMIT],
                }
            )

        def enable_gui(self, gui=None):
            pass

        def run(self, source: str, number: int, seconds: float) -> dict:
            """Run one cell; gives its outputs, and whether it was stopped because its time was up."""
            outputs.clear()
            late, fault = False, None
            self.execution_count = number
            before = sys.stdout, sys.stderr
            sys.stdout, sys.stderr = Stream("stdout"), Stream("stderr")
            try:
                with time_limit(seconds):
                    result = self.run_cell(source, store_history=False)
                late = isinstance(result.error_in_exec, TooSlow)
                fault = _fault(result.error_before_exec or result.error_in_exec)
            except TooSlow:
                late = True
            except BaseException as error:
                outputs.append(
                    {
                        "output_type": "error",
                        "ename": type(error).__name__,
                        "evalue": str(error)[:2000],
                        "text": "",
                    }
                )
            finally:
                sys.stdout, sys.stderr = before
            self.user_ns.update(self.lent)
            return {"outputs": list(outputs), "late": late, "fault": fault}

    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "NoColor"
    config.InlineBackend.close_figures = True
    shell = Shell.instance(config=config)
    sys.displayhook = shell.displayhook
    with contextlib.suppress(Exception):  # as %matplotlib inline: figures are shown at the end of a cell
        from matplotlib_inline.backend_inline import configure_inline_support, flush_figures

        configure_inline_support(shell, "module://matplotlib_inline.backend_inline")
        if flush_figures not in shell.events.callbacks["post_execute"]:
            shell.events.register("post_execute", flush_figures)
    return shell


if __name__ == "__main__":
    main()
