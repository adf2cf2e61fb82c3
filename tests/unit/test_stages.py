"""What a failed stage stops, what it does not, and what is said of it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from flows import child
from flows.graph import Graph
from flows.stages import Outcome, reason

GRAPH = Graph(
    {
        "validate": set(),
        "weights@a": set(),
        "weights@b": set(),
        "train_head@a": {"validate", "weights@a"},
        "train_head@b": {"validate", "weights@b"},
        "export": {"validate", "train_head@a", "train_head@b"},
    },
    frozenset(),
    new_data=False,
)


def walk(*failing: str) -> Outcome:
    """Go through the stages as the flow does, with these failing."""
    outcome = Outcome()
    for stage in GRAPH.needs:
        if obstacle := outcome.obstacle(stage, GRAPH):
            outcome.skipped[stage] = obstacle
        elif stage in failing:
            outcome.failed[stage] = "why"
        else:
            outcome.seconds[stage] = 1.0
    return outcome


def test_one_failed_candidate_does_not_stop_the_other() -> None:
    outcome = walk("weights@a")
    assert outcome.skipped == {"train_head@a": "it needs weights@a"}
    assert "export" in outcome.seconds
    assert outcome.failed_candidates() == {"a": "weights@a: why"}


def test_a_shared_stage_stops_all_that_need_it() -> None:
    outcome = walk("validate")
    assert set(outcome.seconds) == {"weights@a", "weights@b"}
    assert outcome.skipped["export"] == "it needs validate"


def test_no_candidate_left_stops_the_export() -> None:
    assert walk("weights@a", "train_head@b").skipped["export"] == "no candidate is left"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["working", "error: too dark", "ERROR: failed to reproduce 'x'"], "too dark"),
        (["working", "boom", "ERROR: failed to reproduce 'x'"], "boom"),
        (["ERROR: failed to reproduce 'x'"], "stage ended with exit code 7"),
        (["boom", "ERROR: failed to reproduce 'x': failed to run: y, exited with 1"], "boom"),
        (
            ["half", "ERROR: failed to reproduce 'x': failed to run: y, exited with -9"],
            "failed to run: y, exited with -9",
        ),
        (
            ["packed", "ERROR: failed to reproduce 'x': [Errno 28] No space left on device: 'z'"],
            "[Errno 28] No space left on device: 'z'",
        ),
        (
            [
                "ERROR: unexpected error - [Errno 28] No space left on device",
                "",
                "Having troubles?",
            ],
            "unexpected error - [Errno 28] No space left on device",
        ),
    ],
)
def test_the_reason_is_the_stage_s_own(lines: list[str], expected: str) -> None:
    assert reason("stage", 7, lines) == expected


def test_lines_arrive_as_they_come_and_bars_are_no_lines() -> None:
    code = r"import sys; sys.stderr.write('10%\r90%\r100%\n'); print('done é'); sys.exit(3)"
    logged: list[str] = []
    result, lines = child.run([sys.executable, "-c", code], logged.append)
    assert result == 3
    assert lines == ["100%", "done é"]
    assert logged == lines


def test_an_interrupted_call_leaves_no_descendant(tmp_path: Path) -> None:
    """The child starts a grandchild; the interruption comes with the child's first line."""
    code = (
        "import subprocess, sys, time;"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    seen: list[int] = []

    def interrupt(line: str) -> None:
        seen.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        child.run([sys.executable, "-c", code], interrupt)
    deadline = time.monotonic() + 5
    while psutil.pid_exists(seen[0]) and time.monotonic() < deadline:
        time.sleep(0.05)
    alive = psutil.pid_exists(seen[0]) and psutil.Process(seen[0]).status() != "zombie"
    assert not alive
