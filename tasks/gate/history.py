"""The manifest that was accepted last, read in pieces: all at once it would double the memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.split import SPLITS
from tasks.vision.atomic import replacing
from tasks.vision.errors import RefitError

ROWS = 65536  # that are packed and read together


class Accepted:
    """The manifest that was accepted last."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            RefitError: it cannot be read.
        """
        try:
            self.file = pq.ParquetFile(path)
            self.splits(pa.chunked_array([[]], pa.string()))
        except (pa.ArrowException, OSError, KeyError) as error:
            raise RefitError(
                f"{path} cannot be read ({error}): get it back with `dvc checkout {path}`, or "
                "delete it, which may move pictures between splits"
            ) from None

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column."""
        return self.file.read(columns=[name])[name]

    def splits(self, sha256: pa.ChunkedArray) -> NDArray[np.object_]:
        """Return the split that each content had, "" for those that are new."""
        names = np.array(["", *SPLITS], dtype=np.object_)
        numbers = np.zeros(len(sha256), np.int8)
        for batch in self.file.iter_batches(ROWS, columns=["sha256", "split"]):
            place = pc.index_in(sha256, value_set=batch["sha256"])
            split = pc.index_in(batch["split"], value_set=pa.array(SPLITS)).take(place)
            numbers = np.maximum(numbers, pc.fill_null(pc.add(split, 1), 0).to_numpy())
        return names[numbers]


def last_accepted(path: Path) -> Accepted | None:
    """Return the manifest that was accepted last; None before the first."""
    return Accepted(path) if path.exists() else None


def write_manifest(manifest: pa.Table, path: Path) -> None:
    """Write the manifest; equal tables give equal bytes."""
    few = ["label", "split", "mode", "format", "orientation", "decodable", "message"]
    with replacing(path) as temporary:
        # A dictionary of what repeats; of hashes it would only be a second copy.
        pq.write_table(
            manifest, temporary, row_group_size=ROWS, use_dictionary=few, compression="zstd"
        )
