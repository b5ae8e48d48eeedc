"""The doctor: says what is here, and what to do about each problem; 1 if something needed is wrong."""

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tiny_course

from mha_course import bootstrap, doctor, installing, needs

ANSWER = {"sum": 9.0, "cuda": "", "mps": False, "threads": 2, "build": [None, None, None], "warned": ""}


@pytest.fixture
def packages_are(monkeypatch):
    """Pretend that these versions are installed, and nothing else."""

    def pretend(**versions):
        monkeypatch.setattr(needs, "installed_version", lambda name: versions.get(name, ""))

    return pretend


def statuses(findings):
    return [finding.status for finding in findings]


def test_here_everything_that_is_needed_is_found(capsys):
    assert doctor.report() == 0
    said = capsys.readouterr().out
    for what in ("Python", "torch", "device", "kernel", "nbgrader", "memory", "disk"):
        assert f"✓ {what}" in said
    assert "Everything that is needed is here." in said


def test_where_nothing_is_installed_it_names_what_is_missing_and_says_what_to_do(tmp_path):
    root = tiny_course.make_course(tmp_path / "clone")
    done = tiny_course.run(root, "doctor")
    assert done.returncode == 1
    assert "✗ packages    not installed: " in done.stdout
    assert "mha-course-tiny" in done.stdout
    assert "→ run: python3 -m mha_course lab" in done.stdout
    assert "your attention" in done.stdout
    assert not (root / ".venv").exists()


def test_a_missing_torch_is_no_reason_to_stop(packages_are):
    packages_are(numpy="2.4.6")
    (finding,) = doctor.torch()
    assert (finding.status, finding.text) == ("bad", "not installed")
    assert doctor.kernel() == doctor.nbgrader() == []


def test_a_version_out_of_range_is_bad_and_says_which_range(packages_are):
    packages_are(numpy="1.26.4", torch="2.9.0")
    old = doctor.packages()[0]
    assert (old.status, old.text) == ("bad", "1.26.4, which is not >=2.0,<3")
    assert "2.9.0, which is not ==2.13.0" in doctor.torch()[0].text


def test_a_torch_that_does_not_work_is_bad_and_its_last_word_is_shown(monkeypatch):
    monkeypatch.setattr(
        doctor, "ASK_TORCH", "raise OSError('libcudart.so.13: cannot open shared object file')"
    )
    (finding,) = doctor.torch()
    assert finding.status == "bad"
    assert "libcudart.so.13" in finding.text
    monkeypatch.setattr(doctor, "ASK_TORCH", "import os; os.abort()")
    assert "it ended with code" in doctor.torch()[0].text


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"cuda": "NVIDIA H200"}, "CUDA: NVIDIA H200"),
        ({"mps": True}, "MPS: this Mac's GPU"),
        ({}, "the CPU, 2 threads"),
    ],
)
def test_the_device_is_named(monkeypatch, told, says):
    monkeypatch.setattr(doctor, "ask_torch", lambda: (ANSWER | told, ""))
    assert doctor.torch()[-1].text.startswith(says)


OLD_DRIVER = (
    "CUDA initialization: The NVIDIA driver on your system is too old (found version 12020). Please update"
)


@pytest.mark.parametrize(
    ("told", "gpu", "status", "says"),
    [
        (
            {"build": ["13.0", None, None]},
            "",
            "note",
            "for NVIDIA GPUs (CUDA 13.0), but there is no NVIDIA GPU here",
        ),
        ({"build": ["13.0", None, None], "cuda": "H200"}, "H200", "good", "CUDA 13.0), and there is one"),
        (
            {"build": ["13.0", None, None], "warned": OLD_DRIVER},
            "H200",
            "note",
            "is too old (found version 12020)",
        ),
        ({"build": [None, None, None]}, "H200", "note", "there is an NVIDIA GPU here (H200): lesson 07"),
        ({"build": [None, "7.2", None]}, "", "good", "for AMD GPUs (ROCm 7.2)"),
        ({"build": [None, None, "20250301"]}, "", "good", "for Intel GPUs"),
        ({"build": [None, None, None]}, "", "good", "for the CPU"),
    ],
)
@pytest.mark.parametrize("ours", [True, False])
def test_the_build_of_torch_is_named_and_whether_it_suits_the_machine(
    monkeypatch, told, gpu, status, says, ours
):
    monkeypatch.setattr(installing, "nvidia_gpu", lambda: gpu)
    monkeypatch.setattr(bootstrap, "inside_venv", lambda: ours)
    monkeypatch.setattr(sys, "platform", "linux")
    finding = doctor.build(ANSWER | told)
    assert finding.status == status  # never bad: it works
    assert says in finding.text
    assert bool(finding.cure) == (status == "note" and bool(gpu))
    if finding.cure:
        assert ('MHA_COURSE_TORCH="torch==2.13.0 --torch-backend auto"' in finding.cure) == ours


