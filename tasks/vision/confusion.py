"""All that follows from the confusion counts, for one set of labels or thousands of resamples.

In numpy, because the bootstraps need it for thousands of resamples at once and the training loop
every epoch; the tests hold it against scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tasks.vision.checks import Floats, check_labels

CONFIDENCE = 0.95
RESAMPLES_AT_ONCE = 100  # bounds memory when there are many classes; the result is the same

Counts = NDArray[np.int64]


def accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
    """Return the share of int [n] `predicted` that equals `true`."""
    check_labels(true, predicted)
    return float((true == predicted).mean())


def f1_macro(true: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """Return macro-F1 of int [n] labels below `classes`, as `score` defines it.

    Raises:
        RefitError: empty, unequal lengths, or labels out of range.
    """
    check_labels(true, predicted, classes=classes)
    cells, counts = count_cells(classes, true, predicted)
    return float(figures_of(*tally(cells[0], cells[1], counts, classes))["f1_macro"])


def count_cells(classes: int, *labels: np.ndarray) -> tuple[list[Counts], Counts]:
    """Return the combinations of labels that occur, [cells] a label, and how often each does."""
    shape = (classes,) * len(labels)
    flat = np.ravel_multi_index([label.astype(np.int64) for label in labels], shape)
    cells, counts = np.unique(flat, return_counts=True)
    return list(np.unravel_index(cells, shape)), counts


def tally(
    true: Counts, predicted: Counts, counts: Counts, classes: int
) -> tuple[Floats, Floats, Floats]:
    """Sum the counts [..., cells] by class.

    Returns:
        Pictures predicted rightly, belonging to and predicted as each class, float [..., classes].
    """
    every = np.arange(classes)
    is_true = (true[:, None] == every).astype(np.float64)
    is_predicted = (predicted[:, None] == every).astype(np.float64)
    exact = counts.astype(np.float64)  # whole numbers stay whole, and the product uses BLAS
    return exact @ (is_true * is_predicted), exact @ is_true, exact @ is_predicted


def rates_of(hits: Floats, support: Floats, claimed: Floats) -> dict[str, Floats]:
    """Return precision, recall and F1 of each class, [..., classes]; 0/0 is 0."""
    return {
        "precision": ratio(hits, claimed),
        "recall": ratio(hits, support),
        "f1": ratio(2 * hits, support + claimed),
    }


def ratio(above: Floats, below: Floats) -> Floats:
    """Return above / below, elementwise; 0/0 is 0."""
    return np.divide(above, below, out=np.zeros(np.shape(above)), where=below > 0)


def figures_of(hits: Floats, support: Floats, claimed: Floats) -> dict[str, Floats]:
    """Return all figures that follow from the tallies [..., classes], each [...]."""
    total = support.sum(-1)
    occurs = (support + claimed > 0).sum(-1)
    rates = rates_of(hits, support, claimed)
    figures = {
        "accuracy": hits.sum(-1) / total,
        "balanced_accuracy": rates["recall"].sum(-1) / (support > 0).sum(-1),
    }
    for name, values in rates.items():
        figures[f"{name}_macro"] = values.sum(-1) / occurs
        figures[f"{name}_weighted"] = (values * support).sum(-1) / total
    # Gorodkin's correlation of K categories, Computational Biology and Chemistry 28 (2004).
    spread = (total**2 - (support**2).sum(-1)) * (total**2 - (claimed**2).sum(-1))
    covariance = hits.sum(-1) * total - (support * claimed).sum(-1)
    figures["mcc"] = ratio(covariance, np.sqrt(spread))
    return figures


def bootstrap(
    statistic: Callable[[Counts], Floats], counts: Counts, resamples: int, seed: int
) -> Floats:
    """Return `statistic` of resampled counts, [..., resamples].

    Drawing n pictures with replacement is drawing their cells' counts from a multinomial: no
    picture is touched, whatever n.
    """
    generator = np.random.default_rng(seed)
    total = counts.sum()
    sizes = [
        min(RESAMPLES_AT_ONCE, resamples - start)
        for start in range(0, resamples, RESAMPLES_AT_ONCE)
    ]
    drawn = (generator.multinomial(total, counts / total, size=size) for size in sizes)
    return np.concatenate([statistic(sample) for sample in drawn], axis=-1)


def percentile_interval(drawn: Floats) -> Floats:
    """Return the bounds [2, ...] that leave out equal tails of [..., resamples]."""
    tail = (1 - CONFIDENCE) / 2
    return np.quantile(drawn, [tail, 1 - tail], axis=-1)
