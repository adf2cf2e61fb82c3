"""A folder of pictures with everything in it that has gone wrong for somebody."""

from __future__ import annotations

import os
import struct
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tests.unit.gate_data import encoded, picture, put

GOOD = {"train": 20, "val": 4, "test": 4}  # plain pictures a class
NOT_A_PICTURE = "not a JPEG, PNG, WEBP, BMP, GIF or TIFF picture"
TOO_MANY = "refused before decoding"
CUT = (
    "truncated",
    "Truncated",
    "EOF",
    "broken",
    "cannot be decoded",
    "unexpected end",
    NOT_A_PICTURE,
)
OUTSIDE = "symbolic link to a place outside the data folder"


@dataclass
class Expected:
    """What the gate has to say of each file.

    Attributes:
        good: path -> (format, mode, width, height, orientation) of pictures to be trained on.
        bad: path -> words, of which one is in the reason.
        ignored: reason -> how many.
    """

    good: dict[str, tuple[str, str, int, int, int]] = field(default_factory=dict)
    bad: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)


def build(raw: Path) -> Expected:
    """Fill the folder; the file that must not be readable has no permissions."""
    expected = Expected()
    plain(raw, expected)
    cut_short(raw, expected)
    no_pictures(raw, expected)
    bombs(raw, expected)
    odd_but_good(raw, expected)
    odd_and_bad(raw, expected)
    links_and_names(raw, expected)
    return expected


def plain(raw: Path, expected: Expected) -> None:
    seed = 0
    for split, each in GOOD.items():
        for label in ("ant", "bee"):
            for number in range(each):
                seed += 1
                path = f"{split}/{label}/{number:02}.jpg"
                put(raw / path, picture(seed))
                expected.good[path] = ("JPEG", "RGB", 64, 48, 1)


