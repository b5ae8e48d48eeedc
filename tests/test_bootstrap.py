"""The set-up: from a fresh clone to an environment that has everything, and back from whatever goes wrong."""

import ast
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import pytest
import tiny_course

from mha_course import __main__ as start
from mha_course import bootstrap, cli, installing, lab, needs

POSIX = os.name == "posix"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    return tiny_course.write_wheels(tmp_path_factory.mktemp("offline") / "wheels")


@pytest.fixture
def fresh(tmp_path):
    return tiny_course.make_course(tmp_path / "clone")


@pytest.fixture(scope="module", params=["uv", "pip"])
def run(request, wheels):
    """`tiny_course.run` where uv can be had, and where it cannot; everything there is, is in the wheels."""
    if request.param == "uv" and not tiny_course.find_uv():
        pytest.skip("there is no uv here")
    return partial(tiny_course.run, uv=request.param == "uv")


by_uv = pytest.mark.parametrize("run", ["uv"], indirect=True)  # what does not depend on who installs


@pytest.fixture(scope="module")
def ready(tmp_path_factory, run, wheels):
    """A tiny course after its set-up. Tests break it; the next start must mend it."""
    root = tiny_course.make_course(tmp_path_factory.mktemp("ready") / "ein schöner Kurs")
    done = run(root, "lab", "--no-browser", wheels=wheels)
    assert done.returncode == 0, done.stdout + done.stderr
    return root, done


def marker(root):
    return json.loads((root / ".venv" / "mha_course.json").read_text())


def site_packages(root):
    (found,) = [*root.glob(".venv/lib/python*/site-packages"), *root.glob(".venv/Lib/site-packages")]
    return found


def assert_one_sentence(done, *parts, code=1):
    """It failed with this code, no traceback, and a short last word that has these parts."""
    last_word = done.stderr.rstrip().split("\n\n")[-1]
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert len(last_word.splitlines()) <= 3, last_word
    for part in parts:
        assert part in last_word, last_word


# --- all goes well ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_fresh_clone_sets_itself_up_and_opens_the_first_lesson(run, ready):
    root, done = ready
    assert "This is done once" in done.stdout
    if "uv cannot be had" in done.stdout:  # then pip says on stdout what it takes, otherwise uv on stderr
        assert done.stdout.index("torch-2.13.0-py3") < done.stdout.index("jupyterlab-4.6.6-py3")
    else:
        assert done.stderr.index("+ torch==2.13.0") < done.stderr.index("+ jupyterlab==4.6.6")
        assert "trying with pip" not in done.stdout
    seen = tiny_course.told(done, "jupyterlab")
    assert Path(seen["folder"]) == root
    assert Path(seen["prefix"]) == root / ".venv"
    assert Path(seen["PATH"].split(os.pathsep)[0]) == bootstrap_python(root).parent
    assert seen["PYTHONPATH"].split(os.pathsep)[0] == str(root)
    assert "--no-browser" in seen["arguments"]
    assert "--LabApp.default_url=/lab/tree/00_start_here/00_start_here.ipynb" in seen["arguments"]
    assert f"--ServerApp.root_dir={root / 'work'}" in seen["arguments"]
    assert (root / "work" / "00_start_here" / "00_start_here.ipynb").exists()
    assert marker(root)["finished"]
    assert list((site_packages(root) / "mha_course_tiny" / "__pycache__").glob("__init__.*.pyc"))
    assert (site_packages(root) / "mha_course_tiny-1.5.dist-info").exists()  # as constraints.txt has it


def bootstrap_python(root):
    return root / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


@by_uv
@pytest.mark.slow
def test_a_second_start_installs_nothing_and_needs_no_pip(run, ready):
    root, _ = ready
    done = run(root, "lab", wheels=None)
    assert tiny_course.told(done, "jupyterlab")
    assert "[2/4]" not in done.stdout


@by_uv
@pytest.mark.slow
def test_what_the_tests_need_is_added_when_they_are_first_run_and_pytests_exit_code_is_given(
    run, ready, wheels
):
    root, _ = ready
    done = run(root, "test", "-q", "tests/test_x.py", wheels=wheels)
    assert done.returncode == 0, done.stderr
    assert "Bringing .venv up to date: pytest" in done.stdout
    assert tiny_course.told(done, "pytest")["arguments"] == ["-q", "tests/test_x.py"]
    fails = site_packages(root) / "pytest" / "__main__.py"
    whole = fails.read_text()
    fails.write_text("raise SystemExit(5)")
    assert run(root, "test").returncode == 5
    fails.write_text(whole)


