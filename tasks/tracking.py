"""What happened: the only module that talks to MLflow."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

# Short and few: a tracking server that is gone must cost seconds, not the night.
for _name, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    # Through the server: with S3 behind it MLflow would send its clients to the store itself, which
    # they need not reach.
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
}.items():
    os.environ.setdefault(_name, _value)

import mlflow  # noqa: E402 - it reads its settings when imported
from filelock import FileLock  # noqa: E402
from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import (  # noqa: E402
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    Metric,
    Param,
    Run,
    RunTag,
    ViewType,
)
from mlflow.entities.model_registry import ModelVersion  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.protos.databricks_pb2 import (  # noqa: E402
    INVALID_PARAMETER_VALUE,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)
from mlflow.store.artifact.artifact_repository_registry import (  # noqa: E402
    get_artifact_repository,
)
from mlflow.store.entities import PagedList  # noqa: E402
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor  # noqa: E402
from requests import RequestException  # noqa: E402

from tasks import files, pyfunc_model  # noqa: E402
from tasks.curves import Rows  # noqa: E402
from tasks.vision.errors import RefitError  # noqa: E402

DATABASE = Path("mlflow.db")
EMBEDDED = f"sqlite:///{DATABASE}"
CHAMPION = "champion"
CHALLENGER = "challenger"  # only while a version is fetched back, before it is promoted
PREVIOUS = "previous"  # the champion before this one: what a rollback returns to
ROLLED_BACK = "rolled_back"  # a version's tag: why it must not become champion again
# What a service needs to run the registered file.
SERVING_PACKAGES = ("mlflow", "numpy", "onnx", "onnxruntime-gpu", "pandas", "pillow")
Found = TypeVar("Found")
PARENT = "mlflow.parentRunId"  # MLflow's own tag for nested runs
# Columns of a training's rows that are no figures of it.
NOT_DRAWN = {"epoch", "attempt", "time"}
Point = tuple[str, int]  # a metric and its step
# The columns that matter: MLflow's own table of runs shows no figures until they are chosen.
COLUMNS = (
    "metrics.`val_f1_macro`",
    "metrics.`test_f1_macro`",
    "metrics.`test_accuracy`",
    "metrics.`test_ece`",
    "tags.`verdict`",
    "tags.`initialised_from`",
    "params.`fine_tune.unfreeze`",
    "params.`fine_tune.lr`",
    "attributes.`Dataset`",
    "attributes.`Models`",
)
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # pages of training, not of chat models
    # A saved view as MLflow's pages write it: in the menu "Views" above the runs.
    "mlflow.sharedViewState.candidates": json.dumps(
        {
            "name": "Candidates",
            "createdAt": 0,
            "updatedAt": 0,
            "state": json.dumps({"selectedColumns": COLUMNS}),
        }
    ),
}
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
    try:
        # A new SQLite file is broken for good when two processes make its tables at once.
        with FileLock("mlflow.db.lock"):
            if uri() == EMBEDDED and not DATABASE.exists():
                _make_database()
            mlflow.set_tracking_uri(uri())
            found = mlflow.set_experiment(experiment)
        client = MlflowClient()
        for name, value in EXPERIMENT_TAGS.items():
            if name not in found.tags:
                client.set_experiment_tag(found.experiment_id, name, value)
        yield client, found.experiment_id
    except (MlflowException, RequestException) as error:
        first_line = str(error).splitlines()[0]
        raise RefitError(
            f"MLflow at {uri()} failed: {first_line}\nNothing trained is lost: "
            "`python -m tasks.register` (or the next retrain) picks it up from data/"
        ) from error


def _make_database() -> None:
    """Make the embedded database whole or not at all: one half made is broken for good."""
    for left in Path().glob(f".{DATABASE}.*"):  # by a process that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=f".{DATABASE}.", dir=Path.cwd()) as folder:
        made = Path(folder) / DATABASE
        MlflowClient(f"sqlite:///{made}").search_experiments(max_results=1)
        made.replace(DATABASE)


def find_run(
    client: MlflowClient, experiment_id: str, tags: Mapping[str, str], *, finished: bool = True
) -> Run | None:
    """Return the newest run that has all these tags, or None; by default a finished one."""
    wanted = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
    if finished:
        wanted.append("attributes.status = 'FINISHED'")
    runs = client.search_runs(
        [experiment_id],
        " and ".join(wanted),
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return runs[0] if runs else None


def open_run(
    client: MlflowClient,
    experiment_id: str,
    name: str,
    tags: Mapping[str, str],
    resumed: Run | None = None,
    start_time: int | None = None,
) -> str:
    """Create a run, or open one again, with these tags; return its id.

    `start_time`, in milliseconds since 1970, is when a new one began; now, by default.
    """
    if resumed is None:
        made = client.create_run(experiment_id, start_time, dict(tags), name)
        return str(made.info.run_id)
    run_id = str(resumed.info.run_id)
    if resumed.info.status != "RUNNING":
        client.update_run(run_id, status="RUNNING")
    set_tags(client, run_id, tags)
    return run_id


def all_runs(client: MlflowClient, experiment_id: str) -> list[Run]:
    """Return every run of an experiment, those that were deleted too."""
    return _all(client.search_runs, experiment_ids=[experiment_id], run_view_type=ViewType.ALL)


def logged_models(client: MlflowClient, experiment_id: str) -> list[LoggedModel]:
    """Return every stored model of an experiment, registered or not."""
    return _all(client.search_logged_models, experiment_ids=[experiment_id])


def _all(search: Callable[..., PagedList[Found]], **query: Any) -> list[Found]:
    """Return what all pages of a search hold."""
    found, page = list[Found](), search(**query)
    while True:
        found += page
        if not page.token:
            return found
        page = search(**query, page_token=page.token)


def size_of(address: str) -> int:
    """Return how many bytes lie at an artifact address, in whatever store."""
    store = get_artifact_repository(address)

    def below(path: str | None) -> int:
        listed = store.list_artifacts(path)
        return sum(below(f.path) if f.is_dir else int(f.file_size or 0) for f in listed)

    return below(None)


def remove_run(client: MlflowClient, old: Run) -> None:
    """Remove a run and its artifacts; nobody finds it while they go."""
    if old.info.lifecycle_stage != "deleted":
        client.delete_run(old.info.run_id)
    get_artifact_repository(old.info.artifact_uri).delete_artifacts()


def remove_logged_model(client: MlflowClient, old: LoggedModel) -> None:
    """Remove a stored model; it is listed until its files are gone, so that none is forgotten."""
    get_artifact_repository(old.artifact_location).delete_artifacts()
    client.delete_logged_model(old.model_id)


@contextmanager
def run(
    client: MlflowClient,
    experiment_id: str,
    name: str,
    tags: Mapping[str, str],
    resumed: Run | None = None,
    end_time: int | None = None,
) -> Iterator[str]:
    """Open a run, or go on with one, and yield its id; it ends FINISHED, or FAILED on an error.

    `end_time`, in milliseconds since 1970, is when it ended; now, by default.
    """
    run_id = open_run(client, experiment_id, name, tags, resumed)
    try:
        yield run_id
    except BaseException:
        # The server may be what failed: then its error is the one to tell.
        with suppress(MlflowException):
            client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED", end_time)


def log_params(client: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    """Log the params that a run does not have yet; MLflow refuses to change one."""
    known = client.get_run(run_id).data.params
    new = [Param(name, str(value)) for name, value in params.items() if name not in known]
    for start in range(0, len(new), 100):  # the server's limit for a batch
        client.log_batch(run_id, params=new[start : start + 100])


def log_metrics(client: MlflowClient, run_id: str, scores: Mapping[str, float | None]) -> None:
    """Log single figures; undefined ones (None) are left out, and those that the run has."""
    now, known = int(time.time() * 1000), client.get_run(run_id).data.metrics
    new = {name: value for name, value in scores.items() if value != known.get(name)}
    found = [Metric(name, value, now, 0) for name, value in new.items() if value is not None]
    client.log_batch(run_id, metrics=found)


def points_of(client: MlflowClient, run_id: str, prefix: str) -> set[Point]:
    """Return the points of the curve under `<prefix>/` that a run has."""
    keys = [key for key in client.get_run(run_id).data.metrics if key.startswith(f"{prefix}/")]
    return {(key, point.step) for key in keys for point in client.get_metric_history(run_id, key)}


def log_curve(
    client: MlflowClient, run_id: str, prefix: str, rows: Rows, known: Set[Point] = frozenset()
) -> set[Point]:
    """Log a training curve under `<prefix>/<column>`, one step an epoch; return its points.

    Args:
        client: of the server.
        run_id: of the run.
        prefix: the stage's.
        rows: the epochs; `time` is when one was, in milliseconds since 1970: now, by default.
        known: points that the run has, which are left out: MLflow would keep both.
    """
    now = int(time.time() * 1000)
    points = [
        Metric(f"{prefix}/{name}", value, row.get("time", now), int(row["epoch"]))
        for row in rows
        for name, value in row.items()
        if name not in NOT_DRAWN and value is not None
    ]
    new = [point for point in points if (point.key, point.step) not in known]
    for start in range(0, len(new), 1000):  # the server's limit for a batch
        client.log_batch(run_id, metrics=new[start : start + 1000])
    return {(point.key, point.step) for point in points}


def watch_machine(run_id: str, seconds: float) -> SystemMetricsMonitor:
    """Log the load of processor, memory, disk, network and GPU to a run, now and then.

    The monitor ends itself when the server does not answer or the run is no longer running; a new
    one goes on after the steps that there are.
    """
    monitor = SystemMetricsMonitor(run_id, sampling_interval=seconds, resume_logging=True)
    monitor.start()
    return monitor


def is_watched() -> bool:
    """Whether a monitor of `watch_machine` is at work in this process."""
    return any(thread.name == "SystemMetricsMonitor" for thread in threading.enumerate())


def set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags on a run."""
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def find_version(client: MlflowClient, model: str, onnx_sha256: str) -> ModelVersion | None:
    """Return the registered version that holds this very file, or None."""
    found = client.search_model_versions(f"name = '{model}' and tags.onnx_sha256 = '{onnx_sha256}'")
    return found[0] if found else None


