"""The set-up: from a fresh clone and a plain Python to an environment that has everything.

    problems()   what this Python lacks of what pyproject.toml asks for
    set_up()     makes sure that some Python has it all: this one, or the one in ``.venv`` in the clone
    hand_over()  goes on in that other Python

Standard library only, and nothing of this package: the Python in ``.venv`` runs this file by its path, alone, to
say what *it* lacks. Whatever can go wrong becomes a `SetUpError`, whose text says what to do; and whatever was
interrupted is carried on, mended or made anew by the next run.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from . import quiet

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
MARKER = VENV / "mha_course.json"  # what we did in .venv, and whether we finished
LOCK = ROOT / ".venv.lock"
TORCH = "MHA_COURSE_TORCH"  # environment variable: pip arguments that replace the pinned torch
HANDED_OVER = "MHA_COURSE_HANDED_OVER"  # environment variable: set for the process that is handed over to
NEEDED_GB = 1.5  # torch for the CPU and all the rest are 1.4 GB on disk (Linux, torch 2.13)

AGAIN = "Then run the same command again: it carries on where it stopped."


class SetUpError(Exception):
    """Something only the person at the keyboard can put right; its text says how.

    Args:
        text: what is wrong, and what to do.
        code: the exit code that goes with it.
    """

    def __init__(self, text: str, code: int = 1):
        super().__init__(text)
        self.code = code


# --- what is needed, what is here ---------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One requirement that is not met.

    Args:
        name: the distribution ("jupyterlab").
        wanted: the versions asked for (">=4.2,<5"), "" for any.
        found: the version that is here, "" if there is none.
    """

    name: str
    wanted: str
    found: str = ""

    def __str__(self):
        return f"{self.name} {self.found} instead of {self.wanted}" if self.found else self.name


def project() -> dict:
    """What pyproject.toml says.

    Raises:
        SetUpError: this package is not in a clone of the course.
    """
    try:
        return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    except OSError:
        raise SetUpError(
            f"There is no course around this copy of mha_course ({ROOT}): clone the course's repository, "
            "and run the command in that folder."
        ) from None


def requirements(extras: tuple[str, ...] = ()) -> list[str]:
    """Everything needed, as pip takes it ("numpy>=2.0,<3"), torch as MHA_COURSE_TORCH has it.

    Args:
        extras: names of groups of optional dependencies.
    """
    told = project()["project"]
    wanted = list(told["dependencies"])
    for extra in extras:
        wanted += told["optional-dependencies"][extra]
    return [torch_requirement() if split(line)[0] == "torch" else line for line in wanted]


def torch_arguments() -> list[str]:
    """What pip is given to install torch: the pin, or what MHA_COURSE_TORCH says instead."""
    if os.environ.get(TORCH, "").strip():
        return shlex.split(os.environ[TORCH], posix=os.name != "nt")
    return [line for line in project()["project"]["dependencies"] if split(line)[0] == "torch"]


def torch_requirement() -> str:
    """The torch that is asked for, without pip's options; any version if that cannot be told (a file, say)."""
    for argument in torch_arguments():
        if re.match(r"torch\s*([=<>!~]|$)", argument):
            return argument
    return "torch"


def split(requirement: str) -> tuple[str, str]:
    """("jupyterlab", ">=4.2,<5") for "jupyterlab>=4.2,<5"."""
    name, versions = re.fullmatch(r"\s*([\w.-]+)\s*([^;\[\]]*)", requirement).groups()
    return name, versions.replace(" ", "")


def in_range(version: str, wanted: str) -> bool:
    """Whether a version is one of those wanted: ``==``, ``!=``, ``>=``, ``<=``, ``>``, ``<``, joined by commas.

    A local part does not count: 2.13.0+cpu is a 2.13.0. Neither does a pre-release's: 5.0rc1 is a 5.0.
    """
    compare = {
        "==": lambda a, b: a == b,
        "!=": lambda a, b: a != b,
        ">=": lambda a, b: a >= b,
        "<=": lambda a, b: a <= b,
        ">": lambda a, b: a > b,
        "<": lambda a, b: a < b,
    }
    for part in filter(None, wanted.split(",")):
        sign, limit = re.fullmatch(r"(==|!=|>=|<=|>|<)(.+)", part).groups()
        if "+" in limit and version != limit:
            return False
        if not compare[sign](numbers(version), numbers(limit)):
            return False
    return True


