"""Logits of many pictures, batch by batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.vision.preprocess import PixelsOf, Preprocess, network_input


def _nothing(_: int) -> None:
    """Stand in for whoever does not want to be told."""


@torch.inference_mode()
def logits_of(
    network: nn.Module,
    inputs_of: Callable[[NDArray[np.int64]], Tensor],
    which: NDArray[np.int64],
    batch_size: int,
    on_batch: Callable[[int], object] = _nothing,
) -> Tensor:
    """Return logits float32 [n, C] of the pictures at positions `which`; sets eval."""
    network.eval()
    out = []
    for positions in np.array_split(which, range(batch_size, len(which), batch_size)):
        out.append(network(inputs_of(positions)).float())
        on_batch(len(positions))
    return torch.cat(out)


def predict_logits(
    classifier: nn.Module,
    pixels_of: PixelsOf,
    count: int,
    spec: Preprocess,
    batch_size: int,
    on_batch: Callable[[int], object] = _nothing,
) -> Tensor:
    """Return logits float32 [count, C] of packed pictures; puts the classifier into eval.

    Args:
        classifier: on its device.
        pixels_of: gives packed pictures by position.
        count: how many pictures there are.
        spec: the preprocessing.
        batch_size: pictures a forward pass.
        on_batch: told of how many pictures were done, batch by batch.
    """
    device = next(classifier.parameters()).device
    return logits_of(
        classifier,
        lambda which: network_input(pixels_of(which), spec, device),
        np.arange(count),
        batch_size,
        on_batch,
    )
