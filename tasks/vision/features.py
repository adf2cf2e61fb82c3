"""What a frozen backbone sees in a picture: the same in every epoch, so computed once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.vision.preprocess import Preprocess, centre_crop, normalise

# Positions among a split's pictures -> their packed pixels, uint8 [n, S, S, 3].
PixelsOf = Callable[[NDArray[np.int64]], NDArray[np.uint8]]

# Every batch has this size, the last one padded: kernels choose their order of summing by the
# batch's shape, and a picture must get the same features whatever else is new beside it.
BATCH = 32


def network_input(pixels: NDArray[np.uint8], spec: Preprocess, device: torch.device) -> Tensor:
    """Turn packed squares uint8 [N, S, S, 3] into float32 [N, 3, crop, crop] on the device."""
    images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
    images = normalise(centre_crop(images, spec.crop), spec)
    return images.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def extract(
    features_of: Callable[[Tensor], Tensor],
    pixels_of: PixelsOf,
    which: NDArray[np.int64],
    spec: Preprocess,
    device: torch.device,
    *,
    flip: bool,
    on_batch: Callable[[int], object],
) -> NDArray[np.float32]:
    """Compute features of packed pictures.

    Args:
        features_of: float32 [BATCH, 3, crop, crop] to float32 [BATCH, D]; in eval, folded.
        pixels_of: gives packed pictures by position.
        which: the positions wanted, int64 [n].
        spec: the preprocessing.
        device: where `features_of` lives.
        flip: mirror the pictures left to right first.
        on_batch: told of how many pictures were done, batch by batch.

    Returns:
        float32 [n, D], in the order of `which`.
    """
    out = []
    for positions in np.array_split(which, range(BATCH, len(which), BATCH)):
        padded = np.resize(positions, BATCH)
        images = network_input(pixels_of(padded), spec, device)
        vectors = features_of(images.flip(-1) if flip else images)
        out.append(vectors[: len(positions)].float().cpu().numpy())
        on_batch(len(positions))
    return np.concatenate(out)
