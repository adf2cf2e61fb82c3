"""Stage `prepare`: decode and shrink each accepted picture once, into packed shards of bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from tasks import files, packed, params, program
from tasks.fingerprint import fingerprint
from tasks.vision import images, preprocess
from tasks.vision.atomic import replacing
from tasks.vision.errors import PictureError, RefitError

PICTURES_A_SHARD = 1024  # 200 MB at 256 pixels: large enough to read fast, small enough to push


def shrink(path: Path, side: int, max_pixels: int) -> NDArray[np.uint8]:
    """Decode one picture to the packed square: uint8 [side, side, 3] RGB.

    Raises:
        RefitError: the file changed since it was validated and cannot be read any more.
    """
    try:
        pixels = torch.from_numpy(images.read_picture(path, max_pixels)).permute(2, 0, 1)[None]
    except (PictureError, OSError) as error:
        raise RefitError(f"{path}: {error}; it was readable when validated: run it again") from None
    square = preprocess.resize_square(pixels, side)[0].permute(1, 2, 0)
    return square.to(torch.uint8).numpy()


def write_shard(folder: Path, key: str, pixels: Iterator[NDArray[np.uint8]], ids: list[str]) -> str:
    """Write one shard, picture by picture, and return its name under `folder`.

    Not by a memory map: where the disk is full, the first write to one ends the process.
    """
    name = f"{key}/{fingerprint(ids)}.npy"
    with replacing(folder / name) as temporary, temporary.open("wb") as shard:
        first = next(pixels)
        described = np.lib.format.header_data_from_array_1_0(first)
        described["shape"] = (len(ids), *first.shape)
        np.lib.format.write_array_header_1_0(shard, described)
        for picture in chain([first], pixels):
            shard.write(picture.tobytes())
    return name


def main() -> None:
    """Pack what is new, then write the index of the whole manifest."""
    settings = params.load()
    side, max_pixels = settings.prepare.resize, settings.validate_.max_pixels
    manifest = pq.read_table(files.MANIFEST, columns=["path", "sha256", "label", "split"])
    path_of = dict(zip(manifest["sha256"].to_pylist(), manifest["path"].to_pylist(), strict=True))
    key = fingerprint(side, sources=(images, preprocess))
    places = packed.read_places(files.PACKED, key)
    new = [sha for sha in path_of if sha not in places]
    torch.set_num_threads(1)  # one picture a thread: more threads inside would only fight
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        program.bar("prepare", "picture", len(new)) as bar,
    ):
        for start in range(0, len(new), PICTURES_A_SHARD):
            ids = new[start : start + PICTURES_A_SHARD]
            jobs = [pool.submit(shrink, files.RAW / path_of[sha], side, max_pixels) for sha in ids]

            def arriving(jobs: list = jobs) -> Iterator[NDArray[np.uint8]]:
                while jobs:
                    yield jobs.pop(0).result()
                    bar.update()

            shard = write_shard(files.PACKED, key, arriving(), ids)
            places |= {sha: (shard, row) for row, sha in enumerate(ids)}
    packed.write_index(files.PACKED, manifest, files.read_json(files.CLASSES), places)
    print(f"packed {len(new)} new pictures of {len(path_of)} at {side} pixels")


if __name__ == "__main__":
    program.run(main)
