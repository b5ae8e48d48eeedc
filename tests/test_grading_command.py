"""``mha-course grade`` at the terminal: what it takes, and how it refuses."""

from __future__ import annotations

import errno
import os

import grading_course as course
import pytest

from mha_course import cli
from mha_course.grading import records


@pytest.mark.parametrize(
    "option",
    [
        *("--jobs=0", "--jobs=-3", "--jobs=two", "--memory=1", "--memory=-1", "--cell-seconds=0"),
        *("--cell-seconds=-5", "--notebook-seconds=-1", "--notebook-seconds=inf", "--cell-seconds=nan"),
    ],
)
def test_a_limit_with_which_nothing_can_be_graded_is_refused_in_one_sentence(option, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.parse("grade", ["01", option])
    assert ended.value.code == 2
    name, _, value = option.partition("=")
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {name}: a " in last and f"not '{value}'" in last


def test_sensible_limits_are_taken():
    args = cli.parse(
        "grade", ["01", "--jobs=2", "--memory=1024", "--cell-seconds=2.5", "--notebook-seconds=30"]
    )
    assert (args.jobs, args.memory, args.cell_seconds, args.notebook_seconds) == (2, 1024, 2.5, 30)
    assert cli.parse("grade", ["01"]).jobs == 0


def test_exit_codes_are_told(capsys):
    with pytest.raises(SystemExit):
        cli.parse("grade", ["--help"])
    assert "130: interrupted" in " ".join(capsys.readouterr().out.split())


def test_a_folder_that_cannot_be_written_is_said_in_a_sentence(tmp_path, monkeypatch, capsys):
    course.make_release(tmp_path)
    course.hand_in(tmp_path, "ann")

    def refused(*_arguments, **_named):
        raise PermissionError(
            errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "grading" / "marks" / "lock")
        )

    monkeypatch.setattr(records.FileLock, "acquire", refused)
    args = cli.parse("grade", [course.LESSON, "--root", str(tmp_path)])
    from mha_course.grading import command

    with course.declared():
        assert command.main(args) == 1
    says = capsys.readouterr().err.splitlines()[-1]
    assert says == f"cannot read or write {tmp_path}/grading/marks/lock: Permission denied"


def test_nothing_that_a_learner_named_or_raised_reaches_the_terminal_as_a_control_character():
    from mha_course.grading.records import Result
    from mha_course.grading.run import Summary, table

    bad = "x\x1b[2J\x9b31m\x1b]0;t\x07\u202ey"
    outcome = {"name": bad, "status": "wrong", "cause": bad, "named": False, "says": bad}
    marked = {"outcomes": {"check": [outcome]}, "trouble": [bad], "late": 0, "deaths": 0}
    results = [
        Result(bad, "l", "graded", repairs=[bad], notebooks={bad: marked}, scores={bad: [1.0, 2.0]}),
        Result(bad + "2", "l", "set aside", reason=bad),
        Result(bad + "3", "l", "failed", reason=bad),
    ]
    more = {"pages": {bad: bad}, "unreadable": [bad], "missing": [bad], "restored": [bad], "stopped": bad}
    late = {bad: {"seconds": 60.0, "penalty": 0.0}}
    text = table(Summary(bad, results=results, sandbox=bad, due=bad, late=late, **more))
    assert [c for c in text if not c.isprintable() and c != "\n"] == []
    assert "x\\x1b[2J" in text


def test_the_summary_for_machines_is_plain_ascii(tmp_path, monkeypatch, capsys):
    from mha_course.grading import command, run

    monkeypatch.setattr(run, "grade", lambda *_arguments: run.Summary("l", missing=["a\x9b\u202e\x1b"]))
    course.make_release(tmp_path)
    with course.declared():
        assert command.main(cli.parse("grade", [course.LESSON, "--root", str(tmp_path), "--json"])) == 0
    assert capsys.readouterr().out.isascii()
