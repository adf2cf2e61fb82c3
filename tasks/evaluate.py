"""Stage `evaluate`: score the reloaded checkpoint on validation and test."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from tasks import files, models, packed, params, program
from tasks.vision import device, metrics
from tasks.vision.fine_tuning import predict_logits

SPLITS = ("val", "test")
PER_CLASS = ("precision", "recall", "f1", "support")


def predictions(
    split: str, pictures: packed.Pictures, classes: tuple[str, ...], probabilities: NDArray[Any]
) -> pa.Table:
    """Return a row a picture; every figure of the report can be derived from it."""
    names = np.array(classes, dtype=object)
    return pa.table(
        {
            "path": pictures.paths,
            "split": [split] * len(pictures),
            "true": names[pictures.labels].tolist(),
            "predicted": names[probabilities.argmax(1)].tolist(),
            "probabilities": pa.array(list(probabilities), pa.list_(pa.float32())),
        }
    )


def csv_text(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Return rows as CSV, for DVC's plots."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


def main() -> None:
    """Score one candidate and write its metrics, predictions and tables."""
    name = program.candidate_argument(__doc__)
    settings = params.load()
    params.candidate(settings, name)
    where = device.start(settings.data.seed)
    checkpoint = files.MODELS / name / "model.safetensors"
    classifier, spec = models.load_classifier(checkpoint)
    classifier.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    report, tables, per_class = {}, [], []
    for split in SPLITS:
        pictures = packed.read_split(split)
        with program.bar(f"evaluate {name} {split}", "picture", len(pictures)) as bar:
            logits = predict_logits(
                classifier,
                pictures.pixels,
                len(pictures),
                spec.preprocess,
                settings.evaluate.batch_size,
                bar.update,
            )
        probabilities = logits.softmax(1).cpu().numpy()
        scores = metrics.score(pictures.labels, probabilities, list(spec.classes))
        tables.append(predictions(split, pictures, spec.classes, probabilities))
        for label, figures in scores.pop("per_class").items():
            per_class.append((split, label, *(figures[key] for key in PER_CLASS)))
        scores.pop("confusion")
        report[split] = scores
    write_reports(name, report, pa.concat_tables(tables), per_class)
    files.write_json(
        checkpoint.with_name("validation.json"),
        {
            "f1_macro": report["val"]["f1_macro"],
            "model_sha256": files.sha256_file(checkpoint),
            "initialised_from": spec.initialised_from,
        },
    )
    test = report["test"]
    print(
        f"evaluate {name}: val macro F1 {report['val']['f1_macro']:.4f}; test accuracy "
        f"{test['accuracy']:.4f}, macro F1 {test['f1_macro']:.4f}"
    )


def write_reports(
    name: str, report: dict[str, Any], table: pa.Table, per_class: list[tuple[Any, ...]]
) -> None:
    """Write a candidate's files under `data/reports/<name>/`."""
    folder = files.REPORTS / name
    files.write_json(folder / "metrics.json", report)
    with files.replacing(folder / "predictions.parquet") as temporary:
        pq.write_table(table, temporary)
    files.write_text(folder / "per_class.csv", csv_text(("split", "class", *PER_CLASS), per_class))
    test = [row for row in table.to_pylist() if row["split"] == "test"]
    files.write_text(
        folder / "confusion.csv",
        csv_text(("actual", "predicted"), [(row["true"], row["predicted"]) for row in test]),
    )


if __name__ == "__main__":
    program.run(main)
