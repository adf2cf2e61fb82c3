"""Packed pictures: every accepted picture once, square and small, as bytes in memory-mapped shards.

`data/packed/<key>/<shard>.npy` holds uint8 [n, side, side, 3]; `data/packed/index.parquet` says for
each row of the manifest in which shard and row its pixels lie. Shards are never changed once
written: new pictures go to new shards, so that `dvc push` sends only those.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks import files
from tasks.vision.atomic import replacing
from tasks.vision.errors import RefitError

INDEX = "index.parquet"


@dataclass(frozen=True)
class Pictures:
    """The packed pictures of one or more splits, in the manifest's order.

    Attributes:
        folder: where the shards lie.
        paths: [n] relative to `data/raw`.
        sha256: [n] content hashes, hex.
        labels: int64 [n] class indices in the order of `data/classes.json`.
        shards: [n] shard file names.
        rows: int64 [n] rows in the shard.
    """

    folder: Path
    paths: list[str]
    sha256: list[str]
    labels: NDArray[np.int64]
    shards: NDArray[np.str_]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def _maps(self) -> dict[str, NDArray[np.uint8]]:
        return {n: np.load(self.folder / n, mmap_mode="r") for n in sorted(set(self.shards))}

    def pixels(self, which: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pixels of the pictures at positions `which`: uint8 [len(which), S, S, 3]."""
        first = next(iter(self._maps.values()))
        out = np.empty((len(which), *first.shape[1:]), np.uint8)
        shards, rows = self.shards[which], self.rows[which]
        for name, pixels in self._maps.items():
            mine = np.flatnonzero(shards == name)
            out[mine] = pixels[rows[mine]]
        return out


def read_split(split: str, folder: Path = files.PACKED) -> Pictures:
    """Open the packed pictures of one split (`train`, `val` or `test`).

    Raises:
        RefitError: nothing packed yet, or the split has no picture.
    """
    if not (folder / INDEX).exists():
        raise RefitError(f"no {folder / INDEX}: run `dvc repro prepare` first")
    table = pq.read_table(folder / INDEX, filters=[("split", "=", split)])
    if not len(table):
        raise RefitError(f"{folder / INDEX} has no picture in split {split!r}")
    return Pictures(
        folder,
        table["path"].to_pylist(),
        table["sha256"].to_pylist(),
        table["label"].to_numpy().astype(np.int64),
        np.array(table["shard"].to_pylist()),
        table["row"].to_numpy().astype(np.int64),
    )


def read_places(folder: Path, key: str) -> dict[str, tuple[str, int]]:
    """Return content hash -> (shard, row) of what is already packed under `key`."""
    if not (folder / INDEX).exists():
        return {}
    table = pq.read_table(folder / INDEX, columns=["sha256", "shard", "row"])
    rows = zip(*(table[c].to_pylist() for c in ("sha256", "shard", "row")), strict=True)
    return {
        sha: (shard, row)
        for sha, shard, row in rows
        if shard.startswith(f"{key}/") and (folder / shard).exists()
    }


def write_index(
    folder: Path,
    manifest: pa.Table,
    classes: list[str],
    places: dict[str, tuple[str, int]],
) -> None:
    """Write the index of the manifest's rows and remove all that no row uses any more."""
    number = {name: i for i, name in enumerate(classes)}
    found = [places[sha] for sha in manifest["sha256"].to_pylist()]
    table = pa.table(
        {
            "path": manifest["path"],
            "sha256": manifest["sha256"],
            "split": manifest["split"],
            "label": pa.array([number[n] for n in manifest["label"].to_pylist()], pa.int64()),
            "shard": [shard for shard, _ in found],
            "row": pa.array([row for _, row in found], pa.int64()),
        }
    )
    with replacing(folder / INDEX) as temporary:
        pq.write_table(table, temporary)
    # The folder is DVC's: what a killed run left half written would be kept as a result.
    used = {folder / INDEX, *(folder / shard for shard, _ in found)}
    for path in {path for path in folder.rglob("*") if path.is_file()} - used:
        path.unlink()
    for empty in [d for d in folder.iterdir() if d.is_dir() and not any(d.iterdir())]:
        empty.rmdir()
