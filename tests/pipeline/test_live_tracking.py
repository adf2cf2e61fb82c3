"""A training is seen in MLflow while it lasts, and unharmed by whatever becomes of MLflow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tasks import curves, files, tracking
from tests.pipeline.mlflow_server import Server
from tests.pipeline.project import ROOT, Project
from tests.unit import registry
from tests.unit.live_training import EPOCHS

ENDED = 15.0  # seconds after its stage in which a sender has ended, whatever the server does
FOLDER = Path("data/checkpoints/fine_tune/toy")
ALL = list(range(EPOCHS + 1))


def wait_for(what: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Return the first true answer, within a deadline."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.1)
    log = FOLDER / "sender.log"
    raise AssertionError(f"{what} stayed untrue; {log.read_text() if log.exists() else 'no log'}")


def in_folder(folder: Path) -> Iterator[psutil.Process]:
    """Yield all processes that work in a folder, but this one."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd() == str(folder) and process.pid != os.getpid():
                yield process


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of all processes that work in a folder."""
    found = []
    for process in in_folder(folder):
        with suppress(psutil.Error):
            found.append(" ".join(process.cmdline()))
    return found


def end_processes_of(folder: Path) -> None:
    """Kill what works in a folder."""
    for process in in_folder(folder):
        with suppress(psutil.Error):
            process.kill()


def make_project(folder: Path) -> None:
    """Make `folder`, the working folder, a project whose candidate `toy` was evaluated."""
    files.RAW.mkdir(parents=True)
    registry.write_pictures()
    registry.train(registry.GOOD)
    registry.settings()
    assert Path.cwd() == folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the folder of a project; what was started in it is ended."""
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path)
    yield tmp_path
    tracking.mlflow.set_tracking_uri("")
    end_processes_of(tmp_path)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Yield a server that is not started yet, which this project uses."""
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """Return what the training leaves where nothing follows it."""
    folder = tmp_path_factory.mktemp("untracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_project(folder)
        allow(EPOCHS)
        assert stage(after=float("inf")).wait() == 0
        assert not (FOLDER / "sender.log").exists()
        return left()


def allow(epoch: int) -> None:
    Path("allowed").write_text(str(epoch))


def stage(after: float = 0.0, *more: str) -> subprocess.Popen[bytes]:
    """Start the training in the working folder, in a process group of its own."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with Path("stage.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.unit.live_training", str(after), *more],
            env={**os.environ, "PYTHONPATH": path},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def left() -> tuple[bytes, bytes]:
    """Return the bytes of the model and of the curve."""
    curve = curves.curve_of("toy", "fine_tune")
    return Path("trained.safetensors").read_bytes(), curve.read_bytes()


def followed(client: MlflowClient, name: str = "toy") -> Run:
    """Return the one run of a candidate."""
    experiment = client.get_experiment_by_name("refit")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.candidate = '{name}'")
    return run


def steps(client: MlflowClient, run: Run, metric: str) -> list[int]:
    points = client.get_metric_history(run.info.run_id, f"fine_tune/{metric}")
    return sorted(point.step for point in points)


def arrived(client: MlflowClient, epoch: int) -> bool:
    """Whether an epoch is in MLflow."""
    if client.get_experiment_by_name("refit") is None:
        return False
    found = client.search_runs(["1"], "tags.candidate = 'toy'")
    return bool(found) and epoch in steps(client, found[0], "val_loss")


