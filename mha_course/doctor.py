"""``mha-course doctor``: what is installed here, and what to do about each problem.

Standard library only, so that it also works where nothing is installed yet. torch is asked in a process of its
own: one that hangs or crashes is a finding, not the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

from . import bootstrap, installing, needs
from .needs import ROOT, TORCH, SetUpError

GB = 1e9
SIGNS = {"good": "✓", "note": "·", "bad": "✗"}
PLAIN_SIGNS = {"good": "ok", "note": "--", "bad": "!!"}  # for a terminal that has no other letters
SET_UP = "run: python3 -m mha_course lab (it sets everything up)"
ASK_TORCH = """
import json, torch, warnings
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    cuda = torch.cuda.is_available()
print(json.dumps({
    "build": [torch.version.cuda, torch.version.hip, getattr(torch.version, "xpu", None)],
    "warned": " ".join(str(warning.message) for warning in warned),
    "sum": float((torch.ones(3) @ torch.ones(3, 3)).sum()),
    "cuda": torch.cuda.get_device_name(0) if cuda else "",
    "mps": torch.backends.mps.is_available(),
    "threads": torch.get_num_threads(),
}))
"""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's.

    Args:
        status: "good", "note" (fine without), "bad" (something needed is wrong).
        what: what was looked at ("torch").
        text: what was found.
        cure: what to do; "" if nothing.
    """

    status: str
    what: str
    text: str
    cure: str = ""

    def __str__(self):
        line = f"{signs()[self.status]} {self.what:<11} {self.text}"
        return line + (f"\n  {'':<11} {arrow()} {self.cure}" if self.cure else "")


def signs() -> dict[str, str]:
    """A sign for each status, in letters that this terminal has."""
    try:
        "".join((*SIGNS.values(), "→")).encode(sys.stdout.encoding or "ascii")
    except (UnicodeError, LookupError):
        return PLAIN_SIGNS
    return SIGNS


def arrow() -> str:
    return "→" if signs() is SIGNS else "->"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def main(args: argparse.Namespace | None = None) -> int:
    """Runs ``mha-course doctor``. Gives the exit code: 1 if something needed is wrong.

    A set-up in ``.venv`` is looked at from inside, whichever Python this was started with.
    """
    if needs.problems() and not bootstrap.inside_venv() and bootstrap.look()[0] == "ready":
        return bootstrap.hand_over(bootstrap.venv_python(), ["doctor"])
    os.environ.pop(bootstrap.HANDED_OVER, None)
    return report()


def report(brief: bool = False) -> int:
    """Print every finding as soon as it is made, and one line that sums them up.

    Args:
        brief: print only what there is something to do about, and the last line.

    Returns:
        1 if something needed is wrong, otherwise 0.
    """
    wrong = 0
    for look in (python, packages, torch, kernel, nbgrader, memory, disk, folder, sandbox, browser):
        try:
            findings = look()
        except SetUpError as error:
            findings = [Finding("bad", look.__name__, str(error))]
        for finding in findings:
            if finding.cure or not brief:
                print(finding, flush=True)
            wrong += finding.status == "bad"
    if not brief:
        print()
    if wrong:
        print(
            f"{wrong} {'thing needs' if wrong == 1 else 'things need'} your attention: see the lines with {signs()['bad']}."
        )
    else:
        print("Everything that is needed is here.")
    return 1 if wrong else 0


def python() -> list[Finding]:
    """The Python that runs this, and the environment it is in."""
    text = f"{platform.python_version()} ({sys.executable}) on {platform.system()} {platform.machine()}"
    found = [Finding("good", "Python", text)]
    state, why = bootstrap.look()
    if state in ("broken", "unfinished"):
        text = f".venv is {state}" + (f": {why}" if why else "")
        status = "bad" if needs.problems() or bootstrap.inside_venv() else "note"
        found.append(Finding(status, "set-up", text, "run: python3 -m mha_course lab (it makes .venv good)"))
    return found


def packages() -> list[Finding]:
    """Every requirement of pyproject.toml but torch: is it here, is it in range?"""
    lacking = {problem.name: problem for problem in needs.problems() if problem.name != "torch"}
    wanted = [needs.split(line)[0] for line in needs.requirements()]
    found = [
        Finding("bad", problem.name, f"{problem.found}, which is not {problem.wanted}", SET_UP)
        for problem in lacking.values()
        if problem.found
    ]
    absent = [problem.name for problem in lacking.values() if not problem.found]
    if absent:
        found.append(Finding("bad", "packages", "not installed: " + ", ".join(absent), SET_UP))
    here = [f"{name} {needs.installed_version(name)}" for name in wanted if name not in ("torch", *lacking)]
    if here:
        found.append(Finding("good", "packages", ", ".join(here)))
    return found