@by_uv
@pytest.mark.slow
def test_changed_requirements_bring_the_environment_up_to_date(run, ready, wheels):
    root, _ = ready
    pins = root / "pyproject.toml"
    before = pins.read_text()
    pins.write_text(before.replace("mha-course-tiny>=1.0,<2", "mha-course-tiny>=1.0,<1.2"))
    done = run(root, "lab", wheels=wheels)
    assert "mha-course-tiny 1.5 instead of >=1.0,<1.2" in done.stdout
    assert tiny_course.told(done, "jupyterlab")
    assert (site_packages(root) / "mha_course_tiny-1.0.dist-info").exists()
    pins.write_text(before)
    assert "[2/4]" not in run(root, "lab").stdout


@pytest.mark.slow
def test_another_build_of_the_same_torch_can_be_asked_for_and_then_stays(run, ready, wheels, tmp_path):
    root, _ = ready
    tiny_course.wheel(tmp_path, "torch", "2.13.0+gpu", {"torch/__init__.py": ""})
    wanted = f"torch==2.13.0 --no-deps --find-links '{tmp_path}'"
    done = run(root, "lab", wheels=wheels, MHA_COURSE_TORCH=wanted)
    assert tiny_course.told(done, "jupyterlab"), done.stderr
    assert (site_packages(root) / "torch-2.13.0+gpu.dist-info").exists()
    for again in ({"MHA_COURSE_TORCH": wanted}, {}):
        assert "[2/4]" not in run(root, "lab", **again).stdout


def test_an_environment_that_has_everything_is_used_as_it_is(fresh, wheels, tmp_path):
    for path in wheels.glob("*.whl"):
        if "tiny-1.0" not in path.name:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(tmp_path / "installed")
    done = tiny_course.run(fresh, "test", PYTHONPATH=str(tmp_path / "installed"))
    assert Path(tiny_course.told(done, "pytest")["prefix"]) == Path(sys.prefix)
    assert not (fresh / ".venv").exists()
    assert not (fresh / ".venv.lock").exists()


@pytest.mark.slow
def test_of_two_set_ups_at_once_the_second_waits_and_both_succeed(fresh, wheels):
    command = [sys.executable, "-m", "mha_course", "lab"]
    settings = {"cwd": fresh, "env": tiny_course.environment(wheels), "stdin": subprocess.DEVNULL}
    settings |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, **settings) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sum("waiting for it" in out for out, _ in outputs) == 1
    assert sum("[2/4]" in out for out, _ in outputs) == 1


def test_a_lock_is_held_once_and_freed_with_its_file(tmp_path):
    with open(tmp_path / "lock", "a") as one, open(tmp_path / "lock", "a") as other:
        assert bootstrap.try_lock(one)
        assert not bootstrap.try_lock(other)
        one.close()
        assert bootstrap.try_lock(other)


# --- something went wrong last time -------------------------------------------------------------


@pytest.mark.slow
def test_an_interrupted_set_up_is_carried_on_and_what_is_half_installed_is_mended(run, ready, wheels):
    root, _ = ready
    notes = root / ".venv" / "mha_course.json"
    notes.write_text(json.dumps({**marker(root), "finished": False}))
    cut_off = site_packages(root) / "mha_course_tiny" / "__init__.py"
    cut_off.write_text("num")
    done = run(root, "lab", wheels=wheels)
    assert "The last set-up did not finish" in done.stdout
    assert tiny_course.told(done, "jupyterlab")
    assert cut_off.read_text() == "number = 1\n"
    assert marker(root)["finished"]


@by_uv
@pytest.mark.slow
@pytest.mark.parametrize("harm", ["a Python that does not run", "a folder that was moved"])
def test_a_broken_environment_is_made_anew(run, ready, wheels, harm):
    root, _ = ready
    python = bootstrap_python(root)
    if harm == "a folder that was moved":
        (root / ".venv" / "mha_course.json").write_text(
            json.dumps({**marker(root), "folder": "/elsewhere/.venv"})
        )
    else:
        python.unlink()
        python.write_text("this is no program")
        python.chmod(0o755)
    left_over = root / ".venv" / "left over"
    left_over.touch()
    done = run(root, "lab", wheels=wheels)
    assert tiny_course.told(done, "jupyterlab")
    assert "making it anew" in done.stdout
    assert not left_over.exists()


@by_uv
@pytest.mark.slow
def test_a_package_that_was_deleted_is_installed_again(run, ready, wheels):
    root, _ = ready
    shutil.rmtree(site_packages(root) / "mha_course_tiny-1.5.dist-info")
    done = run(root, "lab", wheels=wheels)
    assert "Bringing .venv up to date: mha-course-tiny" in done.stdout
    assert tiny_course.told(done, "jupyterlab")


