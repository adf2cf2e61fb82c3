"""Frozen features by content: `data/features/<key>/<shard>.npz` holds hashes and their vectors.

The key names everything that a vector depends on besides the picture (weights, preprocessing,
view, code), so a vector found here is the one that would be computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks import files
from tasks.fingerprint import fingerprint
from tasks.packed import Pictures
from tasks.vision.atomic import replacing

PART = 4096  # pictures


def read(folder: Path) -> tuple[dict[str, int], NDArray[np.float32]]:
    """Return content hash -> row, and the vectors float32 [n, D] of one key's folder."""
    hashes: list[str] = []
    parts: list[NDArray[np.float32]] = []
    for shard in sorted(folder.glob("*.npz")):
        with np.load(shard) as stored:  # allow_pickle stays off: arrays only
            hashes += stored["sha256"].tolist()
            parts.append(stored["features"])
    rows = {sha: row for row, sha in enumerate(hashes)}
    return rows, np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def note_use(candidate: str, keys: Iterable[str], root: Path = files.FEATURES) -> None:
    """Remember the keys that a candidate's training used, so that others can be removed."""
    files.write_json(root / f"{candidate}.json", sorted(keys))


def in_use(candidates: Iterable[str], root: Path = files.FEATURES) -> set[str] | None:
    """Return the keys that these candidates used last; None where one of them has not said."""
    notes = [root / f"{candidate}.json" for candidate in candidates]
    if not all(note.exists() for note in notes):
        return None
    return {key for note in notes for key in files.read_json(note)}


def features_of(
    pictures: Pictures,
    key: str,
    compute: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    root: Path = files.FEATURES,
    *,
    writes: bool = True,
) -> tuple[NDArray[np.float32], int]:
    """Return the features of all pictures, computing only those that are not stored.

    Args:
        pictures: n packed pictures.
        key: names weights, preprocessing, view and code.
        compute: positions in `pictures` -> float32 [len(positions), D].
        root: the store's folder.
        writes: whether this process is the one that stores what was computed.

    Returns:
        float32 [n, D] in the order of `pictures`, and how many were computed now.
    """
    rows, _ = stored = read(root / key)
    first: dict[str, int] = {}
    for position, sha in enumerate(pictures.sha256):
        if sha not in rows:
            first.setdefault(sha, position)
    vectors = [stored[1]] if rows else []
    todo = list(first.items())
    # Stored in parts: a run that is killed has lost one of them at most.
    for part in (todo[at : at + PART] for at in range(0, len(todo), PART)):
        new = compute(np.array([position for _, position in part], np.int64))
        if writes:
            _store(root / key, [sha for sha, _ in part], new)
        rows |= {sha: len(rows) + at for at, (sha, _) in enumerate(part)}
        vectors.append(new)
    return np.concatenate(vectors)[[rows[sha] for sha in pictures.sha256]], len(first)


def _store(folder: Path, hashes: list[str], vectors: NDArray[np.float32]) -> None:
    shard = folder / f"{fingerprint(hashes)}.npz"
    with replacing(shard) as temporary, temporary.open("wb") as file:
        np.savez(file, sha256=np.array(hashes), features=vectors)
