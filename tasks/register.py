"""Step `register` of the flow: log the candidates, register the best, promote it if it is better.

It ends with the report, in the same process, because another would take seconds to start. Not a DVC
stage, because it changes the world outside `data/`. Safe to repeat: what is already logged or
registered is found again by its content hash.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks import (
    files,
    gatekeeper,
    packed,
    params,
    program,
    report,
    runs,
    serving,
    tracking,
    verdicts,
)
from tasks.results import probabilities, retrain_key, scored
from tasks.vision.errors import RefitError
from tasks.vision.images import read_picture

TIMED = 15  # pictures, each by itself
VERDICT = "verdict.json"
TAG = 2000  # characters; MLflow refuses tags of more than a few thousand


def measure(
    models: list[Path], evaluated: dict[str, list[float]], max_pixels: int
) -> tuple[list[str], list[gatekeeper.Contender]]:
    """Score ONNX files on the current test split, from the picture files, in this process.

    Args:
        models: the challenger's file first.
        evaluated: path -> the challenger's probabilities as `evaluate` found them.
        max_pixels: larger pictures are refused before they are decoded.

    Returns:
        the pictures' class names, and each model as measured.
    """
    pictures = packed.read_split("test")
    classes = files.read_json(files.CLASSES)
    paths = [files.RAW / path for path in pictures.paths]
    sessions = [serving.Session(model) for model in models]
    seconds = time_one_by_one(sessions, [read_picture(p, max_pixels) for p in paths[:TIMED]])
    scores = [serving.predict_files(session, paths, max_pixels) for session in sessions]
    expected = np.array([evaluated[path] for path in pictures.paths])
    differences = [float(np.abs(scores[0] - expected).max()), *[0.0] * (len(models) - 1)]
    found = [
        gatekeeper.Contender(
            session.class_names, probabilities, model.stat().st_size / 1e6, 1000 * taken, difference
        )
        for session, probabilities, model, taken, difference in zip(
            sessions, scores, models, seconds, differences, strict=True
        )
    ]
    return [classes[label] for label in pictures.labels], found


def time_one_by_one(
    sessions: list[serving.Session], pictures: list[NDArray[np.uint8]]
) -> list[float]:
    """Return each model's median seconds for a picture by itself.

    They take turns, so that what else the machine does slows them alike.
    """
    taken: list[list[float]] = [[] for _ in sessions]
    for picture in [pictures[0], *pictures]:  # the first time warms up
        for session, times in zip(sessions, taken, strict=True):
            started = time.perf_counter()
            session.predict([picture])
            times.append(time.perf_counter() - started)
    return [float(np.median(times[1:])) for times in taken]


def judge(
    client: tracking.MlflowClient, settings: params.Params, path: Path, sha256: str
) -> gatekeeper.Decision:
    """Compare the exported file with the champion, both scored now on the same test pictures.

    A promotion that could not be compared does not happen.
    """
    model = settings.register_.model_name
    old = tracking.by_alias(client, model, tracking.CHAMPION)
    if old is not None and old.tags.get("onnx_sha256") == sha256:
        return gatekeeper.Decision("HOLD", [f"version {old.version}, the champion, is this file"])
    known = tracking.find_version(client, model, sha256)
    if known is not None and (why := known.tags.get(tracking.ROLLED_BACK)):
        return gatekeeper.Decision("HOLD", [f"version {known.version} was rolled back: {why}"])
    try:
        rival = tracking.download(client, old) if old else None
        if rival:
            serving.Session(rival)
    except RefitError as error:
        words = f"there is a champion that cannot be compared with: {error}"
        return gatekeeper.Decision("HOLD", [words], final=False)
    best = serving.Session(path).metadata["candidate"]
    truth, measured = measure(
        [path, rival] if rival else [path],
        probabilities(best, "test"),
        settings.validate_.max_pixels,
    )
    return gatekeeper.decide(
        truth,
        measured[0],
        measured[1] if rival else None,
        settings.register_,
        settings.export.max_probability_difference,
    )


def champion_version(found: tracking.ModelVersion | None) -> str:
    """Return a version's number as a tag; MLflow gives it as text or as a number, by its store."""
    return str(found.version) if found else "none"


def decided(
    client: tracking.MlflowClient, run_id: str, settings: params.Params, sha256: str
) -> dict[str, Any]:
    """Return this retrain's decision, judging only if an interrupted attempt did not.

    An attempt that moved the alias and was interrupted then would otherwise find itself champion.
    """
    model = settings.register_.model_name
    now = tracking.by_alias(client, model, tracking.CHAMPION)
    version = champion_version(now)
    mine = now is not None and now.tags.get("onnx_sha256") == sha256
    tags = client.get_run(run_id).data.tags
    if tags.get("final") == "True" and (mine or tags["champion_before"] == version):
        found: dict[str, Any] = files.read_json(tracking.read_artifact(run_id, VERDICT))
        return found
    decision = judge(client, settings, files.BEST / "model.onnx", sha256)
    record = {**asdict(decision), "champion_before": version}
    client.log_dict(run_id, record, VERDICT)
    tags = {"final": str(decision.final), "champion_before": version}
    tracking.set_tags(client, run_id, tags)
    return record


