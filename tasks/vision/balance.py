"""Class imbalance, judged by the training split alone."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.vision.randomness import seed_of

Weighting = Literal["none", "balanced", "auto"]
Sampler = Literal["shuffled", "balanced"]

# `auto` leaves alone what is nearly balanced: pictures of the largest class for one of the smallest
NOTEWORTHY = 1.5


def class_weights(labels: NDArray[np.int64], classes: int, policy: Weighting) -> Tensor | None:
    """Return float32 [classes]: n / (classes * pictures of the class); None for equal weights.

    Their mean over the pictures is 1, so that the loss keeps its scale; a class without a picture
    counts 0.

    Args:
        labels: int64 [n] of the training split.
        classes: how many there are.
        policy: `auto` is `balanced` where the classes differ by more than `NOTEWORTHY`.
    """
    counts = np.bincount(labels, minlength=classes)
    there = counts[counts > 0]
    even = there.max() <= NOTEWORTHY * there.min()
    if policy == "none" or (policy == "auto" and even):
        return None
    weights = np.where(counts > 0, len(labels) / (len(there) * np.maximum(counts, 1)), 0.0)
    return torch.from_numpy(weights.astype(np.float32))


def epoch_order(
    labels: NDArray[np.int64], sampler: Sampler, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Return the positions int64 [n] of one epoch, the same for the same arguments.

    `shuffled` has every picture once; `balanced` draws with replacement, each class alike.
    """
    generator = torch.Generator().manual_seed(seed_of(seed, epoch))
    if sampler == "shuffled":
        return torch.randperm(len(labels), generator=generator).numpy()
    shares = 1.0 / np.bincount(labels)[labels]
    # Not torch.multinomial: it takes no more than 2**24 pictures.
    ends = np.cumsum(shares)
    drawn = torch.rand(len(labels), generator=generator, dtype=torch.float64).numpy()
    found: NDArray[np.int64] = np.searchsorted(ends, drawn * ends[-1], side="right")
    return np.minimum(found, len(labels) - 1)
