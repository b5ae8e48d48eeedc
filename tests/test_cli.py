"""The command line itself: what is misspelt, what is absurd, where nobody reads on, and a terminal without signs."""

import io
import json
import os
import subprocess
import sys

import pytest

from mha_course import cli, lessons, options

ROOT = lessons.ROOT


def run(*arguments, **variables):
    return subprocess.run(
        [sys.executable, "-m", "mha_course", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


# --- nobody reads on ---


@pytest.mark.skipif(os.name != "posix", reason="a closed pipe is another error elsewhere")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [["progress"], ["--help"], ["progress", "--json"], ["lab", "--help"]])
def test_a_reader_that_stops_reading_is_no_error(command, unbuffered):
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, "-m", "mha_course", *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered},
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert process.stderr == ""
    assert process.returncode in (0, 141)  # argparse itself forgives it


def test_a_pipe_that_breaks_elsewhere_is_not_hidden(monkeypatch):
    def start(arguments):
        raise BrokenPipeError("a worker is gone")

    monkeypatch.setattr(cli, "start", start)
    with pytest.raises(BrokenPipeError, match="a worker is gone"):
        cli.main(["progress"])


# --- what cannot be meant ---


@pytest.mark.parametrize(("typed", "meant"), [("grad", "grade"), ("labb", "lab"), ("progres", "progress")])
def test_a_misspelt_command_is_told_what_was_perhaps_meant(typed, meant, capsys):
    assert cli.main([typed]) == 2
    assert capsys.readouterr().err.startswith(f"There is no command '{typed}'. Did you mean {meant}?")


def test_a_command_like_no_other_gets_the_list_alone(capsys):
    assert cli.main(["xyzzy"]) == 2
    assert "Did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "option", "meant"),
    [
        ("lab", "--no-brower", "--no-browser"),
        ("progress", "--jsn", "--json"),
        ("build", "--cheks", "--check"),
    ],
)
def test_a_misspelt_option_is_told_what_was_perhaps_meant(command, option, meant, capsys):
    with pytest.raises(SystemExit):
        cli.parse(command, [option])
    assert f"Did you mean {meant}?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("gpu", ["--sizes", "a"]),
        ("gpu", ["--sizes", "0,8"]),
        ("gpu", ["--sizes", ""]),
        ("gpu", ["--minutes", "0"]),
        ("gpu", ["--minutes", "-3"]),
        ("gpu", ["--minutes", "nan"]),
        ("gpu", ["--minutes", "inf"]),
        ("audit", ["--seed", "x"]),
        ("lab", ["--port", "0"]),
        ("lab", ["99"]),
    ],
)
def test_an_absurd_number_is_refused_in_a_sentence(command, arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.parse(command, arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert repr(arguments[-1].split(",")[0]) in said
    assert " _" not in said, "the name of a function of ours"


def test_numbers_within_bounds_are_read():
    assert options.whole(1)("12") == 12
    assert options.above(0)("0.5") == 0.5
    assert options.each(options.whole(1))("128, 1024") == [128, 1024]


def test_what_follows_two_dashes_is_handed_on_and_is_no_lesson():
    args = cli.parse("lab", ["--", "--ServerApp.ip=0.0.0.0", "--no-browser"])
    assert args.lesson is None
    assert args.more == ["--ServerApp.ip=0.0.0.0", "--no-browser"]
    assert not args.no_browser


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name != "test"])
def test_every_help_fits_the_terminal_and_has_no_riddles(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.parse(command, ["--help"])
    said = capsys.readouterr().out
    assert "... ..." not in said
    assert all(len(line) <= 80 for line in said.splitlines())


# --- a terminal that knows no signs ---


def test_signs_stay_different_where_the_terminal_has_none():
    told = run("progress", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert told.returncode == 0
    assert "?" not in told.stdout
    assert told.stdout.isascii()
    assert "+ done   o borrowed   . to do" in told.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437"])
def test_no_sign_of_ours_becomes_a_question_mark_in_any_console(encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="mha_course.plainer")
    stream.write("".join(cli.PLAINER) + " Ré é ü")
    stream.flush()
    assert b"?" not in stream.buffer.getvalue()


def test_every_sign_that_a_command_may_print_has_a_stand_in():
    """Box drawing and the like in the modules whose output is for a terminal."""
    light = ("cli", "lab", "lessons", "bootstrap", "doctor", "grading/command", "checking/report")
    signs = {
        sign for name in light for sign in (ROOT / "mha_course" / f"{name}.py").read_text() if ord(sign) > 127
    }
    lacking = {sign for sign in signs if cli.plainer(UnicodeEncodeError("ascii", sign, 0, 1, ""))[0] == "?"}
    assert lacking == set()


# --- progress for a program ---


def test_progress_is_json_for_a_program():
    told = run("progress", "--json")
    data = json.loads(told.stdout)
    assert [lesson["lesson"] for lesson in data["lessons"]] == [one.folder for one in lessons.lessons()]
    first = data["lessons"][0]
    assert set(first["exercises"]) == set(lessons.lessons()[0].checked)
    assert set(first["exercises"].values()) <= {"passed", "quiz", "borrowed", "to do"}


def test_progress_and_reset_look_at_their_arguments_before_any_set_up():
    assert cli.COMMANDS["progress"].light
    assert not cli.COMMANDS["progress"].set_up
    assert cli.COMMANDS["reset"].light
