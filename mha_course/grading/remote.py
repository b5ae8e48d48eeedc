"""Asking an answer that lives in a learner's process: the trusted end of the socket.

Whatever comes back is a claim: it is bounded, its types are checked, and the values are compared here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from mha_course.checking.calls import Call, Failure, Observation
from mha_course.checking.plain import clean
from mha_course.tutor import DidNotRun

from . import wire
from .sandbox import Nursery

RETURNED = 64 << 20  # bytes of all that a process returns; the right answers of a whole lesson have 1 MiB
GRACE = 3.0  # seconds: a process is asked to stop first, and ended after that


class Died(Exception):
    """The learner's process is gone, does not answer, or answers nonsense.

    Args:
        says: what happened.
        late: it was stopped because its time was up.
    """

    def __init__(self, says: str, late: bool = False):
        super().__init__(says)
        self.late = late


class Process:
    """One learner's process, from fork to the end of its process tree.

    Args:
        nursery: where it is forked.
        until: when it must be over, as of `time.monotonic`.
    """

    def __init__(self, nursery: Nursery, until: float):
        self.nursery, self.until = nursery, until
        self.channel = nursery.fork()
        self.room, self.returned = Room(), 0

    def begin(
        self,
        off: tuple[str, ...],
        loan: dict[str, Any],
        quiet: bool,
        pictures: bool = False,
        lent: tuple[str, ...] = (),
        lean: bool = False,
    ) -> None:
        """Get ready for the first cell.

        Args:
            off: groups of ready-made functions to switch off.
            loan: what is lent of the reference, see `lending`.
            quiet: outputs are not kept; nothing is drawn.
            pictures: the course's own pictures are drawn; else their alt text stands there.
            lent: functions of the loan that take the place of the learner's.
            lean: there is no memory to spare (see `worker.LEAN`).

        Raises:
            Died: see there.
        """
        asked = {"do": "start", "off": list(off), "reference": loan, "quiet": quiet, "pictures": pictures}
        self._ask({**asked, "lent": list(lent), "lean": lean}, seconds=30)

    def run(self, source: str, number: int, seconds: float) -> tuple[list[dict], bool, DidNotRun | None]:
        """Run one cell: its outputs (made harmless), whether its time was up, and what it raised.

        Raises:
            Died: see there.
        """
        seconds = max(min(seconds, self.until - time.monotonic()), 0.1)
        reply, _ = self._ask({"do": "run", "source": source, "number": number, "seconds": seconds}, seconds)
        outputs = reply.get("outputs")
        kept = harmless_outputs(outputs if isinstance(outputs, list) else [], number, self.room)
        return kept, reply.get("late") is True, _fault(reply.get("fault"), source)

    def observe(self, name: str, call: Call) -> Observation:
        """Make one call of the answer that is called ``name``.

        Raises:
            Died: see there.
        """
        body, blobs = wire.pack_call(call)
        request = {"do": "observe", "name": name, "call": body}
        reply, data = self._ask(request, min(call.seconds, self.until - time.monotonic()), blobs)
        self.returned += len(data)
        if self.returned > RETURNED:
            raise Died(f"its answers were larger than {RETURNED >> 20} MB in all")
        if reply.get("missing"):
            return Observation(failure=_missing(name, reply.get("kind")))
        try:
            return wire.observation_from(reply, data)
        except (wire.Malformed, RecursionError, MemoryError, TypeError, ValueError, RuntimeError) as error:
            raise Died(f"its answer makes no sense ({str(error)[:80]})") from None

    def value(self, name: str) -> str | None:
        """The text that a variable holds, ``None`` where it holds none."""
        reply, _ = self._ask({"do": "value", "name": name}, 5)
        value = reply.get("value")
        return value[:200] if isinstance(value, str) else None

    def which(self, names: tuple[str, ...]) -> list[Any]:
        """Something that changes when another object gets one of these names."""
        reply, _ = self._ask({"do": "which", "names": list(names)}, 5)
        found = reply.get("which")
        return (
            [number for number in found[: len(names)] if type(number) is int]
            if isinstance(found, list)
            else []
        )

    def noticed(self) -> bool:
        """Whether anything that is switched off was called. A claim: it may only decide what is tried again."""
        reply, _ = self._ask({"do": "noticed"}, 5)
        return reply.get("noticed") is not False

    def end(self) -> None:
        """Kill the process and everything it started."""
        self.channel.close()
        self.nursery.kill()

    def _ask(self, request: dict, seconds: float, blobs: list[bytes] = ()) -> tuple[dict, memoryview]:
        deadline = time.monotonic() + max(seconds, 0.1) + GRACE
        try:
            wire.write(self.channel, request, blobs, deadline)
            reply, data = wire.read(self.channel, deadline)
        except wire.Closed as error:
            raise Died("its time was up" if error.late else "its process ended", error.late) from None
        except (wire.Malformed, MemoryError) as error:
            raise Died(f"its answer makes no sense ({error})") from None
        if not isinstance(reply, dict) or "error" in reply:
            raise Died("its answer makes no sense")
        return reply, data


class RemoteAnswer:
    """An answer by its name in a learner's process; what `examine` asks. Never raises because of the answer.

    Args:
        process: where it lives.
        name: the function's or class's name.
        lent: functions of the reference that it may call, besides those that it builds on anyway.

    Attributes:
        death: how the process died, if it did; nothing more is asked of it then.
    """

    def __init__(self, process: Process, name: str, lent: tuple[str, ...] = ()):
        self.process, self.name, self.lent = process, name, lent
        self.death: Died | None = None

    def observe(self, call: Call) -> Observation:
        if self.death is None:
            if call.reference_allowed is not None:
                call = replace(call, reference_allowed=(*call.reference_allowed, *self.lent))
            try:
                return self.process.observe(self.name, call)
            except Died as death:
                self.death = death
        if self.death.late:
            return Observation(
                failure=Failure("too slow", ("TimeoutError",), f"stopped after {call.seconds:g} s")
            )
        return Observation(failure=Failure("raised", ("SystemExit",), f"while it ran, {self.death}"))


def _missing(name: str, kind: Any) -> Failure:
    if isinstance(kind, str) and kind not in ("NoneType", "ellipsis"):
        return Failure("raised", ("TypeError",), f"{name} is of type {kind[:80]}: it cannot be called")
    return Failure("not written", ("NameError",), f"name {name!r} is not defined")


def _fault(claimed: Any, source: str) -> DidNotRun | None:
    """What a process says that a cell raised."""
    if not isinstance(claimed, list) or len(claimed) != 3:
        return None
    error, says, line = claimed
    lines = source.splitlines()
    if not isinstance(error, str) or not isinstance(says, str) or type(line) is not int:
        return None
    line = line if 0 < line <= len(lines) else 0
    code = clean(lines[line - 1].strip(), 100) if line else ""
    return DidNotRun(clean(error, 100), " ".join(clean(says, 200).split()), line, code)


# ------------------------------------------------------------------------------- harmless outputs

TEXT = 20_000  # characters of one output; of one cell, four times as many
LINES = 500  # of a traceback
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass
class Room:
    """What may still be kept of a process's outputs, of all cells together."""

    outputs: int = 3000
    text: int = 2_000_000  # characters
    pictures: int = 16 << 20  # bytes