@pytest.mark.slow
def test_a_half_made_environment_is_made_anew_and_after_no_download_the_next_start_succeeds(
    run, fresh, wheels
):
    (fresh / ".venv" / "bin").mkdir(parents=True)
    (fresh / ".venv" / "mha_course.json").write_text('{"finished": fal')  # cut off
    offline = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1"}
    done = run(fresh, "lab", **offline)
    assert_one_sentence(done, "pip could not download", "same command again")
    done = run(fresh, "lab", wheels=wheels)
    assert "The last set-up did not finish" in done.stdout
    assert tiny_course.told(done, "jupyterlab")


@pytest.mark.slow
@pytest.mark.skipif(not POSIX, reason="sends a POSIX signal")
def test_ctrl_c_during_the_set_up_ends_in_a_sentence(run, fresh):
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # takes connections and never answers
        index = f"http://127.0.0.1:{deaf.getsockname()[1]}/simple"
        variables = tiny_course.environment(
            None, **run.keywords, PIP_NO_INDEX="0", PIP_INDEX_URL=index, PIP_RETRIES="0"
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "mha_course", "lab"],
            cwd=fresh,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        deaf.settimeout(120)
        connection, _ = deaf.accept()  # uv or pip is at work
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        connection.close()
    done = subprocess.CompletedProcess([], process.returncode, out, err)
    assert_one_sentence(done, "Stopped. Run the same command again", code=130)


# --- what only the person at the keyboard can put right -----------------------------------------


def test_too_old_a_python_is_said_in_one_sentence(fresh):
    done = tiny_course.run(fresh, "lab", before="import sys; sys.version_info = (3, 8, 18, 'final', 0)")
    assert_one_sentence(done, "mha_course needs Python 3.11 or newer, this is 3.8")
    assert not (fresh / ".venv").exists()


@pytest.mark.parametrize(
    ("found", "advice"), [("python3.12", "python3.12 -m mha_course"), ("", "install a newer one")]
)
def test_too_old_a_python_gets_advice_that_fits_the_machine(found, advice):
    assert advice in start.too_old((3, 10, 4), found)
    assert start.too_old((3, 11, 0), found) == ""


@pytest.mark.parametrize("module", ["__init__", "__main__"])
def test_an_old_python_can_read_the_files_that_say_so(module):
    source = (tiny_course.PACKAGE / f"{module}.py").read_text()
    ast.parse(source, feature_version=(3, 6))
    assert source.isascii()


def test_a_folder_that_cannot_be_written_is_said_in_one_sentence(fresh):
    (fresh / ".venv.lock").mkdir()  # stands for a read-only folder: root may write to those
    assert_one_sentence(tiny_course.run(fresh, "lab"), "cannot write into", "home folder")


