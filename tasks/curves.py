"""Training curves as the stages left them, and as they grow while a stage trains."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import files

# One row an epoch: column -> figure.
Rows = Sequence[dict[str, Any]]
# The block of params.yaml, which also names curves and metrics -> the stage.
STAGES = {"head": "train_head", "fine_tune": "fine_tune"}


def read_curve(path: Path) -> list[dict[str, float | None]]:
    """Read a training curve that `models.write_curve` wrote, one row an epoch."""
    with path.open(newline="") as file:
        return [
            {name: float(value) if value else None for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


def curve_of(candidate: str, key: str) -> Path:
    """Return where a stage writes a candidate's curve; `key` is one of STAGES."""
    return files.REPORTS / candidate / f"{key}_curve.csv"


def live_of(candidate: str, key: str) -> Path:
    """Return where a stage that trains writes its epochs as they come."""
    return files.CHECKPOINTS / STAGES[key] / candidate / "live.jsonl"


@dataclass(frozen=True)
class Live:
    """What a `live.jsonl` holds: a training and its epochs so far.

    Attributes:
        training: its identity; the second attempt, after a divergence, has another.
        params: that it trains with, by name.
        rows: the epochs, those of `read_curve` with `time` (milliseconds since 1970) and
            `pictures_per_second` (None where nothing was trained yet).
    """

    training: str
    params: dict[str, Any]
    rows: list[dict[str, Any]]

    def is_of(self, curve: Rows) -> bool:
        """Whether this is the training that left a curve."""
        mine = [{name: row.get(name) for name in curve[0]} for row in self.rows]
        return _text(mine) == _text(curve)


def _text(curve: Rows) -> str:
    """Return a curve as text, in which a NaN equals a NaN."""
    numbers = [
        {name: None if value is None else float(value) for name, value in row.items()}
        for row in curve
    ]
    return json.dumps(numbers)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a `live.jsonl`: its head, then an epoch each.

    One that is not there, or that a disk without power left damaged, has none: nothing but the
    view of a training is lost with it.
    """
    try:
        # A line without its end is still being written, or was when its writer was killed.
        whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
        lines = [json.loads(line) for line in whole.splitlines()]
    except (FileNotFoundError, ValueError):
        return []
    return lines if lines and "training" in lines[0] else []


def read_live(path: Path) -> Live | None:
    """Read the last attempt of the training in a `live.jsonl`; None before its first epoch."""
    head, *rows = read_lines(path) or [{}]
    if not rows:
        return None
    attempt = rows[-1]["attempt"]
    training = f"{head['training']}-{attempt}" if attempt else head["training"]
    return Live(training, head["params"], [row for row in rows if row["attempt"] == attempt])
