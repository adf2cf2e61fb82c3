"""Training curves as the stages left them."""

from __future__ import annotations

import csv
from pathlib import Path


def read_curve(path: Path) -> list[dict[str, float | None]]:
    """Read a training curve that `models.write_curve` wrote, one row an epoch."""
    with path.open(newline="") as file:
        return [
            {name: float(value) if value else None for name, value in row.items()}
            for row in csv.DictReader(file)
        ]
