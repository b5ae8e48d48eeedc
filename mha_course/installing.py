"""Putting packages into ``.venv``: with uv, or with pip where uv cannot be had.

The versions are those of constraints.txt. Which build of PyTorch suits this machine is found out here, and a user's
configuration of pip (a mirror, a proxy, a folder of wheels) counts for uv as well. Standard library only.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from .needs import ROOT, TORCH, SetUpError, in_range, split, torch_requirement

VENV = ROOT / ".venv"
CONSTRAINTS = ROOT / "constraints.txt"  # made by `python3 -m mha_course constraints`
UV = "uv>=0.9,<1"  # a test compares it with pyproject.toml
NEEDED_GB = 2.5  # torch for the CPU and all the rest, and the downloads that uv keeps (Linux, torch 2.13)

TEXT = {"encoding": "utf-8", "errors": "replace"}
AGAIN = "Then run the same command again: it carries on where it stopped."


def venv_python() -> Path:
    """The Python of ``.venv``, whether it is there or not."""
    return VENV / "Scripts" / "python.exe" if os.name == "nt" else VENV / "bin" / "python"


def in_venv(*arguments: str) -> subprocess.CompletedProcess:
    """Run the Python of ``.venv``, quietly, apart from the user's own packages. Code 127 if there is none that runs."""
    command = [str(venv_python()), "-I", "-X", "utf8", *arguments]
    try:
        return subprocess.run(command, timeout=300, stdin=subprocess.DEVNULL, capture_output=True, **TEXT)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def find_uv() -> list[str]:
    """The command that installs with uv, put into ``.venv`` if need be; empty where pip must do it all."""
    program = here_is_uv()
    if not program:
        in_venv(
            "-m", "pip", "install", "--quiet", "--only-binary", ":all:", "--constraint", str(CONSTRAINTS), UV
        )
        program = here_is_uv()
    if not program:
        say("uv cannot be had here: pip installs, which takes longer, and takes the PyTorch that PyPI has.")
        return []
    alone = pip_settings().get("no-index", "0").lower() in ("1", "true", "yes", "on")
    return [program, "pip", "install", "--python", str(venv_python()), *(["--no-index"] if alone else [])]


def here_is_uv() -> str:
    """A uv that knows all we ask it for, in ``.venv`` or on PATH; "" if there is none."""
    places = os.pathsep.join([str(venv_python().parent), os.environ.get("PATH", os.defpath)])
    with contextlib.suppress(OSError, TypeError):  # TypeError: there is none
        program = shutil.which("uv", path=places)
        told = subprocess.run([program, "--version"], capture_output=True, **TEXT).stdout
        if in_range(told.removeprefix("uv "), split(UV)[1]):
            return program
    return ""


def fill(uv: list[str], *arguments: str, for_uv: list[str] | None = None) -> None:
    """Install into ``.venv``: with uv, or with pip if there is no uv or uv fails.

    Args:
        for_uv: what uv is given instead of ``arguments``.

    Raises:
        SetUpError: pip failed, too; the text says why, as far as that can be told.
    """
    if uv:
        command = [*uv, *(for_uv or arguments)]
        if subprocess.run(command, env=uv_variables(), stdin=subprocess.DEVNULL, cwd=ROOT).returncode == 0:
            return
        say("uv could not do that: trying with pip.")
    pip("install", *arguments)


def choose_build(uv: list[str], torch: list[str]) -> list[str]:
    """What uv is to install for PyTorch, and a sentence about it.

    On Linux, PyPI has the build for NVIDIA GPUs alone. PyTorch's own index, whose address uv knows, has the others.
    """
    exactly = [*torch, "--constraint", str(CONSTRAINTS)]
    gpu = nvidia_gpu()
    ways = [exactly]
    if sys.platform == "linux" or gpu:
        parts = VENV / "constraints.txt"  # without CUDA's: each build has its own
        lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines(keepends=True)
        parts.write_text("".join(line for line in lines if not re.match("torch=|triton|nvidia|cuda", line)))
        backend = ["--torch-backend", "auto" if gpu else "cpu"]
        ways = [[*torch, *backend, "--constraint", str(parts)], exactly]
    variables = {"UV_HTTP_RETRIES": "1"} | uv_variables()
    for way in ways:
        command = [*uv, "--dry-run", *way]
        done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, **TEXT)
        if done.returncode == 0:
            break
        if way is not exactly:
            say("PyTorch's own index cannot be reached, or lacks this build: looking elsewhere.")
    version = re.search(r"^ \+ torch==(\S+)", done.stderr, re.MULTILINE)
    if version and gpu and "--torch-backend" in way:
        say(f"There is an NVIDIA GPU here ({gpu}): taking a build that suits its driver, several GB.")
    elif version and not gpu and sys.platform == "linux":
        if "+cpu" in version[1]:
            say(
                f"No NVIDIA GPU here: taking the CPU build, about 200 MB. (For another: {TORCH} in README.md.)"
            )
        elif "+" not in version[1]:
            say("This is PyPI's build, made for NVIDIA GPUs: several GB. It works without one, too.")
    return way


