"""The course in somebody else's environment: what libraries say there costs no mark, fails no test, frightens nobody.

The few environments of `TOGETHER` are tried each time, each alone (`ALONE`) only where every combination is asked for (-m exhaustive). With another
build of torch (PyPI's default one for Linux brings CUDA), run this file with that Python.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from nbgrader.converters.autograde import Autograde
from nbgrader.utils import determine_grade

from mha_course import bootstrap, building, nbgrader_steps, quiet
from mha_course.grading import sandbox

ROOT = building.ROOT
needs_sandbox = pytest.mark.skipif(not sandbox.available()[0], reason=sandbox.available()[1])

# A variable that is None is not set; {blocked} is a path that not even root can make, {here} a folder that is there.
ALONE = {
    "CUDA_HOME is there": {"CUDA_HOME": "{here}"},
    "CUDA_HOME is gone": {"CUDA_HOME": "{blocked}"},
    "no compiler": {"PATH": "{here}", "CXX": None},
    "a compiler that is gone": {"CXX": "{blocked}"},
    "no home": {"HOME": None},
    "home cannot be written": {"HOME": "{blocked}"},
    "matplotlib's folder cannot be written": {"MPLCONFIGDIR": "{blocked}"},
    "matplotlib has no fonts yet": {"MPLCONFIGDIR": "{here}/fonts"},
    "the compiler's folder cannot be written": {"TORCHINDUCTOR_CACHE_DIR": "{blocked}"},
    "IPython's folder cannot be written": {"IPYTHONDIR": "{blocked}"},
    "the cache cannot be written": {"XDG_CACHE_HOME": "{blocked}", "XDG_CONFIG_HOME": "{blocked}"},
    "TORCH_LOGS": {"TORCH_LOGS": "+all"},
    "TORCH_LOGS with a mistake": {"TORCH_LOGS": "nonsense"},
    "C++ stack traces": {"TORCH_SHOW_CPP_STACKTRACES": "1", "TORCH_CPP_LOG_LEVEL": "INFO"},
    "the compiler's debugging": {"TORCH_COMPILE_DEBUG": "1", "TORCHDYNAMO_VERBOSE": "1"},
    "no jit": {"PYTORCH_JIT": "0", "TORCHDYNAMO_DISABLE": "1"},
    "an old name for the allocator": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
    "all warnings": {"PYTHONWARNINGS": "always"},
    "warnings are errors": {"PYTHONWARNINGS": "error"},
    "developers' mode": {"PYTHONDEVMODE": "1", "PYTHONASYNCIODEBUG": "1"},
    "warnings of encodings": {"PYTHONWARNDEFAULTENCODING": "1", "PYTHONWARNINGS": "always"},
    "no asserts": {"PYTHONOPTIMIZE": "1"},
    "no docstrings": {"PYTHONOPTIMIZE": "2"},
    "OpenMP talks": {"OMP_DISPLAY_ENV": "VERBOSE", "KMP_SETTINGS": "1", "OMP_DISPLAY_AFFINITY": "TRUE"},
    "OpenMP is misunderstood": {"OMP_NUM_THREADS": "many", "OMP_PROC_BIND": "nonsense"},
    "MKL and oneDNN talk": {"MKL_VERBOSE": "1", "ONEDNN_VERBOSE": "1", "DNNL_VERBOSE": "1"},
    "many threads": {"OMP_NUM_THREADS": "7", "MKL_NUM_THREADS": "3"},
    "another locale": {"LC_ALL": "de_DE.UTF-8", "LANG": "de_DE.UTF-8"},
    "a locale that is not there": {"LC_ALL": "xx_YY", "LANG": "xx_YY"},
    "the C locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ASCII only": {"PYTHONIOENCODING": "ascii"},
    "a time zone that is not there": {"TZ": "Nowhere/Nothing"},
    "a dumb terminal": {"TERM": "dumb", "COLUMNS": "0", "LINES": "0"},
    "no terminal": {"TERM": None, "COLUMNS": None},
    "another backend": {"MPLBACKEND": "agg"},
    "no network": dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9"),
    "no temporary folder": {"TMPDIR": "{blocked}"},
    "GPUs by number": {"CUDA_VISIBLE_DEVICES": "0", "NVIDIA_VISIBLE_DEVICES": "all"},
    "an old processor": {"ATEN_CPU_CAPABILITY": "default"},
}


def several(*names):
    return {variable: value for name in names for variable, value in ALONE[name].items()}


TOGETHER = {
    "everything talks": several(
        *("OpenMP talks", "OpenMP is misunderstood", "MKL and oneDNN talk", "TORCH_LOGS", "all warnings"),
        *(
            "C++ stack traces",
            "the compiler's debugging",
            "an old name for the allocator",
            "CUDA_HOME is there",
        ),
    ),
    "nothing can be written": several(
        *("home cannot be written", "matplotlib's folder cannot be written"),
        *("the compiler's folder cannot be written", "the cache cannot be written"),
    ),
    "a bare machine": several(
        *("no compiler", "the C locale", "a time zone that is not there", "a dumb terminal", "no network"),
    ),
}
exhaustive = pytest.mark.exhaustive  # each environment alone; those together are always tried
CASES = [pytest.param(name, id=name) for name in TOGETHER]
CASES += [pytest.param(name, id=name, marks=exhaustive) for name in ALONE]

# Stands for what an installed library does; it lies in a folder that is called as theirs is.
LIBRARY = """
import logging, os, subprocess, sys, warnings