def numbers(version: str) -> tuple[int, ...]:
    """(2, 13) for "2.13.0+cpu": the release's numbers, without zeros at the end."""
    release = re.match(r"\d+(\.\d+)*", version.strip().removeprefix("v"))
    parts = [int(part) for part in release[0].split(".")] if release else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def problems(extras: tuple[str, ...] = ()) -> list[Problem]:
    """What the Python that runs this lacks. Imports none of it."""
    found = []
    for requirement in requirements(extras):
        name, wanted = split(requirement)
        version = installed_version(name)
        if not version or not in_range(version, wanted):
            found.append(Problem(name, wanted, version))
    return found


def installed_version(name: str) -> str:
    """A distribution's version, "" if it is not there or cannot be imported."""
    module = {"pytest-xdist": "xdist", "psycopg2-binary": "psycopg2"}.get(name, name.replace("-", "_"))
    try:
        version = metadata.version(name)
        return (version or "") if importlib.util.find_spec(module) else ""
    except (metadata.PackageNotFoundError, ImportError, ValueError):
        return ""


def venv_python() -> Path:
    """The Python of ``.venv``, whether it is there or not."""
    return VENV / "Scripts" / "python.exe" if os.name == "nt" else VENV / "bin" / "python"


def venv_problems(extras: tuple[str, ...] = ()) -> list[Problem] | None:
    """What the Python in ``.venv`` lacks; None if it does not run, or is too old to run this."""
    command = [str(venv_python()), "-I", str(Path(__file__).resolve()), *extras]
    try:
        told = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=120)
        return [Problem(**problem) for problem in json.loads(told.stdout)] if told.returncode == 0 else None
    except (OSError, ValueError, TypeError, subprocess.TimeoutExpired):
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
        return ("absent", "") if empty else ("foreign", "")
    if notes.get("folder", str(VENV)) != str(VENV):
        return "broken", "the folder was moved"
    lacking = venv_problems(extras)
    if lacking is None:
        return (
            ("unfinished", "")
            if notes and not venv_python().exists()
            else ("broken", "its Python does not run, or is too old")
        )
    if notes and not notes.get("finished"):
        return "unfinished", ""
    if lacking:
        return "outdated", listed(lacking)
    if torch_replaced():
        return "outdated", f"{TORCH} asks for another torch"
    return "ready", ""


def torch_replaced() -> bool:
    """Whether MHA_COURSE_TORCH asks for something else than what we put into ``.venv``."""
    notes = read_marker()
    return bool(
        os.environ.get(TORCH, "").strip() and "torch" in notes and notes["torch"] != torch_arguments()
    )


def inside_venv() -> bool:
    """Whether the Python that runs this is the one in ``.venv``."""
    try:
        return os.path.samefile(sys.prefix, VENV)
    except OSError:
        return False


