"""Plain data across the boundary between the grader and a learner's process.

A frame is a length, a JSON text, and the raw bytes of tensors. Nothing is unpickled, nothing is imported by
name. What comes from the learner's side is only a claim: `read` bounds its size, `Unpacker` how much it unpacks to
(every byte is used once, so no frame can become much larger than it is), and `observation_from` every field.

    frame = b"MHA1", length of the JSON (u32, big-endian), length of the bytes (u64), JSON, bytes
"""

from __future__ import annotations

import json
import math
import re
import select
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from mha_course.checking.calls import Call, Failure, Observation
from mha_course.checking.exercise import Named, Step
from mha_course.checking.kinds import FailureKind
from mha_course.checking.plain import Odd, clean, with_article

HEAD = struct.Struct(">4sIQ")
MAGIC = b"MHA1"
MAX_JSON = 8 << 20  # bytes
MAX_PARTS = 2_000_000  # brackets and commas in it
MAX_BYTES = 16 << 20  # the largest right answer of this course has 0.4 MiB
MAX_NUMBERS = 1 << 40  # of a tensor without numbers in it, on the device "meta"
# Of all values in a frame together:
MAX_TENSORS = 4096
MAX_ITEMS = 100_000
MAX_KEYS = 2000  # of dicts; who may choose keys can make them collide, and each then costs as many steps as there are
MAX_DEPTH = 12
DTYPES = {
    name: getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex64", "complex128"),
        *("int64", "int32", "int16", "int8", "uint8", "bool"),
    )
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Closed(Exception):
    """The other side is gone, or did not answer in time (``late``)."""

    def __init__(self, says: str, late: bool = False):
        super().__init__(says)
        self.late = late


class Malformed(Exception):
    """What arrived is not a frame, or not what was asked for."""


# ---------------------------------------------------------------------------------------- frames


def write(channel: socket.socket, body: Any, blobs: list[bytes] = (), deadline: float | None = None) -> None:
    """Send one frame.

    Raises:
        Closed: the other side is gone, or does not read (``deadline`` as of `time.monotonic`).
    """
    text = json.dumps(body, separators=(",", ":")).encode()
    data = b"".join((HEAD.pack(MAGIC, len(text), sum(map(len, blobs))), text, *blobs))
    view = memoryview(data)
    while view:
        _wait(channel, deadline, writing=True)
        try:
            view = view[channel.send(view[: 1 << 20]) :]
        except BlockingIOError:
            continue
        except OSError as error:
            raise Closed(f"cannot write: {error.strerror}") from None


def read(channel: socket.socket, deadline: float | None = None) -> tuple[Any, memoryview]:
    """Receive one frame: its JSON and its bytes.

    Raises:
        Closed: the other side is gone or late.
        Malformed: not a frame, or a larger one than is allowed.
    """
    magic, text_size, data_size = HEAD.unpack(_exactly(channel, HEAD.size, deadline))
    if magic != MAGIC or text_size > MAX_JSON or data_size > MAX_BYTES:
        raise Malformed("not a frame of a permitted size")
    text = _exactly(channel, text_size, deadline)
    if sum(text.count(mark) for mark in b"[{,") > MAX_PARTS:
        raise Malformed("built of too many parts")
    data = memoryview(_exactly(channel, data_size, deadline))
    try:
        return json.loads(text), data
    except (ValueError, RecursionError):
        raise Malformed("not JSON") from None


def _exactly(channel: socket.socket, size: int, deadline: float | None) -> bytearray:
    data = bytearray()
    while len(data) < size:
        _wait(channel, deadline)
        try:
            part = channel.recv(min(size - len(data), 1 << 20))
        except BlockingIOError:
            continue
        except OSError as error:
            raise Closed(f"cannot read: {error.strerror}") from None
        if not part:
            raise Closed("the process has ended")
        data += part
    return data


def _wait(channel: socket.socket, deadline: float | None, writing: bool = False) -> None:
    if deadline is None:
        return
    left = deadline - time.monotonic()
    ways = ([], [channel], []) if writing else ([channel], [], [])
    if left <= 0 or not any(select.select(*ways, left)):
        raise Closed("no answer in time", late=True)


# ---------------------------------------------------------------------------------------- values


