"""Where every file of the project lies, and how one is written: whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
BEST = Path("data/best")
# Not a stage's output: DVC removes those before a stage runs, and hands out old ones.
CHECKPOINTS = Path("data/checkpoints")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block succeeds.

    A reader sees the old file or the new one, never half of it; a block that raises leaves
    the old file and nothing else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
