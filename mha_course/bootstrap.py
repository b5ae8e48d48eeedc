"""The set-up: from a fresh clone and a plain Python to an environment that has everything.

    look()       the state of ``.venv`` in the clone
    set_up()     makes sure that some Python has all that is needed: this one, or the one in ``.venv``
    hand_over()  goes on in that other Python

Whatever can go wrong becomes a `SetUpError`, whose text says what to do; whatever was interrupted is carried on or
made anew by the next run. Standard library only: needs.py says what is asked for, installing.py calls uv and pip.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from . import installing, needs, quiet
from .installing import AGAIN, VENV, in_venv, say, venv_python
from .needs import ROOT, TORCH, Problem, SetUpError

MARKER = VENV / "mha_course.json"  # what we did in .venv, and whether we finished
LOCK = ROOT / ".venv.lock"
HANDED_OVER = "MHA_COURSE_HANDED_OVER"  # environment variable: set for the process that is handed over to


# --- the state of .venv -------------------------------------------------------------------------


def inside_venv() -> bool:
    """Whether the Python that runs this is the one in ``.venv``."""
    try:
        return os.path.samefile(sys.prefix, VENV)
    except OSError:
        return False


def venv_problems(extras: tuple[str, ...] = ()) -> list[Problem] | None:
    """What the Python in ``.venv`` lacks; None if it does not run, or is too old to run this."""
    told = in_venv(str(Path(needs.__file__).resolve()), *extras)
    try:
        return None if told.returncode else [Problem(**problem) for problem in json.loads(told.stdout)]
    except (ValueError, TypeError):
        return None


def read_marker() -> dict:
    """What we noted in ``.venv``; empty if it is not ours."""
    try:
        notes = json.loads(MARKER.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        notes = None
    return notes if isinstance(notes, dict) else {"finished": False}


def write_marker(**notes) -> None:
    MARKER.write_text(json.dumps({**read_marker(), "folder": str(VENV), **notes}) + "\n", encoding="utf-8")


def look(extras: tuple[str, ...] = ()) -> tuple[str, str]:
    """The state of ``.venv``, and why, in words.

    Returns:
        "absent", "foreign" (no Python environment at all), "broken" (must be made anew), "unfinished" (a set-up was
        interrupted), "outdated" (something is missing or out of range) or "ready".
    """
    if not os.path.lexists(VENV):
        return "absent", ""
    notes = read_marker()
    if not notes and not (VENV / "pyvenv.cfg").exists():
        empty = VENV.is_dir() and not any(VENV.iterdir())
        return ("absent" if empty else "foreign"), ""
    if notes.get("folder", str(VENV)) != str(VENV):
        return "broken", "the folder was moved"
    if notes and not (notes.get("finished") and venv_python().exists()):
        return "unfinished", ""
    lacking = venv_problems(extras)
    if lacking is None:
        return "broken", "its Python does not run, or is too old"
    if lacking:
        return "outdated", needs.listed(lacking)
    if torch_replaced():
        return "outdated", f"{TORCH} asks for another torch"
    return "ready", ""


def torch_replaced() -> bool:
    """Whether MHA_COURSE_TORCH asks for something else than what we put into ``.venv``."""
    notes = read_marker()
    return needs.other_torch() and "torch" in notes and notes["torch"] != needs.torch_arguments()


# --- the set-up ---------------------------------------------------------------------------------


def set_up(extras: tuple[str, ...] = ()) -> Path | None:
    """Make sure that everything needed is installed.

    An environment that has it all is used as it is. Otherwise ``.venv`` in the clone is made, mended or brought
    up to date.

    Args:
        extras: names of groups of optional dependencies that are needed, too.

    Returns:
        None if this Python has everything, otherwise the Python that does.

    Raises:
        SetUpError: the text says what to do.
    """
    handed_over = os.environ.pop(HANDED_OVER, "")
    lacking = needs.problems(extras)
    mine = inside_venv()
    if not lacking and not (mine and look(extras)[0] != "ready"):
        return None
    if handed_over:
        raise SetUpError(
            f"The environment in {VENV} still lacks {needs.listed(lacking) or 'something'} after its set-up: "
            "delete that folder and run the same command again."
        )
    with explained():
        if look(extras)[0] != "ready":
            with lock():
                install(extras, [] if mine else lacking)
    return venv_python()


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turns what can go wrong with files, and Ctrl-C, into a sentence.

    Raises:
        SetUpError: see there.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise SetUpError(
            "Stopped. Run the same command again: it carries on where it stopped.", 130
        ) from None
    except OSError as error:
        if "No space left" in str(error) or getattr(error, "winerror", 0) == 112:
            raise SetUpError(installing.full()) from None
        what = f"{error.strerror or error}: {error.filename or VENV}"
        raise SetUpError(
            f"The set-up cannot write into {ROOT} ({what}): move the course to a folder of your own "
            "(your home folder, say) and run the same command there."
        ) from None


def install(extras: tuple[str, ...], lacking: list[Problem]) -> None:
    """Bring ``.venv`` from whatever state it is in to "ready", saying what is done.

    Raises:
        SetUpError, OSError: see `set_up`.
    """
    state, why = look(extras)
    if state == "ready":
        return  # another set-up did it while we waited
    announce(state, why, lacking, extras)
    started = time.monotonic()
    say("[1/4] a Python environment in .venv, and uv, which fills it")
    make_venv(state)
    write_marker(finished=False)
    uv = installing.find_uv()

    anew = ["--force-reinstall"] if state == "unfinished" else []  # what is half installed cannot be trusted
    torch = needs.torch_arguments()
    others = [line for line in needs.requirements(extras) if needs.split(line)[0] != "torch"]
    say(f"[2/4] PyTorch, the biggest part: {shlex.join(torch)}")
    if needs.other_torch():
        installing.fill(uv, *(["--force-reinstall"] if anew or torch_replaced() else []), *torch)
    else:
        exactly = [*anew, *torch, "--constraint", str(installing.CONSTRAINTS)]
        installing.fill(uv, *exactly, for_uv=[*anew, *installing.choose_build(uv, torch)] if uv else None)
    write_marker(torch=torch)
    say("[3/4] JupyterLab, nbgrader and what they need")
    build_tools = needs.project().get("build-system", {}).get("requires", [])
    installing.fill(uv, *anew, *others, *build_tools, "--constraint", str(installing.CONSTRAINTS))
    say("[4/4] the course itself")
    installing.fill(uv, "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    if missing := venv_problems(extras):
        raise SetUpError(
            f"All is installed, it seems, but .venv lacks {needs.listed(missing)}: delete {VENV} and run the same command again."
        )
    write_marker(finished=True)
    say(f"The set-up is done ({time.monotonic() - started:.0f} s). The next start is quick.\n")


def announce(state: str, why: str, lacking: list[Problem], extras: tuple[str, ...]) -> None:
    """Say what is about to happen, why, and how long it takes."""
    if state == "foreign":
        raise SetUpError(f"{VENV} is there, but is no Python environment: move it away, then run this again.")
    if state == "broken":
        say(f"The environment in .venv cannot be used ({why}): making it anew.")
    elif state == "unfinished":
        say("The last set-up did not finish: carrying on.")
    elif state == "outdated":
        say(f"Bringing .venv up to date: {why}.")
        return
    elif state == "absent":
        say(f"Setting up the course in {VENV}. This is done once.")
        if lacking:
            say(f"(This Python, {sys.executable}, lacks {needs.listed(lacking)}.)")
        if lacking and len(lacking) < len(needs.requirements(extras)) / 2:
            named = f".[{','.join(extras)}]" if extras else "."
            say(
                f"(To use it all the same, stop this and run: {sys.executable} -m pip install "
                f'-c constraints.txt -e "{named}")'
            )
    say("It downloads PyTorch and JupyterLab: about a minute on a fast line, longer on a slow one.")


def make_venv(state: str) -> None:
    """See that ``.venv`` is an environment with pip in it.

    Raises:
        SetUpError: it cannot be made, and why.
    """
    if state not in ("absent", "broken"):
        for command in (["pip", "--version"], ["ensurepip"]):  # one made by uv has no pip
            if in_venv("-m", *command).returncode == 0:
                return
    check_tools()
    remove_venv()
    VENV.mkdir()
    write_marker(finished=False)
    command = [sys.executable, "-m", "venv", str(VENV)]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, text=True, errors="replace")
    if done.returncode:
        said = installing.last_line(done.stdout + done.stderr) or "no reason given"
        if "No space left" in done.stdout + done.stderr:
            raise SetUpError(installing.full())
        raise SetUpError(
            f"Python could not make an environment in {VENV}. It says: {said}\nPut that right. {AGAIN}"
        )


def check_tools() -> None:
    """Raises SetUpError if a new environment cannot be made here."""
    lacks = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if lacks:
        cure = "install a complete Python (from python.org, or your system's package for Python's venv)"
        if shutil.which("apt-get"):
            cure = f"install it: sudo apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv\n"
        raise SetUpError(f"This Python ({sys.executable}) has no module {lacks[0]}: {cure} {AGAIN}")
    if shutil.disk_usage(ROOT).free / 1e9 < installing.NEEDED_GB:
        raise SetUpError(installing.full())


def remove_venv() -> None:
    """Delete ``.venv``. Never one that this Python runs in."""
    if not inside_venv():
        if VENV.is_symlink():
            VENV.unlink()
        else:
            shutil.rmtree(VENV, ignore_errors=True)
    if os.path.lexists(VENV):
        raise SetUpError(
            f"{VENV} must be made anew, but cannot be deleted: close the programs that use it (JupyterLab, a terminal "
            "in which it is active), delete it, and run the same command again."
        )


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """Only one set-up at a time in this folder: a second one waits. The system frees the lock of one that died."""
    with open(LOCK, "a") as file:
        if not try_lock(file):
            say(
                "Another set-up is running in this folder: waiting for it to finish (Ctrl-C stops the waiting)."
            )
            while not try_lock(file):
                time.sleep(0.5)
        yield


def try_lock(file) -> bool:
    """Whether the lock is ours now; also where the file system knows no locks."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


