"""Randomness without a state: each number is a function of what it is for.

A picture's augmentation in an epoch depends on (seed, epoch, picture) and on nothing else: not on
the batch it shares, the process that draws it, or how often training was interrupted before.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Seeds = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mixed(x: Seeds) -> Seeds:
    """SplitMix64's finaliser (Steele, Lea, Flood, OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def seeds_of(which: NDArray[np.int64] | Seeds, *parts: int) -> Seeds:
    """Return a seed for each number of `which`, [n], under the same `parts`."""
    seeds = np.zeros(len(which), np.uint64)
    for part in (*map(np.int64, parts), which):
        seeds = _mixed((seeds ^ part.astype(np.uint64)) + _GOLDEN)
    return seeds


def seed_of(*parts: int) -> int:
    """Return one seed for `parts`, as `torch.manual_seed` takes it."""
    return int(seeds_of(np.array(parts[-1:], np.int64), *parts[:-1])[0] >> np.uint64(1))


def uniforms(seeds: Seeds, columns: int) -> NDArray[np.float32]:
    """Return float32 [n, columns] in [0, 1): a row depends on its seed alone."""
    counters = np.arange(1, columns + 1, dtype=np.uint64) * _GOLDEN
    # 24 bits: what a float32 holds below 1.
    bits = _mixed(seeds[:, None] + counters) >> np.uint64(40)
    return bits.astype(np.float32) / np.float32(2**24)
