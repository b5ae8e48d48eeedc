"""What libraries say about the machine, kept out of stderr: in notebooks, and while an answer is checked.

torch, matplotlib and others log and warn about what they find: a CUDA toolkit without a GPU, an old driver, a folder
that cannot be written. Jupyter shows such a line in red, and nbgrader gives a graded cell that writes to stderr no
points. Here it becomes a note on stdout, or nothing where nothing follows from it. What a learner's own code prints,
logs or warns is left alone: only what a *library* says is touched, and only a check is silenced altogether.

Standard library only: the set-up uses it, too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import sysconfig
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

# Environment variables that make Python or a library talk, fail or leave things out; what is learned needs none.
TALKATIVE = (
    *("PYTHONWARNINGS", "PYTHONDEVMODE", "PYTHONVERBOSE", "PYTHONOPTIMIZE", "PYTHONINSPECT"),
    *("PYTHONASYNCIODEBUG", "PYTHONPROFILEIMPORTTIME", "PYTHONTRACEMALLOC", "PYTHONMALLOCSTATS"),
    *("PYTHONDUMPREFS", "PYTHONWARNDEFAULTENCODING"),
    *("TORCH_LOGS", "TORCH_LOGS_OUT", "TORCH_TRACE", "TORCH_CPP_LOG_LEVEL", "TORCH_SHOW_CPP_STACKTRACES"),
    *("TORCH_SHOW_DISPATCH_TRACE", "TORCH_COMPILE_DEBUG", "TORCH_DISTRIBUTED_DEBUG", "TORCHDYNAMO_VERBOSE"),
    *("TORCHDYNAMO_DISABLE", "PYTORCH_JIT", "PYTORCH_JIT_LOG_LEVEL"),
    *("OMP_DISPLAY_ENV", "OMP_DISPLAY_AFFINITY", "KMP_SETTINGS", "KMP_VERSION", "KMP_AFFINITY", "GOMP_DEBUG"),
    *("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "MKL_VERBOSE", "DNNL_VERBOSE", "ONEDNN_VERBOSE"),
)

# What is said instead, first fit first; "": nothing follows from it, so nothing is said.
ON_THE_CPU = "torch computes on the CPU here, which is all that the course needs."
ABOUT_THE_MACHINE = (
    (r"No (CUDA|ROCm) runtime is found", ""),
    (
        r"driver on your system is too old",
        f"The NVIDIA driver here is too old for this PyTorch: {ON_THE_CPU}",
    ),
    (r"CUDA initialization|cudaGetDeviceCount", f"PyTorch cannot use this machine's GPU: {ON_THE_CPU}"),
    (r"NVML|nvml|amdsmi", ""),
    (r"PYTORCH_\w*ALLOC_CONF", ""),
    (r"building the font cache", "matplotlib looks for this machine's fonts. That takes a moment, once."),
    (r"mkdir -p failed|not a writable directory|temporary cache directory|save font_manager cache", ""),
    (r"is not a writable location", ""),
    (r"debug trace:", ""),
)
TALKERS = ("torch", "matplotlib", "triton")  # make handlers of their own, or might
AGE = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)
AGE += (BytesWarning, EncodingWarning)  # a library's code to its authors: no learner can do anything about it

_PACKAGE = str(Path(__file__).parent) + os.sep
_STANDARD = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")})
_lock = threading.RLock()
_silences = 0  # how many `nothing_on_stderr` are open, in all threads
_real_stderr = -1  # what file descriptor 2 was before the first of them
_notes = True  # see `keep_libraries_off_stderr`
_said: set[str] = set()


# ------------------------------------------------------------------------------- the environment


def without_talk(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment variables for a process of the course: all but those in `TALKATIVE`, and no impossible one."""
    kept = {name: value for name, value in variables.items() if name not in TALKATIVE}
    if not re.fullmatch(r"\s*[1-9]\d*(\s*,\s*[1-9]\d*)*\s*", kept.get("OMP_NUM_THREADS", "1")):
        del kept["OMP_NUM_THREADS"]  # OpenMP ignores it, and says so each time it is loaded
    return kept


def begin_command() -> None:
    """For the commands, before torch is loaded: what is set for other work is not listened to, noise is dropped."""
    kept = without_talk(os.environ)
    for name in os.environ.keys() - kept.keys():
        del os.environ[name]
    keep_libraries_off_stderr(notes=False)


def mend_caches() -> None:
    """Give torch's compiler another folder where the one it is told to use cannot be written.

    Without one its import fails half-way, and all that needs it later fails with errors about something else.
    """
    name = "TORCHINDUCTOR_CACHE_DIR"
    if not os.environ.get(name):
        return
    try:
        os.makedirs(os.environ[name], exist_ok=True)
        tempfile.TemporaryFile(dir=os.environ[name]).close()
    except OSError:
        os.environ[name] = tempfile.mkdtemp(prefix="torchinductor-")


