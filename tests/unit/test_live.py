"""What a training writes for those who follow it, and who finds the run that belongs to it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks import curves, live, models, runs, tracking, training
from tasks.curve_picture import curves_png
from tasks.vision.loops import Epoch

TWO = [Epoch(0, None, 0.7, 0.5, 0.5), Epoch(1, 0.6, 0.6, 0.75, 0.8)]


def journal(path: Path, training_id: str = "a", *, resumed: bool = False) -> training.Journal:
    return training.Journal(path, training_id, {"lr": 0.1}, resumed=resumed)


def written(path: Path, rows: list[Epoch], **more: Any) -> curves.Live:
    mine = journal(path, **more)
    for row in rows:
        mine.add(row, 10.0)
    found = curves.read_live(path)
    assert found is not None
    return found


def test_epochs_are_read_as_they_were_written(tmp_path: Path) -> None:
    before = int(time.time() * 1000)
    found = written(tmp_path / "live.jsonl", TWO)
    assert (found.training, found.params) == ("a", {"lr": 0.1})
    for row, epoch in zip(found.rows, TWO, strict=True):
        assert {key: row[key] for key in asdict(epoch)} == asdict(epoch)
        assert before <= row["time"] <= int(time.time() * 1000)
        assert row["pictures_per_second"] == 10.0


def test_a_line_without_its_end_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    written(path, TWO)
    path.write_bytes(path.read_bytes()[:-5])
    found = curves.read_live(path)
    assert found is not None
    assert [row["epoch"] for row in found.rows] == [0]
    path.write_text('{"training": "a", "params": {}')
    assert curves.read_live(path) is None
    assert curves.read_live(tmp_path / "none.jsonl") is None


@pytest.mark.parametrize("content", [b"\0\0\0\n", b"\xff\n", b'{"epoch": 0}\n{"epoch": 1}\n'])
def test_a_damaged_file_or_one_of_another_kind_holds_nothing(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "live.jsonl"
    path.write_bytes(content)
    assert curves.read_live(path) is None
    assert len(written(path, TWO, resumed=True).rows) == 2


def test_a_resumed_training_keeps_the_times_of_what_it_did(tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    first = written(path, TWO)
    later = Epoch(2, 0.5, 0.5, 0.8, 0.8)
    mine = journal(path, resumed=True)
    for row in [*TWO, later]:
        mine.add(row, None)
    again = curves.read_live(path)
    assert again is not None
    assert again.rows[:2] == first.rows
    assert (again.rows[2]["epoch"], again.rows[2]["pictures_per_second"]) == (2, None)


@pytest.mark.parametrize("more", [{"training_id": "b", "resumed": True}, {"resumed": False}])
def test_another_training_begins_anew(tmp_path: Path, more: dict[str, Any]) -> None:
    path = tmp_path / "live.jsonl"
    first = written(path, TWO)
    mine = journal(path, **more)
    mine.add(TWO[0], None)
    found = curves.read_live(path)
    assert found is not None
    assert len(found.rows) == 1
    assert found.rows[0]["pictures_per_second"] is None
    assert first.rows[0]["pictures_per_second"] == 10.0


def test_a_second_attempt_is_a_training_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    lower = [TWO[0], Epoch(1, 0.65, 0.65, 0.6, 0.6)]
    found = written(path, [*TWO, *lower])
    assert found.training == "a-1"
    assert [row["val_f1_macro"] for row in found.rows] == [0.5, 0.6]


def curve_file(rows: list[Epoch], key: str = "fine_tune") -> Path:
    path = curves.curve_of("toy", key)
    models.write_curve(path, rows)
    return path


def test_a_curve_is_known_by_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    broken = [TWO[0], Epoch(1, math.nan, math.inf, 0.1, 0.1)]
    for rows in (TWO, broken):
        found = written(tmp_path / "live.jsonl", rows)
        assert found.is_of(curves.read_curve(curve_file(rows)))
        assert not found.is_of(curves.read_curve(curve_file(rows[:1])))
        assert not found.is_of(curves.read_curve(curve_file([TWO[0], Epoch(1, 0.6, 0.6, 0.7, 0)])))


def test_a_sender_that_cannot_start_is_no_error(tmp_path: Path) -> None:
    sender = training.Sender("fine_tune", "toy", tmp_path / "none" / "sender.log")
    sender.begin(0.0)
    sender.look()
    sender.end("FINISHED")


def test_a_sender_that_is_gone_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true")
    sender = training.Sender("fine_tune", "toy", tmp_path / "sender.log")
    sender.begin(0.0)
    sender.look()
    process = sender._process
    assert process is not None
    assert process.wait() == 0
    sender.end("FINISHED")
    sender.end("")


@pytest.mark.parametrize(("word", "status"), [(b"FINISHED", "FINISHED"), (b"", "KILLED")])
def test_the_pipe_tells_how_the_stage_ended(
    monkeypatch: pytest.MonkeyPatch, word: bytes, status: str
) -> None:
    alarms: list[int] = []
    monkeypatch.setattr(signal, "alarm", alarms.append)
    ours, theirs = os.pipe()
    stage = live.Stage(os.fdopen(ours, "rb"))
    assert not stage.ended.is_set()
    os.write(theirs, word)
    os.close(theirs)
    assert stage.ended.wait(10)
    assert (stage.status, alarms) == (status, [live.LAST])


def test_a_sender_ends_although_it_hangs(tmp_path: Path) -> None:
    code = """