def nvidia_gpu() -> str:
    """The NVIDIA GPU of this machine, as its driver names it; "" if there is none."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=30, **TEXT)
        if named := re.search(r"^GPU \d+: (.+?)(?: \(UUID|$)", done.stdout, re.MULTILINE):
            return named[1]
    with contextlib.suppress(OSError):
        return "an NVIDIA GPU" if any(Path("/proc/driver/nvidia/gpus").iterdir()) else ""
    return ""


@functools.cache
def pip_settings() -> dict[str, str]:
    """How pip is configured here, by files and by PIP_ variables: {"index-url": …}."""
    told, settings = in_venv("-m", "pip", "config", "list").stdout, {}
    for section in ("global", "install", ":env:"):  # what counts most comes last
        for name, value in re.findall(rf"^{section}\.([\w-]+)=('.*'|\".*\")$", told, re.MULTILINE):
            settings[name] = ast.literal_eval(value)
    return settings


def uv_variables() -> dict[str, str]:
    """Environment variables for uv: a mirror, a proxy or a folder of wheels that pip knows, uv knows as well.

    What is set for uv itself counts more.
    """
    names = {
        "index-url": "UV_INDEX_URL",
        "extra-index-url": "UV_EXTRA_INDEX_URL",
        "find-links": "UV_FIND_LINKS",
        "trusted-host": "UV_INSECURE_HOST",
        "cert": "SSL_CERT_FILE",
        "proxy": "ALL_PROXY",
        "retries": "UV_HTTP_RETRIES",
    }
    given = {
        "UV_LINK_MODE": "copy",  # linked files would change in all environments when they change in one
        "UV_COMPILE_BYTECODE": "1",  # as pip does; the first start would take it upon itself otherwise
    }
    for name, value in pip_settings().items():
        if name in names:
            given[names[name]] = ("," if name == "find-links" else " ").join(value.split())
    if "UV_EXTRA_INDEX_URL" in given:
        given["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # as pip does
    return given | os.environ


def pip(*arguments: str) -> None:
    """Run the pip of ``.venv``. What it prints is shown; its errors are read along.

    Raises:
        SetUpError: it failed; the text says why, as far as that can be told.
    """
    settings = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    variables = {**os.environ, **settings, "PIP_USER": "0"}
    for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV"):
        variables.pop(name, None)
    command = [str(venv_python()), "-I", "-X", "utf8", "-m", "pip", *arguments]
    streams = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, **TEXT}
    errors = []
    with subprocess.Popen(command, env=variables, **streams) as process:
        try:
            for line in process.stderr:
                print(line, end="", file=sys.stderr, flush=True)
                errors.append(line)
        except KeyboardInterrupt:
            process.terminate()
            raise
    if process.returncode:
        raise SetUpError(why_pip_failed("".join(errors)))


def why_pip_failed(errors: str) -> str:
    """What to do about a failed pip, from what it wrote to stderr."""
    if "No space left on device" in errors or "[WinError 112]" in errors:
        return full()
    said = last_line(errors, "ERROR:")
    network = r"Connection|NameResolution|name resolution|Timeout|ProxyError|SSLError|unreachable|getaddrinfo"
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


def full() -> str:
    free = shutil.disk_usage(ROOT).free / 1e9
    needed = f"The set-up needs about {NEEDED_GB} GB (several more where PyTorch brings CUDA along)"
    return f"The disk is full. {needed}, {free:.1f} GB are free in {ROOT}. Make room. {AGAIN}"


def say(line: str) -> None:
    print(line, flush=True)