def talk():
    logging.getLogger("torch.utils.cpp_extension").warning("No CUDA runtime is found, using CUDA_HOME='/opt/cuda'")
    logging.getLogger("matplotlib.font_manager").warning("Matplotlib is building the font cache; a moment please.")
    logging.getLogger("elsewhere").error("the socket is closed")
    warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old (found version 11040).")
    warnings.warn("this will be removed", FutureWarning)

def shout():
    talk()
    os.write(2, b"OMP: Warning #96: Cannot form a team with 7 threads\\n")
    subprocess.run([sys.executable, "-S", "-c", "import os; os.write(2, b'cc1plus: warning')"])
"""

LEARNER = """
def pick_device(cuda=None, mps=None):
    import a_library
    a_library.shout()
    if cuda is None:
        cuda = torch.cuda.is_available()
    if mps is None:
        mps = torch.backends.mps.is_available()
    return torch.device("cuda" if cuda else "mps" if mps else "cpu")
"""

PROBE = {
    "imports": "import torch\n\nfrom mha_course import check, flex, plots",
    "settled": "import threading\nprint([t.name for t in threading.enumerate() if 'mha_course' in t.name])",
    "answer": LEARNER,
    "check": "check(pick_device)",
    "timer": "from torch.utils.benchmark import Timer\nTimer('x', globals={'x': 1}).timeit(1)",
    "library": "import a_library\na_library.talk()",
    "picture": "from matplotlib.figure import Figure\nfig = Figure()\nfig.subplots().plot([1, 2])\n"
    "plots.show(fig, alt='A line that rises from the lower left corner to the upper right one.')",
    "eager": "q = torch.ones(1, 1, 4, 2)\nprint(flex.attention(q, q, q, compiled=False)[1])",
    "own": "import sys\nprint('mine', file=sys.stderr)",
    "own warning": "import warnings\nwarnings.warn('I warn')",
    "own log": "import logging\nlogging.getLogger('me').warning('I log')",
}
OWN = {
    "own": "mine",
    "own warning": "I warn",
    "own log": "I log",
}  # what is to be on stderr, and nowhere else

RUN = """
import sys, nbformat
from nbclient import NotebookClient
nb = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(nb, timeout=240, kernel_name="python3", allow_errors=True, coalesce_streams=True).execute()
nbformat.write(nb, sys.argv[1])
"""


def environment(name, folder, **more):
    """All variables of a process in one of the environments above."""
    folder = folder.resolve()
    (folder / "here").mkdir(exist_ok=True)
    (folder / "file").write_text("")
    if shutil.which("bwrap") and not (folder / "here" / "bwrap").exists():
        (folder / "here" / "bwrap").symlink_to(shutil.which("bwrap"))
    places = {"blocked": str(folder / "file" / "below"), "here": str(folder / "here")}
    wanted = (ALONE | TOGETHER | {"": {}})[name] | more
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    for variable, value in wanted.items():
        variables.pop(variable, None)
        if value is not None:
            variables[variable] = value.format(**places)
    return variables


def started_by_lab(variables, monkeypatch):
    """The variables with which ``mha-course lab`` starts JupyterLab, and it its kernels, where there are these."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", variables)
        return bootstrap.environment()


