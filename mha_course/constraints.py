"""``mha-course constraints``: makes constraints.txt anew, the exact version of everything that the set-up installs.

uv works it out from pyproject.toml, for every Python and every system that the course supports at once (lines that
hold for some of them only say so). A version stays as it is while pyproject.toml allows it, unless --upgrade is said.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess

from . import bootstrap, installing, needs

COMMAND = "python3 -m mha_course constraints"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--upgrade", action="store_true", help="take the newest versions that pyproject.toml allows"
    )


def main(args: argparse.Namespace) -> int:
    """Runs ``mha-course constraints``.

    Raises:
        bootstrap.SetUpError: uv is not here, or could not do it; the file is then as it was.
    """
    uv = shutil.which("uv", path=bootstrap.environment()["PATH"])
    if not uv:
        raise bootstrap.SetUpError("This needs uv: install it with pip, then run this again.")
    oldest = needs.project()["project"]["requires-python"].removeprefix(">=")
    command = [
        uv,
        "pip",
        "compile",
        "pyproject.toml",
        "--all-extras",
        "--universal",
        "--python-version",
        oldest,
    ]
    command += ["--output-file", installing.CONSTRAINTS.name, "--custom-compile-command", COMMAND]
    command += ["--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--quiet"]
    command += ["--upgrade"] if args.upgrade else []
    # as the package index has it, whatever a folder of wheels or a chosen build of PyTorch would give here
    variables = {
        name: value for name, value in os.environ.items() if name not in ("UV_FIND_LINKS", "UV_TORCH_BACKEND")
    }
    if subprocess.run(command, cwd=bootstrap.ROOT, env=variables).returncode:
        raise bootstrap.SetUpError(
            "uv could not find versions that fit together (see above). Nothing was changed."
        )
    lines = installing.CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    print(f"constraints.txt: {sum('==' in line for line in lines)} versions")
    return 0
