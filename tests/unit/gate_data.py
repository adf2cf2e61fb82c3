"""Pictures and projects for the tests of the data gate."""

from __future__ import annotations

import csv
import io
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from tasks import files

SHIPPED = Path(__file__).parents[2] / "params.yaml"
EACH = 60  # pictures a class: enough for a few in every split
LONG_AGO = 1_600_000_000  # seconds; older than any clock's tick


def picture(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Return a picture that is like no other of another seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def put(path: Path, content: Image.Image | bytes, **options: Any) -> Path:
    """Write a file that looks as if it had been there for long."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Image.Image):
        kind = {".jpg": "JPEG", ".tif": "TIFF"}.get(path.suffix, path.suffix[1:].upper())
        content = encoded(content, kind, **options)
    path.write_bytes(content)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def write_params(project: Path, checks: dict[str, str] | None = None, **validate: Any) -> None:
    """Write the shipped params.yaml, with some of `validate` changed."""
    params = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    params["validate"] |= validate
    params["validate"]["checks"] |= checks or {}
    (project / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


def fill(raw: Path, each: int, classes: tuple[str, ...] = ("ant", "bee"), first: int = 0) -> None:
    """Put pictures into the folder of every class."""
    for name in classes:
        for number in range(first, first + each):
            put(raw / name / f"{number:03}.jpg", pictured(name, number))


def pictured(label: str, number: int) -> Image.Image:
    """Return the picture that `fill` gives this number in this class."""
    return picture(1000 * zlib.crc32(label.encode()) + number)


def reasons(project: Path) -> dict[str, str]:
    with (project / files.VALIDATION / "quarantine.csv").open(encoding="utf-8", newline="") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


def outputs(project: Path) -> dict[str, str]:
    """Return path -> hash of everything that the stage gives to DVC."""
    outs = [project / files.MANIFEST, project / files.CLASSES]
    outs += [p for p in (project / files.VALIDATION).rglob("*") if p.is_file()]
    return {str(p.relative_to(project)): files.sha256_file(p) for p in outs}