def executed(cells, folder, variables):
    """What cells put out in a kernel, by their names: (stream or kind of output, text) each."""
    library = folder / "site-packages"
    library.mkdir()
    (library / "a_library.py").write_text(LIBRARY)
    path = [str(library), variables.get("PYTHONPATH", "")]
    variables = {**variables, "PYTHONPATH": os.pathsep.join(path)}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nb = new_notebook(cells=[new_code_cell(cell) for cell in cells.values()], metadata={"kernelspec": kernel})
    nbformat.write(nb, folder / "probe.ipynb")
    command = [sys.executable, "-c", RUN, str(folder / "probe.ipynb")]
    done = subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, encoding="utf-8", errors="replace"
    )
    assert done.returncode == 0, done.stderr
    nb = nbformat.read(folder / "probe.ipynb", as_version=4)
    return {name: [told(output) for output in cell.outputs] for name, cell in zip(cells, nb.cells)}


def told(output):
    if output.output_type == "stream":
        return output.name, output.text
    if output.output_type == "error":
        return "error", f"{output.ename}: {output.evalue}"
    return output.output_type, str(output.data.get("text/plain", ""))


def on_stderr(outputs):
    return {name: text for name, cell in outputs.items() for kind, text in cell if kind == "stderr"}


def run(arguments, variables, folder=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "mha_course", *arguments],
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )


# ------------------------------------------------------------------------------- every environment


@pytest.mark.parametrize("name", CASES)
def test_a_notebook_shows_nothing_in_red_but_what_the_learner_wrote_there(name, tmp_path, monkeypatch):
    variables = started_by_lab(environment(name, tmp_path), monkeypatch)
    outputs = executed(PROBE, tmp_path, variables)
    errors = {cell: text for cell, seen in outputs.items() for kind, text in seen if kind == "error"}
    assert errors == {}
    red = on_stderr(outputs)
    assert set(red) == set(OWN), red
    assert all(OWN[cell] in text and "a_library" not in text for cell, text in red.items())
    # Two threads that import parts of torch at a time may get half a module each: the second cell waits for the first's.
    assert outputs["settled"] == [("stdout", "[]\n")]
    (kind, card) = outputs["check"][0]
    assert kind == "display_data" and "pick_device" in card and "warned" not in card and "OMP" not in card
    notes = "".join(text for kind, text in outputs["library"] if kind == "stdout")
    assert "too old for this PyTorch: torch computes on the CPU" in notes
    assert "the socket is closed" in notes and "removed" not in notes and "CUDA_HOME" not in notes


@pytest.mark.parametrize("name", CASES)
def test_the_doctor_finds_everything_well_and_writes_nothing_to_stderr(name, tmp_path):
    done = run(["doctor"], environment(name, tmp_path))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "torch" in done.stdout and "Traceback" not in done.stdout


