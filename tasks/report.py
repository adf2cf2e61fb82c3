"""Step `report` of the flow: one page that a person opens first; it needs no network.

Everything on it is read from `data/`: what the stages and `register` wrote.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tasks import advice, drawing, files, params, program, tracking
from tasks.curves import read_curve
from tasks.gate.page import thumbnail
from tasks.vision import calibration
from tasks.vision.errors import PictureError, RefitError

TONES = {"PROMOTE": "passed", "HOLD": "warning", "REJECT": "failed"}
WORDS = {
    "PROMOTE": "Promoted: it is the champion now",
    "HOLD": "Held: the champion stays",
    "REJECT": "Rejected: the champion stays",
}
SHOWN = 12  # pictures a gallery
EXAMPLES = 3  # a class
MATRIX = 20  # classes up to which the confusion matrix is drawn in full
CONFUSED = 20  # pairs listed beyond


def predictions(name: str) -> pd.DataFrame:
    """Return a candidate's predictions with the confidence in the predicted and the true class."""
    table: pd.DataFrame = pq.read_table(files.REPORTS / name / "predictions.parquet").to_pandas()
    classes = files.read_json(files.CLASSES)
    scores = np.stack(list(table["probabilities"]))
    places = table["true"].map({label: i for i, label in enumerate(classes)}).to_numpy()
    table["confidence"] = scores.max(1)
    table["own"] = scores[np.arange(len(table)), places]
    return table


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table's rows, None where it has no value."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def suspects(table: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """Return pictures that are probably labelled wrong, the surest first.

    Confident learning (Northcutt, Jiang, Chuang, Confident Learning: Estimating Uncertainty in
    Dataset Labels, JAIR 70, 2021): a picture is suspect where the model gives another class at
    least the probability that it gives on average to pictures labelled as that class.
    """
    average = table.groupby("true")["own"].mean().reindex(classes)
    threshold = table["predicted"].map(average)
    wrong = table[(table["true"] != table["predicted"]) & (table["confidence"] >= threshold)]
    return wrong.sort_values("own")


def gallery(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the first rows with their thumbnails; a picture that is gone has none."""
    shown = []
    for row in rows_of(rows.head(SHOWN).drop(columns="probabilities")):
        row["shot"] = None
        with suppress(PictureError, OSError):
            row["shot"] = thumbnail(files.RAW / row["path"])
        shown.append(row)
    return shown


def examples(test: pd.DataFrame) -> pd.DataFrame:
    """Return rightly classified pictures of each class, of middling confidence."""
    right = test[test["true"] == test["predicted"]].sort_values("confidence")
    middle = [
        rows.iloc[max(len(rows) // 2 - EXAMPLES // 2, 0) :].head(EXAMPLES)
        for _, rows in right.groupby("true")
    ]
    return pd.concat(middle) if middle else right


def candidate_view(name: str, result: dict[str, Any], seconds: dict[str, float]) -> dict[str, Any]:
    """Return what the page says of one candidate."""
    head = read_curve(files.REPORTS / name / "head_curve.csv")
    tuned = read_curve(files.REPORTS / name / "fine_tune_curve.csv")
    losses = {"train_loss": "training", "val_loss": "validation"}
    charts = [
        drawing.chart("macro F1 on validation", {"val_f1_macro": "validation"}, head, tuned),
        drawing.chart("loss", losses, head, tuned),
    ]
    mine = [taken for stage, taken in seconds.items() if stage.endswith(f"@{name}")]
    return {
        "name": name,
        **result,
        "seconds": sum(mine) if mine else None,
        "charts": [chart for chart in charts if chart],
        "head": head,
        "tuned": tuned,
    }


def confused_pairs(test: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the classes most often taken for each other."""
    wrong = test[test["true"] != test["predicted"]]
    pairs = wrong.groupby(["true", "predicted"]).size().sort_values(ascending=False)
    return rows_of(pairs.head(CONFUSED).rename("count").reset_index())


def variants() -> dict[str, Any] | None:
    """Return what `tasks.variants` found of the exported file as it is now, or None."""
    found, model = files.VARIANTS / "report.json", files.BEST / "model.onnx"
    if not found.exists() or not model.exists():
        return None
    report: dict[str, Any] = files.read_json(found)
    return report if report["of_sha256"] == files.sha256_file(model) else None


def view() -> dict[str, Any]:
    """Return everything that the template shows."""
    if not files.SUMMARY.exists():
        raise RefitError(f"no {files.SUMMARY}: `make retrain` writes it, then this page")
    summary = files.read_json(files.SUMMARY)
    classes = files.read_json(files.CLASSES)
    best = summary["best"]
    table = predictions(best)
    test = table[table["split"] == "test"]
    true = test["true"].map({name: i for i, name in enumerate(classes)}).to_numpy()
    bins = calibration.reliability(true, np.stack(list(test["probabilities"])))
    mistakes = test[test["true"] != test["predicted"]].sort_values("confidence", ascending=False)
    suspected = suspects(table, classes)
    reports = files.REPORTS / best
    per_class = rows_of(pd.read_csv(reports / "per_class.csv").query("split == 'test'"))
    slices = rows_of(pd.read_csv(reports / "slices.csv"))
    candidates = [
        candidate_view(name, result, summary["seconds"])
        for name, result in summary["candidates"].items()
    ]
    manifest = pq.read_table(files.MANIFEST, columns=["split", "label"]).to_pandas()
    overall = summary["candidates"][best]["test"]["accuracy"]
    return {
        "summary": summary,
        "tone": TONES[summary["verdict"]],
        "words": WORDS[summary["verdict"]],
        "figures": summary["decision"]["figures"],
        "candidates": candidates,
        "best": summary["candidates"][best],
        "matrix": drawing.confusion(test["true"].tolist(), test["predicted"].tolist(), classes)
        if len(classes) <= MATRIX
        else [],
        "pairs": confused_pairs(test),
        "per_class": per_class,
        "bins": bins,
        "slices": [row for row in slices if row["high"] < overall],
        "variants": variants(),
        "mistakes": gallery(mistakes),
        "mistake_count": len(mistakes),
        "suspects": gallery(suspected),
        "suspect_count": len(suspected),
        "examples": gallery(examples(test)),
        "test_count": len(test),
        "sizes": rows_of(pd.crosstab(manifest["label"], manifest["split"]).reset_index()),
        "splits": [s for s in ("train", "val", "test") if s in set(manifest["split"])],
        "advice": advice.give(candidates, summary, per_class, len(suspected)),
    }


def render(shown: dict[str, Any]) -> str:
    """Return the page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = lambda value: "-" if value is None else f"{value:.3f}"
    return environment.get_template("report.html.j2").render(**shown)


def main() -> None:
    """Write data/reports/report.html, and then keep it with the run in MLflow, too."""
    shown = view()
    files.write_text(files.REPORT, render(shown))
    print(f"report: {files.REPORT}")
    with tracking.session(params.load().register_.experiment) as (client, _):
        client.log_artifact(shown["summary"]["run_id"], str(files.REPORT))


if __name__ == "__main__":
    program.run(main)