@pytest.mark.skipif(not POSIX or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_said_in_one_sentence(fresh):
    fresh.chmod(0o555)
    assert_one_sentence(tiny_course.run(fresh, "lab"), "cannot write into", "home folder")
    fresh.chmod(0o755)


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_a_python_without_venv_is_told_what_to_install(fresh, module):
    done = tiny_course.run(fresh, "lab", before=f"import sys; sys.modules[{module!r}] = None")
    assert_one_sentence(done, f"has no module {module}", "nstall", "same command again")


def test_a_full_disk_is_said_before_anything_is_written(fresh):
    full = "import shutil; shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**12, 10**12, 10**8)"
    assert_one_sentence(tiny_course.run(fresh, "lab", before=full), "The disk is full", "0.1 GB are free")
    assert not (fresh / ".venv").exists()


def test_something_else_called_venv_is_left_alone(fresh):
    (fresh / ".venv").mkdir()
    (fresh / ".venv" / "my notes.txt").write_text("dear diary")
    assert_one_sentence(tiny_course.run(fresh, "lab"), "is no Python environment", "move it away")
    assert (fresh / ".venv" / "my notes.txt").exists()


def test_a_copy_without_a_course_around_it_says_so(fresh):
    (fresh / "pyproject.toml").unlink()
    assert_one_sentence(tiny_course.run(fresh, "lab"), "no course around", "clone")


@pytest.mark.parametrize(
    ("errors", "says"),
    [
        ("OSError: [Errno 28] No space left on device: '/x'", "The disk is full"),
        (
            "WARNING: Retrying: NameResolutionError: no\nERROR: No matching distribution found for torch==2.13.0",
            "online",
        ),
        ("ERROR: No matching distribution found for torch==2.13.0", "finds no torch==2.13.0 for this system"),
        ("ERROR: [Errno 13] Permission denied: '/x'", "writable"),
        ("ERROR: one\nERROR: two\nmore", "It says: ERROR: two"),
        ("", "It says: nothing"),
    ],
)
def test_a_failed_pip_is_explained(errors, says):
    explanation = installing.why_pip_failed(errors)
    assert says in explanation
    assert "same command again" in explanation


@pytest.fixture
def taken_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_taken_port_is_said_in_one_sentence(taken_port, capsys, monkeypatch):
    monkeypatch.setattr(needs, "problems", lambda extras=(): [])
    monkeypatch.setattr(bootstrap, "inside_venv", lambda: False)
    assert cli.main(["lab", "--port", str(taken_port)]) == 1
    assert f"Port {taken_port} is taken" in (said := capsys.readouterr().err)
    assert f"--port {taken_port + 1}" in said


def test_a_free_port_is_passed_on_and_so_is_what_follows_two_dashes(taken_port):
    args = cli.parse("lab", ["--no-browser", "--port", "8890", "--", "--ServerApp.ip=0.0.0.0"])
    line = lab.command(Path("/course/work"), "00 a/ü.ipynb", args)
    assert line[-1] == "--ServerApp.ip=0.0.0.0"
    assert {"--no-browser", "--port=8890", "--ServerApp.port_retries=0"} <= set(line)
    assert "--LabApp.default_url=/lab/tree/00%20a/%C3%BC.ipynb" in line


@pytest.mark.parametrize("port", ["0", "70000", "eight"])
def test_what_is_no_port_is_refused_before_any_set_up(port, fresh):
    done = tiny_course.run(fresh, "lab", "--port", port)
    assert done.returncode == 2
    assert f"not {port!r}" in done.stderr


# --- small parts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("2.13.0+cpu", "==2.13.0", True),
        ("2.13", "==2.13.0", True),
        ("2.13.1", "==2.13.0", False),
        ("2.13.0+cpu", "==2.13.0+cu130", False),
        ("2.13.0+cpu", "===2.13.0", False),
        ("2.13.0", "===2.13.0", True),
        ("4.10.1", ">=4.2,<5", True),
        ("5.0rc1", ">=4.2,<5", False),
        ("4.1", ">=4.2,<5", False),
        ("0.9.5.post1", ">=0.9.5,<0.10", True),
        ("1.0", "", True),
    ],
)
def test_a_version_is_in_range_or_not(version, wanted, fits):
    assert needs.in_range(version, wanted) is fits


def test_a_torch_that_pip_finds_elsewhere_may_have_any_version(monkeypatch):
    monkeypatch.setenv(needs.TORCH, "--pre torch --index-url https://example.org/nightly")
    assert needs.torch_requirement() == "torch"
    assert needs.torch_arguments()[:2] == ["--pre", "torch"]
    monkeypatch.setenv(needs.TORCH, "torch>=2.14 --index-url https://example.org")
    assert "torch>=2.14" in needs.requirements()


