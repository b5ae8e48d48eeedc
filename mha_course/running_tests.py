"""``mha-course test``: the course's own tests, by pytest."""

from __future__ import annotations

import argparse
import subprocess
import sys

from . import bootstrap


def main(args: argparse.Namespace) -> int:
    """Runs ``mha-course test``. ``args.given`` goes to pytest; gives its exit code."""
    command = [sys.executable, "-m", "pytest", *args.given]
    return subprocess.run(command, env=bootstrap.environment(), cwd=bootstrap.ROOT).returncode