@needs_sandbox
@pytest.mark.parametrize("name", CASES)
def test_a_right_submission_gets_full_marks_and_the_grader_says_nothing_else(name, tmp_path):
    assert_full_marks(tmp_path, environment(name, tmp_path))


def assert_full_marks(folder, variables, course=ROOT):
    lesson = "00_start_here"
    shutil.copytree(ROOT / "notebooks" / lesson, folder / "notebooks" / lesson, dirs_exist_ok=True)
    submitted = folder / "grading" / "submitted" / "ada" / lesson
    submitted.mkdir(parents=True)
    shutil.copyfile(ROOT / "solutions" / lesson / f"{lesson}.ipynb", submitted / f"{lesson}.ipynb")
    done = run(["grade", "00", "--root", str(folder), "--json", "--jobs", "1"], variables, course)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["mean"] == told["maximum"] > 0
    assert [line for line in done.stderr.splitlines() if "1/1" not in line] == []  # the progress bar


@needs_sandbox
def test_a_clone_may_lie_in_a_path_with_spaces_and_letters_that_are_not_ascii(tmp_path, monkeypatch):
    clone = tmp_path / "Mein Kurs – äöü 注意"
    for part in ("mha_course", "notebooks/00_start_here", "solutions/00_start_here"):
        shutil.copytree(ROOT / part, clone / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "nbgrader_config.py"):
        shutil.copy(ROOT / part, clone)
    variables = environment("", tmp_path, PYTHONPATH=str(clone))
    done = run(["doctor"], variables, clone)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert_full_marks(clone, variables, clone)
    cells = {"check": "import mha_course\nfrom mha_course import check\nprint(mha_course.__file__)"}
    outputs = executed(cells, clone, variables)
    assert outputs["check"] == [("stdout", f"{clone / 'mha_course' / '__init__.py'}\n")]


@exhaustive
@pytest.mark.parametrize("lesson", ["00_start_here", "07_gpu"])
@pytest.mark.parametrize("name", TOGETHER)
def test_a_whole_lesson_runs_clean(name, lesson, tmp_path, monkeypatch):
    source = ROOT / "solutions" / lesson / f"{lesson}.py"
    monkeypatch.setattr(os, "environ", environment(name, tmp_path))
    for cell in building.execute(building.read_source(source), source.parent, source.stem).cells:
        if building.rules.is_graded(cell):
            score, points = determine_grade(cell)
            assert score == points > 0


# ------------------------------------------------------------------------------- one by one


def test_a_compiler_that_cannot_write_its_folder_is_given_another(tmp_path):
    variables = environment("the compiler's folder cannot be written", tmp_path)
    script = "from mha_course import flex, quiet\nquiet.mend_caches()\nimport torch._inductor.codecache"
    done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            "backend='inductor' raised:\nInvalidCxxCompiler: No working C++ compiler found in torch._inductor",
            "no C++ compiler was found",
        ),
        (
            "backend='inductor' raised:\nTritonMissing: Cannot find Triton",
            "TritonMissing: Cannot find Triton",
        ),
        ("", "RuntimeError"),
    ],
)
def test_why_nothing_was_compiled_is_said_in_few_words(message, reason, monkeypatch):
    import torch

    from mha_course import flex

    def fails():
        raise RuntimeError(message)

    monkeypatch.setattr(flex, "_compiled", fails)
    q = torch.ones(1, 1, 4, 2)
    assert flex.attention(q, q, q)[1].endswith(f"it could not be compiled here ({reason}).")


def test_no_kernel_of_the_courses_own_inherits_what_makes_libraries_talk(monkeypatch):
    for name in quiet.TALKATIVE:
        monkeypatch.setenv(name, "1")
    with building.kernel_environment(ROOT):
        assert not set(quiet.TALKATIVE) & set(os.environ)
    assert set(quiet.TALKATIVE) <= set(os.environ)
    assert not set(quiet.TALKATIVE) & set(bootstrap.environment())