def listed(lacking: list[Problem]) -> str:
    """The problems in half a line."""
    shown = ", ".join(str(problem) for problem in lacking[:4])
    return shown + (f" and {len(lacking) - 4} more" if len(lacking) > 4 else "")


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
    lacking = problems(extras)
    mine = inside_venv()
    if not lacking and not (mine and look(extras)[0] != "ready"):
        return None
    if handed_over:
        raise SetUpError(
            f"The environment in {VENV} still lacks {listed(lacking) or 'something'} after its set-up: "
            "delete that folder and run the same command again."
        )
    with explained():
        state, _ = look(extras)
        if state != "ready":
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
            raise SetUpError(full()) from None
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
    if state == "foreign":
        raise SetUpError(f"{VENV} is there, but is no Python environment: move it away, then run this again.")
    if state == "broken":
        remove_venv()
        state = "absent"
    started = time.monotonic()
    if state == "absent":
        check_tools()
    say("[1/4] a Python environment in .venv")
    if not pip_works():
        make_venv()
    if state == "unfinished":
        mend()
    write_marker(finished=False)

    torch, others = torch_arguments(), [line for line in requirements(extras) if split(line)[0] != "torch"]
    build_tools = project().get("build-system", {}).get("requires", [])
    if torch_replaced():
        pip("uninstall", "--yes", "torch")
    say(f"[2/4] PyTorch, the biggest part: pip install {shlex.join(torch)}")
    pip("install", *torch)
    write_marker(torch=torch)
    say("[3/4] JupyterLab, nbgrader and what they need")
    pip("install", *others, *build_tools)
    say("[4/4] the course itself")
    if not is_editable():
        pip("install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    if missing := venv_problems(extras):
        raise SetUpError(
            f"pip says that all is well, but .venv lacks {listed(missing)}: delete {VENV} and run the same command again."
        )
    write_marker(finished=True)
    say(f"The set-up is done ({time.monotonic() - started:.0f} s). The next start is quick.\n")


def announce(state: str, why: str, lacking: list[Problem], extras: tuple[str, ...]) -> None:
    """Say what is about to happen, why, and how long it takes."""
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
            say(f"(This Python, {sys.executable}, lacks {listed(lacking)}.)")
        if lacking and len(lacking) < len(requirements(extras)) / 2:
            named = f".[{','.join(extras)}]" if extras else "."
            say(f'(To use it all the same, stop this and run: {sys.executable} -m pip install -e "{named}")')
    say("It downloads PyTorch and JupyterLab: 2 to 5 minutes on a fast line, longer on a slow one.")
    plain_linux = sys.platform == "linux" and platform.machine() == "x86_64" and not os.environ.get(TORCH)
    if plain_linux and not shutil.which("nvidia-smi"):
        say(f"(No NVIDIA GPU found. A far smaller PyTorch may do: see {TORCH} in README.md.)")


def check_tools() -> None:
    """Raises SetUpError if a new environment cannot be made here."""
    lacks = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if lacks:
        if shutil.which("apt-get"):
            version = f"{sys.version_info[0]}.{sys.version_info[1]}"
            cure = f"sudo apt install python{version}-venv"
            raise SetUpError(f"This Python has no module {lacks[0]}. Install it: {cure}\n{AGAIN}")
        raise SetUpError(
            f"This Python ({sys.executable}) has no module {lacks[0]}, which the set-up needs: install a complete "
            "Python (from python.org, or your system's package for Python's venv). " + AGAIN
        )
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < NEEDED_GB:
        raise SetUpError(full())


def full() -> str:
    free = shutil.disk_usage(ROOT).free / 1e9
    needed = f"The set-up needs about {NEEDED_GB} GB (several more where PyTorch brings CUDA along)"
    return f"The disk is full. {needed}, {free:.1f} GB are free in {ROOT}. Make room. {AGAIN}"


def make_venv() -> None:
    """Make ``.venv`` with this Python, pip in it."""
    check_tools()
    if read_marker() and (VENV / "pyvenv.cfg").exists():
        remove_venv()  # half made: what is in it cannot be trusted
    VENV.mkdir(exist_ok=True)
    write_marker(finished=False)
    command = [sys.executable, "-m", "venv", str(VENV)]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, text=True, errors="replace")
    if done.returncode == 0 and pip_works():
        return
    said = last_line(done.stdout + done.stderr) or "no reason given"
    if "No space left" in done.stdout + done.stderr:
        raise SetUpError(full())
    raise SetUpError(
        f"Python could not make an environment in {VENV}. It says: {said}\nPut that right. {AGAIN}"
    )


