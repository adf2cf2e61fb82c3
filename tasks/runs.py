"""What a retrain leaves in MLflow: a run for itself, one nested in it for each candidate."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from tasks import curves, files, live, params, tracking

NOTE = 1000  # characters of the reasons in a run's description
# With these and DVC's cache or remote, `flows.restore` brings back data and models.
ORIGIN_FOLDER = "origin"
ORIGIN = (
    Path("dvc.yaml"),
    Path("dvc.lock"),
    Path("params.yaml"),
    Path("data/raw.dvc"),
    files.MANIFEST,
    files.CLASSES,
)


def git_commit() -> str:
    """Return HEAD's hash, with `-dirty` for uncommitted changes, or `none` outside git."""
    found = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "none"


def log_origin(client: tracking.MlflowClient, run_id: str) -> None:
    """Log what restores this retrain's data and models, and the dataset itself."""
    for path in ORIGIN:
        if path.exists():
            client.log_artifact(run_id, str(path), ORIGIN_FOLDER)
    log_pictures(client, run_id)


def log_pictures(client: tracking.MlflowClient, run_id: str) -> None:
    """Log the accepted pictures as the dataset of a run."""
    splits = pq.read_table(files.MANIFEST, columns=["split", "label"]).to_pandas()
    profile = {
        "pictures": len(splits),
        "splits": splits["split"].value_counts().to_dict(),
        "labels": splits["label"].value_counts().to_dict(),
    }
    tracking.log_dataset(client, run_id, files.data_version(), str(files.RAW), profile)


def log_candidate(
    client: tracking.MlflowClient,
    experiment: str,
    parent: str,
    settings: params.Params,
    name: str,
    result: dict[str, Any],
    common: dict[str, str],
) -> str:
    """Log one candidate as a run nested in `parent`; return its run id.

    A candidate that did not change keeps the run that it has; one that was followed while it
    trained gets what that run lacks.
    """
    identity = {"candidate": name, "model_sha256": result["model_sha256"]}
    if known := tracking.find_run(client, experiment, identity):
        return str(known.info.run_id)
    wait_for_senders(name)
    followed = [trained_as(client, experiment, name, key) for key in ("fine_tune", "head")]
    earlier = next((run for run in followed if run), None)
    origin = {tracking.PARENT: parent, "initialised_from": result["initialised_from"]}
    weights = files.WEIGHTS / f"{name}.safetensors"
    if weights.exists():
        origin["weights_sha256"] = files.sha256_file(weights)
    tags = {**common, **identity, **origin}
    trained = earlier.info.end_time if earlier else None  # its duration is the training's
    with tracking.run(client, experiment, name, tags, earlier, trained) as run_id:
        log_pictures(client, run_id)
        tracking.log_params(client, run_id, candidate_params(settings, name))
        for key in curves.STAGES:
            curve = curves.read_curve(curves.curve_of(name, key))
            sent = tracking.points_of(client, run_id, key)
            tracking.log_curve(client, run_id, key, curve, sent)
        tracking.log_metrics(client, run_id, flat_metrics(result))
        for path in sorted((files.REPORTS / name).iterdir()):
            client.log_artifact(run_id, str(path))
    return run_id


def trained_as(
    client: tracking.MlflowClient, experiment: str, candidate: str, key: str
) -> tracking.Run | None:
    """Return the run in which a stage was followed that left the curve of `data/reports`, or None.

    A head may be followed by several fine-tunings: a run that has one, followed or logged whole,
    is none of the head alone.
    """
    found, curve = curves.read_live(curves.live_of(candidate, key)), curves.curve_of(candidate, key)
    if found is None or not curve.exists() or not found.is_of(curves.read_curve(curve)):
        return None
    tags = {"candidate": candidate, f"training.{key}": found.training}
    run = tracking.find_run(client, experiment, tags, finished=False)
    if run is None or key != "head":
        return run
    whole = "model_sha256" in run.data.tags and run.info.status == "FINISHED"
    return None if whole or "training.fine_tune" in run.data.tags else run


def sender_lock(candidate: str, key: str) -> FileLock:
    """Return the lock of who sends a stage's epochs; the one before soon lets go of it."""
    path = curves.live_of(candidate, key).with_name("sender.lock")
    return FileLock(path, timeout=2 * live.LAST)


def wait_for_senders(candidate: str) -> None:
    """Wait until nobody sends a candidate's epochs, but not for one that trains right now."""
    for key in curves.STAGES:
        if curves.live_of(candidate, key).exists():
            with suppress(Timeout), sender_lock(candidate, key):
                pass


def candidate_params(settings: params.Params, name: str) -> dict[str, Any]:
    """Return what a candidate was trained with, flat, as MLflow shows it."""
    settings = settings.for_candidate(name)
    blocks = {
        "head": settings.head,
        "fine_tune": settings.fine_tune,
        "prepare": settings.prepare,
    }
    flat = {f"{b}.{key}": v for b, block in blocks.items() for key, v in block.model_dump().items()}
    return {**settings.candidates[name].model_dump(), **flat, "seed": settings.data.seed}


def flat_metrics(result: dict[str, Any]) -> dict[str, float]:
    """Return a candidate's figures on both splits as MLflow's columns."""
    return {
        f"{split}_{key}": value
        for split in ("val", "test")
        for key, value in result[split].items()
        if isinstance(value, float)
    }


def note(results: dict[str, dict[str, Any]], best: str, decision: dict[str, Any]) -> str:
    """Return the run's description in MLflow: the verdict, and the candidates side by side."""
    rows = [
        f"| {name}{' (best)' if name == best else ''} | {result['initialised_from']} "
        f"| {result['f1_macro']:.4f} | {result['test']['f1_macro']:.4f} "
        f"| {result['test']['accuracy']:.4f} |"
        for name, result in results.items()
    ]
    return "\n".join(
        [
            f"**{decision['verdict']}**: {'; '.join(decision['reasons'])[:NOTE]}",
            "",
            "| candidate | initialised from | val F1 | test F1 | test accuracy |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )
