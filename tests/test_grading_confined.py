"""What a learner's process cannot do, one by one, and what of torch is switched off in it."""

from __future__ import annotations

import ast
import contextlib
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mha_course.grading import lending, sandbox, switches
from mha_course.grading.remote import Process

needs_sandbox = pytest.mark.skipif(not sandbox.available()[0], reason=sandbox.available()[1])
pytestmark = [pytest.mark.xdist_group("grading"), pytest.mark.slow]

DOOR = """
import socket
door = socket.socket(socket.AF_UNIX)
door.bind("\\0door")
door.listen()
"""
KNOCK = """
import socket
socket.socket(socket.AF_UNIX).connect("\\0door")
"""
PROGRAM = "import subprocess\nsubprocess.run(['/bin/true'], check=True)"
NAMESPACE = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for flags in (0x10000000, 0x10020000, 0x40000000):
    assert libc.unshare(flags) == 0, os.strerror(ctypes.get_errno())
"""
THREADS = """
import os, threading
threading.Thread(target=print).start()
if os.fork() == 0:
    os._exit(0)
"""


@pytest.fixture(scope="module")
def begin():
    """Starts a learner's process; two of them live at the same time where two are asked for."""
    with contextlib.ExitStack() as stack:
        course, way = stack.enter_context(sandbox.staged_course()), sandbox.best_way()
        parent = sandbox.Nursery(course, way=way)
        stack.callback(parent.close)
        parent.start()

        def begin(*off: str, lean: bool = False) -> Process:
            nursery = parent.branch() if way in ("root", "user") else sandbox.Nursery(course, way=way)
            stack.callback(nursery.close)
            nursery.start()
            process = Process(nursery, time.monotonic() + 300)
            stack.callback(process.end)
            process.begin(off, lending.loan([]), True, lean=lean)
            return process

        yield begin


@pytest.fixture(scope="module")
def one(begin):
    return begin("ready-made attention")


@pytest.fixture(scope="module")
def other(begin):
    return begin()


@pytest.fixture(scope="module")
def lean(begin):
    return begin(lean=True)


def raised(process: Process, source: str) -> str:
    """What a cell raised: the exception's class and words; "" if nothing."""
    _, late, fault = process.run(source, 1, 60)
    assert not late
    return f"{fault.error}: {fault.says}" if fault else ""


@needs_sandbox
def test_two_learners_cannot_meet_over_a_socket_without_a_file(one, other):
    assert raised(one, DOOR) == ""
    assert raised(other, KNOCK).startswith("ConnectionRefusedError")
    assert raised(one, KNOCK) == ""


@needs_sandbox
def test_where_something_is_switched_off_no_other_program_can_be_started(one, other):
    assert raised(one, PROGRAM).startswith("PermissionError")
    assert raised(other, PROGRAM) == ""


@needs_sandbox
def test_no_namespaces_can_be_made_and_threads_and_forks_can(one, other):
    for process in (one, other):
        assert "not permitted" in raised(process, NAMESPACE)
        assert raised(process, THREADS) == ""


@needs_sandbox
@pytest.mark.parametrize(
    "take",
    [
        "room = bytearray(120 << 20)",
        "import mmap\nroom = mmap.mmap(-1, 120 << 20)",
        "import torch\nroom = torch.ones(15 << 20, dtype=torch.float64)",
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
        "room = [bytearray(8 << 20) for _ in range(12)]",
    ],
)
def test_where_memory_is_what_is_asked_for_there_is_none_to_spare(lean, take):
    assert raised(lean, "import torch\nroom = torch.ones(4 << 20, dtype=torch.float64)\ndel room") == ""
    assert raised(lean, f"{take}\ndel room")
    raised(lean, "del room")


def attention_in_torch() -> dict[str, set[str]]:
    """Functions in torch's own Python files that compute attention, by file: a softmax and a product."""
    found: dict[str, set[str]] = {}
    folder = Path(torch.__file__).parent
    for path in folder.rglob("*.py"):
        text = path.read_text(encoding="utf-8", errors="replace")
        if "softmax(" not in text or "/testing/" in path.as_posix():
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                strings = {
                    n.value
                    for n in ast.walk(node)
                    if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)
                }
                body = "\n".join(
                    ast.unparse(n) for n in node.body if getattr(n, "value", None) not in strings
                )
                if "softmax(" in body and re.search(r"matmul\(|bmm\(|einsum\(| @ ", body):
                    found.setdefault(path.relative_to(folder).as_posix(), set()).add(node.name)
    return found


def test_every_function_of_torch_that_is_attention_written_in_python_is_switched_off():
    listed = [path.split(".") for path in switches.FUNCTIONS["ready-made attention"]]
    blocked = {module.replace(".", "/") + ".py" for module in switches.MODULES["ready-made attention"]}
    for file, names in attention_in_torch().items():
        if f"torch/{file}" in blocked:
            continue
        module = ["torch", *file.removesuffix(".py").split("/")]
        known = {path[-1] for path in listed if path[: len(module)] == module}
        assert names <= known, f"{file}: {names - known}"


def test_what_is_switched_off_raises_by_every_name():
    paths = [*switches.FUNCTIONS["ready-made attention"], *switches.FUNCTIONS["ready-made softmax"]]
    program = (
        "import torch, torch._refs.special, torch._refs.nn.functional, torch._decomp.decompositions\n"
        "from mha_course.grading import switches\n"
        "[switches.switch_off(group) for group in switches.FUNCTIONS]\n"
        f"for path in {paths}:\n"
        "    function = switches._find(path)\n"
        "    if function is None: continue  # not in this version of torch\n"
        "    try: function(torch.ones(2, 3, 4), torch.ones(2, 3, 4), torch.ones(2, 3, 4)); print('WORKS', path)\n"
        "    except switches.SwitchedOff: pass\n"
        "try: import torch._inductor.fx_passes.fuse_attention; print('WORKS', 'patterns')\n"
        "except ImportError: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
