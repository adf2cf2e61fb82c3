"""Metrics of a classifier: pure functions of arrays, all results plain JSON types.

Everything that follows from the confusion counts is computed here in numpy, because the
bootstraps need it for thousands of resamples at once and the training loop every epoch; the tests
hold it against scikit-learn. Ranking metrics and losses come from scikit-learn itself.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.vision.errors import RefitError

CONFIDENCE = 0.95
NORMALISED_WITHIN = 1e-3  # half-precision softmax sums to one only about so well
TEMPERATURES = (0.05, 20.0)
PROBABILITY_RESAMPLES = 400
RESAMPLES_AT_ONCE = 100  # bounds memory when there are many classes; the result is the same

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


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
    normalised = _check_probabilities(true, probabilities, len(class_names))
    classes = len(class_names)
    cells, counts = _cells(classes, true, probabilities.argmax(1))
    tally = _tally(cells[0], cells[1], counts, classes)
    confusion = np.zeros((classes, classes), dtype=int)
    confusion[cells[0], cells[1]] = counts
    result: dict[str, Any] = {name: float(value) for name, value in _figures(*tally).items()}
    result |= _probability_figures(true, normalised)
    result |= {
        "ece": ece(true, probabilities),
        "count": len(true),
        "confusion": confusion.tolist(),
        "per_class": _per_class(tally, class_names),
    }
    if intervals:
        result["intervals"] = _intervals(cells[0], cells[1], counts, classes, seed)
        result["intervals"] |= _probability_intervals(true, normalised, seed)
    return result


def accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
    """Return the share of int [n] `predicted` that equals `true`."""
    _check_labels(true, predicted)
    return float((true == predicted).mean())


def f1_macro(true: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """Return macro-F1 of int [n] labels below `classes`, as `score` defines it.

    Raises:
        RefitError: empty, unequal lengths, or labels out of range.
    """
    _check_labels(true, predicted, classes=classes)
    cells, counts = _cells(classes, true, predicted)
    return float(_figures(*_tally(cells[0], cells[1], counts, classes))["f1_macro"])


def ece(true: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> float:
    """Return the expected calibration error, 0..1.

    The mean over pictures of |accuracy - confidence| of the bin the picture falls in: equal-width
    bins of the probability of the predicted class (Guo et al., On Calibration of Modern Neural
    Networks, ICML 2017).

    Args:
        true: int [n].
        probabilities: float [n, C].
        bins: number of bins.
    """
    rows = reliability(true, probabilities, bins)
    gaps = [row["count"] * abs(row["accuracy"] - row["confidence"]) for row in rows]
    return float(sum(gaps) / len(true))


def reliability(
    true: np.ndarray, probabilities: np.ndarray, bins: int = 15
) -> list[dict[str, Any]]:
    """Return the rows of a reliability diagram: one for each bin that holds pictures.

    Args:
        true: int [n].
        probabilities: float [n, C].
        bins: number of equal-width bins of the confidence, each open below and closed above.

    Returns:
        Rows {low, high, confidence (mean), accuracy, count}, in order of confidence.
    """
    normalised = _check_probabilities(true, probabilities)
    right = probabilities.argmax(1) == true
    confidence = normalised.max(1)
    edges = np.linspace(0, 1, bins + 1)
    places = _bins(confidence, bins)
    return [
        {
            "low": float(edges[place]),
            "high": float(edges[place + 1]),
            "confidence": float(confidence[places == place].mean()),
            "accuracy": float(right[places == place].mean()),
            "count": int((places == place).sum()),
        }
        for place in np.unique(places)
    ]


def calibrated_ece_bound(
    probabilities: np.ndarray,
    level: float = 0.999,
    bins: int = 15,
    resamples: int = 2000,
    seed: int = 0,
) -> float:
    """Return the calibration error that chance alone explains, 0..1.

    The quantile `level` of `ece` of a model that is perfectly calibrated and as confident as this
    one: whether each picture is right is drawn with its confidence (consistency resampling,
    Broecker and Smith, Increasing the Reliability of Reliability Diagrams, Weather and
    Forecasting 22, 2007).

    Args:
        probabilities: float [n, C].
        level: below 1; the default lets one calibrated model in a thousand be above.
        bins: as for `ece`.
        resamples: number of draws.
        seed: of the draws.
    """
    confidence = probabilities.max(1).astype(np.float64)
    place = _bins(confidence, bins)
    generator = np.random.default_rng(seed)
    errors = []
    for _ in range(resamples):
        right = generator.random(len(confidence)) < confidence
        gaps = np.bincount(place, weights=confidence - right)
        errors.append(np.abs(gaps).sum() / len(confidence))
    return float(np.quantile(errors, level))


def fit_temperature(logits: np.ndarray, true: np.ndarray) -> float:
    """Return the temperature T, so that softmax(logits / T) has the least log loss.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017. Fit it on validation. The
    loss is convex in 1/T, so a bounded scalar search finds the minimum. Without a single mistake
    the loss only falls towards T = 0 and the pictures tell nothing of how sure to be: T is 1.
    So it is where a likelihood-ratio test cannot tell T from 1 (5 %): with few pictures a fitted T
    follows their chance, and makes the probabilities of others worse.

    Args:
        logits: float [n, C].
        true: int [n].

    Returns:
        T within 0.05..20; its log loss on these pictures is never above that of T = 1.

    Raises:
        RefitError: empty, wrong shapes, labels out of range, or logits that are not finite.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax
    from scipy.stats import chi2

    logits = np.asarray(logits, dtype=np.float64)
    _check_rows(true, logits, "logits")
    rows = np.arange(len(true))
    if (logits.argmax(1) == true).all():
        return 1.0

    def log_loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / np.exp(log_temperature), axis=1)
        return float(-scaled[rows, true].mean())

    found = minimize_scalar(
        log_loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-6}
    )
    gained = 2 * len(true) * (log_loss(0.0) - found.fun)
    return float(np.exp(found.x)) if gained > chi2.ppf(CONFIDENCE, df=1) else 1.0


