"""``mha-course lab``: what it says, which lesson it opens, and what a learner's JupyterLab leaves out."""

import argparse
import json
import os
import queue
import signal
import socket
import subprocess
import threading
import urllib.request
from pathlib import Path

import pytest
from sample_course import release

from mha_course import bootstrap, cli, lab, lessons


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A tiny course that counts as this one; what would be started is noted instead."""
    release(tmp_path, "00_start_here", "00 · Start here", checked=("add",))
    release(tmp_path, "01_one_head", "01 · One head", checked=("attend",))
    monkeypatch.setattr(lessons, "ROOT", tmp_path)
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setattr(bootstrap, "set_up", lambda extras: None)
    monkeypatch.setattr(lab, "running", lambda root: {})
    started = []
    monkeypatch.setattr(bootstrap, "become", lambda command, *_: started.append(command) or 0)
    return tmp_path, started


def option(command, name):
    (value,) = [part.split("=", 1)[1] for part in command if part.startswith(f"--{name}=")]
    return value


@pytest.mark.parametrize(
    ("asked", "opened"),
    [
        ([], "00_start_here"),
        (["01"], "01_one_head"),
        (["1"], "01_one_head"),
        (["one_head"], "01_one_head"),
        (["work/01_one_head/01_one_head.ipynb"], "01_one_head"),
    ],
)
def test_the_lesson_that_was_asked_for_is_opened_and_the_learner_sees_work_alone(course, asked, opened):
    root, started = course
    assert cli.main(["lab", *asked]) == 0
    assert option(started[0], "LabApp.default_url") == f"/lab/tree/{opened}/{opened}.ipynb"
    assert Path(option(started[0], "ServerApp.root_dir")) == root / "work"
    assert (root / "work" / opened / f"{opened}.ipynb").exists()


@pytest.mark.parametrize(
    ("asked", "opened"), [([], "/lab"), (["01"], "/lab/tree/solutions/01_one_head/01_one_head.ipynb")]
)
def test_an_instructor_sees_the_whole_course(course, asked, opened):
    root, started = course
    assert cli.main(["lab", "--teach", *asked]) == 0
    assert option(started[0], "LabApp.default_url") == opened
    assert Path(option(started[0], "ServerApp.root_dir")) == root


def test_the_log_is_shown_on_request_only(course):
    _, started = course
    cli.main(["lab"])
    cli.main(["lab", "--log"])
    assert "--ServerApp.log_level=ERROR" in started[0]
    assert not [part for part in started[1] if "log_level" in part]


def test_a_learners_jupyterlab_leaves_the_instructors_tools_out_and_keeps_validate():
    learning = json.loads((lab.SETTINGS / "learning" / "page_config.json").read_text())["disabledExtensions"]
    assert {"@jupyter/nbgrader:create-assignment", "@jupyter/nbgrader:formgrader"} < set(learning)
    assert "@jupyter/nbgrader:validate-assignment" not in learning
    assert not (lab.SETTINGS / "teaching" / "page_config.json").exists()
    kinds = [
        json.loads((lab.SETTINGS / who / "overrides.json").read_text()) for who in ("learning", "teaching")
    ]
    assert kinds[0] == kinds[1]


def test_an_unknown_lesson_is_refused_before_any_set_up(course, monkeypatch, capsys):
    monkeypatch.setattr(bootstrap, "set_up", lambda extras: pytest.fail("set up"))
    with pytest.raises(SystemExit):
        cli.main(["lab", "heads"])
    assert "There is no lesson 'heads'" in capsys.readouterr().err


# --- a second start ---


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    """A folder in which a JupyterLab that shows ``tmp_path`` says where it is."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    monkeypatch.setattr("jupyter_core.paths.jupyter_runtime_dir", lambda: str(folder))
    told = {"root_dir": str(tmp_path), "url": "http://localhost:8889/", "token": "secret"}
    (folder / "jpserver-7.json").write_text(json.dumps(told))
    return folder


def test_a_second_start_on_the_same_folder_joins_the_first_and_says_so(
    runtime, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(lab, "answers", lambda url: True)
    there = lab.running(tmp_path)
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    args = argparse.Namespace(no_browser=False)
    assert lab.join(there, "01 a/x.ipynb", args) == 0
    assert opened == ["http://localhost:8889/lab/tree/01%20a/x.ipynb?token=secret"]
    said = capsys.readouterr().out
    assert "open already" in said and opened[0] in said
    args.no_browser = True
    lab.join(there, "", args)
    assert len(opened) == 1


@pytest.mark.parametrize("what", ["another folder", "stopped", "damaged", "half written", "folder gone"])
def test_what_does_not_run_here_is_not_joined(runtime, tmp_path, monkeypatch, what):
    monkeypatch.setattr(lab, "answers", lambda url: what != "stopped")
    note = runtime / "jpserver-7.json"
    if what == "damaged":
        note.write_text("{")
    elif what == "half written":
        note.write_text("{}")
    elif what == "folder gone":
        note.write_text(json.dumps({"root_dir": str(tmp_path / "gone"), "url": "http://localhost:8889/"}))
    assert lab.running(runtime if what == "another folder" else tmp_path) == {}


def test_a_dead_address_does_not_answer():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert not lab.answers(f"http://127.0.0.1:{port}/")
    assert not lab.answers("no address")


# --- a real start ---


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
@pytest.mark.parametrize("log", [False, True])
def test_a_start_says_in_two_lines_where_it_is_and_how_to_stop(tmp_path, log):
    (tmp_path / "work").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    args = argparse.Namespace(no_browser=True, port=port, log=log, teach=False, more=[])
    homes = (
        "HOME",
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "JUPYTERLAB_SETTINGS_DIR",
    )
    variables = bootstrap.environment() | {name: str(tmp_path / name.lower()) for name in homes}
    (tmp_path / "home").mkdir()
    process = subprocess.Popen(
        lab.command(tmp_path / "work", "00/a.ipynb", args),
        cwd=tmp_path,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: queue.Queue = queue.Queue()
    threading.Thread(target=lambda: [lines.put(line) for line in process.stdout], daemon=True).start()
    try:
        first, second = lines.get(timeout=90), lines.get(timeout=90)
        address = first.removeprefix("The course is at ").strip()
        assert address.startswith(f"http://localhost:{port}/lab/tree/00/a.ipynb?token=")
        assert second == "To stop it, press Ctrl-C here, twice.\n"
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address) as page:
            assert page.status == 200
    finally:
        process.send_signal(signal.SIGTERM)
        errors = process.stderr.read()
        process.wait(60)
    noise = [line for line in errors.splitlines() if "received signal" not in line]
    assert bool(noise) is log, errors
    assert lines.empty()


def test_the_extension_is_found_where_jupyter_server_looks_for_it():
    from jupyter_server.extension.utils import get_metadata

    _, points = get_metadata("mha_course.lab")
    assert points == [{"module": "mha_course.lab"}]
