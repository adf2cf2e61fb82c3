"""The figures of a classifier on one split: pure functions of arrays, plain JSON types.

What follows from the confusion counts comes from `confusion`; ranking metrics and losses from
scikit-learn, and their intervals from here, held against scikit-learn by the tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tasks.vision import confusion
from tasks.vision.calibration import bins_of, ece
from tasks.vision.checks import Floats, check_probabilities
from tasks.vision.confusion import RESAMPLES_AT_ONCE, Counts
from tasks.vision.errors import RefitError

PROBABILITY_RESAMPLES = 400


def score(
    true: np.ndarray,
    probabilities: np.ndarray,
    class_names: list[str],
    *,
    intervals: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Score one model on one split.

    Conventions, where textbooks differ:
        * Predicted is the most probable class, the first of equals.
        * Macro averages run over the classes that occur in `true` or among the predictions, as in
          scikit-learn without `labels`: a class absent from the split costs nothing, unless it is
          predicted. What is 0/0 within such a class counts as 0 (`zero_division=0`). Balanced
          accuracy averages the recall of the classes that occur in `true`.
        * `roc_auc` and `pr_auc` (average precision) are unweighted means of one-vs-rest over the
          classes that occur in `true`, also with two classes; None when only one occurs.
        * `brier` is scikit-learn's: 0..1 with two classes, 0..2 with more (summed over classes).
        * `mcc` is 0 where its denominator is, as in scikit-learn.

    Args:
        true: int [n], class indices.
        probabilities: float [n, C], rows that sum to 1 within 0.001.
        class_names: the C names, all different.
        intervals: also bootstrap the figures that follow from the confusion counts.
        seed: of the bootstrap.

    Returns:
        The headline figures as floats or None; `count`; `confusion` (rows true, columns
        predicted); `per_class` {name: {precision, recall, f1, support}}, None for a class that
        occurs nowhere; with `intervals`, `intervals` {figure: [low, high]} of every headline
        figure, 95 % percentile bootstrap of the pictures: 1,000 resamples for what follows from
        the confusion counts, 400 for what needs the probabilities.

    Raises:
        RefitError: empty, wrong shapes, labels out of range, or rows that are no probabilities.
    """
    _check_names(class_names)
    normalised = check_probabilities(true, probabilities, len(class_names))
    classes = len(class_names)
    cells, counts = confusion.count_cells(classes, true, probabilities.argmax(1))
    tally = confusion.tally(cells[0], cells[1], counts, classes)
    table = np.zeros((classes, classes), dtype=int)
    table[cells[0], cells[1]] = counts
    result: dict[str, Any] = {
        name: float(value) for name, value in confusion.figures_of(*tally).items()
    }
    result |= _probability_figures(true, normalised)
    result |= {
        "ece": ece(true, probabilities),
        "count": len(true),
        "confusion": table.tolist(),
        "per_class": _per_class(tally, class_names),
    }
    if intervals:
        result["intervals"] = _intervals(cells[0], cells[1], counts, classes, seed)
        result["intervals"] |= _probability_intervals(true, normalised, seed)
    return result


def _per_class(
    tally: tuple[Floats, Floats, Floats], class_names: list[str]
) -> dict[str, dict[str, Any]]:
    """Return precision, recall, F1 and support of each class by name."""
    _, support, claimed = tally
    rates = confusion.rates_of(*tally)
    return {
        name: {
            rate: float(values[index]) if support[index] + claimed[index] else None
            for rate, values in rates.items()
        }
        | {"support": int(support[index])}
        for index, name in enumerate(class_names)
    }


def _probability_figures(true: np.ndarray, probabilities: Floats) -> dict[str, float | None]:
    """Return the figures that need more than the most probable class, by scikit-learn."""
    from sklearn import metrics

    classes = probabilities.shape[1]
    every = np.arange(classes)
    present = np.unique(true)
    # Two columns also with two classes: so scikit-learn averages over both, not over a "positive".
    is_class = true[:, None] == present
    ranked = probabilities[:, present]
    several = len(present) > 1
    # scikit-learn refuses two columns for the Brier score of two classes.
    chances = probabilities[:, 1] if classes == 2 else probabilities
    figures = {
        "roc_auc": metrics.roc_auc_score(is_class, ranked) if several else None,
        "pr_auc": metrics.average_precision_score(is_class, ranked) if several else None,
        "log_loss": metrics.log_loss(true, probabilities, labels=every),
        "brier": metrics.brier_score_loss(true, chances, labels=every),
    }
    for k in (3, 5) if classes > 5 else ():
        figures[f"top_{k}_accuracy"] = metrics.top_k_accuracy_score(
            true, probabilities, k=k, labels=every
        )
    return {name: None if value is None else float(value) for name, value in figures.items()}


