"""The files around the code: they agree with each other, and with what is there."""

import contextlib
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import mha_course
from mha_course import __main__ as start
from mha_course import constraints as constraints_command
from mha_course import installing, needs

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROSE = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def all_requirements():
    extras = PROJECT["project"]["optional-dependencies"].values()
    return [*PROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)]


@pytest.mark.parametrize("requirement", all_requirements())
def test_every_requirement_has_a_lower_and_an_upper_bound_that_the_set_up_understands(requirement):
    name, versions = needs.split(requirement)
    exactly = versions.startswith("==")
    assert exactly == (name == "torch")
    assert exactly or re.fullmatch(r">=[\d.]+,<[\d.]+", versions)


def test_conda_installs_this_folder_and_so_exactly_what_pyproject_pins():
    environment = yaml.safe_load(text_of("environment.yml"))
    plain = [line for line in environment["dependencies"] if isinstance(line, str)]
    (through_pip,) = [line["pip"] for line in environment["dependencies"] if isinstance(line, dict)]
    python, pip = plain
    assert pip == "pip"
    name, version = python.split("=")
    assert name == "python"
    assert needs.in_range(version, PROJECT["project"]["requires-python"])
    constraint, editable = through_pip  # nothing of its own that could differ
    assert constraint == f"--constraint {installing.CONSTRAINTS.name}"
    assert re.findall(r"\d+\.\d+", text_of("environment.yml")) == [version]
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", editable)[1].split(",")
    assert set(extras) == set(PROJECT["project"]["optional-dependencies"]) - {
        "cluster"
    }  # for instructors who ask for it


def constraints():
    lines = [line for line in text_of("constraints.txt").splitlines() if not line.startswith("#")]
    return [Requirement(line) for line in lines]


MACHINES = [
    {
        "python_version": f"3.{minor}",
        "python_full_version": f"3.{minor}.{patch}",
        "sys_platform": system,
        "platform_system": {"linux": "Linux", "darwin": "Darwin", "win32": "Windows"}[system],
        "os_name": "nt" if system == "win32" else "posix",
        "platform_machine": machine,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }
    for minor in (11, 12, 13)
    for patch in (0, 7)
    for system, machine in [
        ("linux", "x86_64"),
        ("linux", "aarch64"),
        ("darwin", "arm64"),
        ("darwin", "x86_64"),
        ("win32", "AMD64"),
    ]
]


def exact_versions(machine):
    """{name: version} of what constraints.txt has for a machine. None has two."""
    there = [line for line in constraints() if line.marker is None or line.marker.evaluate(machine)]
    assert len({line.name for line in there}) == len(there)
    return {canonicalize_name(line.name): str(line.specifier).removeprefix("==") for line in there}


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m['python_full_version']}-{m['sys_platform']}")
def test_constraints_have_one_version_that_fits_for_each_requirement_on_every_machine(machine):
    """If this fails: python3 -m mha_course constraints."""
    there = exact_versions(machine)
    for line in [*all_requirements(), *PROJECT["build-system"]["requires"], installing.UV]:
        wanted = Requirement(line)
        assert wanted.specifier.contains(there[canonicalize_name(wanted.name)]), line


def test_constraints_hold_for_what_is_needed_in_turn_too():
    """Followed through what is installed here, from this project down. If it fails: mha_course constraints --upgrade."""
    here = exact_versions({**default_environment(), "extra": ""})
    seen, ahead = set(), [Requirement(line) for line in all_requirements()]
    while ahead:
        wanted = ahead.pop()
        name = canonicalize_name(wanted.name)
        if (name, *wanted.extras) in seen:
            continue
        seen.add((name, *wanted.extras))
        assert name in here, f"{wanted} is needed, but constraints.txt does not have it"
        assert wanted.specifier.contains(here[name], prereleases=True), (
            f"{wanted} is needed, not {here[name]}"
        )
        with contextlib.suppress(metadata.PackageNotFoundError):  # an extra that is not installed
            if (
                Version(metadata.version(name)).public == here[name]
            ):  # another version may need something else
                ahead += needed_by(name, wanted.extras or {""})
    assert len(seen) > 20


def needed_by(name, extras):
    """The requirements of an installed distribution that hold here, with these extras of its own."""
    inner = [Requirement(line) for line in metadata.requires(name) or []]
    return [
        line
        for line in inner
        if line.marker is None or any(line.marker.evaluate({"extra": x}) for x in extras)
    ]


def test_constraints_name_versions_and_nothing_else():
    assert [line for line in constraints() if line.url or not str(line.specifier).startswith("==")] == []
    assert not re.search(r"://|--|@|sha256", text_of("constraints.txt"))
    assert f"#    {constraints_command.COMMAND}" in text_of("constraints.txt")


def test_the_set_up_asks_for_the_uv_of_pyproject():
    assert installing.UV in PROJECT["project"]["optional-dependencies"]["test"]