def torch() -> list[Finding]:
    """torch's version, whether it computes, and the devices it sees."""
    version = needs.installed_version("torch")
    if not version:
        return [Finding("bad", "torch", "not installed", SET_UP)]
    found = []
    _, wanted = needs.split(needs.torch_requirement())
    if needs.in_range(version, wanted):
        found.append(Finding("good", "torch", version))
    else:
        found.append(Finding("bad", "torch", f"{version}, which is not {wanted}", SET_UP))
    told, why = ask_torch()
    if told is None:
        again = f'install it again: "{sys.executable}" -m pip install --force-reinstall "torch{wanted}"'
        return [
            *found[:-1],
            Finding("bad", "torch", f"{version} is installed, but does not work: {why}", again),
        ]
    if told["sum"] != 9.0:
        found.append(
            Finding(
                "bad", "torch", "computes wrongly: ones(3) @ ones(3, 3) is not 3, 3, 3", "reinstall torch"
            )
        )
    found.append(build(told))
    if told["cuda"]:
        found.append(Finding("good", "device", f"CUDA: {told['cuda']}"))
    elif told["mps"]:
        found.append(Finding("good", "device", "MPS: this Mac's GPU"))
    else:
        found.append(
            Finding("good", "device", f"the CPU, {told['threads']} threads; the course needs no GPU")
        )
    return found


def build(told: dict) -> Finding:
    """Which of its builds this torch is, and whether that suits the machine.

    Args:
        told: what it says of itself.
    """
    cuda, rocm, xpu = told["build"]
    gpu = installing.nvidia_gpu()
    cure = f'{TORCH}="{needs.pin()} --torch-backend auto" python3 -m mha_course lab'
    if not bootstrap.inside_venv():
        cure = "install another build here; PyTorch's installation page says how"
    if cuda and told["cuda"]:
        return Finding("good", "build", f"for NVIDIA GPUs (CUDA {cuda}), and there is one")
    if cuda and gpu:
        why = told["warned"].split(". ")[0] or "it does not say why"
        text = (
            f"for NVIDIA GPUs (CUDA {cuda}), but it cannot use the one here ({gpu}), and takes the CPU: {why}"
        )
        return Finding("note", "build", text, f"a newer driver, or a build that suits this one: {cure}")
    if cuda:
        text = f"for NVIDIA GPUs (CUDA {cuda}), but there is no NVIDIA GPU here. It works; the CPU build is smaller"
        return Finding("note", "build", f"{text} (200 MB instead of several GB)")
    if rocm or xpu:
        return Finding("good", "build", f"for AMD GPUs (ROCm {rocm})" if rocm else "for Intel GPUs")
    if gpu:
        text = f"for the CPU, but there is an NVIDIA GPU here ({gpu}): lesson 07 will use the CPU"
        return Finding("note", "build", text, f"to use the GPU: {cure}")
    return Finding("good", "build", "for this Mac" if sys.platform == "darwin" else "for the CPU")


def ask_torch() -> tuple[dict | None, str]:
    """What torch says of itself, or why it says nothing."""
    try:
        asked = subprocess.run(
            [sys.executable, "-c", ASK_TORCH],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
            timeout=120,
            env=bootstrap.environment(),
        )
        return json.loads(asked.stdout.splitlines()[-1]), ""
    except subprocess.TimeoutExpired:
        return None, "no answer within two minutes"
    except (ValueError, IndexError):
        return None, installing.last_line(asked.stderr) or f"it ended with code {asked.returncode}"


def kernel() -> list[Finding]:
    """Whether a notebook's kernel "python3" would run in this very environment."""
    if not needs.installed_version("ipykernel"):
        return []  # said already
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # as `lab` does
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # IPython's, on a home folder that cannot be written
            from jupyter_client.kernelspec import KernelSpecManager

            spec = KernelSpecManager().get_kernel_spec("python3")
        program = spec.argv[0]
    except Exception as error:  # whatever is wrong with it, it is a finding
        return [Finding("bad", "kernel", f"no kernel python3 ({error})", SET_UP)]
    name = Path(program).name.removesuffix(".exe")
    ours = program == sys.executable or (not os.path.isabs(program) and name.startswith("python"))
    if ours or (os.path.exists(program) and Path(program).parent == Path(sys.executable).parent):
        return [Finding("good", "kernel", f"python3, ipykernel {needs.installed_version('ipykernel')}")]
    cure = f"remove it: jupyter kernelspec remove python3 (it is in {spec.resource_dir})"
    return [Finding("bad", "kernel", f"python3 belongs to another Python ({program})", cure)]


