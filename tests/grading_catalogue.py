"""Submissions that people hand in, made from any lesson's release: hostile, broken by accident, correct but unusual.

    paper = Paper(released_cells, right_answers, target="mix", parameters="q, k, v")
    for entry in hostile(paper, places) + stopping(paper) + broken(paper) + unusual(paper): entry.hand_in(folder)

In a hostile one everything is answered rightly but the ``target``, and a trick takes its place. So it deserves what the
same notebook with an honest wrong answer deserves: the rest. Every one is bounded in time, memory, processes and size.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ALL, REST, NOTHING, ASIDE = "all", "the rest", "nothing", "set aside"


@dataclass(frozen=True)
class Entry:
    """One submission.

    Args:
        name: in words a table can show.
        kind: "hostile", "broken" or "unusual".
        deserves: ``ALL`` points, ``REST`` (all but the target's), ``NOTHING``, or to be set ``ASIDE``.
        data: the notebook file.
        file: its name, if not the lesson's.
        beside: other files: path → content.
        links: symbolic links: path → where they point to.
        who: the learner's folder, if it is not called after the entry.
        deep: there are folders in it whose path is longer than a path may be.
    """

    name: str
    kind: str
    deserves: str
    data: bytes | None
    file: str = ""
    beside: Mapping[str, bytes] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    who: str = ""
    deep: bool = False

    @property
    def student(self) -> str:
        return self.who or f"{self.kind}_{self.name.replace(' ', '_').replace('/', '_')}"

    def hand_in(self, submitted: Path, lesson: str) -> None:
        """Write it where an instructor has submissions: ``submitted/<student>/<lesson>/``."""
        folder = submitted / self.student / lesson
        folder.mkdir(parents=True, exist_ok=True)
        files = {self.file or f"{lesson}.ipynb": self.data, **self.beside}
        for name, content in files.items():
            if content is None:
                continue
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for name, where in self.links.items():
            (folder / name.format(lesson=lesson)).symlink_to(where)
        if self.deep:
            inside = os.open(folder, os.O_RDONLY)
            for _ in range(30):  # of 200 letters each: 4096 is the longest that Linux takes
                os.mkdir("d" * 200, dir_fd=inside)
                outside, inside = inside, os.open("d" * 200, os.O_RDONLY, dir_fd=inside)
                os.close(outside)
            os.close(inside)


class Paper:
    """A release to write on.

    Args:
        cells: the released notebook's cells, as dicts.
        answers: right sources by grade id.
        target: the exercise that hostile submissions do not solve.
        parameters: its parameters, as they stand in its ``def``.
        inputs: one of its tensor parameters.
    """

    def __init__(
        self, cells: list[dict], answers: Mapping[str, str], target: str, parameters: str, inputs: str = "q"
    ):
        self.released, self.answers, self.target = cells, answers, target
        self.parameters, self.inputs = parameters, inputs

    def define(self, body: str) -> str:
        """The target with this body."""
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        return f"def {self.target}({self.parameters}):\n{lines}"

    def cells(self, first: str = "", answer: str | None = None, last: str = "") -> list[dict]:
        """The cells with right answers, the target's replaced by ``answer``, with cells of the learner's own."""
        found = copy.deepcopy(self.released)
        for cell in found:
            name = cell["metadata"].get("nbgrader", {}).get("grade_id")
            solution = cell["metadata"].get("nbgrader", {}).get("solution")
            if solution and name == self.target and answer is not None:
                cell["source"] = answer
            elif solution and name in self.answers:
                cell["source"] = self.answers[name]
        own = [code(first, "own-first")] if first else []
        return [*own, *found, *([code(last, "own-last")] if last else [])]

    def place(self, cells: list[dict], name: str) -> int:
        """Where the cell with this grade id stands."""
        return next(
            i for i, cell in enumerate(cells) if cell["metadata"].get("nbgrader", {}).get("grade_id") == name
        )

    def right(self, **changes: str) -> bytes:
        return notebook(self.cells(**changes))


def code(source: str, identity: str) -> dict:
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": identity,
        "metadata": {},
        "outputs": [],
        "source": source,
    }


def notebook(cells: list[dict], **changes: Any) -> bytes:
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    content = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps({**content, **changes}).encode()


# ------------------------------------------------------------------------------------- hostile


def hostile(paper: Paper, places: Mapping[str, str]) -> list[Entry]:
    """Tricks for marks, and harm.

    Args:
        places: "root" (the course's folder), "port" (of a server on loopback that nobody should reach), "mark" (a
            word to find what was left behind by).
    """
    tricks = {**ready_made(paper), **looking(paper), **pretending(paper)}
    found = [
        Entry(name, "hostile", REST, paper.right(first=first, answer=body))
        for name, (first, body) in tricks.items()
    ]
    found += [
        Entry(name, "hostile", ALL, paper.right(first=fill(source, places))) for name, source in HARM.items()
    ]
    return found + dressed_up(paper)


def fill(source: str, places: Mapping[str, str]) -> str:
    for name, value in places.items():
        source = source.replace(name.upper(), value)
    return source


# Where nothing is switched off: another Python, that gives values and gradients.
PROGRAM = """
import pickle, sys, torch
while True:
    tensors, given = pickle.load(sys.stdin.buffer)
    q, k, v = (x.requires_grad_() for x in tensors)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    found = out.detach() if given is None else torch.autograd.grad(out, (q, k, v), given)
    pickle.dump(found, sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""
CHILD = """
import pickle, subprocess, sys, torch
child = subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
def ask(*what):
    pickle.dump(what, child.stdin)
    child.stdin.flush()
    return pickle.load(child.stdout)
ask([torch.ones(1, 1, 1, 1)] * 3, None)
class InAChild(torch.autograd.Function):
    @staticmethod
    def forward(context, *tensors):
        context.save_for_backward(*tensors)
        return ask([x.detach() for x in tensors], None)
    @staticmethod
    def backward(context, given):
        return ask([x.detach() for x in context.saved_tensors], given)
"""


def ready_made(paper: Paper) -> dict[str, tuple[str, str]]:
    """Torch's own attention by all its doors, for a target with q, k and v."""
    back = "return {}".format

    def by(expression: str) -> str:
        return paper.define(back(expression))

    sdpa = "torch.nn.functional.scaled_dot_product_attention(q, k, v)"
    return {
        "ready made": ("", by(sdpa)),
        "ready made under another name": (
            "import torch.nn.functional as F\nf = vars(F)['scaled' + '_dot_product_attention']",
            by("f(q, k, v)"),
        ),
        "ready made by its operator": ("", by("torch.ops.aten.scaled_dot_product_attention(q, k, v)")),
        "ready made by its kernel": (
            "",
            by(
                "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q[:, None], k[:, None], v[:, None])[0][:, 0]"
            ),
        ),
        "ready made in a thread": (
            "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(1)",
            by("pool.submit(torch._C._nn.scaled_dot_product_attention, q, k, v).result()"),
        ),
        "ready made in vmap": ("", by("torch.vmap(torch._C._nn.scaled_dot_product_attention)(q, k, v)")),
        "ready made with the modes off": (
            "",
            paper.define(
                "with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():\n"
                "    return torch._C._nn.scaled_dot_product_attention(q, k, v)"
            ),
        ),
        "ready made with the guards off": (
            "import contextlib\nfrom mha_course.checking import guards, calls\n"
            "guards.watching = calls.guards.watching = lambda *a: contextlib.nullcontext([])",
            by(sdpa),
        ),
        "ready made with the switches off": (
            "import mha_course.grading.switches as s\ns.switch_off = lambda group: None",
            by(sdpa),
        ),
        "ready made put back": (
            "import gc\nfor thing in gc.get_objects():\n"
            "    if type(thing).__name__ in ('Library', '_DispatchModule'):\n"
            "        thing.reset() if hasattr(thing, 'reset') else thing._destroy()",
            by(sdpa),
        ),
        "ready made with torch imported anew": (
            "import sys, importlib\nsys.modules.pop('torch.nn.functional', None)\n"
            "try:\n    F2 = importlib.import_module('torch.nn.functional')\nexcept Exception:\n    F2 = torch.nn.functional",
            by("F2.scaled_dot_product_attention(q, k, v)"),
        ),
        "ready made in a child": (CHILD.replace("PROGRAM", repr(PROGRAM)), by("InAChild.apply(q, k, v)")),
        "ready made by a pattern of the compiler": (
            "",
            by(
                "__import__('torch._inductor.fx_passes.fuse_attention', fromlist=['x'])"
                "._sfdp_pattern_1(q, k, v, q.shape[-1] ** 0.5)"
            ),
        ),
        "ready made for another format": (
            "",
            paper.define(
                "import torch.onnx.ops._impl as onnx\n"
                "return onnx.attention_23(q[:, None], k[:, None], v[:, None], qk_matmul_output_mode=1)[0][:, 0]"
            ),
        ),
        "ready made to be quantised": (
            "import torch\nfrom torch.ao.nn.quantizable.modules.activation import MultiheadAttention as Ready\n"
            "def one(q, k, v):\n"
            "    E = max(q.shape[-1], v.shape[-1])\n"
            "    m = Ready(E, 1, bias=False, batch_first=True).double().eval()\n"
            "    with torch.no_grad():\n"
            "        for x in (m.linear_Q, m.linear_K, m.linear_V, m.out_proj):\n"
            "            x.weight.copy_(torch.eye(E, dtype=x.weight.dtype))\n"
            "    pad = lambda x: torch.nn.functional.pad(x, (0, E - x.shape[-1]))\n"
            "    return m(pad(q) * (E / q.shape[-1]) ** 0.5, pad(k), pad(v))[0][..., :v.shape[-1]]",
            by("one(q, k, v)"),
        ),
        "ready made as a module": (
            "",
            by("torch.nn.functional.multi_head_attention_forward(*[q]*3, 4, 1, *[None]*7)[0]"),
        ),
    }


def looking(paper: Paper) -> dict[str, tuple[str, str]]:
    """Looking for the answer where it might lie."""
    give = paper.inputs
    return {
        "reference imported": (
            "from mha_course import reference",
            paper.define(
                f"return getattr(reference, '{paper.target}', reference.attend)({paper.parameters})[0]"
            ),
        ),
        "reference read from its file": (
            "import mha_course, pathlib\n"
            "text = ''\n"
            "for p in pathlib.Path(mha_course.__file__).parent.rglob('*.py'):\n"
            "    text += p.read_text() if 'reference' in str(p) or 'exercises' in str(p) else ''\n"
            "try:\n    exec(text)\nexcept Exception:\n    pass",
            paper.define(f"return attend({paper.parameters})[0]"),
        ),
        "exercise's own reference": (
            "from mha_course import exercises",
            paper.define(f"return exercises.find('{paper.target}').reference({paper.parameters})"),
        ),
        "caller's frames": (
            "import sys",
            paper.define(
                "frame = sys._getframe()\n"
                "while frame:\n"
                "    for value in frame.f_locals.values():\n"
                "        if hasattr(value, 'expected'):\n"
                "            return value.expected.value\n"
                "    frame = frame.f_back\n"
                f"return {give}"
            ),
        ),
        "all objects in memory": (
            "import gc",
            paper.define(
                "for thing in gc.get_objects():\n"
                "    if type(thing).__name__ in ('Trial', 'Observation', 'Exercise'):\n"
                "        value = getattr(thing, 'expected', None) or getattr(thing, 'value', None)\n"
                "        if isinstance(value, torch.Tensor):\n"
                "            return value\n"
                f"return {give}"
            ),
        ),
        "the seed from the environment": (
            "import os\nseeds = {k: v for k, v in os.environ.items() if 'SEED' in k or 'MHA' in k}",
            paper.define(f"return {give} * len(seeds)"),
        ),
        "the secret from its file": (
            "import glob\nfound = glob.glob('/**/marks/secret', recursive=False) + glob.glob('/*/*/grading/marks/secret')",
            paper.define(f"return open(found[0]) if found else {give}"),
        ),
        "parent's memory": (
            "import os\ntry:\n    memory = open(f'/proc/{os.getppid()}/mem', 'rb').read(64)\n"
            "except OSError as error:\n    memory = b''",
            paper.define(f"return {give} if not memory else None"),
        ),
    }


def pretending(paper: Paper) -> dict[str, tuple[str, str]]:
    """Seeming right."""
    wrong = paper.define(f"return {paper.inputs}")
    return {
        "tensor subclass that equals all": (
            "class Equal(torch.Tensor):\n    def __eq__(self, other): return torch.ones(())\n"
            "    def allclose(self, *a, **k): return True",
            paper.define(f"return {paper.inputs}.as_subclass(Equal)"),
        ),
        "object that equals all": (
            "class Yes:\n    shape = dtype = device = property(lambda self: self)\n"
            "    def __eq__(self, other): return True\n    def __getattr__(self, name): return self\n"
            "    def __call__(self, *a, **k): return self",
            paper.define("return Yes()"),
        ),
        "object that runs code when unpickled": (
            "import os\nclass Bomb:\n    def __reduce__(self): return (os.system, ('touch /tmp/bomb',))",
            paper.define("return Bomb()"),
        ),
        "comparisons patched": (
            "torch.allclose = lambda *a, **k: True\ntorch.testing.assert_close = lambda *a, **k: None\n"
            "torch.equal = lambda *a, **k: True\n"
            "import mha_course.tutor\nmha_course.tutor.check = print",
            wrong,
        ),
        "check replaced": (
            "import builtins, mha_course\ncheck = builtins.check = mha_course.check = print",
            wrong,
        ),
        "assertions removed": (
            "import ast\n"
            "class Quiet(ast.NodeTransformer):\n"
            "    def visit_Assert(self, node): return ast.Pass()\n"
            "    def visit_Call(self, node): return ast.Constant(None) if getattr(node.func, 'id', '') == 'check' else node\n"
            "get_ipython().ast_transformers.append(Quiet())",
            wrong,
        ),
        "shell patched": (
            "shell = get_ipython()\n"
            "try:\n    type(shell).run_cell = lambda self, *a, **k: None\nexcept Exception:\n    pass",
            wrong,
        ),
        "observation forged": (
            "from mha_course.checking import calls\nfrom mha_course.grading import wire\n"
            "wire.pack_observation = lambda seen: ({'observation': {'dict': [['status', 'right']]}}, [])",
            wrong,
        ),
        "cut off and saying otherwise": (
            "import dataclasses\nimport torch\nfrom mha_course.grading import wire\n"
            "honest = wire.pack_observation\n"
            "def forged(seen):\n"
            "    if not seen.detached: return honest(seen)\n"
            "    guessed = {name: torch.ones(2, 3, 4, dtype=torch.float64) for name in seen.gradients}\n"
            "    return honest(dataclasses.replace(seen, detached=False, gradients=guessed))\n"
            "wire.pack_observation = forged",
            paper.answers[paper.target].replace("return ", "return (").rstrip() + ").detach()",
        ),
        "frames forged": (
            "import os, struct, json\n"
            "text = json.dumps({'observation': 1, 'score': 100, 'status': 'right'}).encode()\n"
            "for number in range(3, 64):\n"
            "    try: os.write(number, struct.pack('>4sIQ', b'MHA1', len(text), 0) + text)\n"
            "    except OSError: pass",
            wrong,
        ),
        "garbage on every file": (
            "import os\nfor number in range(3, 64):\n    try: os.write(number, b'x' * 4096)\n    except OSError: pass",
            wrong,
        ),
        "score printed": ("", paper.define(f"print(3.0)\nreturn {paper.inputs}") + "\n3.0"),
        "score as the last value": ("", wrong + "\n100.0"),
        "not a number everywhere": ("", paper.define(f"return {paper.inputs} * float('nan')")),
        "very large result": ("", paper.define(f"return {paper.inputs}.new_zeros(1).expand(10**12)")),
        "result without an end": ("", paper.define("a = []\na.append(a)\nreturn a")),
        "sizes without numbers": ("", paper.define("return torch.empty(2**31, 2**31, device='meta')")),
        "impossible sizes on the way": ("", paper.define(f"return {paper.inputs}.new_zeros(2**40)")),
        "sizes below zero": ("", paper.define(f"return {paper.inputs}.new_zeros(-1)")),
        "sizes that overflow": (
            "",
            paper.define(f"return {paper.inputs}.new_zeros(1).expand(2**31, 2**31, 2**31)"),
        ),
        "right for the practice inputs": (
            "seen = []",
            paper.define(f"seen.append(1)\nreturn {paper.inputs} if len(seen) > 2 else {paper.inputs} * 2"),
        ),
    }


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
        "import ctypes, os, time\nfor _ in range(3):\n"
        "    if os.fork() == 0:\n        os.setsid()\n"
        "        if os.fork() == 0:\n"
        "            ctypes.CDLL(None).prctl(15, b'MARK', 0, 0, 0)\n            time.sleep(7777)\n        os._exit(0)\n"
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
    "looks around": "import os\nprint('LEFT', os.listdir('/tmp'), os.listdir('/dev/shm'), os.path.exists('/tmp/left'))",
    "makes namespaces": (
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "print('MADE A USER NAMESPACE', libc.unshare(0x10000000) == 0 or libc.unshare(0x10020000) == 0)"
    ),
    "exits": "import os\nos._exit(0)",
    "crashes": "import ctypes\nctypes.string_at(0)",
    "stops": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "sleeps": "import time\ntime.sleep(3600)",
    "never ends": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "script on the page": (
        "from IPython.display import HTML, Javascript, display\n"
        'display(HTML(\'<script>document.title = "MARK"</script><img src=x onerror="alert(1)">\'))\n'
        "display(Javascript('document.title = \"MARK\"'))"
    ),
}


FORGED = """
import json
from mha_course.grading import wire
made, honest = [], wire.pack_observation
def forged(seen):
    body, blobs = honest(seen)
    if made:
        made.clear()
        pairs = dict(body["observation"]["dict"])
        pairs["value"] = VALUE
        return {"observation": {"dict": [[name, value] for name, value in pairs.items()]}}, [bytes(256 << 10)]
    return body, blobs
wire.pack_observation = forged
"""
VALUES = {  # what a process says that the target returned
    "bytes used again and again": (
        "{'list': [{'tensor': {'dtype': 'float32', 'shape': [65536], 'at': 0, 'size': 262144}}] * 3000}"
    ),
    "strides that make few numbers many": (
        "{'list': [{'tensor': {'dtype': 'float32', 'shape': [65536], 'at': 0, 'size': 262144, 'stride': [4]}}] * 700}"
    ),
    "keys that collide": "{'dict': [[number * (2**61 - 1), 0] for number in range(90_000)]}",
    "odd objects by the thousand": "{'list': [{'odd': f'a thing {number}'} for number in range(100_000)]}",
    "impossible sizes": "{'tensor': {'dtype': 'float32', 'shape': [2**26] * 5, 'meta': True}}",
    "lists in lists": "json.loads('{\"list\":[' * 400 + ']}' * 400)",
    "very many values": "{'list': [{'list': [0] * 1000}] * 3000}",
}


def stopping(paper: Paper) -> list[Entry]:
    """What once stopped a run, or held it up for all: one such submission, and nobody else was graded."""
    whole = paper.right()

    def with_own(cell: dict, count: int = 1) -> bytes:
        return notebook([*paper.cells(), *({**cell, "id": f"own{number}"} for number in range(count))])

    def text(source: str) -> dict:
        return {"cell_type": "markdown", "metadata": {}, "source": source}

    def stamped(name: str, stamp: bytes) -> Entry:
        return Entry(name, "broken", ALL, whole, beside={"timestamp.txt": stamp})

    target = paper.define(f"made.append(1)\nreturn {paper.inputs}")
    forged = [
        Entry(name, "hostile", REST, paper.right(first=FORGED.replace("VALUE", value), answer=target))
        for name, value in VALUES.items()
    ]
    nested = "".join(" " * (2 * (i % 60)) + "- a\n" for i in range(3000))
    unmarked = [{**cell, "metadata": {}, "id": f"x{i}"} for i, cell in enumerate(paper.cells())]
    much = code("\n".join(f"x{i} = [{i}, ({i}, {i})]" for i in range(500)), "much")
    escapes = (
        "import sys\nfor i in range(100):\n"
        "    print('\\x1b]' * 9_900)\n    print('\\x1b]' * 9_900, file=sys.stderr)"
    )
    return [
        *forged,
        stamped("a time in a strange zone", b"2030-01-01 00:00:00 ../etc"),
        stamped("a time that is two", b"01.11.2026"),
        stamped("a time before all times", b"0001-01-01 00:00:00 +1400"),
        stamped("a time of other bytes", bytes(range(256))),
        stamped("no time at all", b"yesterday"),
        Entry("a long dotted name", "hostile", ALL, with_own(code("a" + ".b" * 99_000, "dotted"))),
        Entry("dotted names in many cells", "hostile", ALL, with_own(code("a" + ".b" * 450, "dotted"), 30)),
        Entry("lists in a text", "hostile", ALL, with_own(text(nested), 9)),
        Entry("brackets in a text", "hostile", ALL, with_own(text("[" * 100_000 + "![](" * 20_000), 9)),
        Entry("escapes without an end", "hostile", ALL, with_own(code(escapes, "escapes"), 3)),
        Entry("conflict marks without an end", "hostile", ALL, whole + b"\n" + b"<<<<<<< mine\n" * 300_000),
        Entry(
            "much to read in every cell",
            "hostile",
            ALL,
            notebook([*({**much, "id": f"m{i}"} for i in range(40)), *unmarked]),
        ),
        Entry("more than is read", "hostile", ASIDE, with_own(code("x" * 190_000, "long"), 40)),
        Entry("no UTF-8", "broken", ASIDE, whole, who="caf\udce9"),
        Entry("an escape in the name", "broken", ASIDE, whole, who="red\x1b[31m\x07"),
        Entry("a line end in the name", "broken", ASIDE, whole, who="two\nlines"),
        Entry("a long name", "broken", ALL, whole, who="\u5b57" * 84),
        Entry("a name for a format", "broken", ALL, whole, who="{0} %s $x 'y' *"),
        Entry(
            "an escape in a file's name",
            "broken",
            ALL,
            whole,
            beside={"\x1b[31mred\n.ipynb": b"{", "caf\udce9.ipynb": b"{"},
            links={"\x1b]0;title\x07": "/etc/passwd"},
        ),
        Entry("folders without an end", "hostile", ALL, whole, deep=True),
        Entry("many files", "hostile", ALL, whole, beside={f"z{i}/{i}.txt": b"" for i in range(1500)}),
    ]


def dressed_up(paper: Paper) -> list[Entry]:
    """Tricks in the file instead of in the code."""
    wrong = paper.define(f"return {paper.inputs}")
    check = f"check_{paper.target}"

    def changed(change: Callable[[list[dict]], None]) -> bytes:
        cells = paper.cells(answer=wrong)
        change(cells)
        return notebook(cells)

    def points(cells: list[dict]) -> None:
        for cell in cells:
            if cell["metadata"].get("nbgrader", {}).get("grade"):
                cell["metadata"]["nbgrader"]["points"] = 1000

    def rewrite(cells: list[dict]) -> None:
        cells[paper.place(cells, check)]["source"] = "3.0"

    def remove(cells: list[dict]) -> None:
        del cells[paper.place(cells, check)]

    def unlock(cells: list[dict]) -> None:
        cell = cells[paper.place(cells, check)]
        cell["metadata"]["nbgrader"] |= {"grade": False, "locked": False, "solution": True}
        cell["source"] = "pass"

    def extra(cells: list[dict]) -> None:
        cell = copy.deepcopy(cells[paper.place(cells, check)])
        cell["metadata"]["nbgrader"] |= {"grade_id": "bonus", "points": 50}
        cell["id"], cell["source"] = "bonus", "pass"
        cells.append(cell)

    def output(cells: list[dict]) -> None:
        cells[paper.place(cells, check)]["outputs"] = [
            {
                "output_type": "execute_result",
                "data": {"text/plain": "3.0"},
                "metadata": {},
                "execution_count": 1,
            }
        ]

    files = {
        "points raised": points,
        "check cell rewritten": rewrite,
        "check cell taken out": remove,
        "check cell unlocked": unlock,
        "check cell of its own": extra,
        "outputs written by hand": output,
    }
    found = [Entry(name, "hostile", REST, changed(change)) for name, change in files.items()]
    shadow = b"import torch\nraise SystemExit(0)\n"
    found += [
        Entry(
            "module beside it",
            "hostile",
            REST,
            changed(lambda cells: None),
            beside={"random.py": shadow, "mha_course.py": shadow, "mha_course/__init__.py": shadow},
        ),
        Entry(
            "link to a secret",
            "hostile",
            REST,
            changed(lambda cells: None),
            links={"secret.txt": "/etc/passwd", "loop": "."},
        ),
        Entry("link as the notebook", "hostile", ASIDE, None, links={"{lesson}.ipynb": "/etc/passwd"}),
    ]
    return found


# -------------------------------------------------------------------------------------- broken


def broken(paper: Paper) -> list[Entry]:
    """What goes wrong by accident, in the file and in the cells."""
    whole = paper.right()
    text = whole.decode()
    content = json.loads(text)

    def file(name: str, deserves: str, data: bytes | None, **more: Any) -> Entry:
        return Entry(name, "broken", deserves, data, **more)

    def with_cells(name: str, deserves: str, change: Callable[[list[dict]], Any]) -> Entry:
        cells = paper.cells()
        change(cells)
        return file(name, deserves, notebook(cells))

    def old_format() -> bytes:
        cells = [
            {
                "cell_type": cell["cell_type"],
                "metadata": cell["metadata"],
                "language": "python",
                "outputs": [],
                "collapsed": False,
                "input" if cell["cell_type"] == "code" else "source": cell["source"],
            }
            for cell in content["cells"]
        ]
        return json.dumps(
            {"metadata": {"name": ""}, "nbformat": 3, "nbformat_minor": 0, "worksheets": [{"cells": cells}]}
        ).encode()

    def large() -> bytes:
        cells = paper.cells()
        cells[paper.place(cells, f"check_{paper.target}")]["outputs"] = [
            {"output_type": "stream", "name": "stdout", "text": "x" * (20 << 20)}
        ]
        return notebook(cells)

    def answer(cells: list[dict]) -> dict:
        return cells[paper.place(cells, paper.target)]

    def check(cells: list[dict]) -> dict:
        return cells[paper.place(cells, f"check_{paper.target}")]

    def stripped(cells: list[dict]) -> None:
        for cell in cells:
            cell["metadata"] = {}

    def other_ids(cells: list[dict]) -> None:
        for number, cell in enumerate(cells):
            cell["id"] = f"other{number}"

    def below(cells: list[dict]) -> None:
        cells.append(cells.pop(paper.place(cells, paper.target)))

    def twice(cells: list[dict]) -> None:
        cells.insert(0, copy.deepcopy(check(cells)))

    def answer_twice(cells: list[dict]) -> None:
        first = copy.deepcopy(answer(cells))
        first["source"] = paper.define("raise NotImplementedError()")
        cells.insert(paper.place(cells, paper.target), first)

    def without(identity: str) -> Callable[[list[dict]], None]:
        def change(cells: list[dict]) -> None:
            del cells[paper.place(cells, identity)]

        return change

    def turned(cells: list[dict]) -> None:
        cell = answer(cells)
        cell["cell_type"] = "markdown"
        for name in ("outputs", "execution_count"):
            cell.pop(name, None)

    def no_imports(cells: list[dict]) -> None:
        del cells[
            next(i for i, cell in enumerate(cells) if cell["source"].lstrip().startswith(("import", "from")))
        ]

    def source(new: str) -> Callable[[list[dict]], None]:
        return lambda cells: answer(cells).update(source=new)

    def before(new: str) -> Callable[[list[dict]], None]:
        return lambda cells: cells.insert(0, code(new, "own"))

    right = paper.answers[paper.target]
    loud = right.replace(":\n", ":\n    import warnings\n    warnings.warn('careful')\n", 1)
    chatty = right.replace(":\n", ":\n    import sys\n    print('debug', file=sys.stderr)\n", 1)
    conflict = text.replace('"cells"', '<<<<<<< mine\n"cells"', 1).replace(
        '"nbformat"', '=======\n>>>>>>> theirs\n"nbformat"', 1
    )
    return [
        file("zero bytes", ASIDE, b""),
        file("only spaces", ASIDE, b"  \n \n"),
        file("half uploaded", ASIDE, whole[: len(whole) // 2]),
        file("a web page", ASIDE, b"<!DOCTYPE html><html><body>Sign in to continue</body></html>"),
        file("a list", ASIDE, b"[1, 2, 3]"),
        file("without cells", ASIDE, b'{"metadata": {}, "nbformat": 4, "nbformat_minor": 5}'),
        file("conflict marks", ASIDE, conflict.encode()),
        file(
            "a pointer to large storage",
            ASIDE,
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        ),
        file("nothing but a picture", ASIDE, None, beside={"photo.png": b"\x89PNG"}),
        file("UTF-16", ALL, text.encode("utf-16")),
        file("Latin-1", ALL, text.replace("import", "# \u00e4\u00f6\u00fc\\nimport", 1).encode("latin-1")),
        file("a byte order mark", ALL, b"\xef\xbb\xbf" + whole),
        file("CRLF", ALL, json.dumps(content, indent=1).replace("\n", "\r\n").encode()),
        file("something after the end", ALL, whole + b"\n}\n"),
        file("a comma too many", ALL, (text.rstrip("}") + ",}").encode()),
        file("format 3", ALL, old_format()),
        file("a newer format", ALL, notebook(content["cells"], nbformat_minor=99, something={"new": True})),
        file("renamed", ALL, whole, file="my homework (1).ipynb"),
        file(
            "renamed in another script",
            ALL,
            whole,
            file="\u0434\u043e\u043c\u0430\u0448\u043d\u0435\u0435 \u2713.ipynb",
        ),
        file("in a folder of its own", ALL, None, beside={"homework/final/solution.ipynb": whole}),
        file(
            "with checkpoints and rubbish",
            ALL,
            whole,
            beside={".ipynb_checkpoints/x.ipynb": b"{}", "notes.txt": b"x", ".DS_Store": b"x"},
        ),
        file("20 MB of output", ALL, large()),
        with_cells("metadata gone", ALL, stripped),
        with_cells("other cell ids", ALL, other_ids),
        with_cells("answer below its check", ALL, below),
        with_cells("check cell twice", ALL, twice),
        with_cells("answer cell twice", ALL, answer_twice),
        with_cells("check cell deleted", ALL, without(f"check_{paper.target}")),
        with_cells("answer cell deleted", REST, without(paper.target)),
        with_cells("answer became text", ALL, turned),
        with_cells("imports deleted", ALL, no_imports),
        with_cells("answer never written", REST, source(paper.define("raise NotImplementedError()"))),
        with_cells("answer with a slip of the pen", REST, source(right.replace("(", "((", 1))),
        with_cells("own cell with a slip of the pen", ALL, before("this is not (Python")),
        with_cells("own cell that raises", ALL, before("1 / 0")),
        with_cells("own cell that asks", ALL, before("name = input('your name? ')")),
        with_cells("own cell that installs", ALL, before("!pip install nothing-of-this-name\n%pip list")),
        with_cells(
            "own cell that opens a window",
            ALL,
            before("%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"),
        ),
        with_cells("own cell that never ends", ALL, before("while True:\n    pass")),
        with_cells("a warning in the answer", ALL, source(loud)),
        with_cells("debug output on stderr", ALL, source(chatty)),
    ]


# ------------------------------------------------------------------------------------- unusual


def unusual(paper: Paper) -> list[Entry]:
    """Correct, and not as one expects."""
    right, target, parameters = paper.answers[paper.target], paper.target, paper.parameters
    renamed = right.replace(f"def {target}(", "def inner(", 1)
    call = f"inner({parameters})"
    inside = "\n".join(f"    {line}" for line in renamed.splitlines())
    ways = {
        "a lambda": f"{renamed}\n{target} = lambda {parameters}: {call}",
        "a callable object": f"{renamed}\nclass Answer:\n    def __call__(self, {parameters}):\n        return {call}\n{target} = Answer()",
        "a bound method": f"{renamed}\nclass Answer:\n    def give(self, {parameters}):\n        return {call}\n{target} = Answer().give",
        "a static method": f"{renamed}\nclass Answer:\n    @staticmethod\n    def give({parameters}):\n        return {call}\n{target} = Answer.give",
        "a partial function": f"import functools\n{renamed}\ndef more(unused, {parameters}):\n    return {call}\n{target} = functools.partial(more, None)",
        "a decorated function": f"import functools\ndef loud(f):\n    @functools.wraps(f)\n    def g(*a, **k):\n        return f(*a, **k)\n    return g\n@loud\n{right}",
        "a nested function": f"def {target}({parameters}):\n{inside}\n    return {call}",
        "through exec": f"exec({right!r})",
        "through star arguments": f"{renamed}\ndef {target}(*args, **kwargs):\n    return inner(*args, **kwargs)",
        "in float64 all along": f"import torch\ntorch.set_default_dtype(torch.float64)\n{right}",
        "wrong first, then right": f"def {target}({parameters}):\n    return None\n{right}",
        "magics around it": f"%time x = 1\n{right}\n%timeit -n1 -r1 x",
        "much printed": right.replace(":\n", ":\n    for i in range(300): print('step', i)\n", 1),
        "a name of another script": f"\u0444 = 1\n{right}",
        "annotations of the future": f"from __future__ import annotations\n{right}",
        "a helper deleted afterwards": f"{renamed}\ndef {target}({parameters}, inner=inner):\n    return {call}\ndel inner",
        "a class with the answer's name inside": f"{right}\nclass Notes:\n    {target} = None",
        "compiled": f"import torch\n@torch.compile\n{right}",
        "compiled in one graph": f"import torch\n@torch.compile(fullgraph=True, dynamic=True)\n{right}",
        "without gradients from a cell of its own": f"import torch\ntorch.set_grad_enabled(False)\n{right}",
        "on a GPU that is not here": f"import torch\ntorch.set_default_device('cuda')\n{right}",
        "in float16 by default": f"import torch\ntorch.set_default_dtype(torch.float16)\n{right}",
        "in inference mode": f"import torch\ntorch.inference_mode().__enter__()\n{right}",
        "with a package that is not here": f"try:\n    import einops_not_here\nexcept ImportError:\n    pass\n{right}",
        "a global changed": f"import random, torch\ntorch.manual_seed(7)\nrandom.seed(7)\ntorch.set_num_threads(2)\n{right}",
    }
    found = [Entry(name, "unusual", ALL, paper.right(answer=way)) for name, way in ways.items()]
    settings = {
        "nothing learns": "torch.set_grad_enabled(False)",
        "everything on a GPU": "torch.set_default_device('cuda')",
        "everything on meta": "torch.set_default_device('meta')",
        "a device of a with without an end": "torch.device('meta').__enter__()",
    }
    return found + [
        Entry(name, "unusual", ALL, paper.right(first=f"import torch\n{setting}"))
        for name, setting in settings.items()
    ]