def harmless_outputs(claimed: list, number: int, room: Room) -> list[dict]:
    """Outputs for a page that others open: text, and pictures that are PNG. No HTML, no scripts, no links."""
    kept: list[dict] = []
    here = min(4 * TEXT, room.text)
    before = here

    def text_of(text: Any, limit: int = TEXT) -> str:
        nonlocal here
        text = clean(text, max(min(limit, here), 0)) if isinstance(text, str) else ""
        here -= len(text)
        return text

    for output in claimed[:200]:
        if not isinstance(output, dict) or here <= 0 or len(kept) >= room.outputs:
            continue
        kind = output.get("output_type")
        if kind == "stream" and output.get("name") in ("stdout", "stderr"):
            kept.append(
                {"output_type": "stream", "name": output["name"], "text": text_of(output.get("text"))}
            )
        elif kind == "error":
            lines = text_of(output.get("text")).split("\n")[:LINES]
            name, value = text_of(output.get("ename"), 200), text_of(output.get("evalue"), 2000)
            kept.append({"output_type": "error", "ename": name, "evalue": value, "traceback": lines})
        elif kind in ("display_data", "execute_result") and isinstance(output.get("data"), dict):
            data: dict[str, str] = {}
            if (text := text_of(output["data"].get("text/plain"))) or kind == "execute_result":
                data["text/plain"] = text
            picture = _png(output["data"].get("image/png"))
            if picture and len(picture) <= room.pictures:
                room.pictures -= len(picture)
                data["image/png"] = picture
            alt = text_of(output.get("alt"), 1000)
            made = {"output_type": kind, "data": data, "metadata": {"image/png": {"alt": alt}} if alt else {}}
            if kind == "execute_result":
                made["execution_count"] = number
            if data:
                kept.append(made)
    room.text -= before - here
    room.outputs -= len(kept)
    return kept


def _png(data: Any) -> str:
    import base64
    import binascii

    if not isinstance(data, str) or len(data) > 600_000:
        return ""
    try:
        raw = base64.b64decode(data, validate=False)
    except (binascii.Error, ValueError):
        return ""
    if not raw.startswith(PNG) or raw[12:16] != b"IHDR" or not len(raw) >= 33:
        return ""
    width, height = int.from_bytes(raw[16:20], "big"), int.from_bytes(raw[20:24], "big")
    return base64.b64encode(raw).decode() if 0 < width * height <= 16_000_000 else ""
