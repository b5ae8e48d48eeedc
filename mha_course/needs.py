"""What the course needs, as pyproject.toml says it, and what of it this Python lacks.

Standard library only, and nothing of this package: the Python in ``.venv`` runs this file by its path, alone, to
say what *it* lacks. Nothing is imported to find out whether it is there.
"""

from __future__ import annotations

import importlib.util
import json
import operator
import os
import re
import shlex
import sys
import tomllib
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = "MHA_COURSE_TORCH"  # environment variable: arguments for uv or pip that replace the pinned torch


class SetUpError(Exception):
    """Something only the person at the keyboard can put right; its text says how.

    Args:
        text: what is wrong, and what to do.
        code: the exit code that goes with it.
    """

    def __init__(self, text: str, code: int = 1):
        super().__init__(text)
        self.code = code


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
    """What uv or pip is given to install torch: the pin, or what MHA_COURSE_TORCH says instead."""
    if other_torch():
        return shlex.split(os.environ[TORCH], posix=os.name != "nt")
    return [pin()]


def pin() -> str:
    """The torch that pyproject.toml asks for."""
    return next(line for line in project()["project"]["dependencies"] if split(line)[0] == "torch")


def other_torch() -> bool:
    """Whether MHA_COURSE_TORCH says anything."""
    return bool(os.environ.get(TORCH, "").strip())


def torch_requirement() -> str:
    """The torch that is asked for, without options; any version if that cannot be told (a file, say)."""
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

    A local part does not count: 2.13.0+cpu is a 2.13.0, unless 2.13.0+cu130 or ``===2.13.0`` is asked for. Neither
    does a pre-release's: 5.0rc1 is a 5.0.
    """
    signs = {"==": "eq", "!=": "ne", ">=": "ge", "<=": "le", ">": "gt", "<": "lt"}
    for sign, limit in re.findall(r"(===|[=!<>]=|[<>])([^,]+)", wanted):
        to_the_letter = sign == "===" or "+" in limit
        here, there = (version, limit) if to_the_letter else (numbers(version), numbers(limit))
        if not getattr(operator, signs[sign[:2]])(here, there):
            return False
    return True


def numbers(version: str) -> tuple[int, ...]:
    """(2, 13) for "2.13.0+cpu": the release's numbers, without zeros at the end."""
    release = re.match(r"v?(\d+(?:\.\d+)*)", version.strip())
    parts = [int(part) for part in release[1].split(".")] if release else []
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


def listed(lacking: list[Problem]) -> str:
    """The problems in half a line."""
    shown = ", ".join(str(problem) for problem in lacking[:4])
    return shown + (f" and {len(lacking) - 4} more" if len(lacking) > 4 else "")


if __name__ == "__main__":  # run by path: say what this Python lacks
    print(json.dumps([asdict(problem) for problem in problems(tuple(sys.argv[1:]))]))
