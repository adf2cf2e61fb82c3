"""Pictures from production, told in the manifest's words, for the data gate's drift check."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.gate.facts import facts_of
from tasks.gate.store import MANIFEST
from tasks.vision.images import MAX_PIXELS

# The manifest's columns; `label` is the predicted one, `split` and `group` are empty.
SCHEMA = MANIFEST.append(pa.field("confidence", pa.float32()))
ROWS_AT_ONCE = 1024  # of some hundred bytes: memory stays flat over millions of pictures


class FactsFile:
    """A Parquet file of the facts of pictures, written as they come.

    `tasks.gate.frames.drift_frame` compares it with a manifest.
    """

    def __init__(self, path: Path) -> None:
        """Begin a file."""
        self._writer = pq.ParquetWriter(path, SCHEMA)
        self._rows: list[dict[str, Any]] = []

    def add(self, path: str, label: str, confidence: float) -> None:
        """Add a picture that could be read.

        Args:
            path: of the picture file.
            label: the predicted class.
            confidence: its probability.
        """
        try:
            data = Path(path).read_bytes()
        except OSError:  # it was there a moment ago, when it was predicted
            return
        self._rows.append(
            {
                "path": path,
                "label": label,
                "split": "",
                "group": "",
                "sha256": hashlib.sha256(data).hexdigest(),
                "bytes": len(data),
                "confidence": confidence,
                **facts_of(data, MAX_PIXELS)._asdict(),
            }
        )
        if len(self._rows) == ROWS_AT_ONCE:
            self._flush()

    def close(self) -> None:
        """Write what is left and end the file."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, SCHEMA))
        self._rows.clear()
