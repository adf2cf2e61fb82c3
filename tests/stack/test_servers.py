"""A retrain against real servers: PostgreSQL, MLflow and Prefect with passwords, S3, a worker."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.pipeline.project import Project, make_project
from tests.stack import flow_runs, postgres, servers
from tests.stack.processes import wait_for


class Site:
    """Servers, a worker and a project, for all tests of this module one after the other."""

    def __init__(self, stack: servers.Stack, project: Project, work: flow_runs.Deployment) -> None:
        self.stack = stack
        self.project = project
        self.deployment = work

    def ask(self, program: str, **environment: str) -> str:
        """Run a Python program as a client that may talk to MLflow and to nothing else."""
        return self.project.ok(
            sys.executable, "-c", program, **{**self.stack.mlflow.client, **environment}
        )

    def aliases(self) -> dict[str, str]:
        """Return alias -> version."""
        model = "MlflowClient().get_registered_model('refit')"
        said = self.ask(
            f"from mlflow import MlflowClient; import json\nm = {model}\n"
            "print(json.dumps({k: str(v) for k, v in m.aliases.items()}))"
        )
        (line,) = (line for line in said.splitlines() if line.startswith("{"))
        return dict(json.loads(line))


def one_candidate(params: dict[str, Any]) -> None:
    params["candidates"] = {"mobilenet_v2": params["candidates"]["mobilenet_v2"]}
    params["register"]["max_ece"] = 1.0  # on a few pictures it is chance


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("servers")
    project = make_project(folder / "project", each=40)
    project.change_params(one_candidate)
    project.ok("dvc", "remote", "add", "--default", "store", f"s3://{servers.DVC}/refit")
    project.ok("git", "commit", "-qam", "one candidate, a remote")
    with ExitStack() as running:
        stack = running.enter_context(servers.stack(folder))
        deployment = flow_runs.Deployment(stack.prefect, project)
        environment = project.environment(**stack.environment())
        running.enter_context(flow_runs.worker(stack.prefect, folder / "worker.log", environment))
        yield Site(stack, project, deployment)


def test_nobody_is_let_in_without_a_password_or_under_another_name(site: Site) -> None:
    search = f"{site.stack.mlflow.url}/api/2.0/mlflow/experiments/search"
    mine = ("refit", site.stack.mlflow.client["MLFLOW_TRACKING_PASSWORD"])

    def asked(auth: tuple[str, str] | None, **headers: str) -> int:
        content = {"max_results": 1}
        return requests.post(
            search, json=content, auth=auth, headers=headers, timeout=20
        ).status_code

    assert asked(mine) == 200
    assert asked(None) == 401
    assert asked(("admin", "password1234")) == 401  # MLflow's default of old
    assert asked(mine, Host="refit.example") == 403
    artifacts = f"{site.stack.mlflow.url}/api/2.0/mlflow-artifacts/artifacts"
    assert requests.get(artifacts, timeout=20).status_code == 401
    assert requests.get(artifacts, auth=mine, timeout=20).status_code == 200
    runs = f"{site.stack.prefect.url}/flow_runs/filter"
    auth = ("refit", site.stack.prefect.secrets[0])
    assert requests.post(runs, json={}, timeout=20).status_code == 401
    assert requests.post(runs, json={}, auth=auth, timeout=20).status_code == 200


def test_a_tracking_server_that_is_down_costs_no_training(site: Site) -> None:
    site.stack.mlflow_down()
    run = site.deployment.trigger()
    state = site.deployment.ended(run)
    assert state["type"] == "FAILED"
    assert f"MLflow at {site.stack.mlflow.url} failed" in state["message"]
    log = site.deployment.told(run)
    assert "Nothing trained is lost" in log
    assert "Traceback" not in log
    assert len(site.project.started(log)) == 7
    assert site.project.path("data/best/model.onnx").exists()


def test_what_was_trained_meanwhile_is_registered_later(site: Site) -> None:
    site.stack.mlflow_up()
    run = site.deployment.trigger()
    assert site.deployment.ended(run)["type"] == "COMPLETED"
    assert site.project.started(site.deployment.told(run)) == []
    assert site.aliases() == {"champion": "1"}


def test_a_registered_model_comes_back_through_the_proxy(site: Site, tmp_path: Path) -> None:
    model = site.project.path("data/best/model.onnx").read_bytes()
    keys = [
        found["Key"]
        for found in site.stack.store.client("s3").list_objects_v2(
            Bucket=servers.ARTIFACTS, Prefix=""
        )["Contents"]
    ]
    assert [key for key in keys if key.endswith("model.onnx")], keys
    said = site.ask(
        "import hashlib; from tasks import tracking\n"
        "path = tracking.fetch('models:/refit@champion')\n"
        "print(hashlib.sha256(path.read_bytes()).hexdigest())"
    )
    assert hashlib.sha256(model).hexdigest() in said.split()  # beside a bar of the download


def test_gc_reaches_what_lies_behind_the_proxy(site: Site) -> None:
    def stored() -> set[str]:
        found = site.stack.store.client("s3").list_objects_v2(Bucket=servers.ARTIFACTS)
        return {item["Key"] for item in found["Contents"]}

    before = stored()
    site.ask(
        "from tasks import tracking\n"
        "with tracking.session('refit') as (client, experiment):\n"
        "    with tracking.run(client, experiment, 'old', {'candidate': 'old'}) as run:\n"
        "        client.log_text(run, 'no longer needed', 'folder/old.txt')"
    )
    (old,) = [key for key in stored() - before if key.endswith("folder/old.txt")]
    said = site.project.ok(sys.executable, "-m", "flows.gc", "--apply", **site.stack.mlflow.client)
    assert "kept: refit version 1, champion" in said
    assert "removed: runs in MLflow" in said
    assert old not in stored()
    assert before <= stored()


def test_a_tracking_server_that_dies_midway_costs_no_training(site: Site) -> None:
    site.project.change_params(lambda params: params["head"].update(epochs=6))
    run = site.deployment.trigger()
    wait_for(
        lambda: "train_head@mobilenet_v2" in site.project.started(site.deployment.logged(run)),
        200,
        "the head's training",
    )
    site.stack.mlflow_down()
    assert site.deployment.ended(run)["type"] == "FAILED"
    log = site.deployment.told(run)
    assert "fine_tune@mobilenet_v2" in site.project.started(log)
    assert "Nothing trained is lost" in log
    assert "Traceback" not in log
    site.stack.mlflow_up()
    again = site.deployment.trigger()
    assert site.deployment.ended(again)["type"] == "COMPLETED"
    assert site.project.started(site.deployment.told(again)) == []
    summary = json.loads(site.project.path("data/reports/summary.json").read_text())
    assert summary["registered_version"] == "2"


def test_all_state_comes_back_from_its_back_up(site: Site, tmp_path: Path) -> None:
    project, stack = site.project, site.stack
    project.ok("git", "add", "dvc.lock", "data/raw.dvc")
    project.ok("git", "commit", "-qam", "retrained")
    project.ok("dvc", "push", **stack.environment())
    for name in postgres.DATABASES:
        stack.database.run("pg_dump", "--format=custom", f"--file={tmp_path / name}.dump", name)
    with (
        postgres.running(tmp_path / "postgres.log") as database,
        ExitStack() as running,
    ):
        for name in postgres.DATABASES:
            database.run("pg_restore", f"--dbname={name}", str(tmp_path / f"{name}.dump"))
        assert b"retrain" in database.run("psql", "prefect", "-c", "SELECT name FROM flow")
        stack.mlflow_down()
        again = servers.mlflow(tmp_path, database, stack.store, stack.mlflow)
        tracker = running.enter_context(again)
        clone = Project(tmp_path / "clone")
        project.ok("git", "clone", "-q", ".", str(clone.root))
        clone.ok("dvc", "pull", **stack.environment())
        assert "up to date" in clone.ok("dvc", "repro")
        done = clone.retrain(**tracker.client)
        assert done.returncode == 0, done.stderr
        assert clone.started(done.stdout + done.stderr) == []
        summary = json.loads(clone.path("data/reports/summary.json").read_text())
        assert summary["registered_version"] == "2"
        picture = str(next(clone.path("data/raw").rglob("*.png")))
        model = "models:/refit@champion"
        said = clone.ok(sys.executable, "-m", "tasks.predict", model, picture, **tracker.client)
        assert picture in said


def test_no_secret_is_written_down_anywhere(site: Site) -> None:
    secret = [word.encode() for word in site.stack.secrets()]
    assert len(secret) == 5
    logs = sorted(site.stack.folder.glob("*.log"))
    assert {log.stem for log in logs} == {"mlflow", "postgres", "prefect", "s3", "worker"}
    files = [path for path in site.project.root.rglob("*") if path.is_file()]
    for path in [*logs, *files]:
        content = path.read_bytes()
        assert not [word for word in secret if word in content], path
    for database in ("mlflow", "prefect"):
        dump = site.stack.database.run("pg_dump", database)
        assert b"retrain" in dump
        assert not [word for word in secret if word in dump], database