def nbgrader() -> list[Finding]:
    """Whether nbgrader's Validate button is in this environment's JupyterLab, and alembic for its gradebook."""
    version = needs.installed_version("nbgrader")
    if not version:
        return []  # said already
    places = [Path(sys.prefix), *(Path(entry).parents[1] for entry in jupyter_data_folders())]
    parts = ("share/jupyter/labextensions/@jupyter/nbgrader", "etc/jupyter/jupyter_server_config.d")
    active = [any((place / part).exists() for place in places) for part in parts]
    if not all(active):
        cure = f'install it again: "{sys.executable}" -m pip install --force-reinstall --no-deps nbgrader=={version}'
        return [Finding("bad", "nbgrader", f"{version}, but its buttons are not in JupyterLab", cure)]
    if not shutil.which("alembic", path=bootstrap.environment()["PATH"]):
        cure = f'install it again: "{sys.executable}" -m pip install --force-reinstall --no-deps alembic'
        return [Finding("bad", "nbgrader", f"{version}, but its gradebook lacks the program alembic", cure)]
    return [Finding("good", "nbgrader", f"{version}, its buttons are in JupyterLab")]


def jupyter_data_folders() -> list[str]:
    """Where Jupyter looks for extensions (…/share/jupyter), as jupyter_core has it."""
    try:
        from jupyter_core.paths import jupyter_path
    except ImportError:
        return []
    return jupyter_path()


def memory() -> list[Finding]:
    """Free memory; a lesson needs about 1 GB."""
    free = free_memory()
    if free is None:
        return [Finding("note", "memory", "how much is free cannot be told here")]
    if free < 1 * GB:
        return [
            Finding("note", "memory", f"{free / GB:.1f} GB free: lessons may be slow", "close some programs")
        ]
    return [Finding("good", "memory", f"{free / GB:.1f} GB free")]


def free_memory() -> float | None:
    """Bytes that can be had without swapping, a container's limit included. None if that cannot be told."""
    try:
        import psutil

        free = float(psutil.virtual_memory().available)
    except Exception:
        try:
            told = Path("/proc/meminfo").read_text().split("MemAvailable:")[1]
            free = 1024.0 * int(told.split()[0])
        except (OSError, IndexError, ValueError):
            return None
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        return min(free, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free


def disk() -> list[Finding]:
    """Free disk space where the course is."""
    free = shutil.disk_usage(ROOT).free
    needed = installing.NEEDED_GB if needs.problems() else 0.2
    if free < needed * GB:
        return [
            Finding("bad", "disk", f"{free / GB:.1f} GB free in {ROOT}, needed are {needed}", "make room")
        ]
    return [Finding("good", "disk", f"{free / GB:.0f} GB free")]


def folder() -> list[Finding]:
    """Whether a learner's notebooks can be written."""
    if os.access(ROOT, os.W_OK):
        return []
    return [
        Finding("bad", "folder", f"{ROOT} cannot be written to", "move the course to a folder of your own")
    ]


def sandbox() -> list[Finding]:
    """The sandbox: only instructors who grade strangers' notebooks want it, and only Linux has it."""
    from .grading.sandbox import available

    works, how = available()
    if works:
        return [Finding("good", "sandbox", f"works: {how} (for grading other people's notebooks)")]
    return [Finding("note", "sandbox", f"none; only for grading other people's notebooks: {how}")]


def browser() -> list[Finding]:
    """Chromium: only the course's own tests want it."""
    path = find_chromium()
    if path:
        return [Finding("good", "Chromium", f"{path} (for the course's own tests)")]
    return [Finding("note", "Chromium", "not here; only the course's own tests in a browser want it")]


def find_chromium() -> str | None:
    """The system's Chromium or Chrome, or the one that Playwright brings; ``None`` if there is neither."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    with contextlib.suppress(Exception):
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            path = playwright.chromium.executable_path
            return path if Path(path).exists() else None
    return None