def _intervals(
    true: Counts, predicted: Counts, counts: Counts, classes: int, seed: int
) -> dict[str, list[float]]:
    """Bootstrap every figure that follows from the counts of the cells."""

    def figures(sample: Counts) -> Floats:
        return np.stack(
            list(confusion.figures_of(*confusion.tally(true, predicted, sample, classes)).values())
        )

    drawn = confusion.bootstrap(figures, counts, resamples=1000, seed=seed)
    low, high = confusion.percentile_interval(drawn)
    names = confusion.figures_of(*confusion.tally(true, predicted, counts, classes))
    return {name: [float(low[i]), float(high[i])] for i, name in enumerate(names)}


def _probability_intervals(
    true: np.ndarray, probabilities: Floats, seed: int
) -> dict[str, list[float]]:
    """Bootstrap the figures that need the probabilities.

    A resample is how often it drew each picture, so that every figure is a product of weights
    [resamples, n] with what each picture is worth, and no picture is scored or sorted twice.
    """
    drawn: dict[str, list[Floats]] = {}
    generator = np.random.default_rng(seed)
    ranked = [(true == k, probabilities[:, k]) for k in np.unique(true)]
    orders = [_ranks(is_class, column) for is_class, column in ranked]
    worth = _worth(true, probabilities)
    place = bins_of(probabilities.max(1), 15)
    gap = (probabilities.argmax(1) == true) - probabilities.max(1)
    in_bin = gap[:, None] * (place[:, None] == np.unique(place))
    for _ in range(PROBABILITY_RESAMPLES // RESAMPLES_AT_ONCE):
        weights = generator.multinomial(
            len(true), np.full(len(true), 1 / len(true)), size=RESAMPLES_AT_ONCE
        ).astype(np.float64)
        figures = {name: weights @ values / len(true) for name, values in worth.items()}
        figures["ece"] = np.abs(weights @ in_bin).sum(1) / len(true)
        if len(orders) > 1:
            areas = np.array([_areas(weights, *order) for order in orders])
            # A class that a resample missed has no area in it; the others' mean counts.
            known = ~np.isnan(areas)
            figures["roc_auc"], figures["pr_auc"] = confusion.ratio(
                np.where(known, areas, 0).sum(0), known.sum(0)
            )
        for name, values in figures.items():
            drawn.setdefault(name, []).append(values)
    return {
        name: [float(bound) for bound in confusion.percentile_interval(np.concatenate(parts))]
        for name, parts in drawn.items()
    }


def _worth(true: np.ndarray, probabilities: Floats) -> dict[str, Floats]:
    """Return what each picture adds to the figures that are means over pictures, [n] each."""
    rows, classes = np.arange(len(true)), probabilities.shape[1]
    onehot = np.eye(classes)[true]
    squared = ((probabilities - onehot) ** 2).sum(1)
    own = probabilities[rows, true]
    found = {
        "log_loss": -np.log(np.maximum(own, np.finfo(np.float64).eps)),
        # scikit-learn's scale for two classes
        "brier": squared / 2 if classes == 2 else squared,
    }
    better = (probabilities > own[:, None]).sum(1)
    return found | {
        f"top_{k}_accuracy": (better < k).astype(np.float64) for k in (3, 5) if classes > 5
    }


def _ranks(is_class: np.ndarray, column: Floats) -> tuple[Counts, Counts, np.ndarray]:
    """Return an order by falling score, where each run of equal scores starts, and the labels."""
    order = np.argsort(-column, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(column[order]) != 0])
    return order, starts, is_class[order]


def _areas(
    weights: Floats, order: Counts, starts: Counts, is_class: np.ndarray
) -> tuple[Floats, Floats]:
    """Return weighted ROC-AUC and average precision, [resamples] each; NaN without the class."""
    sorted_weights = weights[:, order]
    hits = np.add.reduceat(sorted_weights * is_class, starts, axis=1)
    misses = np.add.reduceat(sorted_weights * ~is_class, starts, axis=1)
    above, all_above = hits.cumsum(1), (hits + misses).cumsum(1)
    positives, negatives = hits.sum(1), misses.sum(1)
    # Each negative is beaten by the positives above it, and by half of those that tie with it.
    beaten = (misses * (above - hits / 2)).sum(1)
    precision = np.divide(above, all_above, out=np.zeros_like(above), where=all_above > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return beaten / (positives * negatives), (hits * precision).sum(1) / positives


def _check_names(class_names: list[str]) -> None:
    if len(class_names) < 2 or len(set(class_names)) < len(class_names):
        raise RefitError(f"class names {class_names} must be at least two, all different")
