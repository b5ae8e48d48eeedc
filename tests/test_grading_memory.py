"""When the machine has no memory left: who holds much is ended, and who was only its neighbour is tried again."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mha_course.grading import sandbox

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="memory is looked up in /proc")
PARENT = """
import sys, time
from mha_course.grading import worker
worker._free = lambda: 0
worker.PATIENCE = 4
def serve_and_leave(channel, settings):
    kept = bytearray(int(sys.argv[3]) << 20)
    for at in range(0, len(kept), 4096):
        kept[at] = 1
    time.sleep(3600)
worker._serve_and_leave = serve_and_leave
worker.main()
"""


def ended(megabytes: int) -> dict:
    """What the parent of learners' processes says of one that holds so much, when the machine has nothing left."""
    ours, theirs = socket.socketpair()
    settings = {
        **vars(sandbox.Limits(memory=800 << 20)),
        "confine": "limits",
        "files": "",
        "probe": True,
        "kept": {},
        "processes": 4096,
    }
    command = [sys.executable, "-c", PARENT, str(theirs.fileno()), json.dumps(settings), str(megabytes)]
    with ours, ours.makefile("r") as said, subprocess.Popen(command, pass_fds=[theirs.fileno()]) as parent:
        theirs.close()
        ours.settimeout(120)
        assert json.loads(said.readline()) == {"ready": True}
        channel, learners = socket.socketpair()
        socket.send_fds(ours, [b'{"do": "fork"}'], [learners.fileno()])
        learners.close()
        pid = json.loads(said.readline())["ok"]
        assert (
            Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "900"
        )  # before the grader's own processes
        assert channel.recv(1) == b""  # it was ended
        ours.sendall(b'{"do": "kill"}')
        told = json.loads(said.readline())
        ours.shutdown(socket.SHUT_RDWR)
        parent.wait(60)
        channel.close()
    return told


def test_who_holds_little_is_ended_last_and_that_is_told():
    assert ended(1)["starved"] is True


def test_who_holds_much_is_ended_first_and_for_its_own_sake():
    assert ended(400)["starved"] is False


def test_a_learner_whose_process_was_starved_is_not_marked_but_tried_again():
    nursery = sandbox.Nursery(Path("nowhere"))
    nursery.control, parent = socket.socketpair()
    with nursery.control, parent:
        answer = threading.Thread(
            target=lambda: (parent.recv(100), parent.sendall(b'{"gone": 9, "starved": true}\n'))
        )
        answer.start()
        with pytest.raises(sandbox.SandboxError, match="no memory left"):
            nursery.kill()
        answer.join()


@pytest.mark.parametrize("said", [b"", b"\n", b'{"ok": 1'])
@pytest.mark.parametrize("read", [True, False])
@pytest.mark.parametrize("asked", ["kill", "fork"])
def test_a_parent_that_is_killed_while_it_is_asked_is_a_parent_that_is_gone(said, read, asked):
    """Whatever the socket says of it. Then the submission is marked anew with another parent."""
    nursery = sandbox.Nursery(Path("nowhere"), way="user")
    nursery.control, parent = socket.socketpair()
    nursery.ready = True

    def die():
        select.select([parent], [], [])
        if read:
            parent.recv(100)
        parent.sendall(said)
        parent.close()

    dying = threading.Thread(target=die)
    dying.start()
    with nursery.control, pytest.raises(sandbox.SandboxError):
        getattr(nursery, asked)()
    dying.join()


def test_limits_of_the_grader_are_not_those_of_learners_processes():
    """A trusted process has limits of its own while it works; what it starts must not inherit them."""
    import resource

    script = (
        "import resource; from mha_course.grading import worker; worker._free_of_limits();"
        "print([resource.getrlimit(r)[0] for r in (resource.RLIMIT_CPU, resource.RLIMIT_DATA)])"
    )
    hard = [resource.getrlimit(kind)[1] for kind in (resource.RLIMIT_CPU, resource.RLIMIT_DATA)]
    limited = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (600, resource.getrlimit(resource.RLIMIT_CPU)[1]));"
    done = subprocess.run(
        [sys.executable, "-c", limited + script], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == hard
