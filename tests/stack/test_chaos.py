"""A short hour of `chaos.py`: every kind of process is killed once while runs are asked for."""

from __future__ import annotations

import json
from pathlib import Path

from tests.stack import chaos

TRIGGERS, ARRIVALS, KILLS, SECONDS = 12, 2, 5, 120.0


def test_random_triggers_and_kills(tmp_path: Path) -> None:
    night = chaos.Chaos(tmp_path, seed=1)
    counts = night.run(TRIGGERS, ARRIVALS, KILLS, SECONDS)
    print(json.dumps(counts, indent=2))
    assert len(night.seen.runs) == TRIGGERS
    assert counts["versions of the data"] >= 2
    assert chaos.sound(counts), (counts, night.seen.at_once)