def versions(client: MlflowClient, model: str) -> list[ModelVersion]:
    """Return all registered versions of a model."""
    return _all(client.search_model_versions, filter_string=f"name = '{model}'")


def by_alias(client: MlflowClient, model: str, alias: str) -> ModelVersion | None:
    """Return the version that an alias points to, or None if there is none yet."""
    try:
        return client.get_model_version_by_alias(model, alias)
    except MlflowException as error:
        if error.error_code in _MISSING:
            return None
        raise


def find(client: MlflowClient, model: str, name: str) -> ModelVersion:
    """Return a version by its number or by an alias.

    Raises:
        RefitError: there is none.
    """
    look_up = client.get_model_version if name.isdecimal() else client.get_model_version_by_alias
    try:
        return look_up(model, name)
    except MlflowException as error:
        if error.error_code not in _MISSING:
            raise
    raise RefitError(f"{model} has no version {name!r} in {uri()}: `make ui` lists them")


def register(
    client: MlflowClient, run_id: str, path: Path, model: str, tags: Mapping[str, str]
) -> ModelVersion:
    """Store an ONNX file, load it back, compare its bytes, and only then register it.

    The version is made by one request together with its tags, by which `find_version` knows it
    again: an interruption leaves a version that a retry finds, or none.

    Raises:
        RefitError: what came back is not what was sent.
    """
    with mlflow.start_run(run_id):
        logged = pyfunc_model.log(path, [f"{name}=={version(name)}" for name in SERVING_PACKAGES])
    if _fetch(logged.model_uri).read_bytes() != path.read_bytes():
        raise RefitError(
            f"what MLflow at {uri()} gives back differs from {path}; it was not registered: "
            "look at the server's artifact store"
        )
    try:
        client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
    return client.create_model_version(
        model,
        logged.model_uri,
        run_id,
        tags={**tags, "run_id": run_id},
        model_id=logged.model_id,
    )