def cut_short(raw: Path, expected: Expected) -> None:
    """Every format, cut at every quarter, and by its last two bytes where that matters."""
    noise = Image.fromarray(np.random.default_rng(9).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    for kind, suffix in (
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("WEBP", "webp"),
        ("BMP", "bmp"),
        ("GIF", "gif"),
        ("TIFF", "tif"),
    ):
        whole = encoded(noise, kind)
        for quarter in (1, 2, 3):
            path = f"train/ant/cut {quarter} of 4.{suffix}"
            put(raw / path, whole[: len(whole) * quarter // 4])
            expected.bad[path] = CUT
        path = f"train/ant/empty.{suffix}"
        put(raw / path, b"")
        expected.bad[path] = ("the file is empty (0 bytes)",)


def no_pictures(raw: Path, expected: Expected) -> None:
    for name, content in {
        "error page.jpg": b"<!doctype html><title>404</title>",
        "note.png": "grüße".encode(),
        "scan.jpg": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n",
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "archive.jpg": b"PK\x03\x04" + bytes(60),
        "phone.jpg": b"\0\0\0\x18ftypheic" + bytes(60),
        "film.webp": b"RIFF\x24\0\0\0AVI LIST" + bytes(60),
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "one byte.jpg": b"\xff",
        "start only.jpg": b"\xff\xd8\xff",
        "zeros.jpg": bytes(4096),
        "noise.jpg": np.random.default_rng(1).bytes(4096),
        "git lfs.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    }.items():
        path = f"train/bee/{name}"
        put(raw / path, content)
        expected.bad[path] = (NOT_A_PICTURE, "cannot be decoded")


def png(width: int, height: int, data: bytes = b"", crc_error: int = 0) -> bytes:
    """Return a grey PNG with a header of one's choice."""

    def chunk(kind: bytes, body: bytes, wrong: int = 0) -> bytes:
        check = zlib.crc32(kind + body) ^ wrong
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0), crc_error)
    body = chunk(b"IDAT", data or zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


def bombs(raw: Path, expected: Expected) -> None:
    jpeg = bytearray(encoded(picture(1), "JPEG"))
    frame = jpeg.index(b"\xff\xc0") + 5
    jpeg[frame : frame + 4] = struct.pack(">HH", 65500, 65500)
    gif = bytearray(encoded(picture(1), "GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    bmp = bytearray(encoded(picture(1), "BMP"))
    bmp[18:26] = struct.pack("<ii", 100_000, 100_000)
    for name, content in {
        "bomb.png": png(60_000, 60_000),
        "wide bomb.png": png(2_000_000_000, 1),
        "bomb.jpg": bytes(jpeg),
        "bomb.gif": bytes(gif),
        "bomb.bmp": bytes(bmp),
    }.items():
        put(raw / f"train/bee/{name}", content)
        expected.bad[f"train/bee/{name}"] = (TOO_MANY,)


def odd_but_good(raw: Path, expected: Expected) -> None:
    first = picture(500)
    deep = Image.fromarray(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21)
    see_through = picture(501).convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize((64, 48)))
    others = [picture(502), picture(503)]
    for name, image, mode, options in (
        ("cmyk.jpg", picture(504).convert("CMYK"), "CMYK", {}),
        ("grey.jpg", picture(505).convert("L"), "L", {}),
        ("16 bit.png", deep, "I;16", {}),
        ("16 bit.tif", deep.rotate(180), "I;16", {}),
        ("palette.png", picture(506).quantize(16), "P", {}),
        ("transparent.png", see_through, "RGBA", {}),
        ("grey and alpha.png", picture(515).convert("LA"), "LA", {}),
        ("black and white.png", picture(507).convert("1"), "1", {}),
        (
            "animated.gif",
            picture(508).quantize(64),
            "P",
            {"save_all": True, "append_images": others},
        ),
        ("animated.webp", picture(509), "RGB", {"save_all": True, "append_images": others}),
        ("progressive.jpg", picture(510), "RGB", {"progressive": True}),
        ("pages.tif", picture(511), "RGB", {"save_all": True, "append_images": others}),
        ("SHOUTING.PNG", picture(512), "RGB", {}),
        ("bitmap.bmp", picture(513), "RGB", {}),
    ):
        kind = {".jpg": "JPEG", ".tif": "TIFF"}.get(name[-4:], name.rpartition(".")[2].upper())
        path = f"train/ant/{name}"
        put(raw / path, encoded(image, kind, **options))
        expected.good[path] = (kind, mode, 64, 48, 1)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = f"train/bee/orientation {orientation}.jpg"
        put(raw / path, picture(520 + orientation), exif=exif)
        size = (64, 48) if orientation < 5 else (48, 64)
        expected.good[path] = ("JPEG", "RGB", *size, orientation)
    path = "train/ant/really a png.jpg"
    put(raw / path, encoded(picture(514), "PNG"))
    expected.good[path] = ("PNG", "RGB", 64, 48, 1)
    path = "train/ant/appended.jpg"
    put(raw / path, encoded(first, "JPEG") + b"<script>alert(1)</script>")
    expected.good[path] = ("JPEG", "RGB", 64, 48, 1)


def odd_and_bad(raw: Path, expected: Expected) -> None:
    damaged = bytearray(encoded(picture(600), "PNG"))
    middle = damaged.index(b"IDAT") + 200
    damaged[middle : middle + 50] = bytes(50)
    floating = Image.fromarray(np.linspace(0, 1, 48 * 64, dtype=np.float32).reshape(48, 64))
    for name, content, words in (
        ("damaged.png", bytes(damaged), CUT),
        ("wrong checksum.png", png(64, 48, crc_error=1), CUT),
        ("no width.png", png(0, 48), CUT),
        ("too little data.png", png(64, 48), CUT),
        ("floating point.tif", encoded(floating, "TIFF"), ("floating point",)),
        ("one pixel.png", encoded(Image.new("RGB", (1, 1)), "PNG"), ("min_side: side 1",)),
        ("thin.png", encoded(picture(601, (64, 31)), "PNG"), ("min_side: side 31",)),
        (
            "strip.png",
            encoded(picture(602, (400, 40)), "PNG"),
            ("max_aspect_ratio: aspect ratio 10",),
        ),
    ):
        put(raw / f"train/bee/{name}", content)
        expected.bad[f"train/bee/{name}"] = words
    path = "train/bee/unreadable.jpg"
    put(raw / path, picture(603)).chmod(0)
    expected.bad[path] = ("cannot be read: Permission denied",)


def links_and_names(raw: Path, expected: Expected) -> None:
    put(raw.parent / "outside/secret.jpg", picture(700))
    for link, target, words in (
        ("train/ant/broken link.jpg", "nowhere.jpg", "broken symbolic link"),
        ("train/ant/circle.jpg", "circle.jpg", "Too many levels of symbolic links"),
        ("train/ant/up", "..", "leads to a folder that is read already: train"),
        ("train/ant/out.jpg", "../../../outside/secret.jpg", OUTSIDE),
        ("train/ant/absolute.jpg", str(raw.parent / "outside/secret.jpg"), OUTSIDE),
        ("train/ant/out", "../../../outside", OUTSIDE),
        ("train/ant/passwd.jpg", "/etc/passwd", OUTSIDE),
    ):
        (raw / link).symlink_to(target)
        expected.bad[link] = (words,)
    put(raw / ".store/linked.jpg", picture(701))
    (raw / "train/ant/inside.jpg").symlink_to("../../.store/linked.jpg")
    expected.good["train/ant/inside.jpg"] = ("JPEG", "RGB", 64, 48, 1)
    os.mkfifo(raw / "train/ant/pipe.jpg")
    expected.bad["train/ant/pipe.jpg"] = ("is neither a file nor a folder",)
    (raw / os.fsdecode(b"train/ant/caf\xe9.jpg")).write_bytes(encoded(picture(702), "JPEG"))
    expected.bad["train/ant/caf\\xe9.jpg"] = ("its name is not UTF-8",)
    for path in ("stray.jpg", "train/stray.jpg"):
        put(raw / path, picture(703))
        expected.bad[path] = ("lies in no class's folder",)
    for seed, name in enumerate(
        (
            "line\nbreak.jpg",
            "späce ✓ 日本.jpg",
            "-rf.jpg",
            "'; DROP TABLE scan; --.jpg",
            "<img src=x onerror=alert(1)>.jpg",
            'a,b\t"c".jpg',
            "deep/er/and/deeper.jpg",
            "folder.jpg/picture.jpg",
            "n" * 250 + ".jpg",
        )
    ):
        put(raw / "train/bee" / name, picture(710 + seed))
        expected.good[f"train/bee/{name}"] = ("JPEG", "RGB", 64, 48, 1)
    for path in ("train/ant/.hidden.jpg", "train/ant/Thumbs.db", "train/ant/notes.txt", "README"):
        put(raw / path, b"x")
    put(raw / "train/bee/phone.HEIC", b"x")
    expected.ignored.update(
        {
            "hidden": 2,  # .hidden.jpg and .store
            "not a picture: .db": 1,
            "not a picture: .txt": 1,
            "not a picture: .heic": 1,
            "not a picture: no suffix": 1,
        }
    )
