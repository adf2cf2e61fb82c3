"""Frozen features: what a picture gives does not depend on what is computed beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.vision.augmentation import Augmentation
from tasks.vision.backbones import fold_batchnorm
from tasks.vision.device import computes_in_bfloat16
from tasks.vision.features import BATCH, extract, view_input
from tasks.vision.preprocess import centre_crop, network_input, normalise
from tasks.vision.randomness import seeds_of
from tests.unit import toy

CPU = torch.device("cpu")
COUNT = 75  # two whole batches and a part
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 10, 10, 3), dtype=np.uint8)
CONTENTS = seeds_of(np.arange(COUNT))
SHOWN = Augmentation(crop_area=0.5, rotation=10)


def inputs_of(view: int, which: NDArray[np.int64]) -> Tensor:
    return view_input(view, PIXELS[which], toy.SPEC, CPU, SHOWN, CONTENTS[which])


def features(which: NDArray[np.int64], view: int = 1) -> NDArray[np.float32]:
    classifier = toy.classifier().eval()
    backbone = fold_batchnorm(classifier.backbone)
    return extract(
        lambda images: classifier.head.pool(backbone(images)),
        lambda rows: inputs_of(view, rows),
        which,
        on_batch=lambda _: None,
    )


@pytest.mark.parametrize("view", [1, 2, 3])
def test_a_pictures_features_are_the_same_bits_whatever_is_beside_it(view: int) -> None:
    whole = features(np.arange(COUNT), view)
    assert whole.dtype == np.float32
    assert whole.shape == (COUNT, 6)
    for which in (np.array([70]), np.array([3, 70, 12]), np.arange(COUNT)[::-1]):
        assert np.array_equal(features(which, view), whole[which])


def test_features_are_those_of_the_network_itself() -> None:
    classifier = toy.classifier().eval()
    with torch.inference_mode():
        own = classifier.features(network_input(PIXELS, toy.SPEC, CPU)).numpy()
    assert np.allclose(features(np.arange(COUNT)), own, atol=1e-5)


def test_every_forward_pass_has_the_same_size_and_the_bar_counts_pictures() -> None:
    sizes: list[int] = []
    done: list[int] = []

    def size_of(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return images.flatten(1)

    extract(size_of, lambda rows: inputs_of(1, rows), np.arange(COUNT), on_batch=done.append)
    assert sizes == [BATCH] * 3
    assert done == [32, 32, 11]


def test_views_are_the_centre_its_mirror_image_and_augmented_ones() -> None:
    which = np.arange(4)
    images = torch.from_numpy(PIXELS[which]).permute(0, 3, 1, 2)
    plain = normalise(centre_crop(images, 8), toy.SPEC)
    assert torch.equal(inputs_of(1, which), plain)
    assert torch.equal(inputs_of(2, which), plain.flip(-1))
    third, fourth = inputs_of(3, which), inputs_of(4, which)
    assert not torch.allclose(third, plain, atol=0.1)
    assert not torch.allclose(third, fourth, atol=0.1)
    assert torch.equal(third, inputs_of(3, which))


def test_bfloat16_is_for_gpus_unless_asked_for() -> None:
    assert not computes_in_bfloat16("auto", "cpu")
    assert computes_in_bfloat16("bfloat16", "cpu")
    assert not computes_in_bfloat16("float32", "cuda")


def test_bfloat16_changes_features_by_no_more_than_its_rounding() -> None:
    exact = features(np.arange(COUNT))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = features(np.arange(COUNT))
    # 8 bits of mantissa, through three layers.
    assert np.abs(rounded - exact).max() < 4 * 2**-8 * np.abs(exact).max()
    assert not np.array_equal(rounded, exact)