import signal, sys, types, time
sys.modules["tasks.follower"] = types.SimpleNamespace(follow=lambda *_: time.sleep(999))
import tasks; tasks.follower = sys.modules["tasks.follower"]
from tasks import live
live.LAST = 1
sys.argv = ["live", "fine_tune", "toy"]
live.main()
"""
    root = str(Path(live.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root}
    )
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=60) == -signal.SIGALRM


def test_the_embedded_database_is_made_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path(".mlflow.db.1").mkdir()  # by a process that was killed
    with pytest.MonkeyPatch.context() as patch:

        def die(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(tracking.MlflowClient, "search_experiments", die)
        with pytest.raises(KeyboardInterrupt), tracking.session("refit"):
            pass
    assert not list(tmp_path.glob("*mlflow.db"))
    with tracking.session("refit") as (client, experiment):
        tags = client.get_experiment(experiment).tags
        view = json.loads(tags["mlflow.sharedViewState.candidates"])
        assert "metrics.`test_f1_macro`" in json.loads(view["state"])["selectedColumns"]
        run_id = client.create_run(experiment).info.run_id
        rows: list[dict[str, Any]] = [
            {"epoch": 0, "loss": 1.0, "time": 5},
            {"epoch": 1, "loss": None, "time": 6},
        ]
        known = tracking.log_curve(client, run_id, "head", rows)
        rows[1]["loss"] = 0.5
        tracking.log_curve(client, run_id, "head", rows, known)
        tracking.log_curve(client, run_id, "head", rows, tracking.points_of(client, run_id, "head"))
        points = client.get_metric_history(run_id, "head/loss")
        assert [(p.step, p.value, p.timestamp) for p in points] == [(0, 1.0, 5), (1, 0.5, 6)]
        tracking.log_params(client, run_id, {"lr": 0.1})
        tracking.log_params(client, run_id, {"lr": 0.2, "epochs": 3})
        assert client.get_run(run_id).data.params == {"lr": "0.1", "epochs": "3"}
        belongs_to_its_curve(client, experiment)
    tracking.mlflow.set_tracking_uri("")
    assert not list(tmp_path.glob(".mlflow.db*"))


def belongs_to_its_curve(client: tracking.MlflowClient, experiment: str) -> None:
    """A run is that of the model in `data/` only while live.jsonl and the curve are one."""
    tags = {"candidate": "toy", "training.head": "a"}
    run_id = client.create_run(experiment, tags=tags).info.run_id
    path = curves.live_of("toy", "head")
    path.parent.mkdir(parents=True)
    assert runs.trained_as(client, experiment, "toy", "head") is None
    written(path, TWO)
    curve_file(TWO[:1], "head")
    assert runs.trained_as(client, experiment, "toy", "head") is None
    curve_file(TWO, "head")
    found = runs.trained_as(client, experiment, "toy", "head")
    assert found is not None
    assert found.info.run_id == run_id
    client.set_tag(run_id, "model_sha256", "c")
    assert runs.trained_as(client, experiment, "toy", "head") is not None  # it was interrupted
    client.set_terminated(run_id, "FINISHED")
    assert runs.trained_as(client, experiment, "toy", "head") is None
    client.update_run(run_id, status="RUNNING")
    client.set_tag(run_id, "training.fine_tune", "b")
    assert runs.trained_as(client, experiment, "toy", "head") is None


def drawn(tuned: list[Epoch], path: Path) -> tuple[int, int]:
    rows = [[epoch.as_row() for epoch in stage] for stage in (TWO, tuned)]
    content = curves_png("toy", *rows)
    assert content == curves_png("toy", *rows)
    path.write_bytes(content)
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        # The dashed line at the moment of unfreezing is grey, as no other line is.
        grey = int((np.asarray(picture.convert("RGB")) == 128).all(axis=2).sum())
        return picture.width, grey


def test_the_picture_marks_the_unfreezing(tmp_path: Path) -> None:
    width, grey = drawn(TWO, tmp_path / "curves.png")
    assert width == 900
    without = drawn(TWO[:1], tmp_path / "head.png")[1]
    assert grey > without + 100
