"""The decoder: hand-computed pixels for every kind of picture, and clean refusals for the rest."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.vision import images
from tasks.vision.errors import PictureError
from tasks.vision.images import FORMATS, Header, decode, read_header, read_picture

ROOM = 1_000_000  # pixels allowed in these tests

# pytest puts its own warning filters above the decoder's; a test below looks without pytest.
pytestmark = pytest.mark.filterwarnings("ignore")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, payload: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + payload))
    return struct.pack(">I", len(payload)) + kind + payload + check


def png(
    width: int, height: int, bits: int, colour: int, pixels: bytes, extra: bytes = b""
) -> bytes:
    """Build a PNG by hand: Pillow does not write 16-bit colour."""
    row = len(pixels) // height if height else 0
    rows = b"".join(b"\0" + pixels[i * row : (i + 1) * row] for i in range(height) if row)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = png_chunk(b"IDAT", zlib.compress(rows))
    return (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + extra + data + png_chunk(b"IEND", b"")
    )


def tiff(width: int, bits: int, pixels: bytes, photometric: int = 1, kind: int = 1) -> bytes:
    """Build a one-row little-endian grey TIFF by hand; `kind` 1 unsigned, 2 signed, 3 float."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8}
    tags |= {277: 1, 278: 1, 279: len(pixels), 339: kind}
    pixels += b"\0" * (len(pixels) % 2)
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + b"\0" * 4
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory


def row(data: bytes) -> list[list[int]]:
    """Decode a picture of one row to a list of RGB triples."""
    array = decode(data, ROOM)
    assert array.dtype == np.uint8
    assert array.shape[0] == 1
    return [[int(level) for level in pixel] for pixel in array[0]]


def greys(*levels: int) -> list[list[int]]:
    return [[level] * 3 for level in levels]


PALETTE = png_chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60, 70, 80, 90]))
WORDS = (0, 255, 256, 0x7FFF, 0x8000, 0xFFFF)
# (c * alpha + 255 * (255 - alpha)) / 255, rounded: 10·51/255 + 204 = 206, and so on.
PIXELS: dict[str, tuple[bytes, list[list[int]]]] = {
    "grey 8": (png(3, 1, 8, 0, bytes([0, 100, 255])), greys(0, 100, 255)),
    "grey 8, one level transparent": (
        png(2, 1, 8, 0, bytes([7, 8]), png_chunk(b"tRNS", b"\0\x07")),
        greys(255, 8),
    ),
    "grey 1": (png(8, 1, 1, 0, bytes([0b10110010])), greys(255, 0, 255, 255, 0, 0, 255, 0)),
    "grey 2": (png(4, 1, 2, 0, bytes([0b00011011])), greys(0, 85, 170, 255)),
    "grey 16": (png(6, 1, 16, 0, struct.pack(">6H", *WORDS)), greys(0, 0, 1, 127, 128, 255)),
    "rgb 8": (png(2, 1, 8, 2, bytes([1, 2, 3, 4, 5, 6])), [[1, 2, 3], [4, 5, 6]]),
    "rgb 8, one colour transparent": (
        png(2, 1, 8, 2, bytes([1, 2, 3, 4, 5, 6]), png_chunk(b"tRNS", struct.pack(">3H", 4, 5, 6))),
        [[1, 2, 3], [255, 255, 255]],
    ),
    "rgb 16": (
        png(2, 1, 16, 2, struct.pack(">6H", *WORDS)),
        [[0, 0, 1], [127, 128, 255]],
    ),
    "grey + alpha": (png(3, 1, 8, 4, bytes([0, 128, 9, 255, 9, 0])), greys(127, 9, 255)),
    "rgba": (
        png(3, 1, 8, 6, bytes([10, 20, 30, 51, 10, 20, 30, 255, 10, 20, 30, 0])),
        [[206, 208, 210], [10, 20, 30], [255, 255, 255]],
    ),
    "rgba 16": (
        png(1, 1, 16, 6, struct.pack(">4H", 0, 0x8000, 0xFFFF, 0x80FF)),
        [[127, 191, 255]],
    ),
    "palette": (png(2, 1, 8, 3, bytes([2, 0]), PALETTE), [[70, 80, 90], [10, 20, 30]]),
    "palette, transparent": (
        png(3, 1, 8, 3, bytes([0, 1, 2]), PALETTE + png_chunk(b"tRNS", bytes([0, 51]))),
        [[255, 255, 255], [212, 214, 216], [70, 80, 90]],
    ),
    "tiff 8, white is zero": (tiff(3, 8, bytes([0, 100, 255]), photometric=0), greys(255, 155, 0)),
    "tiff 12": (tiff(2, 12, bytes([0xFF, 0xF8, 0x01])), greys(255, 128)),
    "tiff 16": (tiff(6, 16, struct.pack("<6H", *WORDS)), greys(0, 0, 1, 127, 128, 255)),
    "tiff 16, white is zero": (
        tiff(6, 16, struct.pack("<6H", *WORDS), photometric=0),
        greys(255, 255, 254, 128, 127, 0),
    ),
    # R = 255 - K - C * (255 - K) / 255
    "tiff cmyk": (
        encoded(Image.new("CMYK", (1, 1), (55, 155, 205, 0)), "TIFF"),
        [[200, 100, 50]],
    ),
    "bmp": (encoded(Image.new("RGB", (1, 1), (9, 8, 7)), "BMP"), [[9, 8, 7]]),
    "webp, transparent": (
        encoded(Image.new("RGBA", (1, 1), (10, 20, 30, 51)), "WEBP", lossless=True),
        [[206, 208, 210]],
    ),
}


