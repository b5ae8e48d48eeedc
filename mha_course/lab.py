"""``mha-course lab``: JupyterLab at the learner's own copy of a lesson.

A learner's JupyterLab shows what is theirs, the folder ``work/``, and of nbgrader only the button *Validate*.
An instructor's (``--teach``) shows the whole course, and all of nbgrader. What JupyterLab is told holds for this
start alone: no setting of anybody's is changed.

JupyterLab is started in the repository's folder, where nbgrader finds its configuration. Its log is kept quiet;
this module is loaded into the server as an extension, and says where it listens once it does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
import urllib.request
from pathlib import Path
from urllib.parse import quote

from . import bootstrap, lessons

# Nothing here asks the network, or the learner about news: no feed, no look for a newer JupyterLab, no list of
# extensions to install, no search for language servers. The settings are defaults, which a learner's own override.
SETTINGS = Path(__file__).resolve().parent / "jupyterlab_settings"
PLAIN = (
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
    "--LanguageServerManager.autodetect=False",
)
TEACHERS = ("formgrader", "assignment_list", "course_list")  # parts of nbgrader that a learner has no use for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "lesson",
        nargs="?",
        type=lesson,
        help="the lesson to open (01, one_head); by default your next unfinished one",
    )
    parser.add_argument("--no-browser", action="store_true", help="print the address, open no browser")
    parser.add_argument("--port", type=port, help="the port to listen on; by default a free one from 8888 up")
    parser.add_argument("--log", action="store_true", help="show JupyterLab's log")
    parser.add_argument(
        "--teach",
        action="store_true",
        help="for instructors: the whole course's folder, and nbgrader's Formgrader and Create Assignment",
    )


def lesson(text: str) -> str:
    """The folder of the lesson that is called so."""
    try:
        return lessons.find(text).folder
    except lessons.LessonError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"a port is a number from 1 to 65535, not {text!r}")
    return int(text)


def main(args: argparse.Namespace) -> int:
    """Runs ``mha-course lab``.

    Raises:
        bootstrap.SetUpError: the port is taken, or the lessons cannot be handed out.
    """
    refuse_taken_port(args.port)
    try:
        notebook, messages = lessons.open_workspace(name=args.lesson)
    except lessons.LessonError as error:
        raise bootstrap.SetUpError(str(error)) from None
    for line in messages:
        print(line)
    root = bootstrap.ROOT if args.teach else bootstrap.ROOT / "work"
    if args.teach and args.lesson:
        notebook = bootstrap.ROOT / "solutions" / notebook.relative_to(bootstrap.ROOT / "work")
    where = "" if args.teach and not args.lesson else notebook.relative_to(root).as_posix()
    if not args.port and (there := running(root)):
        return join(there, where, args)
    return bootstrap.become(command(root, where, args), bootstrap.environment(), bootstrap.ROOT)


def command(root: Path, where: str, args: argparse.Namespace) -> list[str]:
    """The command line that starts JupyterLab.

    Args:
        root: the folder that it shows.
        where: the notebook to open, relative to ``root``; "" for none.
        args: what the learner asked for.
    """
    settings = SETTINGS / ("teaching" if args.teach else "learning")
    ours = {"mha_course.lab": True}
    if not args.teach:
        ours |= {f"nbgrader.server_extensions.{part}": False for part in TEACHERS}
    line = [sys.executable, "-m", "jupyterlab", *PLAIN, f"--LabApp.app_settings_dir={settings}"]
    line += [f"--ServerApp.root_dir={root}", f"--ServerApp.jpserver_extensions={ours}"]
    line.append(f"--LabApp.default_url={page(where)}")
    if not args.log:
        line += ["--ServerApp.log_level=ERROR", "--LabApp.log_level=ERROR"]
    if args.no_browser:
        line.append("--no-browser")
    if args.port:
        line += [f"--port={args.port}", "--ServerApp.port_retries=0"]
    if hasattr(os, "geteuid") and os.geteuid() == 0 and "--allow-root" not in args.more:
        line.append("--allow-root")  # in a container there is often nobody else
    return [*line, *args.more]


def page(where: str) -> str:
    """The path of JupyterLab's page that opens a notebook; of its first page for "" ."""
    return f"/lab/tree/{quote(where)}" if where else "/lab"


# --- inside the server --------------------------------------------------------------------------


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    """How Jupyter Server finds the two functions below."""
    return [{"module": "mha_course.lab"}]


def _load_jupyter_server_extension(server) -> None:
    """Let the server not print its address: with a token of its own making it would, in nine lines."""
    if server.identity_provider.token:
        server.identity_provider.token_generated = False


async def _start_jupyter_server_extension(server) -> None:
    """The server listens: say where, and how to stop it."""
    everywhere = server.ip in ("", "*", "0.0.0.0", "::")
    address = server.local_url if everywhere else server.public_url
    address = address.replace("token=...", f"token={server.identity_provider.token}")
    print(f"The course is at {address}\nTo stop it, press Ctrl-C here, twice.", flush=True)


# --- a server that runs already -----------------------------------------------------------------


def running(root: Path) -> dict:
    """What a JupyterLab that shows this folder says about itself; empty if none runs."""
    try:
        from jupyter_core.paths import jupyter_runtime_dir
    except ImportError:
        return {}
    for path in sorted(Path(jupyter_runtime_dir()).glob("jpserver-*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            told = json.loads(path.read_text(encoding="utf-8"))
            if os.path.samefile(told["root_dir"], root) and answers(told["url"]):
                return told
    return {}


def answers(url: str) -> bool:
    """Whether a Jupyter server answers at this address (``…/``)."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(OSError, ValueError), direct.open(f"{url}api", timeout=2):
        return True
    return False


def join(there: dict, where: str, args: argparse.Namespace) -> int:
    """Open the lesson in a JupyterLab that runs already. Gives the exit code."""
    token = f"?token={there['token']}" if there.get("token") else ""
    address = there["url"].rstrip("/") + page(where) + token
    print(f"The course is open already (another `lab` runs in this folder), at {address}")
    print(
        "To stop it, press Ctrl-C where it was started, twice. For a second one, give it a --port.",
        flush=True,
    )
    if not args.no_browser:
        import webbrowser

        webbrowser.open(address)
    return 0


# --- ports --------------------------------------------------------------------------------------


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
