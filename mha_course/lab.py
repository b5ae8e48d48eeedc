"""``mha-course lab``: JupyterLab at the learner's own copy of lesson 00.

JupyterLab is started in the repository's folder, where nbgrader finds its configuration. What it is told besides
holds for this start alone: no setting of the learner's is changed.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path
from urllib.parse import quote

from . import bootstrap

# Nothing here asks the network, or the learner about news: no feed, no look for a newer JupyterLab, no list of
# extensions to install, no search for language servers. The settings are defaults, which a learner's own override.
SETTINGS = Path(__file__).resolve().parent / "jupyterlab_settings"
QUIET = (
    f"--LabApp.app_settings_dir={SETTINGS}",
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
    "--LanguageServerManager.autodetect=False",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-browser", action="store_true", help="print the address, open no browser")
    parser.add_argument("--port", type=port, help="the port to listen on; by default a free one from 8888 up")
    parser.add_argument(
        "more", nargs="*", metavar="-- ...", help="after --: anything else that `jupyter lab` takes"
    )


def port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"a port is a number from 1 to 65535, not {text!r}")
    return int(text)


def main(args: argparse.Namespace) -> int:
    """Runs ``mha-course lab``.

    Raises:
        bootstrap.SetUpError: the port is taken, or the lessons cannot be handed out.
    """
    from . import lessons

    refuse_taken_port(args.port)
    try:
        notebook, messages = lessons.open_workspace()
    except lessons.LessonError as error:
        raise bootstrap.SetUpError(str(error)) from None
    for line in messages:
        print(line)
    where = notebook.relative_to(bootstrap.ROOT).as_posix()
    print(f"Opening {where} in JupyterLab. To stop it, press Ctrl-C here, twice.", flush=True)
    return bootstrap.become(command(where, args), bootstrap.environment(), bootstrap.ROOT)


def command(where: str, args: argparse.Namespace) -> list[str]:
    """The command line that starts JupyterLab at a notebook, given relative to the repository's folder."""
    line = [sys.executable, "-m", "jupyterlab", *QUIET, f"--LabApp.default_url=/lab/tree/{quote(where)}"]
    if args.no_browser:
        line.append("--no-browser")
    if args.port:
        line += [f"--port={args.port}", "--ServerApp.port_retries=0"]
    if hasattr(os, "geteuid") and os.geteuid() == 0 and "--allow-root" not in args.more:
        line.append("--allow-root")  # in a container there is often nobody else
    return [*line, *args.more]


def refuse_taken_port(number: int | None) -> None:
    """Raises SetUpError if another program listens on the port."""
    if number is None:
        return
    try:
        with socket.socket() as probe:
            if os.name != "nt":  # as the server will: a port just given back counts as free
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", number))
    except PermissionError:
        raise bootstrap.SetUpError(f"Port {number} is not for ordinary users: {another(8888)}") from None
    except OSError:
        why = "another program uses it, perhaps a JupyterLab started before"
        raise bootstrap.SetUpError(f"Port {number} is taken ({why}): {another(number + 1)}") from None


def another(number: int) -> str:
    return f"choose another one, for example: python3 -m mha_course lab --port {min(number, 65535)}"
