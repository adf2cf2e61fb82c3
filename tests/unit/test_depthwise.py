"""Depthwise convolutions that are kept in float32: which, and that nothing else changes."""

from __future__ import annotations

import torch
from torch import nn

from tasks.vision.backbones import build_classifier, fold_batchnorm
from tasks.vision.depthwise import Float32Depthwise, keep_slow_ones_in_float32


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),  # not depthwise
        nn.Conv2d(8, 8, 3, padding=1, groups=8),  # no stride, a small kernel
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),
        nn.Conv2d(8, 8, 5, padding=2, groups=8),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4),  # grouped
        nn.Conv2d(1, 1, 3, stride=2, padding=1),  # one channel is no depth
    )


def test_strided_and_large_depthwise_convolutions_are_kept_in_float32() -> None:
    made = network()
    keep_slow_ones_in_float32(made)
    kept = [place for place, layer in enumerate(made) if isinstance(layer, Float32Depthwise)]
    assert kept == [2, 3]


def test_they_compute_in_float32_under_autocast_and_give_float32_s_gradient() -> None:
    plain = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
    kept = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8))
    kept[0].load_state_dict(plain.state_dict())
    keep_slow_ones_in_float32(kept)
    images = torch.randn(2, 8, 9, 9, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = kept(images)
    expected = plain(images.float())
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    for mine, its in zip(kept.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        assert its.grad is not None
        assert torch.equal(mine.grad, its.grad)


def test_without_autocast_every_bit_stays() -> None:
    plain, kept = network()[:5], network()[:5]
    keep_slow_ones_in_float32(kept)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(kept(images), plain(images))
    assert list(kept.state_dict()) == list(plain.state_dict())


def test_a_network_with_them_is_still_folded_whole() -> None:
    torch.manual_seed(0)
    classifier = build_classifier("mobilenet_v2", 2, 64, "avg", [], 0.0).eval()
    images = torch.randn(2, 3, 64, 64)
    expected = classifier.backbone(images)
    keep_slow_ones_in_float32(classifier)
    folded = fold_batchnorm(classifier.backbone)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert sum(isinstance(module, Float32Depthwise) for module in folded.modules()) == 4
    assert torch.allclose(folded(images), expected, atol=1e-5)