def paired_bootstrap_gain(
    true: np.ndarray,
    predicted_champion: np.ndarray,
    predicted_challenger: np.ndarray,
    classes: int,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Return the challenger's gain in macro-F1 over the champion, and its interval.

    Both are scored on the same resampled pictures, so what they have in common cancels. The
    bounds are the 2.5 and 97.5 percentiles: two-sided 95 %. Used one-sided, as "promote if
    low > 0", a challenger that is no better passes about one time in forty.

    Args:
        true: int [n].
        predicted_champion: int [n], of the same pictures.
        predicted_challenger: int [n], of the same pictures.
        classes: number of classes.
        resamples: number of bootstrap samples.
        seed: of the bootstrap.

    Returns:
        (gain, low, high), each -1..1; (0, 0, 0) for equal predictions.

    Raises:
        RefitError: empty, unequal lengths, or labels out of range.
    """
    _check_labels(true, predicted_champion, predicted_challenger, classes=classes)
    cells, counts = _cells(classes, true, predicted_champion, predicted_challenger)

    def gain(sample: Counts) -> Floats:
        champion, challenger = (
            _figures(*_tally(cells[0], predicted, sample, classes))["f1_macro"]
            for predicted in cells[1:]
        )
        return challenger - champion

    low, high = _percentile_interval(_bootstrap(gain, counts, resamples, seed))
    return float(gain(counts)), float(low), float(high)


def paired_permutation_p(
    true: np.ndarray,
    predicted_champion: np.ndarray,
    predicted_challenger: np.ndarray,
    classes: int,
    resamples: int = 2000,
    seed: int = 0,
) -> float:
    """Return how probable such a gain in macro-F1 is if the two models are as good as each other.

    The one-sided p of the permutation test that swaps the two predictions of a picture with
    probability 1/2. The bootstrap alone is too bold where the models differ on a handful of
    pictures: four that all got better give it a lower bound above 0, which the toss of a coin
    gives one time in sixteen.

    Args:
        true: int [n].
        predicted_champion: int [n], of the same pictures.
        predicted_challenger: int [n], of the same pictures.
        classes: number of classes.
        resamples: number of permutations.
        seed: of the permutations.

    Raises:
        RefitError: empty, unequal lengths, or labels out of range.
    """
    _check_labels(true, predicted_champion, predicted_challenger, classes=classes)
    (actual, champion, challenger), counts = _cells(
        classes, true, predicted_champion, predicted_challenger
    )

    def f1(predicted: Counts, sample: Counts) -> Floats:
        # Each cell twice: with its prediction as it was, and as the other model's.
        tally = _tally(np.tile(actual, 2), predicted, sample, classes)
        return _figures(*tally)["f1_macro"]

    def gain(swapped: Counts) -> Floats:
        sample = np.concatenate([counts - swapped, swapped], axis=-1)
        mine = f1(np.concatenate([challenger, champion]), sample)
        return mine - f1(np.concatenate([champion, challenger]), sample)

    drawn = np.random.default_rng(seed).binomial(counts, 0.5, size=(resamples, len(counts)))
    observed = gain(np.zeros_like(counts))
    # Equal gains may differ in their last digits.
    at_least = int((gain(drawn) >= observed - 1e-12).sum())
    return (1 + at_least) / (1 + resamples)


def slices(
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

    _check_labels(true, predicted)
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


def _bins(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Return each confidence's place among equal-width bins, open below and closed above."""
    # The inner edges alone, so that rounding can push no confidence out of the last bin.
    places: np.ndarray = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    return places


def _slice_column(column: str, values: np.ndarray, length: int) -> tuple[list[str], np.ndarray]:
    """Return the slices' names and each picture's place among them."""
    if values.shape != (length,):
        raise RefitError(f"column {column!r} has shape {values.shape}, not ({length},)")
    if not np.issubdtype(values.dtype, np.number):
        names, places = np.unique(values.astype(str), return_inverse=True)
        return names.tolist(), places
    _refuse_rows(~np.isfinite(values), f"column {column!r} is not a finite number", "fill them")
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


def _cells(classes: int, *labels: np.ndarray) -> tuple[list[Counts], Counts]:
    """Return the combinations of labels that occur, [cells] a label, and how often each does."""
    shape = (classes,) * len(labels)
    flat = np.ravel_multi_index([label.astype(np.int64) for label in labels], shape)
    cells, counts = np.unique(flat, return_counts=True)
    return list(np.unravel_index(cells, shape)), counts


def _tally(
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


def _rates(hits: Floats, support: Floats, claimed: Floats) -> dict[str, Floats]:
    """Return precision, recall and F1 of each class, [..., classes]; 0/0 is 0."""
    return {
        "precision": _ratio(hits, claimed),
        "recall": _ratio(hits, support),
        "f1": _ratio(2 * hits, support + claimed),
    }


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.zeros(np.shape(above)), where=below > 0)


def _figures(hits: Floats, support: Floats, claimed: Floats) -> dict[str, Floats]:
    """Return all figures that follow from the tallies [..., classes], each [...]."""
    total = support.sum(-1)
    occurs = (support + claimed > 0).sum(-1)
    rates = _rates(hits, support, claimed)
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
    figures["mcc"] = _ratio(covariance, np.sqrt(spread))
    return figures


def _per_class(
    tally: tuple[Floats, Floats, Floats], class_names: list[str]
) -> dict[str, dict[str, Any]]:
    """Return precision, recall, F1 and support of each class by name."""
    _, support, claimed = tally
    rates = _rates(*tally)
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
        return np.stack(list(_figures(*_tally(true, predicted, sample, classes)).values()))

    low, high = _percentile_interval(_bootstrap(figures, counts, resamples=1000, seed=seed))
    names = _figures(*_tally(true, predicted, counts, classes))
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
    place = _bins(probabilities.max(1), 15)
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
            figures["roc_auc"], figures["pr_auc"] = _ratio(
                np.where(known, areas, 0).sum(0), known.sum(0)
            )
        for name, values in figures.items():
            drawn.setdefault(name, []).append(values)
    return {
        name: [float(bound) for bound in _percentile_interval(np.concatenate(parts))]
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


def _bootstrap(
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


def _percentile_interval(drawn: Floats) -> Floats:
    """Return the bounds [2, ...] that leave out equal tails of [..., resamples]."""
    tail = (1 - CONFIDENCE) / 2
    return np.quantile(drawn, [tail, 1 - tail], axis=-1)


def _check_names(class_names: list[str]) -> None:
    if len(class_names) < 2 or len(set(class_names)) < len(class_names):
        raise RefitError(f"class names {class_names} must be at least two, all different")


def _check_labels(*labels: np.ndarray, classes: int | None = None) -> None:
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
        _refuse_rows(outside, "class index out of range", f"{classes or 'the'} classes are known")


def _check_rows(true: np.ndarray, rows: np.ndarray, what: str, classes: int | None = None) -> None:
    """Refuse `rows` that are not finite [n, C] or do not match the labels."""
    if rows.ndim != 2 or rows.shape[1] != (classes or rows.shape[1]) or len(rows) != len(true):
        raise RefitError(
            f"{what} of shape {rows.shape} for {len(true)} pictures"
            + (f" and {classes} classes" if classes else "")
        )
    _check_labels(true, classes=rows.shape[1])
    _refuse_rows(~np.isfinite(rows).all(1), f"{what} not finite", "look for a diverged training")


def _check_probabilities(
    true: np.ndarray, probabilities: np.ndarray, classes: int | None = None
) -> Floats:
    """Refuse what are no probabilities; return them in float64, summing to 1 exactly.

    scikit-learn would otherwise clip float32 at 1e-7 and warn of its rounding.
    """
    _check_rows(true, probabilities, "probabilities", classes)
    exact: Floats = probabilities.astype(np.float64)
    sums: Floats = exact.sum(1, keepdims=True)
    wrong = (exact < 0).any(1) | (np.abs(sums[:, 0] - 1) > NORMALISED_WITHIN)
    _refuse_rows(wrong, "probabilities negative or not summing to 1", "apply softmax to logits")
    return exact / sums


def _refuse_rows(bad: np.ndarray, what: str, remedy: str) -> None:
    """Raise if any picture is bad, saying how many and where."""
    rows = np.flatnonzero(bad)
    if len(rows):
        first = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
        raise RefitError(f"{what}: {len(rows)} of {len(bad)} pictures (rows {first}); {remedy}")
