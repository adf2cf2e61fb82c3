"""What a frozen backbone sees in a picture: the same in every epoch, so computed once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.vision.augmentation import Augmentation
from tasks.vision.device import on_device
from tasks.vision.preprocess import Preprocess, network_input, normalise
from tasks.vision.randomness import Seeds, seeds_of

# Every batch has this size, the last one padded: kernels choose their order of summing by the
# batch's shape, and a picture must get the same features whatever else is new beside it.
BATCH = 32


def augmented_input(
    pixels: NDArray[np.uint8],
    spec: Preprocess,
    device: torch.device,
    augmentation: Augmentation,
    seeds: Seeds,
) -> Tensor:
    """Turn packed squares uint8 [N, S, S, 3] into augmented float32 [N, 3, crop, crop]."""
    images = on_device(pixels, device).permute(0, 3, 1, 2)
    images = normalise(augmentation.levels(images, seeds, spec.crop), spec)
    return augmentation.erased(images, seeds).contiguous(memory_format=torch.channels_last)


def view_input(
    view: int,
    pixels: NDArray[np.uint8],
    spec: Preprocess,
    device: torch.device,
    augmentation: Augmentation,
    contents: Seeds,
) -> Tensor:
    """Return what the network sees of packed squares in one of their views.

    Args:
        view: 1 is the centre, 2 its mirror image, any other an augmented view of that number.
        pixels: uint8 [N, S, S, 3].
        spec: the preprocessing.
        device: where the network lives.
        augmentation: read from the third view on.
        contents: [N], numbers that follow from the pictures' contents: a view is always the same.
    """
    if view > 2:
        seeds = seeds_of(contents, view)
        return augmented_input(pixels, spec, device, augmentation, seeds)
    images = network_input(pixels, spec, device)
    return images.flip(-1) if view == 2 else images


@torch.inference_mode()
def extract(
    features_of: Callable[[Tensor], Tensor],
    inputs_of: Callable[[NDArray[np.int64]], Tensor],
    which: NDArray[np.int64],
    *,
    on_batch: Callable[[int], object],
) -> NDArray[np.float32]:
    """Compute features of packed pictures.

    Args:
        features_of: float32 [BATCH, 3, crop, crop] to float [BATCH, ...]; in eval, folded.
        inputs_of: positions -> float32 [n, 3, crop, crop] on the device of `features_of`.
        which: the positions wanted, int64 [n].
        on_batch: told of how many pictures were done, batch by batch.

    Returns:
        float32 [n, ...], in the order of `which`.
    """
    out = []
    for positions in np.array_split(which, range(BATCH, len(which), BATCH)):
        vectors = features_of(inputs_of(np.resize(positions, BATCH)))
        out.append(vectors[: len(positions)].float().cpu().numpy())
        on_batch(len(positions))
    return np.concatenate(out)