def pip_works() -> bool:
    """Whether ``.venv`` has a pip that runs; puts one in where only pip is missing (an environment made by uv)."""
    if not venv_python().exists():
        return False
    for command in (["pip", "--version"], ["ensurepip"], ["pip", "--version"]):
        try:
            done = subprocess.run(
                [venv_python(), "-I", "-m", *command], capture_output=True, stdin=subprocess.DEVNULL
            )
        except OSError:
            return False
        if done.returncode == 0 and command[0] == "pip":
            return True
    return False


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


def mend() -> None:
    """Forget every half-installed distribution in ``.venv``, so that pip installs it again.

    A distribution is whole if each file in its RECORD is there and has its size.
    https://packaging.python.org/en/latest/specifications/recording-installed-packages/
    """
    for site in [*VENV.glob("lib/python*/site-packages"), *VENV.glob("Lib/site-packages")]:
        for info in site.glob("*.dist-info"):
            if not is_whole(info):
                shutil.rmtree(info)
        for left_over in site.glob("~*"):  # what pip moves aside while it replaces something
            shutil.rmtree(left_over, ignore_errors=True)


def is_whole(info: Path) -> bool:
    try:
        with open(info / "RECORD", encoding="utf-8", newline="") as record:
            rows = list(csv.reader(record))
        for path, _, size in rows:
            if size and os.stat(info.parent / path).st_size != int(size):
                return False
    except (OSError, ValueError):
        return False
    return True


def is_editable() -> bool:
    """Whether this very folder is installed in ``.venv`` already."""
    for site in [*VENV.glob("lib/python*/site-packages"), *VENV.glob("Lib/site-packages")]:
        for direct in site.glob("mha_course-*.dist-info/direct_url.json"):
            with contextlib.suppress(OSError, ValueError):
                return json.loads(direct.read_text(encoding="utf-8")).get("url") == ROOT.as_uri()
    return False


def pip(*arguments: str) -> None:
    """Run the pip of ``.venv``. What it prints is shown; its errors are read along.

    Raises:
        SetUpError: it failed; the text says why, as far as that can be told.
    """
    environment = {
        **os.environ,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        "PIP_USER": "0",
    }
    for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV"):
        environment.pop(name, None)
    command = [str(venv_python()), "-I", "-X", "utf8", "-m", "pip", *arguments]
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    errors = []
    try:
        for line in process.stderr:
            sys.stderr.write(line)
            sys.stderr.flush()
            errors.append(line)
        process.wait()
    except KeyboardInterrupt:
        with contextlib.suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
            process.wait(10)  # it was interrupted, too, and tidies up
        process.kill()
        raise
    if process.returncode:
        raise SetUpError(why_pip_failed("".join(errors)))


def why_pip_failed(errors: str) -> str:
    """What to do about a failed pip, from what it wrote to stderr."""
    if "No space left on device" in errors or "[WinError 112]" in errors:
        return full()
    said = last_line(errors, "ERROR:")
    network = r"NewConnectionError|NameResolutionError|name resolution|ConnectTimeout|ReadTimeout|ProxyError"
    network += (
        r"|ConnectionError|Connection (refused|reset|aborted)|SSLError|Network is unreachable|getaddrinfo"
    )
    if re.search(network, errors):
        return f"pip could not download: is this machine online, behind a proxy? It says: {said}\nGo online. {AGAIN}"
    if "No matching distribution found for torch" in errors:
        system = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
        return (
            f"pip finds no {torch_requirement()} for this system ({system}): use another Python (3.12, say), or set "
            f"{TORCH} to a torch that there is (see README.md). {AGAIN}"
        )
    if "Permission denied" in errors or "Read-only file system" in errors:
        return f"pip could not write. It says: {said}\nMake {VENV} writable for you, or delete it. {AGAIN}"
    return f"pip failed. It says: {said or 'nothing'}\nPut that right. {AGAIN}"


def last_line(text: str, start: str = "") -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    chosen = [line for line in lines if line.startswith(start)] or lines
    return chosen[-1] if chosen else ""


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


def say(line: str) -> None:
    print(line, flush=True)


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


if __name__ == "__main__":  # run by path: say what this Python lacks
    print(json.dumps([asdict(problem) for problem in problems(tuple(sys.argv[1:]))]))
