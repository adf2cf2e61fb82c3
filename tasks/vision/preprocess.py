"""The one preprocessing spec: from raw pixels of any size to what a backbone takes.

The same functions fill the packed shards, evaluate the model and run inside the ONNX graph, so
that training and serving cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from numpy.typing import NDArray
from torch import Tensor

from tasks.vision.device import on_device

# Positions among a split's pictures -> their packed pixels, uint8 [n, S, S, 3].
PixelsOf = Callable[[NDArray[np.int64]], NDArray[np.uint8]]

# Levels are rounded at a bit less than a half: weighted means of whole levels often lie on exactly
# a half, where the last bit of a float decides, and PyTorch and ONNX Runtime would decide apart.
HALF = 0.4877


@dataclass(frozen=True)
class Preprocess:
    """How pixels become a network's input.

    Attributes:
        resize: side in pixels of the square that the centre square of a picture is resized to.
        crop: side in pixels of the centre crop of that square; the network's input size.
        mean: per channel (RGB), of pixels scaled to 0..1.
        std: per channel (RGB), of pixels scaled to 0..1.
    """

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def as_dict(self) -> dict[str, Any]:
        """Return the spec as plain JSON types, for checkpoints and ONNX metadata."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, spec: dict[str, Any]) -> Preprocess:
        """Rebuild the spec that `as_dict` returned."""
        return cls(spec["resize"], spec["crop"], tuple(spec["mean"]), tuple(spec["std"]))


def resize_square(images: Tensor, side: int) -> Tensor:
    """Cut the centre square of each picture and resize it, antialiased, to `side` pixels.

    The result is rounded to whole levels, because the packed shards hold bytes: so a picture
    packed for training and one fed raw to the ONNX graph give the same numbers.

    Args:
        images: uint8 or float [N, 3, H, W], levels 0..255.
        side: pixels.

    Returns:
        float32 [N, 3, side, side], whole numbers 0..255.
    """
    height, width = images.shape[-2], images.shape[-1]
    square = torch.sym_min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    cut = images[:, :, top : top + square, left : left + square]
    if torch.compiler.is_exporting():  # elsewhere the checks would import sympy, for seconds
        # torch.export cannot work out the size of a slice between two symbols: tell it.
        torch._check(cut.shape[2] > 0)
        torch._check(cut.shape[3] > 0)
    small = F.interpolate(cut.float(), size=(side, side), mode="bilinear", antialias=True)
    return (small + HALF).floor().clamp(0, 255)


def centre_crop(images: Tensor, side: int) -> Tensor:
    """Cut the centre `side` x `side` pixels out of [N, 3, H, W] of any dtype."""
    top, left = (images.shape[-2] - side) // 2, (images.shape[-1] - side) // 2
    return images[..., top : top + side, left : left + side]


def normalise(images: Tensor, spec: Preprocess) -> Tensor:
    """Scale [N, 3, H, W] levels 0..255 to float32, minus mean, over std."""
    mean = torch.tensor(spec.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(spec.std, device=images.device).view(1, 3, 1, 1)
    return (images.float() / 255.0 - mean) / std


def network_input(pixels: NDArray[np.uint8], spec: Preprocess, device: torch.device) -> Tensor:
    """Turn packed squares uint8 [N, S, S, 3] into float32 [N, 3, crop, crop] on the device."""
    images = on_device(pixels, device).permute(0, 3, 1, 2)
    images = normalise(centre_crop(images, spec.crop), spec)
    return images.contiguous(memory_format=torch.channels_last)
