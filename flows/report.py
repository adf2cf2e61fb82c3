"""What a person sees when a retrain has ended."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from flows.graph import candidate_of
from flows.stages import Outcome
from tasks import files

TEST = ("accuracy", "precision_macro", "recall_macro", "f1_macro")


def rows(summary: dict[str, Any], outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Return the columns' names and the candidates side by side."""
    columns = ["candidate", "initialised from", "val F1", *(f"test {n}" for n in TEST), "seconds"]
    columns = [column.removesuffix("_macro") for column in columns]
    failed, found = outcome.failed_candidates(), []
    for name in {**summary["candidates"], **failed}:
        if name in failed:
            found.append([name, f"failed: {failed[name]}", *[""] * (len(columns) - 2)])
            continue
        result = summary["candidates"][name]
        ran = [s for stage, s in outcome.seconds.items() if candidate_of(stage) == name]
        found.append(
            [
                f"{name} *" if name == summary["best"] else name,
                result["initialised_from"],
                f"{result['f1_macro']:.4f}",
                *(f"{result['test'][key]:.4f}" for key in TEST),
                f"{sum(ran):.1f}" if ran else "unchanged",
            ]
        )
    return columns, found


def table(summary: dict[str, Any], outcome: Outcome) -> Table:
    """Return the candidates side by side."""
    columns, found = rows(summary, outcome)
    view = Table(*columns, title="Candidates")
    for row in found:
        view.add_row(*row)
    return view


def show(summary: dict[str, Any], outcome: Outcome) -> None:
    """Print the table, what was registered, and the commands to go on with."""
    console = Console(soft_wrap=True)
    # Wide enough for the figures whatever the terminal: a cut number is worse than a wrapped line.
    Console(width=max(console.width, 132)).print(table(summary, outcome))
    console.print(
        f"* best by validation. {summary['model']} version {summary['registered_version']}: "
        f"{summary['verdict']} ({summary['reason']})"
    )
    if not outcome.seconds:
        console.print("Nothing had changed: every stage is up to date.")
    example = next(iter(sorted(files.RAW.rglob("*.*"))), "PICTURE")
    console.print(
        f"""
  the report          {files.REPORT}
  the model           {files.BEST / "model.onnx"}
  runs and registry   make ui
  figures             dvc metrics show
  curves, confusion   dvc plots show
  classify a picture  python -m tasks.predict {files.BEST / "model.onnx"} {example}
(`. .venv/bin/activate` first, so that dvc and python are this project's.)""",
        highlight=False,
        markup=False,
    )
