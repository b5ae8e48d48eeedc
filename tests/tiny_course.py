"""A course that sets itself up within seconds, offline: our real code, and wheels with almost nothing in them."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "mha_course"
SET_UP = (
    "__init__",
    "__main__",
    "bootstrap",
    "cli",
    "doctor",
    "installing",
    "lab",
    "lessons",
    "needs",
    "quiet",
)
MODULES = (*SET_UP, "running_tests")

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "mha-course"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["torch==2.13.0", "jupyterlab>=4.2,<5", "mha-course-tiny>=1.0,<2"]

[project.optional-dependencies]
test = ["pytest>=8"]
"""

CONSTRAINTS = "mha-course-tiny!=1.9\n"  # there is a 1.9, which pyproject.toml would allow

BACKEND = """
import sys
from pathlib import Path
sys.path.insert(0, {folder!r})
import tiny_course

def build_editable(folder, config_settings=None, metadata_directory=None):
    return tiny_course.wheel(Path(folder), "mha_course", "0.1.0", {{"mha_course.pth": {root!r}}}).name
"""

TELL = """
import json, os, sys
print("{name} " + json.dumps({{
    "arguments": sys.argv[1:], "prefix": sys.prefix, "folder": os.getcwd(),
    **{{name: os.environ.get(name, "") for name in ("PATH", "PYTHONPATH", "JUPYTER_PREFER_ENV_PATH")}},
}}))
"""


def wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> Path:
    """Write a pure-Python wheel. https://packaging.python.org/en/latest/specifications/binary-distribution-format/"""
    info = f"{name}-{version}.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tiny\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in files.items():
            data = text.encode()
            archive.writestr(inside, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record += f"{inside},sha256={digest},{len(data)}\n"
        archive.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    return path


def write_wheels(folder: Path) -> Path:
    """What the tiny course needs. ``-m jupyterlab`` and ``-m pytest`` print how they were called."""
    folder.mkdir(parents=True)
    for name in ("jupyterlab", "pytest"):
        files = {f"{name}/__init__.py": "", f"{name}/__main__.py": TELL.format(name=name)}
        wheel(folder, name, {"jupyterlab": "4.6.6", "pytest": "9.2.0"}[name], files)
    wheel(folder, "torch", "2.13.0", {"torch/__init__.py": ""})
    for version in ("1.0", "1.5", "1.9"):
        wheel(folder, "mha_course_tiny", version, {"mha_course_tiny/__init__.py": "number = 1\n"})
    return folder


def make_course(root: Path) -> Path:
    """A clone of the tiny course, with one lesson."""
    (root / "mha_course").mkdir(parents=True)
    for module in MODULES:
        shutil.copy(PACKAGE / f"{module}.py", root / "mha_course")
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "constraints.txt").write_text(CONSTRAINTS)
    backend = BACKEND.format(folder=str(Path(__file__).parent), root=str(root))
    (root / "backend.py").write_text(backend, encoding="utf-8")
    lesson = root / "notebooks" / "00_start_here"
    lesson.mkdir(parents=True)
    (lesson / "00_start_here.ipynb").write_text(json.dumps({"cells": [], "metadata": {}, "nbformat": 4}))
    return root


def find_uv() -> Path | None:
    """The uv of this environment, or one on PATH."""
    found = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    return Path(found) if found else None


def environment(wheels: Path | None, uv: bool = True, **more: str) -> dict[str, str]:
    """A bare environment in which pip and uv find nothing but these wheels.

    Args:
        uv: whether there is a uv (on PATH, since it is not among the wheels).
    """
    kept = ("PATH", "HOME", "SYSTEMROOT", "TEMP", "TMP", "USERPROFILE", "LANG")
    variables = {name: os.environ[name] for name in kept if name in os.environ}
    folders = [
        folder for folder in variables["PATH"].split(os.pathsep) if not shutil.which("uv", path=folder)
    ]
    if uv and find_uv():
        folders.append(str(find_uv().parent))
    variables["PATH"] = os.pathsep.join(folders)
    variables |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if wheels is not None:
        variables["PIP_FIND_LINKS"] = wheels.as_uri()
        variables["UV_CACHE_DIR"] = str(wheels.parent / "uv")
    return variables | more


def run(root: Path, *arguments: str, before: str = "", **variables) -> subprocess.CompletedProcess:
    """``python -m mha_course …`` in a tiny course.

    Args:
        before: Python statements to run first in the same process.
        variables: environment variables, and ``wheels`` and ``uv``; see `environment`.
    """
    start = ["-m", "mha_course"]
    if before:
        start = [
            "-c",
            f"{before}\nimport runpy; runpy.run_module('mha_course', run_name='__main__', alter_sys=True)",
        ]
    command = [sys.executable, *start, *arguments]
    wheels = variables.pop("wheels", None)
    return subprocess.run(
        command,
        cwd=root,
        env=environment(wheels, **variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=300,
    )


def told(done: subprocess.CompletedProcess, name: str) -> dict:
    """What the fake ``jupyterlab`` or ``pytest`` printed."""
    lines = [line for line in done.stdout.splitlines() if line.startswith(f"{name} {{")]
    assert lines, done.stdout + done.stderr
    return json.loads(lines[-1].removeprefix(f"{name} "))
