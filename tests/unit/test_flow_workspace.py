"""One retrain holds a workspace, dead ones hold nothing, and params.yaml is itself again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import workspace
from tasks import params
from tasks.vision.errors import RefitError

SHIPPED = Path("params.yaml").resolve()
HOLD = """
import sys
from flows import workspace
with workspace.claimed(), workspace.laid_over({candidates!r}, {overrides!r}):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = str(Path.cwd())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", root)
    shutil.copy(SHIPPED, tmp_path)
    return tmp_path


def holder(**changes: Any) -> subprocess.Popen[str]:
    """Start another process that holds the workspace until its input ends."""
    code = HOLD.format(**{"candidates": [], "overrides": {}, **changes})
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def claim() -> None:
    with workspace.claimed():
        pass


def test_the_second_is_refused_and_told_who_holds_it(here: Path) -> None:
    other = holder()
    known = json.loads(workspace.OWNER.read_text())
    with pytest.raises(workspace.BusyError) as refused:
        claim()
    for fact in (str(here), os.uname().nodename, f"pid {other.pid}", f"since {known['since']}"):
        assert fact in str(refused.value)
    other.communicate("")
    claim()
    assert not workspace.OWNER.exists()


def test_the_lock_of_a_dead_owner_holds_nobody_up(here: Path) -> None:
    other = holder()
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert workspace.OWNER.exists()  # what it left behind
    claim()
    assert not workspace.OWNER.exists()


def test_one_that_waits_comes_next(here: Path) -> None:
    other = holder()
    told: list[str] = []

    def end_it(text: str) -> None:
        told.append(text)
        other.communicate("")

    with workspace.claimed(wait=True, told=end_it):
        assert json.loads(workspace.OWNER.read_text())["pid"] == os.getpid()
    assert f"pid {other.pid}" in told[0]


def test_a_run_s_own_figures_are_there_for_its_time(here: Path) -> None:
    before = params.PATH.read_bytes()
    figures = {"fine_tune.epochs": 7, "candidates.resnet18.head.lr": 0.5}
    with workspace.claimed(), workspace.laid_over(["resnet18"], figures):
        laid = params.load()
        assert list(laid.candidates) == ["resnet18"]
        assert laid.fine_tune.epochs == 7
        assert laid.for_candidate("resnet18").head.lr == 0.5
        untouched = yaml.safe_load(before)["validate"]
        assert yaml.safe_load(params.PATH.read_text())["validate"] == untouched
    assert params.PATH.read_bytes() == before


@pytest.mark.parametrize(
    ("candidates", "overrides", "said"),
    [
        (["resnet9"], {}, "no candidate 'resnet9'"),
        ([], {"fine_tune.epoch": 1}, "fine_tune.epoch"),
        ([], {"fine_tune.epochs": "many"}, "fine_tune.epochs"),
        ([], {"fine_tune.epochs.more": 1}, "'fine_tune.epochs.more' is no place"),
    ],
)
def test_what_params_cannot_hold_is_refused_and_leaves_it_alone(
    here: Path, candidates: list[str], overrides: dict[str, Any], said: str
) -> None:
    before = params.PATH.read_bytes()
    with pytest.raises(RefitError, match=said), workspace.laid_over(candidates, overrides):
        raise AssertionError("the block must not run")
    assert params.PATH.read_bytes() == before
    assert not workspace.KEPT.exists()


def test_the_next_run_undoes_what_a_killed_one_wrote(here: Path) -> None:
    before = params.PATH.read_bytes()
    other = holder(overrides={"fine_tune.epochs": 7})
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert params.PATH.read_bytes() != before
    claim()
    assert params.PATH.read_bytes() == before


def test_what_a_person_wrote_after_a_kill_stays(here: Path) -> None:
    other = holder(overrides={"fine_tune.epochs": 7})
    other.send_signal(signal.SIGKILL)
    other.wait()
    params.PATH.write_bytes(SHIPPED.read_bytes() + b"# mine\n")
    claim()
    assert params.PATH.read_bytes() == SHIPPED.read_bytes() + b"# mine\n"
    assert not workspace.KEPT.exists()
