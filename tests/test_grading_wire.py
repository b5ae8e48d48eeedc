"""What comes out of a learner's process: a frame never becomes much larger than it is, nor takes the square of its size."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading

import pytest
import torch

from mha_course.checking.calls import Call, Observation
from mha_course.checking.plain import Odd
from mha_course.grading import remote, wire


def received(observation, data: bytes = b"") -> Observation:
    """What the grader makes of a claim, with this as the value."""
    body, _ = wire.pack_observation(Observation())
    pairs = dict(body["observation"]["dict"])
    pairs["value"] = observation
    claim = {"observation": {"dict": [[name, value] for name, value in pairs.items()]}}
    return wire.observation_from(json.loads(json.dumps(claim)), memoryview(data))


def there_and_back(value):
    body, blobs = wire.pack_observation(Observation(value=value))
    return wire.observation_from(json.loads(json.dumps(body)), memoryview(b"".join(blobs))).value


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -2.5,
        "text",
        [1, (2, "x"), {"a": [3]}],
        {"name": 1, 2: "two"},
        torch.float32,
        torch.device("cpu"),
    ],
)
def test_plain_values_come_back_as_they_were(value):
    assert there_and_back(value) == value


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.bool, torch.int64, torch.complex64])
def test_tensors_come_back_as_they_were(dtype):
    torch.manual_seed(0)
    x = (torch.randn(2, 3, 4) * 5).to(dtype)
    first, second, third = there_and_back([x, x.transpose(0, 2), x[:0]])
    assert first.equal(x) and second.equal(x.transpose(0, 2)) and third.shape == (0, 3, 4)
    assert first.dtype == second.dtype == third.dtype == dtype


def test_a_call_keeps_how_its_inputs_lie_in_memory():
    x = torch.arange(24.0).reshape(2, 3, 4).transpose(0, 2)
    body, blobs = wire.pack_call(Call({"x": x, "y": x[0]}, state={"w": torch.ones(2)}))
    call = wire.call_from(json.loads(json.dumps(body)), memoryview(b"".join(blobs)))
    assert call.inputs["x"].equal(x) and call.inputs["x"].stride() == x.stride()
    assert call.inputs["y"].equal(x[0]) and call.state["w"].equal(torch.ones(2))


def forged(**told) -> dict:
    return {"tensor": {"dtype": "float32", "at": 0, **told}}


def test_bytes_cannot_be_used_twice():
    data = bytes(256 << 10)
    claim = {"list": [forged(shape=[64 << 10], size=len(data)) for _ in range(3000)]}
    with pytest.raises(wire.Malformed, match="bytes"):
        received(claim, data)


def test_strides_from_a_learner_are_refused():
    data = bytes(256 << 10)
    claim = forged(shape=[64 << 10], size=len(data), stride=[4])
    with pytest.raises(wire.Malformed, match="strides"):
        received(claim, data)


@pytest.mark.parametrize(
    "told",
    [
        {"shape": [1 << 26] * 5, "meta": True},
        {"shape": [0] + [1 << 26] * 5, "size": 0},
        {"shape": [1] * 17, "size": 4},
        {"shape": [-1], "size": 4},
        {"shape": [1.0], "size": 4},
        {"shape": "1", "size": 4},
        {"shape": [10], "size": 40},
        {"shape": [1], "size": 4, "dtype": ["float32"]},
    ],
)
def test_impossible_tensors_are_malformed_and_nothing_else(told):
    with pytest.raises(wire.Malformed):
        received(forged(**told), bytes(4))


def test_few_keys_are_taken_so_that_it_does_not_matter_if_they_collide():
    keys = [number * ((1 << 61) - 1) for number in range(5000)]  # what Python takes hashes modulo
    with pytest.raises(wire.Malformed, match="keys"):
        received({"dict": [[key, 0] for key in keys]})
    with pytest.raises(wire.Malformed):
        received({"list": [{"dict": [[key, 0] for key in keys[n::50]]} for n in range(50)]})


def test_no_classes_are_made_for_objects_that_cannot_cross():
    before = len(object.__subclasses__())
    value = received({"list": [{"odd": f"a thing {number}"} for number in range(5000)]}).value
    assert value[0] == Odd("a thing 0") and len(value) == 5000
    assert len(object.__subclasses__()) == before


@pytest.mark.parametrize(
    "claim",
    [
        {"list": [{"list": [0] * 90_000}] * 2},
        {"list": [{"tuple": [0] * 1000}] * 1000},
        {"list": [forged(shape=[0], size=0)] * 5000},
        {"list": [{"list": [{"list": [{"list": [{"list": [{"list": [{"list": [{"list": [{"list": [{"list": [
            {"list": [{"list": [{"list": [{"list": [{"list": [1]}]}]}]}]}]}]}]}]}]}]}]}]}]}]},
    ],
)  # fmt: skip
def test_totals_are_bounded_not_only_each_part(claim):
    with pytest.raises(wire.Malformed):
        received(claim)


def sent(frame: bytes):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        writer = threading.Thread(target=theirs.sendall, args=(frame,), daemon=True)
        writer.start()
        try:
            return wire.read(ours)
        finally:
            ours.close()
            writer.join()


@pytest.mark.parametrize("text", [b"[" * 5_000_000, b"[" + b"[]," * 2_600_000 + b"0]", b"{" * 8_000_000])
def test_a_frame_of_brackets_is_refused_before_anything_is_made_of_it(text, monkeypatch):
    monkeypatch.setattr(wire.json, "loads", lambda text: pytest.fail("it was parsed"))
    try:
        sent(wire.HEAD.pack(wire.MAGIC, len(text), 0) + text)
    except wire.Malformed:
        return
    except OSError:
        pass
    pytest.fail("it was taken")


def test_an_honest_dict_of_odd_keys_or_a_very_long_list_is_only_odd():
    assert there_and_back({(1, 2): 3}) == Odd("a dict")
    assert there_and_back([0.0] * 200_000) == Odd("a list")
    assert there_and_back([[0.0] * 60_000] * 2) == [[0.0] * 60_000, Odd("a list")]


LINEAR = {
    "escapes that never end": (
        "from mha_course.grading.remote import *\n"
        "text = '\\x1b]' * 20_000\n"
        "claimed = [{'output_type': 'stream', 'name': 'stdout', 'text': text}] * 200\n"
        "[harmless_outputs(claimed, 1, Room()) for _ in range(20)]"
    ),
    "conflict marks that never end": (
        "from mha_course.grading.intake import *\nfrom mha_course.grading.intake import _json\n"
        "try: _json('{}\\n' + '<<<<<<< mine\\n' * 1_000_000, 'x', [])\nexcept SetAside: pass"
    ),
}


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of processor time there")
@pytest.mark.parametrize("what", LINEAR)
def test_text_is_gone_through_once(what):
    """In 60 s of processor time, of which it needs a few; with the square of its size it would be hours."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (60, 60))\n"
    subprocess.run([sys.executable, "-c", limit + LINEAR[what]], check=True, capture_output=True)


def test_outputs_are_bounded_over_all_cells():
    room = remote.Room()
    claimed = [{"output_type": "error", "ename": "E" * 500, "evalue": "v", "text": "\n" * 19_000}] * 200
    kept = [output for _ in range(1000) for output in remote.harmless_outputs(claimed, 1, room)]
    assert len(kept) <= 3000
    assert sum(len(line) + 1 for output in kept for line in output["traceback"]) <= 2_100_000