# --- going on -----------------------------------------------------------------------------------


def environment(python: Path | str = sys.executable) -> dict[str, str]:
    """Environment variables for a process of the given Python.

    Its programs come first on PATH (nbgrader calls ``alembic`` by its name), its kernels before a user's own of the
    same name, and ``mha_course`` is this one.
    """
    python = Path(python)
    changed = quiet.without_talk(os.environ)
    for name in ("PYTHONHOME", "__PYVENV_LAUNCHER__"):
        changed.pop(name, None)
    folders = [str(python.parent)]
    if os.name == "nt" and python.parent.name.lower() != "scripts":
        folders.append(str(python.parent / "Scripts"))
    changed["PATH"] = first(folders, os.environ.get("PATH", os.defpath))
    changed["PYTHONPATH"] = first([str(ROOT)], os.environ.get("PYTHONPATH", ""))
    changed["JUPYTER_PREFER_ENV_PATH"] = "1"
    changed.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's threads shall not spin while they wait
    if python == venv_python():
        changed["VIRTUAL_ENV"] = str(VENV)
    return changed


def first(folders: list[str], path: str) -> str:
    """A search path with these folders in front, once each."""
    others = [entry for entry in path.split(os.pathsep) if entry and entry not in folders]
    return os.pathsep.join([*folders, *others])


def hand_over(python: Path, arguments: list[str]) -> int:
    """Go on with ``mha-course`` and these arguments in another Python. Gives the exit code, if it comes back."""
    variables = environment(python) | {HANDED_OVER: "1"}
    return become([str(python), "-m", "mha_course", *arguments], variables)


def become(command: list[str], variables: dict[str, str], folder: Path | None = None) -> int:
    """Let a program take this one's place. On Windows it runs inside this one, and its exit code is given."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other program
        try:
            return subprocess.run(command, env=variables, cwd=folder).returncode
        finally:
            signal.signal(signal.SIGINT, before)
    if folder is not None:
        os.chdir(folder)
    os.execve(command[0], command, variables)
