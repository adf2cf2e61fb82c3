"""What is known of one picture: what its header says, whether it decodes, how it looks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.vision import duplicates, images
from tasks.vision.errors import PictureError

SHARPNESS_SIDE = 256  # pixels; about what a network gets to see


class Facts(NamedTuple):
    """What is known of a picture's content; a function of the file's bytes alone.

    Attributes:
        width: pixels, upright.
        height: pixels, upright.
        mode: Pillow's name of the stored pixel type.
        format: as the file's bytes say, not its name.
        orientation: EXIF 1..8.
        phash: perceptual hash, 16 hex digits; empty when the picture does not decode.
        mean: of the grey levels 0..255.
        std: of the grey levels.
        sharpness: see `sharpness`.
        decodable: whether it may be trained on.
        message: the decoder's words when it may not.
    """

    width: int = 0
    height: int = 0
    mode: str = ""
    format: str = ""
    orientation: int = 1
    phash: str = ""
    mean: float = 0.0
    std: float = 0.0
    sharpness: float = 0.0
    decodable: bool = False
    message: str = ""


def facts_of(data: bytes, max_pixels: int) -> Facts:
    """Return the facts of a picture file's bytes; a bad picture is a fact and raises nothing."""
    facts = Facts()
    try:
        header = images.read_header(data, max_pixels)
        facts = Facts(header.width, header.height, header.mode, header.format, header.orientation)
        pixels = images.decode(data, max_pixels)
    except PictureError as error:
        return facts._replace(message=str(error))
    grey = Image.fromarray(pixels).convert("L")
    mean, std = grey_statistics(grey)
    return facts._replace(
        phash=duplicates.perceptual_hash(np.asarray(grey)),
        mean=mean,
        std=std,
        sharpness=sharpness(grey),
        decodable=True,
    )


def grey_statistics(grey: Image.Image) -> tuple[float, float]:
    """Return mean and standard deviation of the levels of an 8-bit grey picture, exactly."""
    counts = np.array(grey.histogram(), np.float64)
    levels = np.arange(256.0)
    mean = counts @ levels / counts.sum()
    return float(mean), float(np.sqrt(counts @ (levels - mean) ** 2 / counts.sum()))


def sharpness(grey: Image.Image) -> float:
    """Return the variance of the Laplacian, the usual measure of focus (Pech-Pacheco, ICPR 2000).

    Taken after shrinking to `SHARPNESS_SIDE`, so that pictures of all sizes compare.
    """
    grey.thumbnail((SHARPNESS_SIDE, SHARPNESS_SIDE), Image.Resampling.BOX)
    g: NDArray[np.int16] = np.asarray(grey).astype(np.int16)
    if min(g.shape) < 3:
        return 0.0
    # Whole numbers, also in the float64 below: fast, and the same on every machine.
    edges = g[1:-1, 1:-1] * np.int16(-4)
    for neighbour in (g[:-2, 1:-1], g[2:, 1:-1], g[1:-1, :-2], g[1:-1, 2:]):
        edges += neighbour
    exact = edges.astype(np.float64).ravel()
    squares: float = np.einsum("i,i", exact, exact)
    return float(squares / exact.size - (exact.sum() / exact.size) ** 2)