def test_silences_may_overlap_and_afterwards_stderr_is_as_before(capfd):
    inside, leave = threading.Event(), threading.Event()

    def other():
        with quiet.nothing_on_stderr():
            inside.set()
            leave.wait(10)
            os.write(2, b"hidden ")

    thread = threading.Thread(target=other)
    with quiet.nothing_on_stderr():
        thread.start()
        inside.wait(10)
        os.write(2, b"hidden ")
    os.write(2, b"hidden still ")
    leave.set()
    thread.join()
    with pytest.raises(ZeroDivisionError), quiet.nothing_on_stderr(), quiet.nothing_on_stderr():
        raise ZeroDivisionError
    os.write(2, b"seen")
    assert capfd.readouterr().err == "seen"


LOADED = """
import contextlib, sys
from mha_course import exercises
from mha_course.checking import LocalAnswer, calls
from mha_course.checking.examine import prepare

during, before = set(), calls.time_limit

@contextlib.contextmanager
def limit(seconds):
    there = set(sys.modules)
    with before(seconds):
        yield
    during.update(set(sys.modules) - there)

calls.time_limit = limit
for name in ("causal_mask", "attention_scores"):
    exercise = exercises.find(name)
    for device in ("cpu", "fake cuda"):
        for trial in prepare(exercise, 0, device=device):
            LocalAnswer(exercise.reference).observe(trial.call)
print(len(during), *sorted(during)[:9])
"""


def test_torch_loads_no_part_of_itself_while_an_answers_time_runs(tmp_path):
    """On a slow machine that takes longer than an answer may."""
    variables = environment("", tmp_path)
    done = subprocess.run([sys.executable, "-c", LOADED], env=variables, capture_output=True, text=True)
    assert done.stdout == "0\n", done.stdout + done.stderr


def test_a_check_in_a_plain_terminal_is_as_silent(tmp_path):
    library = tmp_path / "site-packages"
    library.mkdir()
    (library / "a_library.py").write_text(LIBRARY)
    script = f"import torch\nfrom mha_course import check\n{LEARNER}\ncheck(pick_device)"
    path = os.pathsep.join([str(library), str(ROOT)])
    variables = environment("", tmp_path, PYTHONPATH=path, NBGRADER_EXECUTION="autograde")
    done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pick_device" in done.stdout and "warned" not in done.stdout


def test_nbgrader_takes_no_mark_for_what_stands_on_stderr_below_a_check():
    marks = {"grade": True, "solution": False, "locked": True, "points": 3, "grade_id": "check_a"}
    step = nbgrader_steps.KeepNoiseOutOfMarks()
    noise = new_output("stream", name="stderr", text="OMP: Warning")
    check = new_code_cell("check(a)", outputs=[noise], metadata={"nbgrader": marks | {"schema_version": 3}})
    own = new_code_cell("print(1)", outputs=[new_output("stream", name="stderr", text="mine")])
    assert determine_grade(check)[0] == 0
    nb, _ = step.preprocess(new_notebook(cells=[check, own]), {})
    assert determine_grade(nb.cells[0])[0] == 3 and nb.cells[0].outputs[0].text == "OMP: Warning"
    assert nb.cells[1].outputs[0].name == "stderr"
    nb.cells[0].outputs.append(new_output("error", ename="CheckFailed", evalue="", traceback=[]))
    assert determine_grade(step.preprocess(nb, {})[0].cells[0])[0] == 0


def test_nbgraders_own_steps_after_a_run_are_all_kept():
    from traitlets.config import PyFileConfigLoader

    config = PyFileConfigLoader("nbgrader_config.py", path=str(ROOT)).load_config()
    names = [step.rpartition(".")[2] for step in config.Autograde.autograde_preprocessors]
    assert names.pop(1) == "KeepNoiseOutOfMarks"
    assert names == [step.__name__ for step in Autograde.autograde_preprocessors.default_args[0]]