def download(client: MlflowClient, registered: ModelVersion) -> Path:
    """Fetch a version's ONNX file and return its path.

    Raises:
        RefitError: the registry answers, but the file is gone or is not the one registered.
    """
    name = f"{registered.name} version {registered.version}"
    try:
        found = _fetch(f"models:/{registered.name}/{registered.version}")
    except (MlflowException, OSError) as error:
        # A registry that is down is another error than a file that is gone: this asks it.
        client.get_model_version(registered.name, registered.version)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RefitError(f"the file of {name} cannot be fetched: {reason}") from error
    expected = registered.tags.get("onnx_sha256")
    if expected and files.sha256_file(found) != expected:
        raise RefitError(f"the file of {name} is not the one that was registered")
    return found


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
        return _fetch(address)
    except (MlflowException, RequestException, OSError) as error:
        first_line = str(error).splitlines()[0]
        raise RefitError(f"no model {address} from MLflow at {uri()}: {first_line}") from None


def _fetch(model_uri: str) -> Path:
    """Download a logged or registered model and return its ONNX file."""
    folder = Path(mlflow.artifacts.download_artifacts(model_uri))
    found = sorted(folder.rglob("*.onnx"))
    if not found:
        raise FileNotFoundError(f"{model_uri} holds no ONNX file")
    return found[0]


