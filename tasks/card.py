"""What an exported model says of itself: the file's metadata, and the same facts as a page."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from tasks import files, models
from tasks.vision import checkpoints
from tasks.vision.errors import RefitError

PROJECT = Path("pyproject.toml")
# The figures of a model card; the report of the candidate has them all.
HEADLINE = ("accuracy", "balanced_accuracy", "precision_macro", "recall_macro", "f1_macro")


def project_version() -> str:
    """Return the version in pyproject.toml.

    Raises:
        RefitError: it cannot be read.
    """
    try:
        return str(tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["version"])
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise RefitError(f"no project version in {PROJECT}: {error!r}") from None


def metadata(
    candidate: str,
    spec: models.Spec,
    model_sha256: str,
    validation: dict[str, Any],
    licence: str,
) -> dict[str, str]:
    """Return the facts for the ONNX file's metadata, beside those that the exporter adds.

    They follow from the stage's inputs alone, so that equal inputs give equal bytes. What belongs
    to an occasion, the git commit and the MLflow run, stands in the registered version's tags.

    Args:
        candidate: its name.
        spec: of the checkpoint.
        model_sha256: of the checkpoint.
        validation: `tasks.vision.metrics.score` on the validation split.
        licence: from params.yaml.
    """
    initial = checkpoints.read_metadata(files.WEIGHTS / f"{candidate}.safetensors")
    figures = {
        name: {"value": validation[name], "interval_95": validation["intervals"][name]}
        for name in HEADLINE
    }
    return {
        "candidate": candidate,
        "arch": spec.arch,
        "initialised_from": spec.initialised_from,
        "initial_weights": json.dumps(initial),
        "data_version": files.data_version(),
        "model_sha256": model_sha256,
        "val_f1_macro": json.dumps(validation["f1_macro"]),
        "validation": json.dumps({"pictures": validation["count"], **figures}),
        "project_version": project_version(),
        "licence": licence,
    }


def page(about: dict[str, str], file_sha256: str) -> str:
    """Return the model card, Markdown, of an exported file.

    Args:
        about: the metadata in the file.
        file_sha256: of the file.
    """
    taken, preprocess = json.loads(about["input"]), json.loads(about["preprocess"])
    initial, validation = json.loads(about["initial_weights"]), json.loads(about["validation"])
    classes = json.loads(about["class_names"])
    source = f", file SHA-256 `{initial['sha256']}`" if "sha256" in initial else ""
    cut = f"centre square to {preprocess['resize']} pixels, centre crop {preprocess['crop']}, "
    if "made_by" in taken:
        cut = ""
    rows = [
        f"| {name} | {validation[name]['value']:.4f} | "
        f"{validation[name]['interval_95'][0]:.4f} to {validation[name]['interval_95'][1]:.4f} |"
        for name in HEADLINE
    ]
    lines = [
        f"# {about['candidate']}: image classifier of {len(classes)} classes",
        "",
        f"- file: `model.onnx`, SHA-256 `{file_sha256}`",
        f"- made by: Refit {about['project_version']}",
        f"- licence: {about['licence']}",
        f"- network: {about['arch']}, started from {initial['initialised_from']}{source}",
        f"- checkpoint: SHA-256 `{about['model_sha256']}`",
        f"- data version: `{about['data_version']}`",
        "- git commit and MLflow run: the tags of the registered version that holds this file",
        "",
        "## Input and output",
        "",
        f"- input `{taken['name']}`: {taken['dtype']} {taken['shape']} ({taken['layout']}), "
        f"{taken['colour']}, levels {taken['range'][0]} to {taken['range'][1]}",
        *(
            f"  - {', '.join(f'{k}: {v}' for k, v in step.items())}"
            for step in taken.get("made_by", ())
        ),
        f"- inside the file: {cut}mean {preprocess['mean']}, std {preprocess['std']}, temperature "
        f"{about['temperature']}, softmax",
        "- output `probabilities`: float32 [N, C]; `logits`: float32 [N, C], before the "
        "temperature",
        "",
        "Classes, in the order of the outputs:",
        "",
        *(f"{number}. {name}" for number, name in enumerate(classes)),
        "",
        "## Validation",
        "",
        f"{validation['pictures']} pictures; 95 % bootstrap intervals over the pictures.",
        "",
        "| figure | value | interval |",
        "|---|---|---|",
        *rows,
        "",
        "Before this file was written, ONNX Runtime read every picture of the test split from its",
        "own file and gave PyTorch's class each time.",
    ]
    return "\n".join(lines) + "\n"