def test_what_the_build_here_is_comes_from_torch_itself(monkeypatch):
    import torch

    (finding,) = [finding for finding in doctor.torch() if finding.what == "build"]
    assert ("CUDA" in finding.text) == bool(torch.version.cuda)
    monkeypatch.setattr(
        doctor, "ASK_TORCH", doctor.ASK_TORCH.replace("cuda = ", "warnings.warn('old driver'); cuda = ")
    )
    told, _ = doctor.ask_torch()
    assert told["warned"] == "old driver"


@pytest.mark.parametrize(
    "odd",
    [
        {"HOME": None, "USERPROFILE": None, "PATH": ""},
        {"HOME": "/nonexistent/of nobody", "TMPDIR": "/nonexistent"},
        {"LC_ALL": "C", "COLUMNS": "0", "TERM": "dumb"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
    ids=str,
)
def test_in_an_odd_environment_the_doctor_says_the_same(odd, tmp_path):
    """Also from a folder with spaces and letters of other alphabets; good and bad differ on any terminal."""
    folder = tmp_path / "mein schöner 课程"
    folder.mkdir()
    variables = {**os.environ, **odd, "PYTHONPATH": str(needs.ROOT)}
    variables = {name: value for name, value in variables.items() if value is not None}
    command = [sys.executable, "-m", "mha_course", "doctor"]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, encoding="utf-8")
    assert done.stderr == ""
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("Everything that is needed is here.\n")
    assert "?" not in done.stdout
    assert {line[:2].strip() for line in done.stdout.splitlines()[:-2]} <= {"✓", "·", "ok", "--", ""}


def test_a_torch_that_computes_wrongly_is_bad(monkeypatch):
    monkeypatch.setattr(doctor, "ask_torch", lambda: (ANSWER | {"sum": 8.0}, ""))
    assert "bad" in statuses(doctor.torch())


def test_a_kernel_of_another_python_is_bad(monkeypatch):
    import jupyter_client.kernelspec

    elsewhere = SimpleNamespace(
        argv=["/elsewhere/bin/python", "-m", "ipykernel_launcher"], resource_dir="/kernels"
    )
    manager = SimpleNamespace(get_kernel_spec=lambda name: elsewhere)
    monkeypatch.setattr(jupyter_client.kernelspec, "KernelSpecManager", lambda: manager)
    (finding,) = doctor.kernel()
    assert finding.status == "bad"
    assert "another Python (/elsewhere/bin/python)" in finding.text


def test_nbgrader_without_its_buttons_or_without_alembic_is_bad(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    assert "alembic" in doctor.nbgrader()[0].text
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(doctor, "jupyter_data_folders", list)
    (finding,) = doctor.nbgrader()
    assert finding.status == "bad"
    assert "buttons are not in JupyterLab" in finding.text


def test_little_memory_is_a_note_and_a_full_disk_is_bad(monkeypatch):
    monkeypatch.setattr(doctor, "free_memory", lambda: 0.4e9)
    assert statuses(doctor.memory()) == ["note"]
    monkeypatch.setattr(doctor, "free_memory", lambda: None)
    assert statuses(doctor.memory()) == ["note"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1e7))
    assert statuses(doctor.disk()) == ["bad"]


def test_without_psutil_free_memory_is_still_told_on_linux(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    free = doctor.free_memory()
    assert free is None or free > 1e6
    if sys.platform == "linux":
        assert free is not None


def test_a_half_made_environment_is_bad_where_it_is_needed(monkeypatch):
    monkeypatch.setattr(bootstrap, "look", lambda: ("unfinished", ""))
    monkeypatch.setattr(needs, "problems", lambda: [needs.Problem("numpy", "")])
    finding = doctor.python()[-1]
    assert finding.status == "bad"
    assert "unfinished" in finding.text
