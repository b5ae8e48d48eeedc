"""The command ``mha-course``: finds out which command is meant, sees to the set-up, hands over.

Every command lives in the module that does its work, as two functions: ``add_arguments(parser)`` declares what
it takes, ``main(args)`` does it and gives the exit code. Modules are imported when their command is called.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import difflib
import importlib
import os
import select
import sys
import unicodedata
from dataclasses import dataclass

from . import __version__, quiet


@dataclass(frozen=True)
class Command:
    """One command.

    Args:
        module: where it lives, inside this package.
        summary: what it does, in one line.
        main: the function there that does it.
        arguments: the function there that declares its arguments; "" if it takes none; "..." if it is given them
            unread, as ``args.given``.
        extras: the optional dependencies (pyproject.toml) it needs.
        set_up: whether it makes sure, first, that everything needed is installed.
        light: whether its module imports the standard library only: its arguments are then read before the set-up.
        passes_on: the program that is given, as ``args.more``, what follows ``--``; "" if there is none.
    """

    module: str
    summary: str
    main: str = "main"
    arguments: str = "add_arguments"
    extras: tuple[str, ...] = ()
    set_up: bool = True
    light: bool = False
    passes_on: str = ""


COMMANDS = {
    "lab": Command("lab", "open the course in JupyterLab", light=True, passes_on="jupyter lab"),
    "progress": Command(
        "lessons", "show how far you are", "main_progress", "add_progress_arguments", set_up=False, light=True
    ),
    "reset": Command(
        "lessons", "start a lesson afresh; keeps a backup", "main_reset", "add_reset_arguments", light=True
    ),
    "doctor": Command(
        "doctor", "say what is installed, and what to do about each problem", set_up=False, light=True
    ),
    "test": Command(
        "running_tests", "run the course's own tests", arguments="...", extras=("test",), light=True
    ),
    "constraints": Command(
        "constraints", "choose all exact versions anew (constraints.txt)", extras=("test",), light=True
    ),
    "build": Command("building", "make the notebooks from solutions/"),
    "audit": Command("checking.audit", "put every known wrong answer to the checks"),
    "gpu": Command("measuring.command", "check and measure attention on a GPU, and write it down"),
    "grade": Command("grading.command", "grade what a class has handed in for a lesson"),
    "export": Command("grading.exporting", "write marks as CSV, for Canvas, Moodle or a spreadsheet"),
}


# For a terminal that does not know a sign: what stands for it. Signs that differ in meaning stay different.
PLAINER = dict(zip("●○◇·✓✗█−×–—≈’“”", '+o=.+x#-x--~\'""', strict=True))
PLAINER |= {"│": "|", "∞": "inf", "→": "->", "…": "...", "≤": "<=", "≥": ">=", "√": "sqrt "}


def plainer(error: UnicodeError) -> tuple[str, int]:
    """Stand in for signs that an encoding lacks: an error handler, see `codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(PLAINER.get(sign) or without_accent(sign) for sign in lacking), error.end


def without_accent(sign: str) -> str:
    return unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode() or "?"


codecs.register_error("mha_course.plainer", plainer)


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what follows ``mha-course`` on the command line; by default that itself.

    Returns:
        the exit code: 0 if all went well, 2 for a command line that cannot be understood, 141 if nobody wanted to
        read all of the output (``mha-course progress | head -1``), as other programs give then.
    """
    for stream in (sys.stdout, sys.stderr):  # a Windows console may not know every sign
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="mha_course.plainer")
    quiet.begin_command()
    try:
        try:
            return start(sys.argv[1:] if arguments is None else list(arguments))
        finally:  # also after --help, which ends the program
            sys.stdout.flush()
    except BrokenPipeError:
        if not nobody_reads():
            raise  # another pipe than our output
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # what is still in the buffer
        os.close(nowhere)
        return 141


def nobody_reads() -> bool:
    """Whether the other end of our output is closed."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # cannot be told here
        return False


def start(arguments: list[str]) -> int:
    """Run one command, whatever becomes of its output. Gives the exit code."""
    name = arguments[0] if arguments else ""
    if name in ("--version", "-V"):
        print(f"mha_course {__version__}")
        return 0
    if name not in COMMANDS:
        asked = name in ("-h", "--help", "help")
        print(overview(name if not asked else ""), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    return run(name, arguments[1:])


def run(name: str, arguments: list[str]) -> int:
    """Run one known command with its own arguments. Gives the exit code."""
    from . import bootstrap

    command = COMMANDS[name]
    try:
        args = parse(name, arguments) if command.light else None
        if command.set_up:
            other = bootstrap.set_up(command.extras)
            if other is not None:
                return bootstrap.hand_over(other, [name, *arguments])
        if args is None:
            args = parse(name, arguments)
        return getattr(module_of(command), command.main)(args) or 0
    except bootstrap.SetUpError as error:
        print(f"\n{error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130


def parse(name: str, arguments: list[str]) -> argparse.Namespace:
    """Read a command's arguments. Ends the program, like argparse does, for ``--help`` and for mistakes."""
    command = COMMANDS[name]
    parser = Parser(prog=f"mha-course {name}", description=sentence(command.summary))
    if command.arguments == "...":
        parser.usage = "%(prog)s [anything that pytest takes]"
        return (
            parser.parse_args(arguments)
            if arguments in (["-h"], ["--help"])
            else argparse.Namespace(given=arguments)
        )
    if command.arguments:
        getattr(module_of(command), command.arguments)(parser)
    if not command.passes_on:
        return parser.parse_args(arguments)
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    parser.epilog = f"What follows -- is handed to `{command.passes_on}` as it is."
    parser.usage = f"{parser.format_usage().removeprefix('usage: ').rstrip()} [-- ...]"
    args = parser.parse_args(arguments[:cut])
    args.more = arguments[cut + 1 :]
    return args


class Parser(argparse.ArgumentParser):
    """argparse's, which also says what a misspelt option was perhaps meant to be."""

    def error(self, message: str):
        unknown = [word for word in message.split() if word.startswith("--")]
        if message.startswith("unrecognized arguments") and unknown:
            message += "." + did_you_mean(unknown[0].split("=")[0], list(self._option_string_actions))
        super().error(message)


def did_you_mean(name: str, known: list[str]) -> str:
    """ " Did you mean …?" if something known is spelt much like it, otherwise ""."""
    like = difflib.get_close_matches(name, known, 1)
    return f" Did you mean {like[0]}?" if like else ""


def module_of(command: Command):
    return importlib.import_module(f"mha_course.{command.module}")


def overview(unknown: str = "") -> str:
    """What there is, one line for each command."""
    lines = (
        [f"There is no command {unknown!r}.{did_you_mean(unknown, list(COMMANDS))}", ""] if unknown else []
    )
    lines += ["mha-course COMMAND, or python3 -m mha_course COMMAND. The commands:", ""]
    lines += [f"  {name:<11} {command.summary}" for name, command in COMMANDS.items()]
    lines += ["", "mha-course COMMAND --help says more about one."]
    return "\n".join(lines)


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


if __name__ == "__main__":
    sys.exit(main())
