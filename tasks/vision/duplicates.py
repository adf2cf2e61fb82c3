"""Near duplicates: a perceptual hash for each picture, and groups of pictures that look alike.

Measured on the 2,624 cells of elpv-dataset, which are all alike: 64-bit hashes (pHash, dHash) fuse
unrelated cells before they recognise a shifted copy; with these 256 bits nothing unrelated is
fused up to distance 32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

THUMBNAIL = 64  # pixels a side
FREQUENCIES = 16  # lowest ones a side that are kept
BITS = FREQUENCIES * FREQUENCIES
# Levels of 255. Below this a thumbnail is plain and the signs of its frequencies are noise.
MIN_STD = 2.0
# Pairs compared at once: bounds memory (about 100 bytes a pair), whatever the number of pictures.
CHUNK = 1 << 18
# Keys of a band share 64 bits with a label of 32.
MIN_BANDS = 9
# Partners tried for each row before all are listed.
PARTNERS = 4

Integers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]


def perceptual_hash(pixels: npt.NDArray[np.uint8]) -> str:
    """Return a hash whose Hamming distance follows how different two pictures look.

    The pHash of Zauner (Implementation and Benchmarking of Perceptual Image Hash Functions, 2010)
    with 16 x 16 instead of 8 x 8 frequencies: which DCT coefficients of the grey 64 x 64 thumbnail
    exceed their median. Mirrored or turned copies are other pictures.

    Args:
        pixels: uint8 [H, W] grey or [H, W, 3] RGB.

    Returns:
        64 hex digits (256 bits), or "" for a nearly plain picture, whose hash would be noise.
    """
    size = (THUMBNAIL, THUMBNAIL)
    grey = Image.fromarray(pixels).convert("L").resize(size, Image.Resampling.BOX)
    thumbnail = np.asarray(grey, dtype=np.float64)
    if thumbnail.std() < MIN_STD:
        return ""
    # Rounded, so that coefficients that are zero but for rounding agree between machines.
    low = dctn(thumbnail, norm="ortho")[:FREQUENCIES, :FREQUENCIES].round(6)
    # The first coefficient is brightness: it would shift the median of the others.
    bits = low > np.median(low.ravel()[1:])
    return np.packbits(bits).tobytes().hex()


def group(
    sha256: Sequence[str],
    phash: Sequence[str],
    distance: int,
    known: Sequence[str] | None = None,
) -> npt.NDArray[np.object_]:
    """Name the duplicate group of each picture.

    Pictures of equal content, or whose hashes differ in at most `distance` bits, are in one group,
    and so are those joined by a chain of such pairs. A picture without a hash (see
    `perceptual_hash`) has only exact duplicates.

    Args:
        sha256: hex digest of each file's bytes.
        phash: what `perceptual_hash` returned for each, in the same order.
        distance: bits, 0..255.
        known: what an earlier call with this distance returned for each, "" for a picture that it
            did not have, or whose group has lost a picture since: only those are compared.

    Returns:
        [N] of str: the smallest sha256 of each picture's group. Does not depend on the order.
    """
    # As bytes: numpy's own strings take four a letter.
    names, first, member = np.unique(
        np.array(sha256, dtype=np.bytes_), return_index=True, return_inverse=True
    )
    hashed = np.array([bool(text) for text in phash], dtype=bool)
    label = np.arange(len(names))
    if hashed.any():
        digits = "".join(text for text in phash if text)
        words = np.frombuffer(bytes.fromhex(digits), dtype=np.uint64).reshape(-1, BITS // 64)
        unique, which = np.unique(words, axis=0, return_inverse=True)
        node = np.zeros(len(names), np.int64)
        node[member[hashed]] = which = which.reshape(-1)
        fresh, former = np.ones(len(unique), dtype=bool), np.arange(len(unique))
        if known is not None:
            had = hashed & np.array([bool(text) for text in known], dtype=bool)
            namesake = np.searchsorted(names, np.array(known, dtype=np.bytes_)[had])
            fresh[node[member[had]]] = False
            former = _joined(former, node[member[had]], node[namesake])
        look = _components(unique, distance, former, fresh)[which]
        # Files of equal content meet in `names`, files of equal looks in the nodes behind them.
        nodes = len(names) + len(unique)
        label = _joined(np.arange(nodes), member[hashed], len(names) + look)[: len(names)]
    smallest = np.full(label.max(initial=-1) + 1, len(names))
    np.minimum.at(smallest, label, np.arange(len(names)))  # `names` are sorted
    return np.array(sha256, dtype=np.object_)[first[smallest[label]][member]]


def _components(words: Words, distance: int, label: Integers, fresh: Flags) -> Integers:
    """Label distinct hashes by connected component of "at most `distance` bits apart".

    Multi-index hashing (Norouzi, Punjani and Fleet, CVPR 2012): cut into distance // 2 + 1 bands,
    two such hashes have a band in which they differ by one bit at most; only pairs that meet so
    are compared. Pairs already joined are not listed, so that a hundred thousand frames of one
    fixed camera do not make billions of pairs.

    Args:
        words: uint64 [N, 4], distinct rows.
        distance: bits.
        label: int64 [N], equal where rows are known to be joined.
        fresh: bool [N], the rows to compare with all.

    Returns:
        int64 [N].
    """
    bands = max(MIN_BANDS, distance // 2 + 1)
    for band in range(bands):
        # Every band takes bits of all frequencies: low ones alone are equal in too many pictures.
        key, width = _keys(words, band, bands)
        # A few partners for each row first: what they join need not be listed in full.
        listing = fresh
        for limit in (PARTNERS, len(words)):
            more = np.zeros(len(words), dtype=bool)
            for first, second in _candidates(key, label, width, limit, listing, more):
                label = _join_close(words, label, first, second, distance)
            listing = more
    return label


def _keys(words: Words, band: int, bands: int) -> tuple[Words, int]:
    """Return the bits of a band as one number a row, uint64 [N], and how many they are."""
    weights = np.uint64(1) << np.arange(len(range(band, BITS, bands)), dtype=np.uint64)
    keys = np.empty(len(words), np.uint64)
    for start in range(0, len(words), CHUNK >> 4):  # unpacked they take a byte a bit
        part = slice(start, start + (CHUNK >> 4))
        keys[part] = np.unpackbits(words[part].view(np.uint8), axis=1)[:, band::bands] @ weights
    return keys, len(weights)


def _candidates(
    key: Words, label: Integers, width: int, limit: int, listing: Flags, more: Flags
) -> Iterator[tuple[Integers, Integers]]:
    """Yield pairs of rows of different labels whose keys differ in at most one of `width` bits.

    Sorted by key and label, the rows that a row must be compared with are those of one key, less
    the run of its own label: two ranges, of which at most `limit` rows each are taken.

    Args:
        key: uint64 [N], of one band.
        label: int64 [N].
        width: bits of a key.
        limit: rows.
        listing: bool [N], the rows whose partners are listed.
        more: bool [N], set where a row has more partners than `limit`.
    """
    half = np.uint64(32)
    code = key << half | label.astype(np.uint64)
    order = np.argsort(code, kind="stable")
    code = code[order]
    rows = np.flatnonzero(listing[order])
    for flip in (0, *(1 << bit for bit in range(width))):
        row, target = rows, code[rows] ^ np.uint64(flip) << half  # the other key, the own label
        if len(rows) == len(code):  # of a pair, the row of the smaller key lists it
            row, target = row[target >= code], target[target >= code]
        other = target >> half << half
        start = np.searchsorted(code, other)
        end = np.searchsorted(code, other + (np.uint64(1) << half))
        met = start < end
        row, target, start, end = row[met], target[met], start[met], end[met]
        after = np.searchsorted(code, target, side="right")
        before = np.searchsorted(code, target)
        more[order[row[np.maximum(end - after, before - start) > limit]]] = True
        yield from _listed(order, row, after, np.minimum(end, after + limit))
        if flip or len(rows) < len(code):
            yield from _listed(order, row, start, np.minimum(before, start + limit))


def _listed(
    order: Integers, row: Integers, start: Integers, end: Integers
) -> Iterator[tuple[Integers, Integers]]:
    """Yield the pairs (row, each of start..end), as elements of `order`, some `CHUNK` at a time."""
    count = end - start
    total = np.cumsum(count)
    cuts = np.searchsorted(total, np.arange(CHUNK, total[-1] if len(total) else 0, CHUNK)) + 1
    for part in np.split(np.arange(len(row)), cuts):
        many = count[part]
        within = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
        yield order[np.repeat(row[part], many)], order[np.repeat(start[part], many) + within]


def _join_close(
    words: Words, label: Integers, first: Integers, second: Integers, distance: int
) -> Integers:
    """Join the labels of those pairs of rows that are at most `distance` bits apart."""
    apart = np.bitwise_count(words[first] ^ words[second]).sum(axis=1)
    close = apart <= distance
    return _joined(label, first[close], second[close]) if close.any() else label


def _joined(label: Integers, first: Integers, second: Integers) -> Integers:
    """Return new labels 0..k of rows where first[i] and second[i] share one, for every i."""
    edges = (np.ones(len(first), dtype=bool), (label[first], label[second]))
    size = int(label.max()) + 1
    component = connected_components(coo_array(edges, shape=(size, size)), directed=False)[1]
    return np.asarray(component, dtype=np.int64)[label]
