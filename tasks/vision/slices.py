"""Where a model is weak: its accuracy on parts of the pictures."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from tasks.vision.checks import check_labels, refuse_rows
from tasks.vision.confusion import CONFIDENCE
from tasks.vision.errors import RefitError


def score_slices(
    true: np.ndarray, predicted: np.ndarray, columns: dict[str, np.ndarray], minimum: int = 20
) -> list[dict[str, Any]]:
    """Return the accuracy of each slice of the pictures, the worst first.

    Args:
        true: int [n].
        predicted: int [n].
        columns: name -> [n] strings or numbers; a column of more than four different numbers is
            cut at its quartiles. A column with one value only makes no slice.
        minimum: slices of fewer pictures are left out.

    Returns:
        Rows {column, value, count, accuracy, low, high}; the bounds are Wilson's 95 % interval,
        which stays honest for small slices and for an accuracy of 0 or 1.

    Raises:
        RefitError: empty, unequal lengths, or a number that is not finite.
    """
    from scipy.stats import binomtest

    check_labels(true, predicted)
    right = true == predicted
    rows = []
    for column, values in columns.items():
        names, places = _slice_column(column, np.asarray(values), len(true))
        for place, name in enumerate(names if len(names) > 1 else []):
            inside = right[places == place]
            if len(inside) < max(minimum, 1):
                continue
            test = binomtest(int(inside.sum()), len(inside))
            bounds = test.proportion_ci(CONFIDENCE, method="wilson")
            rows.append(
                {
                    "column": column,
                    "value": name,
                    "count": len(inside),
                    "accuracy": float(inside.mean()),
                    "low": float(bounds.low),
                    "high": float(bounds.high),
                }
            )
    # Among equals the one with more pictures is the surer finding.
    return sorted(rows, key=lambda row: (row["accuracy"], -row["count"]))


def _slice_column(column: str, values: np.ndarray, length: int) -> tuple[list[str], np.ndarray]:
    """Return the slices' names and each picture's place among them."""
    if values.shape != (length,):
        raise RefitError(f"column {column!r} has shape {values.shape}, not ({length},)")
    if not np.issubdtype(values.dtype, np.number):
        names, places = np.unique(values.astype(str), return_inverse=True)
        return names.tolist(), places
    refuse_rows(~np.isfinite(values), f"column {column!r} is not a finite number", "fill them")
    different, places = np.unique(values, return_inverse=True)
    if len(different) <= 4:
        return [_number(value) for value in different], places
    edges = np.unique(np.quantile(values, [0.25, 0.5, 0.75]))
    texts = [_number(edge) for edge in edges]
    middle = [f"{low} to {high}" for low, high in pairwise(texts)]
    names_of_bins = [f"up to {texts[0]}", *middle, f"over {texts[-1]}"]
    return names_of_bins, np.digitize(values, edges, right=True)


def _number(value: float) -> str:
    """Write a number to be read: four digits, never an exponent for pixels or bytes."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
