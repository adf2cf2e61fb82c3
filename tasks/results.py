"""What the candidates of this retrain achieved, read from their files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tasks import files
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


def retrain_key(results: dict[str, dict[str, Any]]) -> str:
    """Name this retrain by its content: the exported file and every candidate's model."""
    models = {name: result["model_sha256"] for name, result in results.items()}
    return fingerprint(files.sha256_file(files.BEST / "model.onnx"), models)