def test_torch_is_pinned_in_one_place():
    (pin,) = [line for line in PROJECT["project"]["dependencies"] if line.startswith("torch")]
    pattern = re.compile(r"torch\s*==\s*[\d.]+")
    places = (
        ROOT.glob("*.*"),
        (ROOT / ".ci").iterdir(),
        *((ROOT / name).rglob("*.py") for name in ("mha_course", "solutions")),
    )
    found = {}
    for path in (file for files in places for file in files):
        pins = (
            pattern.findall(path.read_text(encoding="utf-8"))
            if path.is_file() and path.suffix != ".md"
            else []
        )
        found |= {path.relative_to(ROOT).as_posix(): pins} if pins else {}
    assert found == {"pyproject.toml": [pin], "constraints.txt": [pin]}  # the latter is made from the former
    assert set(pattern.findall(text_of("README.md"))) == {pin}  # an example; it must not mislead


def test_the_oldest_python_is_the_same_wherever_it_is_said():
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert tuple(map(int, oldest.split("."))) == start.OLDEST
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    assert f"Python {oldest} or newer" in text_of("README.md")


def test_the_version_is_the_same_wherever_it_is_said():
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert str(citation["version"]) == mha_course.__version__
    assert " AND ".join(citation["license"]) == PROJECT["project"]["license"]


def test_importing_the_package_imports_the_standard_library_only():
    asks = "import sys; import mha_course; dir(mha_course); print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", asks], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    tops = {name.split(".")[0] for name in modules} - {"mha_course", "__main__"}
    before = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    strange = {top for top in tops if top not in sys.stdlib_module_names} - {
        name.split(".")[0] for name in before
    }
    assert not strange
    assert "torch" not in tops


@pytest.mark.parametrize(
    "module",
    ["bootstrap", "cli", "constraints", "doctor", "installing", "lab", "lessons", "needs", "running_tests"],
)
def test_what_runs_before_the_set_up_needs_the_standard_library_only(module):
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); import mha_course.{module}",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_public_names_are_there_when_asked_for():
    assert {"check", "CheckFailed", "NotYetWritten", "plots", "reference", "__version__"} <= set(
        dir(mha_course)
    )
    assert issubclass(mha_course.NotYetWritten, mha_course.CheckFailed)
    assert callable(mha_course.check)
    with pytest.raises(AttributeError, match="no attribute 'chekc'"):
        _ = mha_course.chekc


def test_a_missing_torch_is_said_where_the_names_are_imported():
    asks = "import sys; sys.modules['torch'] = None; from mha_course import check"
    done = subprocess.run([sys.executable, "-c", asks], cwd=ROOT, capture_output=True, text=True)
    assert "mha_course needs torch, which this Python" in done.stderr
    assert done.stderr.rstrip().endswith("python3 -m mha_course doctor")


@pytest.mark.parametrize("name", PROSE)
def test_every_link_to_a_file_leads_somewhere(name):
    for target in re.findall(r"\]\(([^)#\s]+)", text_of(name)):
        if "://" not in target:
            assert (ROOT / name).parent.joinpath(target).exists(), target


def test_readme_has_two_commands_on_its_first_screen_and_lists_the_released_lessons():
    first_screen = text_of("README.md").split("![")[0]
    commands = re.findall(r"```\n(.+?)\n```", first_screen, re.DOTALL)
    assert commands == ["python3 -m mha_course lab", "python3 -m mha_course test"]
    listed = re.findall(r"^\| (\d\d) \|", text_of("README.md"), re.MULTILINE)
    released = sorted(path.name[:2] for path in (ROOT / "notebooks").glob("[0-9]*_*"))
    assert listed == released


def test_readme_names_the_five_nbgrader_commands():
    named = set(re.findall(r"^nbgrader (\w+)", text_of("README.md"), re.MULTILINE))
    assert named == {"generate_assignment", "validate", "autograde", "generate_feedback", "export"}


def test_continuous_integration_calls_the_one_test_command():
    script = ROOT / ".ci" / "run"
    commands = [
        line for line in script.read_text().splitlines() if line and not line.lstrip().startswith("#")
    ]
    assert commands[-2:] == [".ci/default-build", "python3 -m mha_course test"]
    for path in script.parent.iterdir():
        assert "pip install" not in path.read_text()
        assert os.name != "posix" or os.access(path, os.X_OK)


def test_what_the_default_build_of_torch_is_tried_with_exists():
    script = text_of(".ci/default-build")
    assert re.findall(r"graded=(\w+)", script)[0] in text_of("tests/test_grading_lessons.py")
    assert (ROOT / "solutions" / re.search(r"\[(\d\d_\w+)\]", script)[1]).is_dir()
    assert all((ROOT / name).exists() for name in re.findall(r"tests/test_(?!environments)\w+\.py", script))


BACKGROUND = """
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what it starts with &
sys.path.insert(0, sys.argv[1])
import conftest
ask = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
print(subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True).stdout)
"""


def test_tests_that_were_started_in_the_background_can_still_press_ctrl_c():
    command = [sys.executable, "-c", BACKGROUND, str(Path(__file__).parent)]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == "True"


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_code_and_text_sources_are_linted_and_formatted(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command.split()], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_warnings_from_our_own_package_are_errors(pytestconfig):
    (line,) = pytestconfig.getini("filterwarnings")
    action, message, category, module = line.split(":", 3)
    assert (action, message, category) == ("error", "", "")
    assert re.match(module, "mha_course.tutor")
    assert not re.match(module, "mha_courses")
