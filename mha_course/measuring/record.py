"""A record on disk: JSON, saved whole or not at all."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FORMAT = 1
RECORDED = Path(__file__).parent / "recorded"

Record = dict[str, Any]


def now() -> str:
    """The date and time, UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def save(record: Record, path: Path | str) -> None:
    """Write a record. Whoever reads the file meanwhile sees the old one or the new one, never half of one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        beside.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def load(path: Path | str) -> Record:
    """Read a record.

    Raises:
        ValueError: the file is no record, or of another format.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no record of `mha-course gpu`: {error}") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{path} is no record of `mha-course gpu` in format {FORMAT}")
    return record


def latest_record(device: str = "cuda", folder: Path | str = RECORDED) -> Record | None:
    """The newest recording that ships with the course, or ``None`` where nobody has recorded one yet.

    Args:
        device: "cuda", "mps" or "cpu".
        folder: where to look.
    """
    records = [load(path) for path in sorted(Path(folder).glob("*.json"))]
    records = [record for record in records if record["machine"]["device"] == device]
    return max(records, key=lambda record: record["date"], default=None)


def file_name(record: Record) -> str:
    """ "cuda-nvidia-h200-2026-01-31.json": the machine and the day."""
    words = f"{record['machine']['device']} {record['machine']['name']}".lower()
    plain = "".join(sign if sign.isascii() and sign.isalnum() else "-" for sign in words)
    name = "-".join(part for part in plain.split("-") if part)
    return f"{name}-{record['date'][:10]}.json"
