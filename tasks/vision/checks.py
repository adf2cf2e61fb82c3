"""What every metric refuses: labels and rows that are none, with how many and where."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tasks.vision.errors import RefitError

NORMALISED_WITHIN = 1e-3  # half-precision softmax sums to one only about so well

Floats = NDArray[np.float64]


def check_labels(*labels: np.ndarray, classes: int | None = None) -> None:
    """Refuse labels that are empty, not whole numbers, of unequal length or out of range."""
    shape = labels[0].shape
    if labels[0].ndim != 1 or shape == (0,):
        raise RefitError(f"no metrics of labels of shape {shape}: at least one picture is needed")
    for array in labels:
        if array.shape != shape:
            raise RefitError(f"labels of shapes {shape} and {array.shape}: one a picture is needed")
        if not np.issubdtype(array.dtype, np.integer):
            raise RefitError(f"labels are {array.dtype}: whole class indices are needed")
        outside = array < 0 if classes is None else (array < 0) | (array >= classes)
        refuse_rows(outside, "class index out of range", f"{classes or 'the'} classes are known")


def check_rows(true: np.ndarray, rows: np.ndarray, what: str, classes: int | None = None) -> None:
    """Refuse `rows` that are not finite [n, C] or do not match the labels."""
    if rows.ndim != 2 or rows.shape[1] != (classes or rows.shape[1]) or len(rows) != len(true):
        raise RefitError(
            f"{what} of shape {rows.shape} for {len(true)} pictures"
            + (f" and {classes} classes" if classes else "")
        )
    check_labels(true, classes=rows.shape[1])
    refuse_rows(~np.isfinite(rows).all(1), f"{what} not finite", "look for a diverged training")


def check_probabilities(
    true: np.ndarray, probabilities: np.ndarray, classes: int | None = None
) -> Floats:
    """Refuse what are no probabilities; return them in float64, summing to 1 exactly.

    scikit-learn would otherwise clip float32 at 1e-7 and warn of its rounding.
    """
    check_rows(true, probabilities, "probabilities", classes)
    exact: Floats = probabilities.astype(np.float64)
    sums: Floats = exact.sum(1, keepdims=True)
    wrong = (exact < 0).any(1) | (np.abs(sums[:, 0] - 1) > NORMALISED_WITHIN)
    refuse_rows(wrong, "probabilities negative or not summing to 1", "apply softmax to logits")
    return exact / sums


def refuse_rows(bad: np.ndarray, what: str, remedy: str) -> None:
    """Raise if any picture is bad, saying how many and where."""
    rows = np.flatnonzero(bad)
    if len(rows):
        first = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
        raise RefitError(f"{what}: {len(rows)} of {len(bad)} pictures (rows {first}); {remedy}")
