"""Every verdict for ever: one JSON object a line, oldest first."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from tasks import files

PATH = files.REPORTS / "verdicts.jsonl"


def read(path: Path = PATH) -> list[dict[str, Any]]:
    """Return all verdicts; a line that a crash cut short is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def append(record: dict[str, Any], path: Path = PATH) -> None:
    """Append one verdict, with the time, unless the same is there already.

    Safe beside other writers and after a crash: the line is written as a whole behind a line end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if any({**known, **record} == known for known in read(path)):
            return
        line = json.dumps({"at": datetime.now(UTC).isoformat(timespec="seconds"), **record})
        torn = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
        with path.open("ab") as file:
            file.write(b"\n" * bool(torn) + line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
