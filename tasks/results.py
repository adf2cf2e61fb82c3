"""What the candidates of this retrain achieved, read from their files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow.parquet as pq

from tasks import files, params
from tasks.fingerprint import fingerprint


def validated(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return each candidate's validation score; of those only whose model is there and evaluated.

    DVC removes a stage's outputs before it runs, so a failed candidate has no model.
    """
    found = {}
    for name in names:
        score = files.MODELS / name / "validation.json"
        if score.exists() and score.with_name("model.safetensors").exists():
            found[name] = files.read_json(score)
    return found


def scored(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return what `validated` does, with the metrics on validation and test added."""
    return {
        name: {**score, **files.read_json(files.REPORTS / name / "metrics.json")}
        for name, score in validated(names).items()
    }


def probabilities(name: str, split: str) -> dict[str, list[float]]:
    """Return path -> probabilities of a candidate's pictures of one split, as evaluated."""
    table = pq.read_table(
        files.REPORTS / name / "predictions.parquet",
        columns=["path", "probabilities"],
        filters=[("split", "=", split)],
    )
    pairs = zip(table["path"].to_pylist(), table["probabilities"].to_pylist(), strict=True)
    return dict(pairs)


def best(scores: dict[str, dict[str, Any]]) -> str:
    """Return the candidate to ship: the best on validation, of equals the one that computes least.

    Operations are counted, not timed: a choice that DVC caches must not hang on the moment.
    """
    return min(scores, key=lambda name: (-scores[name]["f1_macro"], scores[name]["gflops"]))


def retrain_key(results: dict[str, dict[str, Any]]) -> str:
    """Name this retrain by its content: the exported file, every candidate's model, the limits."""
    models = {name: result["model_sha256"] for name, result in results.items()}
    limits = params.load().register_.model_dump(mode="json")
    return fingerprint(files.sha256_file(files.BEST / "model.onnx"), models, limits)
