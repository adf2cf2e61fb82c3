"""Near duplicates: what the hash tells apart, and groups equal to those of comparing all pairs."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib import resources

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tasks.vision.duplicates import group, perceptual_hash

DISTANCE = 24  # bits; the shipped one

Pixels = npt.NDArray[np.uint8]


def hex_of(bits: npt.NDArray[np.bool_]) -> str:
    return np.packbits(bits).tobytes().hex()


def apart(first: str, second: str) -> int:
    return (int(first, 16) ^ int(second, 16)).bit_count()


def random_hashes(number: int, seed: int = 0) -> npt.NDArray[np.bool_]:
    return np.random.default_rng(seed).random((number, 256)) < 0.5


def digests(number: int) -> list[str]:
    return [f"{i:064x}" for i in range(number)]


def compared_in_full(sha256: list[str], phash: list[str], distance: int) -> list[str]:
    """Group by comparing every pair, until nothing changes: the definition."""
    names = list(sha256)
    for _ in sha256:
        before = list(names)
        for i in range(len(names)):
            for j in range(len(names)):
                near = phash[i] and phash[j] and apart(phash[i], phash[j]) <= distance
                if near or sha256[i] == sha256[j]:
                    names[i] = names[j] = min(names[i], names[j])
        if names == before:
            break
    return names


# ---- the hash ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cells() -> list[Pixels]:
    """Every 40th solar cell of elpv-dataset: photographs that are all alike."""
    folder = resources.files("elpv_dataset") / "data" / "images"
    pictures = []
    for number in range(1, 2625, 40):
        data = (folder / f"cell{number:04}.png").read_bytes()
        pictures.append(np.array(Image.open(io.BytesIO(data)).convert("L")))
    return pictures


def as_jpeg(pixels: Pixels) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=50)
    return np.array(Image.open(buffer))


def half(pixels: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((150, 150)), dtype=np.uint8)


def brighter(pixels: Pixels) -> Pixels:
    return np.minimum(pixels, 243, dtype=np.uint8) + np.uint8(12)


def shifted(pixels: Pixels) -> Pixels:
    return np.asarray(np.roll(pixels, 1, axis=1), dtype=np.uint8)


@pytest.mark.parametrize(
    ("change", "recognised"), [(as_jpeg, 0.98), (half, 0.98), (brighter, 1.0), (shifted, 0.9)]
)
def test_a_changed_copy_is_a_near_duplicate(
    change: Callable[[Pixels], Pixels], recognised: float, cells: list[Pixels]
) -> None:
    near = [apart(perceptual_hash(c), perceptual_hash(change(c))) <= DISTANCE for c in cells]
    assert np.mean(near) >= recognised


def test_different_pictures_that_are_all_alike_are_not_fused(cells: list[Pixels]) -> None:
    names = group(digests(len(cells)), [perceptual_hash(cell) for cell in cells], DISTANCE)
    assert len(set(names)) == len(cells)


def test_hash_of_a_hand_computed_picture() -> None:
    """A cosine of k half-waves across has one coefficient: the only one above the median of 0."""
    column = np.cos(np.pi * (np.arange(64) + 0.5) * 3 / 64)
    pixels = np.tile(np.round(127.5 + 100 * column), (64, 1)).astype(np.uint8)
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(perceptual_hash(pixels)), dtype=np.uint8))
    assert bits.reshape(16, 16)[0, [0, 3]].tolist() == [1, 1]  # brightness and the wave
    assert bits.reshape(16, 16)[1:].sum() == 0  # nothing changes from row to row


def test_grey_and_its_rgb_copy_have_one_hash(cells: list[Pixels]) -> None:
    assert perceptual_hash(cells[0]) == perceptual_hash(cells[0][..., None].repeat(3, axis=2))
    assert len(perceptual_hash(cells[0])) == 64


def test_plain_pictures_have_no_hash() -> None:
    plain = np.full((40, 50, 3), 200, dtype=np.uint8)
    assert perceptual_hash(plain) == ""
    plain[:20] += 1
    assert perceptual_hash(plain) == ""


# ---- groups --------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", [0, 1, 5, 24, 60])
def test_groups_are_those_of_comparing_all_pairs(distance: int) -> None:
    rng = np.random.default_rng(distance)
    base = random_hashes(12, seed=1)
    # Chains of copies about `distance` bits apart: some within it, some just beyond.
    near = base[rng.integers(0, 12, 60)] ^ (rng.random((60, 256)) < distance / 256)
    phash = [hex_of(bits) for bits in np.vstack([base, near])]
    phash[5] = phash[30] = ""
    sha256 = [str(name) for name in rng.permutation(digests(len(phash)))]
    sha256[30] = sha256[31]
    names = group(sha256, phash, distance)
    assert names.tolist() == compared_in_full(sha256, phash, distance)


@pytest.mark.parametrize(("bits", "together"), [(24, True), (25, False)])
def test_the_distance_is_inclusive_wherever_the_bits_are(bits: int, together: bool) -> None:
    base = random_hashes(1)[0]
    for seed in range(15):
        other = base.copy()
        other[np.random.default_rng(seed).permutation(256)[:bits]] ^= True
        names = group(digests(2), [hex_of(base), hex_of(other)], 24)
        assert (names[0] == names[1]) is together


def test_a_chain_is_one_group_named_by_its_smallest_sha256() -> None:
    bits = np.repeat(random_hashes(1), 4, axis=0)
    for step in range(1, 4):
        bits[step:, 20 * step : 20 * step + 20] ^= True
    names = group(["d", "b", "c", "e"], [hex_of(b) for b in bits], 24)
    assert names.tolist() == ["b"] * 4


def test_pictures_without_a_hash_have_only_exact_duplicates() -> None:
    assert group(["b", "a", "b", "c"], ["", "", "", ""], 24).tolist() == ["b", "a", "b", "c"]


def test_no_pictures() -> None:
    assert group([], [], 24).tolist() == []


def test_order_does_not_matter() -> None:
    bits = random_hashes(3)[[0, 1, 2, 0, 1, 2, 0]] ^ (random_hashes(7, 5) & random_hashes(7, 6))
    phash = [hex_of(b) for b in bits]
    names = group(digests(7), phash, 100)
    assert group(digests(7)[::-1], phash[::-1], 100).tolist() == names.tolist()[::-1]


def test_many_equal_or_nearly_equal_hashes_are_one_group() -> None:
    """All pairs would be 200 million: a list of them does not fit in memory."""
    number = 20_000
    rng = np.random.default_rng(0)
    equal = [hex_of(random_hashes(1)[0])] * number
    assert set(group(digests(number), equal, 24)) == {digests(1)[0]}
    frames = np.repeat(random_hashes(1), number, axis=0) ^ (rng.random((number, 256)) < 6 / 256)
    assert set(group(digests(number), [hex_of(f) for f in frames], 24)) == {digests(1)[0]}