def assert_whole(client: MlflowClient, parent: str, run_id: str | None = None) -> None:
    """Every epoch's point is there once, in one run, nested in the retrain's."""
    run = followed(client)
    assert run.info.run_id == (run_id or run.info.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == parent
    for metric in ("val_loss", "val_f1_macro", "val_accuracy"):
        assert steps(client, run, metric) == ALL
    assert steps(client, run, "train_loss") == ALL[1:]


@pytest.mark.parametrize("back", ["while it trains", "afterwards"])
def test_a_server_that_dies_midway_harms_nothing(
    project: Path, server: Server, untracked: tuple[bytes, bytes], back: str
) -> None:
    server.start()
    client = MlflowClient(server.uri)
    allow(2)
    training = stage()
    wait_for(lambda: arrived(client, 2))
    assert training.poll() is None, "the points came after the end only"
    run = followed(client)
    assert run.info.status == "RUNNING"
    assert run.info.start_time == curves.read_lines(FOLDER / "live.jsonl")[1]["time"]
    assert run.data.params["fine_tune.optimiser"] == "adamw"
    server.kill()
    if back == "while it trains":
        allow(4)
        wait_for(lambda: len(curves.read_lines(FOLDER / "live.jsonl")) == 1 + 5)
        server.start()
        wait_for(lambda: arrived(client, 4))
        assert training.poll() is None
    allow(EPOCHS)
    assert training.wait() == 0
    wait_for(lambda: "tasks.live" not in " ".join(processes_of(project)), ENDED)
    assert left() == untracked
    if back == "while it trains":
        assert followed(client).info.status == "FINISHED"
        assert steps(client, run, "val_loss") == ALL
    else:
        server.start()
    assert_whole(client, registry.registered()["run_id"], run.info.run_id)


def test_a_server_that_is_down_from_the_start_harms_nothing(
    project: Path, server: Server, untracked: tuple[bytes, bytes]
) -> None:
    allow(1)
    training = stage()
    log = FOLDER / "sender.log"
    wait_for(lambda: log.exists() and "failed" in log.read_text())
    allow(EPOCHS)
    assert training.wait() == 0
    wait_for(lambda: "tasks.live" not in " ".join(processes_of(project)), ENDED)
    assert left() == untracked
    assert "Traceback" not in log.read_text()
    server.start()
    assert_whole(MlflowClient(server.uri), registry.registered()["run_id"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_training_goes_on_in_its_run(
    project: Path, server: Server, untracked: tuple[bytes, bytes], number: signal.Signals
) -> None:
    server.start()
    client = MlflowClient(server.uri)
    allow(2)
    training = stage()
    wait_for(lambda: arrived(client, 2))
    run = followed(client)
    if number == signal.SIGKILL:
        training.kill()
    else:
        os.killpg(training.pid, number)  # all of the group, as Ctrl-C and a cancelled flow do
        allow(3)  # the step at which the stage looks
    assert training.wait() != 0
    wait_for(lambda: not processes_of(project), ENDED)
    assert followed(client).info.status == "KILLED"
    assert [p.name for p in FOLDER.glob("*/0.safetensors")] == (
        [] if number == signal.SIGKILL else ["0.safetensors"]
    )
    allow(3)
    # What resumes is followed from its first moment; what begins anew, after a while.
    again = stage(after=0.0 if number == signal.SIGKILL else 999.0)
    wait_for(lambda: arrived(client, 3))
    assert followed(client).info.status == "RUNNING"
    allow(EPOCHS)
    assert again.wait() == 0
    wait_for(lambda: not processes_of(project), ENDED)
    assert left() == untracked
    assert_whole(client, registry.registered()["run_id"], run.info.run_id)


def test_fine_tuning_goes_on_in_the_run_of_the_head_s_training(
    project: Path, server: Server
) -> None:
    server.start()
    client = MlflowClient(server.uri)
    allow(EPOCHS)
    assert stage(0.0, "head").wait() == 0
    wait_for(lambda: not processes_of(project), ENDED)
    head = followed(client)
    assert head.info.status == "FINISHED"
    allow(2)
    tuning = stage()
    wait_for(lambda: arrived(client, 2))
    assert followed(client).info.run_id == head.info.run_id
    assert followed(client).info.status == "RUNNING"
    allow(EPOCHS)
    assert tuning.wait() == 0
    wait_for(lambda: not processes_of(project), ENDED)
    assert_whole(client, registry.registered()["run_id"], head.info.run_id)
    points = client.get_metric_history(head.info.run_id, "head/val_loss")
    assert sorted(point.step for point in points) == ALL


def test_an_attempt_that_diverged_is_a_failed_run_of_its_own(project: Path, server: Server) -> None:
    server.start()
    client = MlflowClient(server.uri)
    allow(2)
    training = stage(0.0, "fine_tune", "3")
    wait_for(lambda: arrived(client, 2))
    first = followed(client)
    allow(3)
    wait_for(lambda: client.get_run(first.info.run_id).info.status == "FAILED")
    assert training.poll() is None
    allow(EPOCHS)
    assert training.wait() == 0
    wait_for(lambda: not processes_of(project), ENDED)
    first = client.get_run(first.info.run_id)
    assert first.info.status == "FAILED"
    assert first.data.tags["diverged"] == "tried again at a lower rate"
    assert steps(client, first, "val_loss") == [0, 1, 2]
    parent = registry.registered()["run_id"]
    runs = client.search_runs(["1"], "tags.candidate = 'toy'")
    (second,) = [run for run in runs if run.info.run_id != first.info.run_id]
    assert second.data.tags["mlflow.parentRunId"] == parent
    assert second.info.status == "FINISHED"
    assert steps(client, second, "val_loss") == ALL


def test_a_short_training_is_not_followed(project: Path) -> None:
    allow(EPOCHS)
    assert stage(after=60.0).wait() == 0
    assert not (FOLDER / "sender.log").exists()
    assert not Path("mlflow.db").exists()


def test_a_cancelled_retrain_leaves_no_process_and_its_run_is_gone_on_with(
    copied: Project,
) -> None:
    source = copied.path("tasks/training.py")
    source.write_text(source.read_text().replace("SENT_AFTER = 5.0", "SENT_AFTER = 0.0"))
    copied.change_params(lambda p: p["candidates"].pop("resnet18"))
    copied.change_params(lambda p: p["fine_tune"].update(epochs=150))
    copied.ok("dvc", "repro", "train_head@mobilenet_v2")
    client = MlflowClient(f"sqlite:///{copied.path('mlflow.db')}")

    def running() -> list[Run]:
        return list(client.search_runs(["1"], "attributes.status = 'RUNNING'"))

    def begun() -> Run | None:
        found = [run for run in running() if "fine_tune/val_loss" in run.data.metrics]
        return found[0] if found else None

    flow = subprocess.Popen(
        [sys.executable, "-m", "flows.retrain"],
        cwd=copied.root,
        env=copied.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        run = wait_for(begun, 240)
    finally:
        flow.send_signal(signal.SIGTERM)
    flow.wait()
    wait_for(lambda: not processes_of(copied.root), 30)  # Prefect's server neither
    assert client.get_run(run.info.run_id).info.status == "KILLED"
    again = copied.retrain()
    assert again.returncode == 0, again.stdout + again.stderr
    run = client.get_run(run.info.run_id)
    assert run.info.status == "FINISHED"
    assert "mlflow.parentRunId" in run.data.tags
    assert steps(client, run, "val_f1_macro") == list(range(151))
    assert running() == []
