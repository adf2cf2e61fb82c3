"""The one decoder, for training and for serving: a picture's bytes to upright 8-bit RGB.

Only Pillow and numpy, so that a client without torch sees the same pixels. Files are untrusted:
sizes are judged from the header, before a pixel is decoded, and whatever a decoder raises leaves
here as a `PictureError`.
"""

from __future__ import annotations

import io
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

# Imported for their side effect: with all six registered, Pillow never goes on to load its other
# forty, in the middle of a threaded scan.
from PIL import (  # noqa: F401
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from tasks.vision.errors import PictureError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
)
MAX_PIXELS = 100_000_000
# The most that any of the formats stores for one pixel: four channels of 16 bits.
MAX_BYTES_PER_PIXEL = 8

# EXIF 2.32, table 6 (tag 0x0112), as the transposition that turns the stored picture upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Modes whose black and white are not agreed on.
UNSCALABLE = {
    "I": "whole numbers of 32 bits or with a sign",
    "F": "floating point",
    "LAB": "LAB colours",
}
ORIENTATION, BITS_PER_SAMPLE, PHOTOMETRIC = 0x0112, 0x0102, 0x0106

# Pillow warns of odd metadata and large sizes; the caller gets a verdict instead. Set once, here,
# because `warnings.catch_warnings` is not safe between threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class Header:
    """What a picture says of itself before it is decoded.

    Attributes:
        width: pixels, of the upright picture: columns of the array that `decode` returns.
        height: pixels, of the upright picture: rows of that array.
        mode: Pillow's name of the stored pixel type, such as RGB, L, P, CMYK, I;16.
        format: one of `FORMATS`.
        orientation: EXIF orientation 1..8; 1 where there is none, or none that is valid.
        frames: pictures in the file; only the first is used.
    """

    width: int
    height: int
    mode: str
    format: str
    orientation: int
    frames: int


def read_header(data: bytes, max_pixels: int) -> Header:
    """Return what a picture file says of itself, without decoding pixels.

    Args:
        data: the whole file.
        max_pixels: more than these (width x height) are refused.

    Raises:
        PictureError: none of the six formats, a broken header, or too many pixels.
    """
    with _opened(data, max_pixels) as image:
        orientation = _orientation(image, data)
        width, height = image.size
        if orientation >= 5 and image.format != "TIFF":  # Pillow's TIFF sizes are upright already
            width, height = height, width
        return Header(width, height, image.mode, _format(image), orientation, _frames(image))


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Decode the first picture of a file to upright 8-bit RGB.

    Transparency is laid on white; 16-bit levels keep their high byte (grey as Pillow does for
    colour); CMYK is taken as Adobe writes it; colour profiles are not applied. Levels without an
    agreed black and white (floating point, 32 bits) and LAB are refused.

    Args:
        data: the whole file.
        max_pixels: more than these (width x height) are refused before decoding.

    Returns:
        uint8 [H, W, 3], RGB, EXIF orientation applied, writable, owned by the caller.

    Raises:
        PictureError: whatever is wrong with the picture, cut short included.
    """
    with _opened(data, max_pixels) as image:
        orientation = _orientation(image, data)
        image.load()
        rgb = _to_rgb(image)
        if orientation in UPRIGHT and image.format != "TIFF":  # Pillow's TIFF loader has turned it
            rgb = rgb.transpose(UPRIGHT[orientation])
        return np.array(rgb)


def read_picture(path: Path | str, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Read and `decode` a picture file.

    Returns:
        uint8 [H, W, 3], RGB, upright.

    Raises:
        PictureError: unreadable, or refused by `decode`. The message names the cause and not the
            path, which the caller knows.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            # A pipe or a device could be waited on for ever.
            raise PictureError("is not a regular file")
        if status.st_size > max_pixels * MAX_BYTES_PER_PIXEL:
            raise PictureError(
                f"{status.st_size:,} bytes: more than {max_pixels:,} pixels could ever take"
            )
        data = path.read_bytes()
    except OSError as error:
        raise PictureError(error.strerror or type(error).__name__) from None
    except ValueError as error:  # a path with a NUL
        raise PictureError(str(error)) from None
    return decode(data, max_pixels)


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Open a picture of an acceptable size; any error in the block becomes a `PictureError`."""
    if not data:
        raise PictureError("the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise PictureError(
                    f"{width} x {height} pixels, more than the {max_pixels:,} allowed: refused "
                    "before decoding"
                )
            yield image
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError(
            f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture, or its header is broken: "
            f"the {len(data):,} bytes start with {data[:12]!r}"
        ) from None
    except Image.DecompressionBombError:
        ceiling = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise PictureError(f"more than {ceiling:,} pixels: refused before decoding") from None
    except MemoryError:
        raise PictureError("not enough memory to decode it") from None
    except Exception as error:  # decoders raise nearly anything on broken bytes
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise PictureError(f"cannot be decoded, damaged or cut short: {cause}") from None


def _format(image: Image.Image) -> str:
    """Return one of `FORMATS`; MPO is a JPEG that carries further views behind the first."""
    return "JPEG" if image.format == "MPO" else str(image.format)


def _frames(image: Image.Image) -> int:
    """Count the pictures of a file; 1 where damage behind the first stops the count."""
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:
        return 1


def _orientation(image: Image.Image, data: bytes) -> int:
    """Return the EXIF orientation 1..8, or 1: broken metadata do not condemn a picture."""
    try:
        if image.format == "PNG" and (chunk := _png_exif(data)):
            exif = Image.Exif()
            exif.load(chunk)
        else:
            # The base method, because PNG's own decodes the pixels to look behind them.
            exif = Image.Image.getexif(image)
        value = exif.get(ORIENTATION)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _png_exif(data: bytes) -> bytes:
    """Return the payload of a PNG's eXIf chunk, before or behind the pixels, or nothing."""
    place = 8
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"eXIf":
            return data[place + 8 : place + 8 + length]
        place += 12 + length
    return b""


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded picture of any mode to RGB."""
    if image.mode.startswith("I;16"):
        image = _deep_grey(image)
    if image.mode in UNSCALABLE:
        raise PictureError(
            f"pixels are {UNSCALABLE[image.mode]}: save it with 8 or 16 bits a channel, grey or RGB"
        )
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert(
            "RGB"
        )
    return image if image.mode == "RGB" else image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """Scale 16-bit (or TIFF's 12-bit) grey to 8 bits by its high byte."""
    tags = getattr(image, "tag_v2", {})
    bits = 12 if tags.get(BITS_PER_SAMPLE) == (12,) else 16
    levels = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == 0:  # white is zero, which Pillow heeds only for 8 bits
        levels = 255 - levels
    return Image.fromarray(levels)