def test_an_unknown_command_gets_a_short_list_of_those_there_are(capsys):
    assert cli.main(["labb"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("There is no command 'labb'.")
    assert all(name in said for name in cli.COMMANDS)
    assert cli.main(["--help"]) == 0


def test_after_a_set_up_that_did_not_help_nothing_goes_round_in_circles(fresh):
    done = tiny_course.run(fresh, "lab", MHA_COURSE_HANDED_OVER="1")
    assert_one_sentence(done, "still lacks", "delete that folder")


def test_every_package_that_is_asked_for_is_recognised_where_it_is_installed():
    """The name to install and the name to import differ for some: those must be known."""
    from importlib import metadata

    names = [needs.split(line)[0] for line in needs.requirements(("test", "cluster"))]
    there = []
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            metadata.version(name)
            there.append(name)
    assert len(there) > 5
    assert [name for name in there if not needs.installed_version(name)] == []


# --- uv, pip and the build of PyTorch -----------------------------------------------------------


def program(folder, name, code):
    """A program of this name that runs this Python code. Gives the folder, for PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!{sys.executable}\nimport sys\n{code}")
    (folder / name).chmod(0o755)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not POSIX, reason="a script as a program")
@pytest.mark.parametrize(
    ("version", "said"),
    [("0.13.9", "uv could not do that: trying with pip"), ("0.4.0", "uv cannot be had here")],
)
def test_where_uv_fails_or_is_too_old_pip_does_the_same(fresh, wheels, tmp_path, version, said):
    code = f"print('uv {version}') if '--version' in sys.argv else sys.exit('a fault of its own')"
    path = os.pathsep.join([str(program(tmp_path / "bin", "uv", code)), os.environ["PATH"]])
    done = tiny_course.run(fresh, "lab", wheels=wheels, uv=False, PATH=path)
    assert said in done.stdout
    assert tiny_course.told(done, "jupyterlab"), done.stderr
    assert (site_packages(fresh) / "mha_course_tiny-1.5.dist-info").exists()  # as constraints.txt has it


FAKE_UV = """
import sys
backend = sys.argv[sys.argv.index("--torch-backend") + 1] if "--torch-backend" in sys.argv else "none"
limits = open(sys.argv[sys.argv.index("--constraint") + 1]).read()
version = {versions}.get(backend)
if version is None or ("nvidia" in limits) != (backend == "none"):
    sys.exit("no such build")
print(" + jinja2==3.1.6\\n + torch==" + version, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("gpu", "versions", "chosen", "says"),
    [
        ("", {"cpu": "2.13.0+cpu"}, "cpu", ["No NVIDIA GPU here", "CPU build", "README"]),
        (
            "",
            {"none": "2.13.0"},
            "",
            ["PyTorch's own index cannot be reached", "for NVIDIA GPUs: several GB"],
        ),
        ("", {"none": "2.13.0+cpu"}, "", ["PyTorch's own index cannot be reached", "taking the CPU build"]),
        (
            "H200",
            {"auto": "2.13.0+cu130", "none": "2.13.0"},
            "auto",
            ["GPU here (H200): taking a build that suits"],
        ),
        ("H200", {"none": "2.13.0"}, "", ["PyTorch's own index cannot be reached"]),
        ("", {}, "", ["PyTorch's own index cannot be reached"]),
    ],
)
def test_on_linux_the_build_of_torch_suits_the_machine(
    tmp_path, monkeypatch, capsys, gpu, versions, chosen, says
):
    (tmp_path / "constraints.txt").write_text("jinja2==3.1.6\ntorch==2.13.0\nnvidia-cublas==13.1.1.3\n")
    (tmp_path / ".venv").mkdir()
    (tmp_path / "uv.py").write_text(FAKE_UV.format(versions=versions))
    monkeypatch.setattr(installing, "CONSTRAINTS", tmp_path / "constraints.txt")
    monkeypatch.setattr(installing, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(installing, "nvidia_gpu", lambda: gpu)
    monkeypatch.setattr(installing, "pip_settings", dict)
    monkeypatch.setattr(sys, "platform", "linux")
    arguments = installing.choose_build([sys.executable, str(tmp_path / "uv.py")], ["torch==2.13.0"])
    assert arguments[0] == "torch==2.13.0"
    assert arguments[1:3] == ["--torch-backend", chosen] if chosen else "--torch-backend" not in arguments
    said = capsys.readouterr().out
    assert all(part in said for part in says)
    assert len(said.splitlines()) == len(says[:2]) - ("No NVIDIA GPU here" in says)


@pytest.mark.skipif(not POSIX, reason="a script as a program")
@pytest.mark.parametrize(
    ("code", "gpu"),
    [
        ("print('GPU 0: NVIDIA H200 (UUID: GPU-1)')", "NVIDIA H200"),
        ("sys.exit('NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.')", ""),
        ("print('No devices were found')", ""),
    ],
)
def test_a_gpu_is_one_that_its_driver_names(tmp_path, monkeypatch, code, gpu):
    monkeypatch.setenv("PATH", str(program(tmp_path, "nvidia-smi", code)))
    if gpu or not Path("/proc/driver/nvidia/gpus").exists():
        assert installing.nvidia_gpu() == gpu


def test_what_pip_is_configured_with_counts_for_uv_unless_uv_has_its_own(monkeypatch):
    told = """:env:.find-links='/a /b'
:env:.disable-pip-version-check='1'
global.find-links='/c'
global.index-url='https://mirror.example/simple'
global.extra-index-url='https://one.example\\nhttps://two.example'
global.cert='/own/ca.pem'
freeze.timeout='9'
"""
    done = subprocess.CompletedProcess([], 0, told, "")
    for name in [name for name in os.environ if name.startswith("UV_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(installing, "in_venv", lambda *arguments: done)
    monkeypatch.setenv("SSL_CERT_FILE", "/uv/has/its/own.pem")
    installing.pip_settings.cache_clear()
    found = installing.uv_variables()
    installing.pip_settings.cache_clear()
    assert found["UV_FIND_LINKS"] == "/a,/b"
    assert found["UV_INDEX_URL"] == "https://mirror.example/simple"
    assert found["UV_EXTRA_INDEX_URL"] == "https://one.example https://two.example"
    assert found["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert found["SSL_CERT_FILE"] == "/uv/has/its/own.pem"
