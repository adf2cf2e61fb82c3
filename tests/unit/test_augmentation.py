"""Augmentation against hand-made pictures; randomness that depends on the picture alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.vision.augmentation import Augmentation
from tasks.vision.preprocess import centre_crop
from tasks.vision.randomness import seed_of, seeds_of, uniforms

NOTHING = Augmentation(flip=0.0)
EVERYTHING = Augmentation(
    vertical_flip=0.5,
    crop_area=0.3,
    rotation=30,
    shift=0.1,
    shear=10,
    zoom=0.2,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    erasing=0.5,
)


def seeds(count: int, seed: int = 0) -> np.ndarray:
    return seeds_of(np.arange(count), seed)


def noise(count: int, side: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def ramp(side: int = 32) -> Tensor:
    """A picture whose red is its column and whose green is its row, in levels."""
    at = torch.arange(side, dtype=torch.uint8)
    return torch.stack(
        [at.expand(side, side), at.view(-1, 1).expand(side, side), at * 0 + at.view(-1, 1) * 0]
    )[None]


def test_uniform_numbers_are_uniform_and_independent() -> None:
    drawn = uniforms(seeds(20_000), 8)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(drawn.mean(0) - 0.5).max() < 0.01
    assert abs(drawn.std(0) - 12**-0.5).max() < 0.01
    assert abs(np.corrcoef(drawn.T) - np.eye(8)).max() < 0.03
    neighbours = np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]
    assert abs(neighbours) < 0.03


def test_seeds_differ_by_every_part() -> None:
    assert len({seed_of(*parts) for parts in [(0, 0), (0, 1), (1, 0), (1, 1), (0,), (1,)]}) == 6
    assert seed_of(3, 4) == seed_of(3, 4)
    assert 0 <= seed_of(2**40, -1) < 2**63


def test_nothing_asked_for_is_the_centre_crop() -> None:
    images = noise(4)
    assert torch.equal(NOTHING.levels(images, seeds(4), 12), centre_crop(images, 12).float())


def test_flips_are_exact_and_their_share_is_the_probability() -> None:
    images = noise(400, 4)
    shown = Augmentation(flip=0.3).levels(images, seeds(400), 4)
    mirrored = (shown == images.flip(-1).float()).flatten(1).all(1)
    plain = (shown == images.float()).flatten(1).all(1)
    assert (mirrored | plain).all()
    assert 0.23 < mirrored.float().mean() < 0.37


def test_the_affine_path_without_a_turn_is_the_centre_crop() -> None:
    # The least rotation that switches the path on: a thousandth of a degree.
    images = noise(4)
    moved = replace(NOTHING, rotation=1e-3).levels(images, seeds(4), 12)
    assert torch.allclose(moved, centre_crop(images, 12).float(), atol=0.05)


@pytest.mark.parametrize("flip", [{"flip": 1.0}, {"flip": 0.0, "vertical_flip": 1.0}])
def test_both_paths_flip_alike(flip: dict[str, float]) -> None:
    images = noise(4)
    exact = Augmentation(**flip).levels(images, seeds(4), 12)  # type: ignore[arg-type]
    moved = Augmentation(**flip, rotation=1e-3).levels(images, seeds(4), 12)  # type: ignore[arg-type]
    assert torch.allclose(moved, exact, atol=0.05)


def slope(channel: Tensor, axis: int) -> float:
    """The mean step from pixel to pixel along an axis, away from the borders."""
    return float(channel[6:-6, 6:-6].diff(dim=axis).mean())


def test_a_rotation_keeps_lengths_and_turns_by_no_more_than_asked() -> None:
    angles = []
    for seed in range(30):
        red = replace(NOTHING, rotation=20).levels(ramp(), seeds(1, seed), 32)[0, 0]
        dx, dy = slope(red, 1), slope(red, 0)
        assert dx * dx + dy * dy == pytest.approx(1, abs=0.02)
        angles.append(np.degrees(np.arctan2(dy, dx)))
    assert max(map(abs, angles)) <= 20.2
    assert min(angles) < -10
    assert max(angles) > 10


def test_a_zoom_scales_both_axes_alike() -> None:
    steps = []
    for seed in range(30):
        shown = replace(NOTHING, zoom=0.25).levels(ramp(), seeds(1, seed), 32)[0]
        steps.append(slope(shown[0], 1))
        assert slope(shown[1], 0) == pytest.approx(steps[-1], abs=1e-3)
    assert min(steps) >= 1 / 1.25 - 0.01
    assert max(steps) <= 1 / 0.75 + 0.01


def test_a_shift_moves_by_at_most_its_share_of_the_side() -> None:
    moved = []
    for seed in range(30):
        shown = replace(NOTHING, shift=0.125).levels(ramp(), seeds(1, seed), 32)[0]
        moved.append(float(shown[0, 16, 16] - 16))
        assert slope(shown[0], 1) == pytest.approx(1, abs=1e-3)
    assert max(map(abs, moved)) <= 4.01
    assert min(moved) < -2
    assert max(moved) > 2


def test_a_shear_slants_columns_and_leaves_rows() -> None:
    for seed in range(10):
        shown = replace(NOTHING, shear=15).levels(ramp(), seeds(1, seed), 32)[0]
        assert slope(shown[1], 1) == pytest.approx(0, abs=1e-3)
        assert slope(shown[0], 1) == pytest.approx(1, abs=1e-3)
        assert abs(slope(shown[0], 0)) <= np.tan(np.radians(15)) + 0.01


def test_a_random_crop_stays_inside_and_keeps_its_area() -> None:
    areas = []
    for seed in range(60):
        shown = replace(NOTHING, crop_area=0.25).levels(ramp(), seeds(1, seed), 32)[0]
        areas.append(slope(shown[0], 1) * slope(shown[1], 0))
        # Red runs from 0 to 31 in the picture: an inside crop shows no plateau at its border.
        assert float(shown[0, 16].diff().min()) >= 0
    assert min(areas) >= 0.24
    assert max(areas) <= 1.0
    assert np.std(areas) > 0.1


@pytest.mark.parametrize(("fill", "outside"), [("nearest", 31.0), ("reflect", None)])
def test_what_is_seen_outside_the_picture(fill: str, outside: float | None) -> None:
    for seed in range(20):
        augmentation = replace(NOTHING, shift=0.5, fill=fill)  # type: ignore[arg-type]
        row = augmentation.levels(ramp(), seeds(1, seed), 32)[0, 0, 16]
        moved = float(row[0])
        if row.diff()[0] > 0.9 and row.max() > 30.9 and int(row.argmax()) < 28:  # to the right
            beyond = row[int(row.argmax()) + 2 :]
            if outside is not None:
                assert torch.allclose(beyond, torch.tensor(outside))
            else:
                assert bool((beyond.diff() < 0).all())
            break
    else:
        pytest.fail(f"no shift to the right in 20 seeds (last began at {moved})")


def test_brightness_contrast_and_saturation_against_the_formula() -> None:
    images = noise(6, 8)
    drawn = uniforms(seeds(6), 14)
    flat = images.float()
    bright = replace(NOTHING, brightness=0.5).levels(images, seeds(6), 8)
    factor = torch.from_numpy(0.5 + drawn[:, 11]).view(-1, 1, 1, 1)
    assert torch.allclose(bright, (flat * factor).clamp(0, 255), atol=1e-3)
    grey = (flat * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    pale = replace(NOTHING, saturation=1.0).levels(images, seeds(6), 8)
    factor = torch.from_numpy(2 * drawn[:, 13]).view(-1, 1, 1, 1)
    assert torch.allclose(pale, (grey + (flat - grey) * factor).clamp(0, 255), atol=1e-3)
    mean = grey.mean((2, 3), keepdim=True)
    strong = replace(NOTHING, contrast=1.0).levels(images, seeds(6), 8)
    factor = torch.from_numpy(2 * drawn[:, 12]).view(-1, 1, 1, 1)
    assert torch.allclose(strong, (mean + (flat - mean) * factor).clamp(0, 255), atol=1e-3)


def test_a_turn_of_the_hue_leaves_grey_alone_and_keeps_the_mean() -> None:
    grey = torch.full((4, 3, 4, 4), 77, dtype=torch.uint8)
    hue = replace(NOTHING, hue=0.5)
    assert torch.allclose(hue.levels(grey, seeds(4), 4), grey.float(), atol=1e-3)
    colour = torch.tensor([150.0, 100.0, 80.0]).byte().view(1, 3, 1, 1).expand(8, 3, 4, 4)
    turned = hue.levels(colour, seeds(8), 4)
    assert torch.allclose(turned.mean(1), torch.tensor(110.0), atol=1e-3)
    assert not torch.allclose(turned, colour.float(), atol=5)


def test_erasing_sets_one_rectangle_of_the_right_size() -> None:
    images = torch.ones(300, 3, 20, 20)
    erased = Augmentation(erasing=0.4).erased(images, seeds(300)) == 0
    hit = erased.flatten(1).any(1)
    assert 0.3 < hit.float().mean() < 0.5
    for mask in erased[hit]:
        assert torch.equal(mask[0], mask[1])
        rows, columns = mask[0].any(1), mask[0].any(0)
        assert torch.equal(mask[0], rows[:, None] & columns[None])  # a rectangle
        assert rows.sum() * columns.sum() <= 0.45 * 400


@pytest.mark.parametrize("policy", ["none", "randaugment", "trivialaugment"])
def test_a_picture_is_augmented_alike_whatever_it_is_batched_with(policy: str) -> None:
    images, each = noise(6), seeds(6)
    shown = replace(EVERYTHING, policy=policy)  # type: ignore[arg-type]
    together = shown.levels(images, each, 12)
    for i in range(6):
        alone = shown.levels(images[i : i + 1], each[i : i + 1], 12)
        assert torch.allclose(alone[0], together[i], atol=1e-3)
    assert together.min() >= 0
    assert together.max() <= 255
    assert not torch.allclose(shown.levels(images, seeds(6, 1), 12), together, atol=10)


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_a_policy_leaves_torchs_generator_as_it_was(policy: str) -> None:
    before = torch.get_rng_state()
    replace(NOTHING, policy=policy).levels(noise(3), seeds(3), 12)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)


def test_only_flips_tells_what_may_be_cached() -> None:
    assert Augmentation().only_flips
    assert Augmentation(flip=0.0, fill="nearest").only_flips
    for name, value in {"rotation": 1.0, "erasing": 0.1, "vertical_flip": 0.5}.items():
        assert not replace(NOTHING, **{name: value}).only_flips  # type: ignore[arg-type]