@pytest.mark.parametrize("name", PIXELS)
def test_every_kind_of_pixel_becomes_8_bit_rgb(name: str) -> None:
    data, expected = PIXELS[name]
    assert row(data) == expected


def test_cmyk_jpeg_is_taken_as_adobe_writes_it_inverted() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (55, 155, 205, 0)), "JPEG", quality=100)
    assert b"Adobe" in data
    assert read_header(data, ROOM).mode == "CMYK"
    assert np.abs(decode(data, ROOM).astype(int) - [200, 100, 50]).max() <= 1


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (tiff(1, 32, struct.pack("<f", 0.5), kind=3), "floating point"),
        (tiff(1, 32, struct.pack("<I", 5)), "whole numbers of 32 bits"),
        (tiff(1, 16, struct.pack("<h", -5), kind=2), "with a sign"),
        (encoded(Image.new("LAB", (1, 1)), "TIFF"), "LAB"),
    ],
)
def test_levels_without_agreed_black_and_white_are_refused(data: bytes, cause: str) -> None:
    with pytest.raises(PictureError, match=cause):
        decode(data, ROOM)


STORED = np.array([[40, 80, 120], [160, 200, 240]], dtype=np.uint8)
UPRIGHT = {
    1: [[40, 80, 120], [160, 200, 240]],
    2: [[120, 80, 40], [240, 200, 160]],
    3: [[240, 200, 160], [120, 80, 40]],
    4: [[160, 200, 240], [40, 80, 120]],
    5: [[40, 160], [80, 200], [120, 240]],
    6: [[160, 40], [200, 80], [240, 120]],
    7: [[240, 120], [200, 80], [160, 40]],
    8: [[120, 240], [80, 200], [40, 160]],
}


def with_orientation(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == "PNG, EXIF last":
        body = encoded(Image.fromarray(STORED), "PNG")
        return body[:-12] + png_chunk(b"eXIf", exif.tobytes()[6:]) + body[-12:]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {"quality": 100}
    scale = 8 if kind == "JPEG" else 1  # one JPEG block a pixel keeps levels apart
    picture = Image.fromarray(STORED.repeat(scale, 0).repeat(scale, 1))
    return encoded(picture, kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PNG, EXIF last", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied_and_the_header_agrees(kind: str, orientation: int) -> None:
    data = with_orientation(kind, orientation)
    array = decode(data, ROOM)
    header = read_header(data, ROOM)
    scale = 8 if kind == "JPEG" else 1
    difference = array[::scale, ::scale, 0].astype(int) - np.array(UPRIGHT[orientation])
    assert np.abs(difference).max() <= (1 if kind == "JPEG" else 0)
    assert header.orientation == orientation
    assert (header.height, header.width) == array.shape[:2]


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"junk"])
def test_broken_exif_leaves_the_picture_as_stored(exif: bytes) -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encoded(Image.new("RGB", (4, 3), (1, 1, 1)), kind, exif=exif)
        assert read_header(data, ROOM).orientation == 1
        assert decode(data, ROOM).shape == (3, 4, 3)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_outside_1_to_8_is_none(orientation: int) -> None:
    data = with_orientation("PNG", orientation)
    assert read_header(data, ROOM).orientation == 1
    assert decode(data, ROOM).tolist() == STORED[..., None].repeat(3, 2).tolist()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_only_the_first_frame_is_used(kind: str) -> None:
    first, second = (Image.new("RGB", (6, 5), colour) for colour in ("red", "blue"))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=[second], **options)
    header = read_header(data, ROOM)
    assert (header.frames, header.format) == (2, kind)
    assert (decode(data, ROOM) == [255, 0, 0]).all()


