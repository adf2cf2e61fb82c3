"""Whether a probability is what it says: calibration errors, and the temperature."""

from __future__ import annotations

from typing import Any

import numpy as np

from tasks.vision.checks import check_probabilities, check_rows
from tasks.vision.confusion import CONFIDENCE

TEMPERATURES = (0.05, 20.0)


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
    normalised = check_probabilities(true, probabilities)
    right = probabilities.argmax(1) == true
    confidence = normalised.max(1)
    edges = np.linspace(0, 1, bins + 1)
    places = bins_of(confidence, bins)
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
    place = bins_of(confidence, bins)
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
    check_rows(true, logits, "logits")
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


def bins_of(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Return each confidence's place among equal-width bins, open below and closed above."""
    # The inner edges alone, so that rounding can push no confidence out of the last bin.
    places: np.ndarray = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    return places
