"""Where every file of the project lies, and how text and JSON are written and read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tasks.vision.atomic import replacing

RAW = Path("data/raw")
MANIFEST = Path("data/manifest.parquet")
CLASSES = Path("data/classes.json")
PACKED = Path("data/packed")
FEATURES = Path("data/features")
WEIGHTS = Path("data/weights")
MODELS = Path("data/models")
REPORTS = Path("data/reports")
VALIDATION = REPORTS / "validation"
SUMMARY = REPORTS / "summary.json"
REPORT = REPORTS / "report.html"
BEST = Path("data/best")
VARIANTS = Path("data/variants")
# Not a stage's output: DVC removes those before a stage runs, and hands out old ones.
CHECKPOINTS = Path("data/checkpoints")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, with stable key order kept as given."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a UTF-8 JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_version() -> str:
    """Return 12 hex digits that name the accepted pictures, labels and splits."""
    return sha256_file(MANIFEST)[:12]