def test_header() -> None:
    data = encoded(Image.new("L", (7, 5)), "JPEG")
    assert read_header(data, ROOM) == Header(7, 5, "L", "JPEG", 1, 1)


def test_a_stereo_jpeg_is_a_jpeg() -> None:
    views = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = encoded(views[0], "MPO", save_all=True, append_images=views[1:])
    assert read_header(data, ROOM).format == "JPEG"
    assert decode(data, ROOM)[0, 0, 0] > 250


def test_the_array_is_the_callers_to_write_to() -> None:
    array = decode(PIXELS["rgb 8"][0])
    array[0, 0] = 9
    assert array.flags.c_contiguous
    assert array[0, 0].tolist() == [9, 9, 9]


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [lambda data: read_header(data, ROOM), decode])
@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "not a JPEG.*DOCTYPE"),
        (b"\0" * 5000, "not a JPEG"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "Truncated"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "Truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a JPEG"),
        (encoded(Image.new("RGB", (4, 4)), "PPM"), "not a JPEG"),
        (encoded(Image.new("RGB", (32, 32)), "ICO"), "not a JPEG"),
        # Between Pillow's warning and its refusal, beyond both, and absurd in one direction.
        (png(10_000, 10_001, 8, 2, b""), r"10000 x 10001 pixels, more than the"),
        (png(60_000, 60_000, 8, 2, b""), "more than .* pixels: refused before"),
        (png(2**31 - 1, 1, 8, 0, b""), "more than .* pixels: refused before"),
    ],
)
def test_what_is_no_picture_is_refused_from_the_header(
    data: bytes, cause: str, read: Callable[[bytes], Any]
) -> None:
    with pytest.raises(PictureError, match=cause):
        read(data)


def test_a_bomb_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Image.Image) -> None:
        raise AssertionError("decoded")

    data = encoded(Image.new("L", (200, 100)), "PNG")
    assert decode(data, 20_000).shape == (100, 200, 3)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(PictureError, match="200 x 100 pixels, more than the 19,999 allowed"):
        decode(data, 19_999)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RecursionError("deep"), struct.error("x"), OverflowError(), KeyError(1)],
)
def test_whatever_a_decoder_raises_is_a_picture_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: Image.Image) -> None:
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(PictureError) as caught:
        decode(PIXELS["rgb 8"][0])
    assert len(str(caught.value)) > 10


def noise(seed: int = 0) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (17, 21, 3), dtype=np.uint8)
    )


def family() -> dict[str, bytes]:
    """Encode one small noisy picture in every way that takes another path through a decoder."""
    picture = noise()
    exif = Image.Exif()
    exif[0x0112] = 6
    frames: dict[str, Any] = {"save_all": True, "append_images": [noise(1)]}
    return {
        "jpeg": encoded(picture, "JPEG", exif=exif),
        "jpeg progressive": encoded(picture, "JPEG", progressive=True),
        "jpeg cmyk": encoded(picture.convert("CMYK"), "JPEG"),
        "png": encoded(picture, "PNG", exif=exif),
        "png palette": encoded(picture.convert("P"), "PNG", transparency=0),
        "png 16": encoded(Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20)), "PNG"),
        "png animated": encoded(picture, "PNG", **frames),
        "webp": encoded(picture, "WEBP", exif=exif),
        "webp lossless": encoded(picture.convert("RGBA"), "WEBP", lossless=True),
        "webp animated": encoded(picture, "WEBP", **frames),
        "bmp": encoded(picture, "BMP"),
        "bmp palette": encoded(picture.convert("P"), "BMP"),
        "gif": encoded(picture, "GIF"),
        "gif animated": encoded(picture, "GIF", **frames),
        "tiff": encoded(picture, "TIFF", exif=exif),
        "tiff lzw": encoded(picture, "TIFF", compression="tiff_lzw"),
        "tiff jpeg": encoded(picture, "TIFF", compression="jpeg"),
        "tiff group 4": encoded(picture.convert("1"), "TIFF", compression="group4"),
    }


FAMILY = family()


