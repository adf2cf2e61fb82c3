"""Step `register` of the flow: log the candidates, register the best, promote it if it is better.

Not a DVC stage, because it changes the world outside `data/`. Safe to repeat: what is already
logged or registered is found again by its content hash.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from tasks import files, packed, params, program, serving, tracking
from tasks.results import retrain_key, scored
from tasks.vision.metrics import f1_macro

STAGES_WITH_CURVES = ("head", "fine_tune")


def git_commit() -> str:
    """Return HEAD's hash, with `-dirty` for uncommitted changes, or `none` outside git."""
    found = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "none"


def read_curve(path: Path) -> list[dict[str, float | None]]:
    """Read a training curve that `models.write_curve` wrote."""
    with path.open(newline="") as file:
        return [
            {name: float(value) if value else None for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


def candidate_params(settings: params.Params, name: str) -> dict[str, Any]:
    """Return what a candidate was trained with, flat, as MLflow shows it."""
    blocks = {
        "head": settings.head,
        "fine_tune": settings.fine_tune,
        "prepare": settings.prepare,
    }
    flat = {f"{b}.{key}": v for b, block in blocks.items() for key, v in block.model_dump().items()}
    return {**settings.candidates[name].model_dump(), **flat, "seed": settings.data.seed}


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

    A candidate that did not change keeps the run that it has.
    """
    identity = {"candidate": name, "model_sha256": result["model_sha256"]}
    if known := tracking.find_run(client, experiment, identity):
        return str(known.info.run_id)
    origin = {tracking.PARENT: parent, "initialised_from": result["initialised_from"]}
    with tracking.run(client, experiment, name, {**common, **identity, **origin}) as opened:
        run_id = str(opened.info.run_id)
        for key, value in candidate_params(settings, name).items():
            client.log_param(run_id, key, value)
        for stage in STAGES_WITH_CURVES:
            curve = read_curve(files.REPORTS / name / f"{stage}_curve.csv")
            tracking.log_curve(client, run_id, stage, curve)
        flat = {
            f"{split}_{key}": value
            for split in ("val", "test")
            for key, value in result[split].items()
            if isinstance(value, float)
        }
        tracking.log_metrics(client, run_id, flat)
        for path in sorted((files.REPORTS / name).iterdir()):
            client.log_artifact(run_id, str(path))
    return run_id


def test_score(model: Path, max_pixels: int) -> float:
    """Return an ONNX file's macro F1 on the current test split, from the picture files.

    Classes that the file does not know count as missed.
    """
    session = serving.Session(model)
    pictures = packed.read_split("test")
    paths = [files.RAW / path for path in pictures.paths]
    best = serving.predict_files(session, paths, max_pixels).argmax(1)
    classes = files.read_json(files.CLASSES)
    number = {name: i for i, name in enumerate(classes)}
    predicted = np.array([number.get(session.class_names[i], len(classes)) for i in best])
    return f1_macro(pictures.labels, predicted, len(classes) + 1)


def judge(
    client: tracking.MlflowClient, settings: params.Params, path: Path, sha256: str
) -> dict[str, str]:
    """Compare the exported file with the champion, both scored now on the same test pictures."""
    old = tracking.champion(client, settings.register_.model_name)
    if old is not None and old.tags.get("onnx_sha256") == sha256:
        return {"verdict": "HOLD", "reason": f"version {old.version}, the champion, is this file"}
    max_pixels = settings.validate_.max_pixels
    challenger = test_score(path, max_pixels)
    verdict = {"challenger_f1_macro": f"{challenger:.6f}"}
    if old is None:
        return verdict | {"verdict": "PROMOTE", "reason": "the first model: there is no champion"}
    champion = test_score(tracking.download(old), max_pixels)
    better = challenger > champion
    return verdict | {
        "champion_f1_macro": f"{champion:.6f}",
        "champion_version": str(old.version),
        "verdict": "PROMOTE" if better else "HOLD",
        "reason": f"macro F1 {challenger:.4f} on today's test pictures is "
        f"{'better' if better else 'not better'} than {champion:.4f} of version {old.version}",
    }


def retrain_run(
    client: tracking.MlflowClient,
    experiment: str,
    settings: params.Params,
    results: dict[str, dict[str, Any]],
    failed: dict[str, str],
) -> dict[str, str]:
    """Log this retrain, or find it as logged before; return its run id, verdict and version."""
    path = files.BEST / "model.onnx"
    sha256 = files.sha256_file(path)
    key = retrain_key(results)
    before = tracking.find_run(client, experiment, {"retrain": key})
    if before and "registered_version" in before.data.tags:
        return {**before.data.tags, "run_id": before.info.run_id}
    common = {"git_commit": git_commit(), "data_version": files.data_version()}
    tags = {f"failed.{name}": reason for name, reason in failed.items()}
    tags |= {**common, "retrain": key, "best": serving.Session(path).metadata["candidate"]}
    with tracking.run(client, experiment, f"retrain-{common['data_version']}", tags) as opened:
        run_id = str(opened.info.run_id)
        for name, result in results.items():
            tags[f"run.{name}"] = log_candidate(
                client, experiment, run_id, settings, name, result, common
            )
        verdict = judge(client, settings, path, sha256)
        model = settings.register_.model_name
        version = tracking.find_version(client, model, sha256) or tracking.register(
            client, run_id, path, model, {"onnx_sha256": sha256, "run_id": run_id, **common}
        )
        if verdict["verdict"] == "PROMOTE":
            tracking.promote(client, version)
        tags |= verdict | {"registered_version": str(version.version)}
        tracking.set_tags(client, run_id, tags)
    return {**tags, "run_id": run_id}


def main() -> None:
    """Log, register, compare, promote; then write data/reports/summary.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=json.loads, help="the flow's JSON: seconds and failures")
    stages = parser.parse_args().stages or {"seconds": {}, "failed": {}}
    settings = params.load()
    results = scored(settings.candidates)
    with tracking.session(settings.register_.experiment) as (client, experiment):
        logged = retrain_run(client, experiment, settings, results, stages["failed"])
    files.write_json(
        files.SUMMARY,
        {
            "retrain": logged["retrain"],
            "best": logged["best"],
            "verdict": logged["verdict"],
            "reason": logged["reason"],
            "model": settings.register_.model_name,
            "registered_version": logged["registered_version"],
            "data_version": files.data_version(),
            "tracking_uri": tracking.uri(),
            "run_id": logged["run_id"],
            "candidates": results,
            **stages,
        },
    )


if __name__ == "__main__":
    program.run(main)