class Packer:
    """Turns values into JSON, and tensors into bytes in the order in which they come. One for each frame.

    Args:
        strides: tell how tensors lie in memory.
    """

    def __init__(self, strides: bool = False):
        self.strides = strides
        self.blobs: list[bytes] = []
        self.size = self.items = self.keys = 0

    def pack(self, value: Any, depth: int = 0) -> Any:
        """JSON for numbers, text, tensors, and lists, tuples, dicts of them. Whatever else: what it is, in words."""
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return int(value) if abs(value) < 1 << 63 else {"odd": "a very long number"}
        if isinstance(value, float):
            return float(value)
        if isinstance(value, str):
            return str(value)[:100_000]
        if isinstance(value, Tensor):
            return self._tensor(value)
        if depth < MAX_DEPTH:
            if isinstance(value, (list, tuple)) and self.items + len(value) <= MAX_ITEMS:
                self.items += len(value)
                kind = "list" if isinstance(value, list) else "tuple"
                return {kind: [self.pack(item, depth + 1) for item in value]}
            if isinstance(value, Mapping) and self.keys + len(value) <= MAX_KEYS and all(map(_is_key, value)):
                self.keys += len(value)
                return {"dict": [[self.pack(x, depth + 1) for x in pair] for pair in value.items()]}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        if isinstance(value, Named):
            return {"named": value.name}
        return {"odd": (value.what if isinstance(value, Odd) else with_article(type(value).__name__))[:200]}

    def _tensor(self, x: Tensor) -> Any:
        plain = type(x) is Tensor or isinstance(x, torch.nn.Parameter)
        usable = plain and x.layout == torch.strided and x.dtype in NAMES and x.device.type in ("cpu", "meta")
        bytes_ = x.numel() * x.element_size() if usable and x.device.type == "cpu" else 0
        if (
            not usable
            or self.size + bytes_ > MAX_BYTES
            or len(self.blobs) >= MAX_TENSORS
            or x.dim() > 16
            or _numbers(x.shape) > MAX_NUMBERS
        ):
            what = f"a tensor of shape {tuple(x.shape)} and dtype {str(x.dtype).removeprefix('torch.')}"
            return {"odd": f"{what}, too large or too odd to be looked at"}
        told: dict[str, Any] = {"dtype": NAMES[x.dtype], "shape": list(x.shape)}
        if x.device.type == "meta":
            self.blobs.append(b"")
            return {"tensor": {**told, "meta": True}}
        x = x.detach().clone().resolve_conj().resolve_neg()
        if self.strides and not x.is_contiguous():
            told["stride"] = list(x.stride())
        data = x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b""
        self.blobs.append(data)
        self.size += len(data)
        return {"tensor": told}


class Unpacker:
    """The values of one frame again, in the order in which they were packed.

    Args:
        data: the frame's bytes.
        strides: tensors may lie in memory as they are told to. Only from the trusted side: strides can make few bytes
            stand for many.
    """

    def __init__(self, data: memoryview, strides: bool = False):
        self.data, self.strides = data, strides
        self.at = self.items = self.keys = self.tensors = 0

    def unpack(self, packed: Any, depth: int = 0) -> Any:
        """The value; what cannot cross is an `Odd`.

        Raises:
            Malformed: anything else than what `Packer` makes.
        """
        if depth > MAX_DEPTH + 1:
            raise Malformed("nested too deeply")
        if isinstance(packed, str):
            return packed.encode("utf-8", "replace").decode()
        if packed is None or isinstance(packed, (bool, int, float)):
            return packed
        if not isinstance(packed, dict) or len(packed) != 1:
            raise Malformed("not a value")
        ((kind, inside),) = packed.items()
        if kind in ("list", "tuple") and isinstance(inside, list):
            self.items = _within(self.items + len(inside), MAX_ITEMS, "values")
            items = [self.unpack(item, depth + 1) for item in inside]
            return items if kind == "list" else tuple(items)
        if kind == "dict" and isinstance(inside, list):
            self.keys = _within(self.keys + len(inside), MAX_KEYS, "keys")
            pairs = {}
            for pair in inside:
                if not isinstance(pair, list) or len(pair) != 2 or not _is_key(pair[0]):
                    raise Malformed("not a dict")
                key = self.unpack(pair[0], depth + 1)
                pairs[key] = self.unpack(pair[1], depth + 1)
            return pairs
        if kind == "tensor" and isinstance(inside, dict):
            self.tensors = _within(self.tensors + 1, MAX_TENSORS, "tensors")
            return self._tensor(inside)
        if not isinstance(inside, str):
            raise Malformed(f"not a {kind[:20]}")
        if kind == "dtype" and inside in DTYPES:
            return DTYPES[inside]
        if kind == "device" and re.fullmatch(r"(cpu|cuda|meta|mps)(:\d{1,2})?", inside):
            return torch.device(inside)
        if kind == "named":
            return Named(inside)
        if kind in ("odd", "dtype", "device"):
            return Odd(clean(inside, 200))
        raise Malformed(f"unknown kind of value {kind[:20]!r}")

    def _tensor(self, told: Mapping[str, Any]) -> Tensor:
        dtype, shape, stride = told.get("dtype"), told.get("shape"), told.get("stride")
        dtype = DTYPES.get(dtype) if isinstance(dtype, str) else None
        if dtype is None or not _sizes(shape) or len(shape) > 16 or _numbers(shape) > MAX_NUMBERS:
            raise Malformed("not a tensor")
        if told.get("meta") is True:
            return torch.empty(shape, dtype=dtype, device="meta")
        end = self.at + math.prod(shape) * dtype.itemsize
        if end > len(self.data):
            raise Malformed("a tensor's shape does not fit its bytes")
        if end == self.at:
            return torch.empty(shape, dtype=dtype)
        raw = torch.frombuffer(bytearray(self.data[self.at : end]), dtype=torch.uint8)
        self.at = end
        x = (raw != 0 if dtype is torch.bool else raw.view(dtype)).reshape(shape)
        if stride is not None:
            if not self.strides or not _sizes(stride) or len(stride) != len(shape):
                raise Malformed("not strides")
            x = torch.empty_strided(shape, stride, dtype=dtype).copy_(x)
        return x


def _within(number: int, limit: int, what: str) -> int:
    if number > limit:
        raise Malformed(f"more than {limit} {what}")
    return number


def _is_key(key: Any) -> bool:
    return key is None or isinstance(key, (bool, int, float, str))


def _numbers(shape: Iterable[int]) -> int:
    """How many numbers a tensor of this shape would have if none of its sizes were 0."""
    return math.prod(max(size, 1) for size in shape)


def _sizes(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n <= MAX_NUMBERS for n in numbers)


# ----------------------------------------------------------------------------- calls, observations


PLAIN = ("train", "seed", "seconds", "device", "largest")  # a call's fields that cross as they are


def pack_call(call: Call) -> tuple[dict[str, Any], list[bytes]]:
    packer = Packer(strides=True)
    if isinstance(call.inputs, list):
        inputs = {"steps": [[step.method, packer.pack(step.inputs)] for step in call.inputs]}
    else:
        inputs = {"arguments": packer.pack(call.inputs)}
    body = {
        **inputs,
        "construct": packer.pack(call.construct),
        "state": packer.pack(call.state),
        "keywords": list(call.keywords),
        "gradients": list(call.gradients),
        "forbidden": list(call.forbidden),
        "reference_allowed": None if call.reference_allowed is None else list(call.reference_allowed),
        **{name: getattr(call, name) for name in PLAIN},
    }
    return body, packer.blobs


def call_from(body: Mapping[str, Any], data: memoryview) -> Call:
    """What `pack_call` packed. Read on the learner's side, from the trusted one."""
    steps = body.get("steps")
    unpack = Unpacker(data, strides=True).unpack
    allowed = body["reference_allowed"]
    return Call(
        inputs=unpack(body["arguments"])
        if steps is None
        else [Step(method, unpack(inputs)) for method, inputs in steps],
        construct=unpack(body["construct"]),
        state=unpack(body["state"]),
        keywords=tuple(body["keywords"]),
        gradients=tuple(body["gradients"]),
        forbidden=tuple(body["forbidden"]),
        reference_allowed=None if allowed is None else tuple(allowed),
        **{name: body[name] for name in PLAIN},
    )


def pack_observation(seen: Observation) -> tuple[dict[str, Any], list[bytes]]:
    packer = Packer()
    plain = {f.name: getattr(seen, f.name) for f in fields(seen)}
    plain["failure"] = None if seen.failure is None else vars(seen.failure)
    return {"observation": packer.pack(plain)}, packer.blobs


def observation_from(body: Any, data: memoryview) -> Observation:
    """An `Observation` whose every field has the right type and a bounded size, whatever was claimed.

    Raises:
        Malformed: it has not.
    """
    claim = Unpacker(data).unpack(body.get("observation") if isinstance(body, dict) else None)
    if not isinstance(claim, dict):
        raise Malformed("not an observation")
    gradients = claim.get("gradients")
    if not isinstance(gradients, dict) or not all(
        isinstance(name, str) and (x is None or isinstance(x, Tensor)) for name, x in gradients.items()
    ):
        raise Malformed("not gradients")
    return Observation(
        value=claim.get("value"),
        gradients={name[:200]: x for name, x in gradients.items()},
        detached=claim.get("detached") is True,
        gradient_error=_text(claim.get("gradient_error"), 500),
        changed=_texts(claim.get("changed")),
        odd_types=_texts(claim.get("odd_types")),
        warnings=_texts(claim.get("warnings"), 500),
        printed=_text(claim.get("printed"), 10_000),
        used=_texts(claim.get("used")),
        too_large=_shape(claim.get("too_large")),
        stub=claim.get("stub") is True,
        failure=_failure_from(claim.get("failure")),
    )


def _failure_from(claim: Any) -> Failure | None:
    if claim is None:
        return None
    if not isinstance(claim, dict) or claim.get("kind") not in tuple(FailureKind):
        raise Malformed("not a failure")
    lines = claim.get("lines")
    kept = []
    for line in lines if isinstance(lines, (list, tuple)) else ():
        if not isinstance(line, (list, tuple)) or len(line) != 3 or type(line[1]) is not int:
            raise Malformed("not a line of code")
        kept.append((_text(line[0], 80), line[1], _text(line[2], 200)))
    types = _texts(claim.get("types")) or ("Exception",)
    return Failure(FailureKind(claim["kind"]), types, _text(claim.get("message"), 2000), tuple(kept[-4:]))


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or not all(type(n) is int and n >= 0 for n in value):
        raise Malformed("not a shape")
    return tuple(value[:8])


def _text(value: Any, limit: int) -> str:
    if not isinstance(value, str):
        raise Malformed("not a text")
    return value[:limit].encode("utf-8", "replace").decode()


def _texts(values: Any, limit: int = 100) -> tuple[str, ...]:
    if not isinstance(values, (list, tuple)):
        raise Malformed("not a list of texts")
    return tuple(_text(value, limit) for value in values[:20])