@pytest.mark.parametrize("name", FAMILY)
def test_a_picture_cut_short_is_an_error_or_whole_never_half(name: str) -> None:
    data = FAMILY[name]
    whole = decode(data, ROOM)
    refused = 0
    for cut in {*range(0, len(data), 29), *range(max(0, len(data) - 30), len(data))}:
        try:
            array = decode(data[:cut], ROOM)
        except PictureError:
            refused += 1
        else:  # only what follows the pixels was lost
            assert np.array_equal(array, whole), f"{name}: {cut} of {len(data)} bytes"
    assert refused > 10


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file in one of four ways: bits, its end, a foreign piece, numbers in its header."""
    damaged = bytearray(data)
    match rng.integers(4):
        case 0:
            for place in rng.integers(0, len(data), rng.integers(1, 12)):
                damaged[place] ^= 1 << rng.integers(8)
        case 1:
            del damaged[rng.integers(0, len(data)) :]
        case 2:
            other = FAMILY[str(rng.choice(list(FAMILY)))]
            start, end = sorted(rng.integers(0, len(other), 2))
            place = rng.integers(0, len(data))
            damaged[place : place + rng.integers(0, 40)] = other[start:end]
        case _:
            place = rng.integers(0, min(len(data), 120))
            value = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
            damaged[place : place + rng.integers(1, 5)] = bytes([value]) * int(rng.integers(1, 5))
    return bytes(damaged)


@pytest.mark.parametrize("name", FAMILY)
def test_mutated_pictures_are_decoded_or_cleanly_refused(name: str) -> None:
    """250 mutations of each of 18 kinds: 4,500 pictures."""
    rng = np.random.default_rng(list(name.encode()))
    messages = []
    for _ in range(250):
        data = mutated(FAMILY[name], rng)
        try:
            header = read_header(data, ROOM)
            array = decode(data, ROOM)
        except PictureError as error:
            messages.append(str(error))
        else:
            assert array.dtype == np.uint8
            assert array.shape == (header.height, header.width, 3)
            assert header.format in FORMATS
    assert len(messages) > 20
    assert all(5 < len(message) < 300 and "\n" not in message for message in messages)


def test_threads_decode_the_same_pixels() -> None:
    work = list(FAMILY.values()) * 4
    with ThreadPoolExecutor(8) as pool:
        arrays = list(pool.map(decode, work))
    for data, array in zip(work, arrays, strict=True):
        assert np.array_equal(array, decode(data))


def test_no_warning_and_no_torch_even_where_warnings_are_errors(tmp_path: Path) -> None:
    large, odd = tmp_path / "large.png", tmp_path / "odd.tiff"
    large.write_bytes(png(10_000, 10_000, 8, 2, b""))  # Pillow warns from 89 million pixels
    # One tag claims more values than the file has bytes: Pillow warns of corrupt metadata.
    odd.write_bytes(
        FAMILY["tiff"].replace(b"\x12\x01\x03\x00\x01\x00", b"\x12\x01\x03\x00\xff\xff")
    )
    code = """if True:
        import sys
        from pathlib import Path
        from tasks.vision.images import read_header
        for path in sys.argv[1:]:
            print(read_header(Path(path).read_bytes(), 10**9).format)
        print("torch" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(large), str(odd)],
        capture_output=True,
        text=True,
        cwd=Path(images.__file__).parents[2],
        check=False,
    )
    assert (done.stdout.split(), done.stderr) == (["PNG", "TIFF", "False"], "")


# ---- files ---------------------------------------------------------------------------------------


def test_read_picture(tmp_path: Path) -> None:
    path = tmp_path / "a picture with ünicode.JPG"
    path.write_bytes(FAMILY["jpeg"])
    assert np.array_equal(read_picture(path), decode(FAMILY["jpeg"]))
    assert np.array_equal(read_picture(str(path)), decode(FAMILY["jpeg"]))


def test_unreadable_files_say_why_and_leave_the_path_to_the_caller(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for a writer
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    with (tmp_path / "huge.bmp").open("wb") as file:
        file.truncate(8 * ROOM + 1)  # sparse
    (tmp_path / "cut.png").write_bytes(FAMILY["png"][:200])
    for name, cause in {
        "none.jpg": "No such file",
        "pipe.jpg": "not a regular file",
        "loop.jpg": "symbolic links",
        "huge.bmp": "8,000,001 bytes: more than 1,000,000 pixels",
        "cut.png": "truncated",
        "nul\0.jpg": "null",
        ".": "not a regular file",
    }.items():
        with pytest.raises(PictureError, match=cause) as caught:
            read_picture(tmp_path / name, ROOM)
        assert str(tmp_path) not in str(caught.value)
