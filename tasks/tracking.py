"""What happened: the only module that talks to MLflow."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

# Short and few: a tracking server that is gone must cost seconds, not the night.
for _name, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}.items():
    os.environ.setdefault(_name, _value)

import mlflow  # noqa: E402 - it reads its settings when imported
from filelock import FileLock  # noqa: E402
from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Metric, Run, RunTag  # noqa: E402
from mlflow.entities.model_registry import ModelVersion  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.protos.databricks_pb2 import (  # noqa: E402
    INVALID_PARAMETER_VALUE,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)

from tasks import pyfunc_model  # noqa: E402
from tasks.vision.errors import RefitError  # noqa: E402

EMBEDDED = "sqlite:///mlflow.db"
CHAMPION = "champion"
# What a service needs to run the registered file.
SERVING_PACKAGES = ("mlflow", "numpy", "onnx", "onnxruntime-gpu", "pandas", "pillow")
PARENT = "mlflow.parentRunId"  # MLflow's own tag for nested runs
# Two names for one thing that is not there: MLflow says either, by the kind of its store.
_MISSING = {ErrorCode.Name(code) for code in (INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST)}


def uri() -> str:
    """Return the tracking server's address, or that of the embedded database."""
    return os.environ.get("MLFLOW_TRACKING_URI", EMBEDDED)


@contextmanager
def session(experiment: str) -> Iterator[tuple[MlflowClient, str]]:
    """Yield a client and the experiment's id.

    Raises:
        RefitError: the server does not answer, or refuses; the message names it.
    """
    mlflow.set_tracking_uri(uri())
    try:
        # A new SQLite file is broken for good when two processes make its tables at once.
        with FileLock("mlflow.db.lock"):
            found = mlflow.set_experiment(experiment)
        yield MlflowClient(), found.experiment_id
    except MlflowException as error:
        first_line = str(error).splitlines()[0]
        raise RefitError(
            f"MLflow at {uri()} failed: {first_line}\nNothing trained is lost: "
            "`python -m tasks.register` (or the next retrain) picks it up from data/"
        ) from error


def find_run(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> Run | None:
    """Return the newest finished run that has all these tags, or None."""
    wanted = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
    runs = client.search_runs(
        [experiment_id], " and ".join([*wanted, "attributes.status = 'FINISHED'"]), max_results=1
    )
    return runs[0] if runs else None


@contextmanager
def run(
    client: MlflowClient, experiment_id: str, name: str, tags: Mapping[str, str]
) -> Iterator[Run]:
    """Open a run that ends FINISHED, or FAILED when the block raises."""
    opened = client.create_run(experiment_id, tags=dict(tags), run_name=name)
    try:
        yield opened
    except BaseException:
        client.set_terminated(opened.info.run_id, "FAILED")
        raise
    client.set_terminated(opened.info.run_id, "FINISHED")


def log_metrics(client: MlflowClient, run_id: str, scores: Mapping[str, float | None]) -> None:
    """Log single figures; undefined ones (None) are left out."""
    now = int(time.time() * 1000)
    found = [Metric(name, value, now, 0) for name, value in scores.items() if value is not None]
    client.log_batch(run_id, metrics=found)


def log_curve(
    client: MlflowClient, run_id: str, prefix: str, rows: list[dict[str, float | None]]
) -> None:
    """Log a training curve under `<prefix>/<column>`, one step an epoch."""
    now = int(time.time() * 1000)
    points = [
        Metric(f"{prefix}/{name}", value, now, int(row["epoch"] or 0))
        for row in rows
        for name, value in row.items()
        if name != "epoch" and value is not None
    ]
    for start in range(0, len(points), 1000):  # the server's limit for a batch
        client.log_batch(run_id, metrics=points[start : start + 1000])


def set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags on a run."""
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def find_version(client: MlflowClient, model: str, onnx_sha256: str) -> ModelVersion | None:
    """Return the registered version that holds this very file, or None."""
    found = client.search_model_versions(f"name = '{model}' and tags.onnx_sha256 = '{onnx_sha256}'")
    return found[0] if found else None


def champion(client: MlflowClient, model: str) -> ModelVersion | None:
    """Return the version that the champion alias points to, or None if there is none yet."""
    try:
        return client.get_model_version_by_alias(model, CHAMPION)
    except MlflowException as error:
        if error.error_code in _MISSING:
            return None
        raise


def register(
    client: MlflowClient, run_id: str, path: Path, model: str, tags: Mapping[str, str]
) -> ModelVersion:
    """Register an ONNX file, load it back and compare its bytes.

    Raises:
        RefitError: what came back is not what was sent; the version is deleted again.
    """
    with mlflow.start_run(run_id):
        logged = pyfunc_model.log(
            path, [f"{name}=={version(name)}" for name in SERVING_PACKAGES], model
        )
    registered = client.get_model_version(model, str(logged.registered_model_version))
    if download(registered).read_bytes() != path.read_bytes():
        client.delete_model_version(model, registered.version)
        raise RefitError(
            f"what MLflow at {uri()} gives back for {model} version {registered.version} differs "
            f"from {path}; the version was deleted: look at the server's artifact store"
        )
    for name, value in tags.items():
        client.set_model_version_tag(model, registered.version, name, value)
    return registered


def download(registered: ModelVersion) -> Path:
    """Fetch a version's ONNX file and return its path.

    Raises:
        RefitError: the version holds no ONNX file.
    """
    return _onnx_file(f"models:/{registered.name}/{registered.version}")


def fetch(address: str) -> Path:
    """Fetch the ONNX file behind `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        RefitError: the server does not answer, or has no such version.
    """
    if uri() == EMBEDDED and not Path("mlflow.db").exists():
        raise RefitError(
            f"no mlflow.db in {Path.cwd()}: start from the project's folder, or set "
            "MLFLOW_TRACKING_URI to the server that knows the model"
        )
    mlflow.set_tracking_uri(uri())
    try:
        return _onnx_file(address)
    except MlflowException as error:
        first_line = str(error).splitlines()[0]
        raise RefitError(f"no model {address} from MLflow at {uri()}: {first_line}") from None


def _onnx_file(address: str) -> Path:
    folder = Path(mlflow.artifacts.download_artifacts(address))
    found = sorted(folder.rglob("*.onnx"))
    if not found:
        raise RefitError(f"{address} holds no ONNX file")
    return found[0]


def promote(client: MlflowClient, registered: ModelVersion) -> None:
    """Move the champion alias to a version; one request, so nobody sees a moment without."""
    client.set_registered_model_alias(registered.name, CHAMPION, registered.version)