def prove(client: MlflowClient, registered: ModelVersion, sha256: str) -> None:
    """Fetch a version back by an alias, as production will, before it can become champion.

    Raises:
        RefitError: what comes back is not, byte for byte, the file of this SHA-256.
    """
    client.set_registered_model_alias(registered.name, CHALLENGER, registered.version)
    address = f"models:/{registered.name}@{CHALLENGER}"
    if files.sha256_file(_fetch(address)) != sha256:
        raise RefitError(
            f"{address} (version {registered.version}) gives back another file than the one that "
            "was registered; it was not promoted: look at the server's artifact store"
        )
    client.delete_registered_model_alias(registered.name, CHALLENGER)


def promote(client: MlflowClient, registered: ModelVersion) -> None:
    """Move the champion alias to a version; one request, so nobody sees a moment without.

    Safe to repeat: `previous` is set first, and a version that is champion already stays so.
    """
    old = by_alias(client, registered.name, CHAMPION)
    if old is not None and str(old.version) == str(registered.version):
        return
    if old is not None:
        client.set_registered_model_alias(registered.name, PREVIOUS, old.version)
    client.set_registered_model_alias(registered.name, CHAMPION, registered.version)


def roll_back(client: MlflowClient, model: str, reason: str) -> tuple[ModelVersion, ModelVersion]:
    """Make the previous champion the champion again; return the version it replaces, and itself.

    Raises:
        RefitError: there is nothing to go back to.
    """
    now, before = by_alias(client, model, CHAMPION), by_alias(client, model, PREVIOUS)
    if now is None or before is None or str(now.version) == str(before.version):
        stays = f"version {now.version} stays" if now else "there is none"
        raise RefitError(f"no champion of {model} before the present one: {stays}")
    # Said first: the gate must not promote it again, whatever happens next.
    client.set_model_version_tag(model, now.version, ROLLED_BACK, reason)
    client.set_registered_model_alias(model, CHAMPION, before.version)
    return now, before


def log_dataset(
    client: MlflowClient, run_id: str, digest: str, source: str, profile: Mapping[str, Any]
) -> None:
    """Log the accepted pictures as the dataset of a run."""
    dataset = Dataset(
        name="pictures",
        digest=digest,
        source_type="local",
        source=json.dumps({"uri": source}),
        profile=json.dumps(profile),
    )
    context = InputTag("mlflow.data.context", "training")
    client.log_inputs(run_id, datasets=[DatasetInput(dataset, [context])])


def read_artifact(run_id: str, name: str) -> Path:
    """Fetch an artifact of a run, a file or a folder, and return its path."""
    return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name))
