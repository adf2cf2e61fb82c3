"""What to try next: what the figures of a retrain say about it, in sentences."""

from __future__ import annotations

from typing import Any

Curve = list[dict[str, float | None]]
WIDE = 0.1  # an interval of accuracy this wide hides gains of several points


def give(
    candidates: list[dict[str, Any]],
    summary: dict[str, Any],
    per_class: list[dict[str, Any]],
    suspects: int,
) -> list[str]:
    """Return the advice, the most useful first.

    Args:
        candidates: their figures and curves.
        summary: data/reports/summary.json.
        per_class: rows of the best candidate's test split.
        suspects: how many labels look wrong.
    """
    best = next(c for c in candidates if c["name"] == summary["best"])
    found = [f"{name} failed ({why}): mend it." for name, why in summary["failed"].items()]
    # What a model that is itself worse takes for wrong labels are its own mistakes.
    found += _of_data(best, per_class, suspects if summary["verdict"] != "REJECT" else 0)
    for candidate in candidates:
        found += _of_training(candidate)
    return found


def _of_data(best: dict[str, Any], per_class: list[dict[str, Any]], suspects: int) -> list[str]:
    found = []
    if suspects:
        found.append(
            f"Look at the {suspects} suspected label{'s' * (suspects > 1)} below and correct "
            "the wrong ones: cheaper than any training."
        )
    present = [row for row in per_class if row["support"]]
    worst = min(present, key=lambda row: row["recall"])
    if worst["recall"] < best["test"]["accuracy"]:
        found.append(
            f"Class {worst['class']!r} is found least often ({worst['recall']:.0%}): add pictures "
            "of it, like those it is missed on."
        )
    low, high = best["test"]["intervals"]["accuracy"]
    if high - low > WIDE:
        found.append(
            f"The test split of {best['test']['count']} pictures knows the accuracy only to "
            f"{low:.0%} to {high:.0%}: a gain must be large to be seen. Label more pictures."
        )
    return found


def _of_training(candidate: dict[str, Any]) -> list[str]:
    name, head, tuned = candidate["name"], candidate["head"], candidate["tuned"]
    found = []
    if candidate["initialised_from"].startswith("random"):
        found.append(
            f"{name} started from random weights: real pretrained weights help it more than "
            "anything else."
        )
    elif _still_rising(head):
        found.append(f"The head of {name} was still improving at its last epoch: more head.epochs.")
    if len(tuned) > 1:
        place = max(range(len(tuned)), key=lambda i: tuned[i]["val_f1_macro"] or 0.0)
        if place == 0:
            found.append(f"Fine-tuning {name} never beat its head: try a lower fine_tune.lr.")
        elif place == len(tuned) - 1:
            found.append(
                f"Fine-tuning {name} was best at its last epoch: more fine_tune.epochs may help."
            )
    return found


def _still_rising(curve: Curve) -> bool:
    scores = [row["val_f1_macro"] or 0.0 for row in curve]
    return len(scores) > 1 and max(scores) == scores[-1] > max(scores[:-1])
