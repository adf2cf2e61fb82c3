"""A promotion that was switched off is recorded as withheld, and the next run makes it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.retrain import registered
from tasks import files, register, tracking
from tests.unit.registry import BAD, aliases, settings, train, write_pictures


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    files.RAW.mkdir(parents=True)
    write_pictures()
    settings()
    yield
    tracking.mlflow.set_tracking_uri("")


def step(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """Run the step as the flow does; return the summary."""
    monkeypatch.setattr(sys, "argv", ["register", *arguments])
    register.main()
    return json.loads(files.SUMMARY.read_text())


def test_the_next_run_makes_up_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    train(BAD)
    found = step(monkeypatch, "--no-promote")
    assert (found["verdict"], found["registered_version"]) == ("HOLD", "1")
    assert found["reason"].startswith("promoting was switched off for this run; ")
    assert aliases() == {}
    assert registered(["toy"], promote=False)  # nothing to do while it stays switched off
    assert not registered(["toy"], promote=True)
    found = step(monkeypatch)
    assert (found["verdict"], found["registered_version"]) == ("PROMOTE", "1")
    assert aliases() == {"champion": "1"}
    assert registered(["toy"], promote=True)
