"""A class graded in one run: hostile, broken and unusual submissions beside honest ones."""

from __future__ import annotations

import ast
import json
import os
import shutil
import sys
from pathlib import Path

import grading_course as course
import pytest

from mha_course.grading import sandbox

needs_sandbox = pytest.mark.skipif(not sandbox.available()[0], reason=sandbox.available()[1])
pytestmark = [pytest.mark.xdist_group("grading"), pytest.mark.slow, needs_sandbox]

HONEST = (
    "double_it",
    "soft_rows",
    "double_twice",
    "why_double",
)  # what hostile ones got right: mix they did not


def cells_with(first: str = "", **answers) -> list[dict]:
    """Right answers, or those given, with a cell of the learner's own before all others."""
    cells = course.answered(**answers)
    return [course.code(first, "mine"), *cells] if first else cells


WRONG_MIX = "def mix(q, k, v):\n    return q"
READY_MADE = "def mix(q, k, v):\n    return {}"
CHEATS = {
    # name: (a cell of their own, their mix)
    "ready_made": ("", READY_MADE.format("torch.nn.functional.scaled_dot_product_attention(q, k, v)")),
    "by_operator": ("", READY_MADE.format("torch.ops.aten.scaled_dot_product_attention(q, k, v)")),
    "by_kernel": (
        "",
        READY_MADE.format(
            "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q[:, None], k[:, None], v[:, None])[0][:, 0]"
        ),
    ),
    "by_thread": (
        "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(1)",
        READY_MADE.format("pool.submit(torch._C._nn.scaled_dot_product_attention, q, k, v).result()"),
    ),
    "by_vmap": ("", READY_MADE.format("torch.vmap(torch._C._nn.scaled_dot_product_attention)(q, k, v)")),
    "modes_off": (
        "",
        "def mix(q, k, v):\n"
        "    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():\n"
        "        return torch._C._nn.scaled_dot_product_attention(q, k, v)",
    ),
    "guards_off": (
        "import contextlib\nfrom mha_course.checking import guards, calls\n"
        "guards.watching = calls.guards.watching = lambda *a: contextlib.nullcontext([])",
        READY_MADE.format("torch.nn.functional.scaled_dot_product_attention(q, k, v)"),
    ),
    "switches_off": (
        "import mha_course.grading.switches as s\ns.switch_off = lambda group: None",
        READY_MADE.format("torch.nn.functional.scaled_dot_product_attention(q, k, v)"),
    ),
    "put_back": (
        "import gc\nfor thing in gc.get_objects():\n"
        "    if type(thing).__name__ in ('Library', '_DispatchModule'):\n"
        "        thing.reset() if hasattr(thing, 'reset') else thing._destroy()",
        READY_MADE.format("torch.nn.functional.scaled_dot_product_attention(q, k, v)"),
    ),
    "module": (
        "",
        READY_MADE.format("torch.nn.functional.multi_head_attention_forward(*[q]*3, 4, 1, *[None]*7)[0]"),
    ),
    "reference": ("from mha_course import reference", READY_MADE.format("reference.attend(q, k, v)[0]")),
    "exercises": (
        "from mha_course import exercises",
        READY_MADE.format("exercises.find('mix').reference(q, k, v)"),
    ),
    "frames": (
        "import sys",
        "def mix(q, k, v):\n"
        "    frame = sys._getframe()\n"
        "    while frame:\n"
        "        for value in frame.f_locals.values():\n"
        "            if hasattr(value, 'expected'):\n"
        "                return value.expected.value\n"
        "        frame = frame.f_back",
    ),
    "subclass": (
        "class Equal(torch.Tensor):\n    def __eq__(self, other): return torch.ones(())\n"
        "    def allclose(self, *a, **k): return True",
        READY_MADE.format("q.as_subclass(Equal)"),
    ),
    "patched": (
        "torch.allclose = lambda *a, **k: True\ntorch.testing.assert_close = lambda *a, **k: None\n"
        "import mha_course.tutor\nmha_course.tutor.check = print",
        WRONG_MIX,
    ),
    "forged_observation": (
        "from mha_course.checking import calls\nfrom mha_course.grading import wire\n"
        "wire.pack_observation = lambda seen: ({'observation': {'dict': [['status', 'right']]}}, [])",
        WRONG_MIX,
    ),
    "forged_frames": (
        "import os, struct, json\n"
        "text = json.dumps({'observation': 1, 'score': 100, 'status': 'right'}).encode()\n"
        "for number in range(3, 64):\n"
        "    try: os.write(number, struct.pack('>4sIQ', b'MHA1', len(text), 0) + text)\n"
        "    except OSError: pass",
        WRONG_MIX,
    ),
    "garbage": (
        "import os\nfor number in range(3, 64):\n    try: os.write(number, b'x' * 4096)\n    except OSError: pass",
        WRONG_MIX,
    ),
    "printed_score": ("", "def mix(q, k, v):\n    print(3.0)\n    return q\n3.0"),
}

