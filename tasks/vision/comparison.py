"""Whether one model is better than another on the same pictures, or only luckier."""

from __future__ import annotations

import numpy as np

from tasks.vision import confusion
from tasks.vision.checks import Floats, check_labels
from tasks.vision.confusion import Counts


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
    check_labels(true, predicted_champion, predicted_challenger, classes=classes)
    cells, counts = confusion.count_cells(classes, true, predicted_champion, predicted_challenger)

    def gain(sample: Counts) -> Floats:
        champion, challenger = (
            confusion.figures_of(*confusion.tally(cells[0], predicted, sample, classes))["f1_macro"]
            for predicted in cells[1:]
        )
        return challenger - champion

    low, high = confusion.percentile_interval(confusion.bootstrap(gain, counts, resamples, seed))
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
    check_labels(true, predicted_champion, predicted_challenger, classes=classes)
    (actual, champion, challenger), counts = confusion.count_cells(
        classes, true, predicted_champion, predicted_challenger
    )

    def f1(predicted: Counts, sample: Counts) -> Floats:
        # Each cell twice: with its prediction as it was, and as the other model's.
        tally = confusion.tally(np.tile(actual, 2), predicted, sample, classes)
        return confusion.figures_of(*tally)["f1_macro"]

    def gain(swapped: Counts) -> Floats:
        sample = np.concatenate([counts - swapped, swapped], axis=-1)
        mine = f1(np.concatenate([challenger, champion]), sample)
        return mine - f1(np.concatenate([champion, challenger]), sample)

    drawn = np.random.default_rng(seed).binomial(counts, 0.5, size=(resamples, len(counts)))
    observed = gain(np.zeros_like(counts))
    # Equal gains may differ in their last digits.
    at_least = int((gain(drawn) >= observed - 1e-12).sum())
    return (1 + at_least) / (1 + resamples)
