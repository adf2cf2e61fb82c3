"""Stage `evaluate`: score the reloaded checkpoint on validation and test."""

from __future__ import annotations

import csv
import io
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tasks import curve_picture, curves, files, models, packed, params, program
from tasks.vision import calibration, device, metrics, slices
from tasks.vision.atomic import replacing
from tasks.vision.inference import predict_logits

PER_CLASS = ("precision", "recall", "f1", "support")
SLICE = ("column", "value", "count", "accuracy", "low", "high")


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


def slice_columns(pictures: packed.Pictures, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return what the pictures of a split are sliced by, each [n]; the manifest knows it."""
    manifest = pq.read_table(files.MANIFEST).to_pandas().set_index("path").loc[pictures.paths]
    folders = np.array([str(PurePath(path).parent) for path in pictures.paths])
    labels = np.array(classes)[pictures.labels]
    columns = {
        "class": labels,
        "shorter side": manifest[["width", "height"]].min(axis=1).to_numpy(),
        "brightness": manifest["mean"].to_numpy(),
        "sharpness": manifest["sharpness"].to_numpy(),
        "group": manifest["group"].to_numpy().astype(str),
    }
    # Folders that are the classes say nothing new.
    return columns if len(set(folders)) == len(set(labels)) else {**columns, "folder": folders}


def count_gflops(classifier: torch.nn.Module, spec: models.Spec) -> float:
    """Return the 10^9 floating-point operations of one picture's forward pass."""
    pixels = torch.zeros(1, 3, spec.preprocess.crop, spec.preprocess.crop)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        classifier.eval()(pixels.to(next(classifier.parameters()).device))
    return float(counter.get_total_flops() / 1e9)


def logits_of(
    name: str, pictures: packed.Pictures, classifier: torch.nn.Module, spec: models.Spec, batch: int
) -> Tensor:
    """Return a split's logits [n, C], on the CPU."""
    with program.bar(f"evaluate {name}", "picture", len(pictures)) as bar:
        logits = predict_logits(
            classifier, pictures.pixels, len(pictures), spec.preprocess, batch, bar.update
        )
    return logits.cpu()


def score_split(
    true: NDArray[np.int64], probabilities: NDArray[np.float32], classes: tuple[str, ...]
) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """Return a split's figures, and a row for each class."""
    scores = metrics.score(true, probabilities, list(classes))
    scores.pop("confusion")  # the plot is drawn from the pictures
    rows = scores.pop("per_class").items()
    return scores, [(label, *(figures[key] for key in PER_CLASS)) for label, figures in rows]


def main() -> None:
    """Score one candidate and write its metrics, predictions and tables."""
    name = program.candidate_argument(__doc__)
    settings = params.load()
    params.candidate(settings, name)
    where = device.start(settings.data.seed)
    checkpoint = files.MODELS / name / "model.safetensors"
    classifier, spec = models.load_classifier(checkpoint)
    gflops = count_gflops(classifier, spec)
    classifier.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    splits = {"val": packed.read_split("val"), "test": packed.read_split("test")}
    logits = {
        split: logits_of(name, pictures, classifier, spec, settings.evaluate.batch_size)
        for split, pictures in splits.items()
    }
    temperature = calibration.fit_temperature(logits["val"].numpy(), splits["val"].labels)
    report, tables, per_class = {}, [], []
    for split, pictures in splits.items():
        probabilities = (logits[split] / temperature).softmax(1).numpy()
        scores, rows = score_split(pictures.labels, probabilities, spec.classes)
        before = calibration.ece(pictures.labels, logits[split].softmax(1).numpy())
        report[split] = {**scores, "ece_uncalibrated": before}
        tables.append(predictions(split, pictures, spec.classes, probabilities))
        per_class += [(split, *row) for row in rows]
    columns = slice_columns(splits["test"], spec.classes)
    best = logits["test"].argmax(1).numpy()
    weak = slices.score_slices(splits["test"].labels, best, columns)
    write_reports(name, report, pa.concat_tables(tables), per_class, weak)
    files.write_json(
        checkpoint.with_name("validation.json"),
        {
            "f1_macro": report["val"]["f1_macro"],
            "temperature": temperature,
            "gflops": gflops,
            "model_sha256": files.sha256_file(checkpoint),
            "initialised_from": spec.initialised_from,
        },
    )
    test = report["test"]
    print(
        f"evaluate {name}: val macro F1 {report['val']['f1_macro']:.4f}; test accuracy "
        f"{test['accuracy']:.4f}, macro F1 {test['f1_macro']:.4f}; temperature {temperature:.3f}, "
        f"test ECE {test['ece_uncalibrated']:.3f} before it, {test['ece']:.3f} with it"
    )


def write_reports(
    name: str,
    report: dict[str, Any],
    table: pa.Table,
    per_class: list[tuple[Any, ...]],
    weak: list[dict[str, Any]],
) -> None:
    """Write a candidate's files under `data/reports/<name>/`."""
    folder = files.REPORTS / name
    files.write_json(folder / "metrics.json", report)
    with replacing(folder / "predictions.parquet") as temporary:
        pq.write_table(table, temporary)
    files.write_text(folder / "per_class.csv", csv_text(("split", "class", *PER_CLASS), per_class))
    rows = [tuple(row[column] for column in SLICE) for row in weak]
    files.write_text(folder / "slices.csv", csv_text(SLICE, rows))
    drawn = [curves.read_curve(curves.curve_of(name, key)) for key in curves.STAGES]
    with replacing(folder / "curves.png") as temporary:
        temporary.write_bytes(curve_picture.curves_png(name, *drawn))
    test = [row for row in table.to_pylist() if row["split"] == "test"]
    files.write_text(
        folder / "confusion.csv",
        csv_text(("actual", "predicted"), [(row["true"], row["predicted"]) for row in test]),
    )


if __name__ == "__main__":
    program.run(main)