def withheld(decision: dict[str, Any]) -> dict[str, Any]:
    """Return a promotion as what it is while promoting is switched off; the next run makes it."""
    reasons = ["promoting was switched off for this run", *decision["reasons"]]
    return {**decision, "verdict": "HOLD", "reasons": reasons, "final": False, "withheld": True}


def settled(client: tracking.MlflowClient, run: tracking.Run) -> dict[str, Any]:
    """Return what `retrain_run` returned for a retrain that was judged before."""
    run_id = str(run.info.run_id)
    if run.info.status != "FINISHED":  # interrupted at its very last step
        client.set_terminated(run_id, "FINISHED")
    decision = files.read_json(tracking.read_artifact(run_id, VERDICT))
    return {**run.data.tags, "run_id": run_id, "decision": decision}


def retrain_run(
    client: tracking.MlflowClient,
    experiment: str,
    settings: params.Params,
    results: dict[str, dict[str, Any]],
    failed: dict[str, str],
    *,
    promote: bool = True,
) -> dict[str, Any]:
    """Log, judge, register and promote; go on where an interrupted attempt ended.

    Each step is safe to repeat: a run is found by the retrain's key, a version by the file's
    hash, a verdict on the run; nothing is registered twice.

    Returns:
        The run's tags, its id and the decision.
    """
    path, model = files.BEST / "model.onnx", settings.register_.model_name
    sha256 = files.sha256_file(path)
    key = retrain_key(results)
    earlier = tracking.find_run(client, experiment, {"retrain": key}, finished=False)
    if earlier and (settled_for := earlier.data.tags.get("settled_for")):
        if champion_version(tracking.by_alias(client, model, tracking.CHAMPION)) == settled_for:
            return settled(client, earlier)
        earlier = None  # the champion changed since: it is another comparison
    common = {"git_commit": runs.git_commit(), "data_version": files.data_version()}
    tags = {f"failed.{name}": reason for name, reason in failed.items()}
    tags |= {**common, "retrain": key, "best": serving.Session(path).metadata["candidate"]}
    name = f"retrain-{common['data_version']}"
    with tracking.run(client, experiment, name, tags, earlier) as run_id:
        runs.log_origin(client, run_id)
        for candidate, result in results.items():
            tags[f"run.{candidate}"] = runs.log_candidate(
                client, experiment, run_id, settings, candidate, result, common
            )
        tracking.log_metrics(client, run_id, runs.flat_metrics(results[tags["best"]]))
        decision = decided(client, run_id, settings, sha256)
        if not promote and decision["verdict"] == "PROMOTE":
            decision = withheld(decision)
        version = tracking.find_version(client, model, sha256) or tracking.register(
            client, run_id, path, model, {"onnx_sha256": sha256, **common}
        )
        if decision["verdict"] == "PROMOTE":
            tracking.prove(client, version, sha256)
            tracking.promote(client, version)
        champion = tracking.by_alias(client, model, tracking.CHAMPION)
        tags |= {
            "verdict": decision["verdict"],
            "reason": "; ".join(decision["reasons"])[:TAG],
            "registered_version": str(version.version),
            "mlflow.note.content": runs.note(results, tags["best"], decision),
            "champion": champion_version(champion),
        }
        if decision["final"]:
            tags["settled_for"] = tags["champion"]
        tracking.set_tags(client, run_id, tags)
    return {**tags, "run_id": run_id, "decision": decision}


def write_report() -> None:
    """Write the report; what was registered stands without it."""
    try:
        report.main()
    except Exception as error:
        print(f"warning: the report was not written: {type(error).__name__}: {error}")


def main() -> None:
    """Log, register, compare, promote; then write data/reports/summary.json and the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=json.loads, help="the flow's JSON: seconds and failures")
    parser.add_argument("--no-promote", action="store_true", help="judge, but change no champion")
    arguments = parser.parse_args()
    stages = arguments.stages or {"seconds": {}, "failed": {}}
    settings = params.load()
    results = scored(settings.candidates)
    with tracking.session(settings.register_.experiment) as (client, experiment):
        logged = retrain_run(
            client,
            experiment,
            settings,
            results,
            stages["failed"],
            promote=not arguments.no_promote,
        )
    known = {
        "verdict": logged["verdict"],
        "reason": logged["reason"],
        "model": settings.register_.model_name,
        "registered_version": logged["registered_version"],
        "data_version": files.data_version(),
        "tracking_uri": tracking.uri(),
        "run_id": logged["run_id"],
        "decision": logged["decision"],
    }
    verdicts.append(known)
    files.write_json(
        files.SUMMARY,
        {
            "retrain": logged["retrain"],
            "best": logged["best"],
            **known,
            "champion": logged["champion"],
            "withheld": logged["decision"].get("withheld", False),
            "git_commit": logged["git_commit"],
            "candidates": results,
            **stages,
        },
    )
    write_report()


if __name__ == "__main__":
    program.run(main)