MARK = "mha-course-grading-test"
HARM = {
    "network": (
        "import socket\ntry:\n    socket.create_connection(('127.0.0.1', PORT), 2)\n    result = 'CONNECTED'\n"
        "except OSError as error:\n    result = 'no'\nprint(result)"
    ),
    "reads": (
        "import os\nfound = []\n"
        "for folder in ('ROOT', 'ROOT/grading', 'ROOT/solutions', 'ROOT/grading/submitted', '/root', '/home', '/etc/shadow'):\n"
        "    try:\n        found += [folder] if os.path.isfile(folder) else [os.path.join(folder, x) for x in os.listdir(folder)]\n"
        "    except OSError:\n        pass\n"
        "print('SEEN', [f for f in found if 'pyenv' not in f])"
    ),
    "writes": (
        "import os\nfor folder in ('ROOT', 'ROOT/grading', '/usr', '/', '/var/tmp', '/course', '/dev'):\n"
        "    try:\n        open(os.path.join(folder, 'MARK'), 'w').write('x'); print('WROTE', folder)\n"
        "    except OSError:\n        pass"
    ),
    "leaves": (
        "import os, time\nfor _ in range(3):\n"
        "    if os.fork() == 0:\n        os.setsid()\n"
        "        if os.fork() == 0:\n"
        "            os.execv('/usr/bin/sleep', ['MARK', '7777'])\n        os._exit(0)\n"
        "open('/tmp/left', 'w').write('x')\nopen('/dev/shm/left', 'w').write('x')"
    ),
    "forks": (
        "import os, time\nmade = 0\nfor _ in range(500):\n    try:\n        if os.fork() == 0:\n            time.sleep(60); os._exit(0)\n"
        "        made += 1\n    except OSError:\n        break\nprint('MADE', made)"
    ),
    "memory": "hog = [bytearray(1 << 28) for _ in range(40)]",
    "disk": (
        "import os\ntry:\n    for i in range(40):\n        open(f'/tmp/big{i}', 'wb').write(b'x' * (4 << 20))\n"
        "except OSError as error:\n    print('FULL')"
    ),
    "signals": (
        "import os, signal\nfor number in range(1, 400):\n    if number != os.getpid():\n"
        "        try: os.kill(number, signal.SIGKILL)\n        except OSError: pass"
    ),
    "prints": "for _ in range(2000):\n    print('x' * 50_000)",
    "looks_around": "import os\nprint('LEFT', os.listdir('/tmp'), os.listdir('/dev/shm'), os.path.exists('/tmp/left'))",
    "exits": "import os\nos._exit(0)",
    "crashes": "import ctypes\nctypes.string_at(0)",
    "stops": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "sleeps": "import time\ntime.sleep(3600)",
    "never_ends": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
}


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """Everybody graded in one run: by student the result, and the folder."""
    import socket

    from mha_course.grading.run import Options, grade

    root = tmp_path_factory.mktemp("class")
    course.make_release(root)
    (root / "solutions").mkdir()
    (root / "solutions" / "answers.py").write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for name, (first, mix) in CHEATS.items():
            course.hand_in(root, f"cheat_{name}", cells_with(first, mix=mix))
        for name, first in HARM.items():
            source = first.replace("ROOT", str(root)).replace("MARK", MARK).replace("PORT", str(port))
            course.hand_in(root, f"harm_{name}", cells_with(source))
            course.hand_in(root, f"harm_{name}_next")
        limits = sandbox.Limits(cell_seconds=4, notebook_seconds=60, scratch=32 << 20, memory=1 << 30)
        with course.declared():
            summary = grade(course.LESSON, Options(root, jobs=2, limits=limits))
        server.setblocking(False)
        try:
            server.accept()
            connected = True
        except BlockingIOError:
            connected = False
    return {result.student: result for result in summary.results}, root, connected


def statuses(result) -> dict[str, str]:
    outcomes = result.notebooks[course.LESSON]["outcomes"]
    return {each["name"]: each["status"] for listed in outcomes.values() for each in listed}


def printed(root: Path, student: str) -> str:
    path = root / "grading" / "autograded" / student / course.LESSON / f"{course.LESSON}.ipynb"
    cells = json.loads(path.read_text())["cells"]
    texts = [output.get("text", "") for cell in cells for output in cell.get("outputs", [])]
    return "".join("".join(text) for text in texts)


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_gets_no_marks_for_what_it_did_not_write(graded, name):
    result = graded[0][f"cheat_{name}"]
    assert result.status == "graded"
    assert statuses(result)["mix"] != "right"


@pytest.mark.parametrize("name", sorted(set(CHEATS) - {"forged_observation", "forged_frames", "garbage"}))
def test_a_cheat_keeps_the_marks_for_its_honest_part(graded, name):
    found = statuses(graded[0][f"cheat_{name}"])
    assert {exercise: found[exercise] for exercise in HONEST} == dict.fromkeys(HONEST, "right")


@pytest.mark.parametrize("name", HARM)
def test_the_next_learner_is_graded_whatever_the_one_before_did(graded, name):
    result = graded[0][f"harm_{name}_next"]
    assert set(statuses(result).values()) == {"right"}
    assert result.scores == {course.LESSON: [9.0, 11.0]}


@pytest.mark.parametrize("name", sorted(set(HARM) - {"memory"}))
def test_whoever_did_harm_still_has_the_marks_for_right_answers(graded, name):
    assert set(statuses(graded[0][f"harm_{name}"]).values()) == {"right"}


def test_there_is_no_network(graded):
    assert not graded[2]
    assert "CONNECTED" not in printed(graded[1], "harm_network")


def test_neither_solutions_nor_other_learners_nor_home_can_be_read(graded):
    text = printed(graded[1], "harm_reads")
    assert "SEEN []" in text, text


def test_nothing_can_be_written_outside_the_private_folder(graded):
    text = printed(graded[1], "harm_writes")
    assert "WROTE" not in text.replace("WROTE /dev", ""), text
    assert (
        not list(graded[1].glob(MARK))
        and not Path("/var/tmp", MARK).exists()
        and not Path("/usr", MARK).exists()
    )


def test_no_process_is_left_afterwards(graded):
    left = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] == MARK.encode():
            left.append(path)
    assert not left


def test_nothing_of_one_learner_is_seen_by_the_next(graded):
    left = printed(graded[1], "harm_looks_around").split("LEFT ")[1].splitlines()[0]
    under_tmp = Path(sys.prefix).is_relative_to(
        "/tmp"
    )  # then the environment, to be read only, is there as well
    environment = [Path(sys.prefix).relative_to("/tmp").parts[0]] if under_tmp else []
    listed = ast.literal_eval(left.partition("]")[0] + "]")
    assert sorted(listed) == sorted(["work", *environment])
    assert left.endswith("] [] False")


def test_processes_and_disk_are_bounded(graded):
    made = int(printed(graded[1], "harm_forks").split("MADE ")[1].split()[0])
    assert 5 < made < 60
    assert "FULL" in printed(graded[1], "harm_disk")


def test_what_is_printed_is_bounded(graded):
    assert len(printed(graded[1], "harm_prints")) < 200_000


def test_marks_are_where_nbgraders_tools_look_for_them(graded):
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{graded[1]}/grading/gradebook.db", "mha_course") as gradebook:
        submission = gradebook.find_submission(course.LESSON, "harm_exits_next")
        assert (submission.score, submission.max_score) == (9.0, 11.0)
    page = graded[1] / "grading" / "feedback" / "cheat_ready_made" / course.LESSON / f"{course.LESSON}.html"
    assert "uses a ready-made part" in page.read_text()


def test_seeds_are_logged_and_differ_between_learners(graded):
    results = graded[0]
    one, other = (results[name].seeds for name in ("harm_exits_next", "harm_stops_next"))
    assert one.keys() == other.keys() == course.RIGHT.keys()
    assert not set(one.values()) & set(other.values())
    secret = graded[1] / "grading" / "marks" / "secret"
    assert sys.platform == "win32" or secret.stat().st_mode & 0o777 == 0o600


def test_the_staged_course_has_no_answers_in_it():
    with sandbox.staged_course() as folder:
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}
        assert not [
            name for name in names if "reference" in name or "exercises" in name or "diagnose" in name
        ]
        assert os.access(folder, os.R_OK) and shutil.which("bwrap")