# ------------------------------------------------------------------------------- whose words they are


def is_library(path: str) -> bool:
    """Whether a source file is a library's, Python's or this course's, and not a learner's."""
    folders = Path(path).parts
    ours = path.startswith((_PACKAGE, *_STANDARD, "<frozen", "<eval_with_key"))
    return ours or "site-packages" in folders or "dist-packages" in folders


def in_our_words(text: str) -> str | None:
    """What to say instead of a library's words about the machine; "": nothing; ``None``: they are about something else."""
    return next((words for pattern, words in ABOUT_THE_MACHINE if re.search(pattern, text)), None)


def is_noise(category: type[Warning], filename: str, text: str) -> bool:
    """Whether a warning is about the machine or a library's age: nothing that whoever wrote an answer did."""
    return is_library(filename) and (issubclass(category, AGE) or in_our_words(text) is not None)


def note(source: str, text: str) -> None:
    """Say a library's words on stdout, in ours where we have some, and each only once."""
    words = in_our_words(text)
    if words is None:
        words = f"Note from {source}: {' '.join(text.split())[:300]}"
    with _lock:
        if _silences or not words or words in _said:
            return
        _said.add(words)
    with contextlib.suppress(Exception):  # a stdout that cannot be written is not this note's business
        print(words)


# ------------------------------------------------------------------------------- in a notebook


def keep_libraries_off_stderr(notes: bool = True) -> None:
    """From now on, libraries neither log nor warn there. May be called again.

    Args:
        notes: what is more than noise becomes a note on stdout, for notebooks. Without, it stays where it is, for
            commands, whose stdout may be read by a program.
    """
    global _notes
    _notes = notes
    if not isinstance(logging.lastResort, _LastResort):
        logging.lastResort = _LastResort(logging.lastResort)
    for name, logger in list(logging.root.manager.loggerDict.items()):
        for handler in getattr(logger, "handlers", ()):
            theirs = type(handler) is logging.StreamHandler and name.partition(".")[0] in TALKERS
            if theirs and _may_pass not in handler.filters:
                handler.addFilter(_may_pass)
    if getattr(warnings.showwarning, "before", None) is None:
        warnings.showwarning = _showing_after(warnings.showwarning)


def _may_pass(record: logging.LogRecord) -> bool:
    """A filter for handlers that libraries made for stderr."""
    with contextlib.suppress(Exception):
        text = record.getMessage()
        if _silences or in_our_words(text) == "":
            return False
        if not _notes:
            return True
        if record.levelno >= logging.WARNING:
            note(record.name.partition(".")[0], text)
        else:  # somebody asked for these, with TORCH_LOGS for instance
            print(text)
    return False


class _LastResort(logging.Handler):
    """What Python uses where no handler was made: as before, but for libraries' records.

    Args:
        before: the handler that was there.
    """

    def __init__(self, before: logging.Handler | None):
        super().__init__(logging.WARNING if before is None else before.level)
        self.before = before

    def emit(self, record: logging.LogRecord) -> None:
        if self.before is not None and (not is_library(record.pathname) or _may_pass(record)):
            self.before.handle(record)


def _showing_after(before):
    """A `warnings.showwarning` that sees to libraries' warnings, and leaves all others to ``before``."""

    def showwarning(message, category, filename, lineno, file=None, line=None):
        if file is not None or not is_library(filename):
            return before(message, category, filename, lineno, file, line)
        text = str(message)
        noise = is_noise(category, filename, text)
        if not _notes and not noise:
            before(message, category, filename, lineno, file, line)
        elif _notes and not (noise and not in_our_words(text)):
            parts = Path(filename).parts
            places = [i for i, part in enumerate(parts) if part in ("site-packages", "dist-packages")]
            note(parts[places[-1] + 1] if places else "Python", text)

    showwarning.before = before
    return showwarning


# ------------------------------------------------------------------------------- during a check


@contextlib.contextmanager
def nothing_on_stderr() -> Iterator[None]:
    """Inside the block nothing gets to file descriptor 2, from C or from a child process, and libraries log nothing.

    Python's own ``sys.stderr`` is not touched where it is something else than that (as in a notebook).
    """
    _silence(+1)
    try:
        yield
    finally:
        _silence(-1)


def _silence(change: int) -> None:
    global _silences, _real_stderr
    with _lock:
        outermost = _silences + min(change, 0) == 0
        _silences += change
        if not outermost:
            return
        # There may be no stderr at all; then there is nothing to keep clean.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()
        with contextlib.suppress(OSError):
            if change > 0:
                _real_stderr = os.dup(2)
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 2)
                os.close(nowhere)
            elif _real_stderr >= 0:
                os.dup2(_real_stderr, 2)
                os.close(_real_stderr)
                _real_stderr = -1
