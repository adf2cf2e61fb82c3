"""Depthwise convolutions that a CPU trains faster in float32 than in bfloat16.

oneDNN (as in torch 2.15, on a processor with AVX512-BF16) computes their gradient in bfloat16
without its fast kernels wherever the stride is not 1 or the kernel larger than 3: a MobileNet's
strided ones take 2 to 17 times as long as in float32, and were two fifths of a training step.
`tests/benchmarks/depthwise.py` measures it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Float32Depthwise(nn.Conv2d):
    """A convolution that computes in float32 under a CPU's autocast, too."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the convolution of [N, C, H, W]; float32 on a CPU."""
        if images.device.type != "cpu":
            return super().forward(images)
        with torch.autocast("cpu", enabled=False):
            return super().forward(images.float())


def keep_slow_ones_in_float32(network: nn.Module) -> None:
    """Let the depthwise convolutions that bfloat16 slows down compute in float32 on a CPU.

    Weights, names and, without autocast, every bit of the result stay what they are.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_slow(module):
            module.__class__ = Float32Depthwise


def _is_slow(convolution: nn.Conv2d) -> bool:
    depthwise = convolution.groups == convolution.in_channels > 1
    return depthwise and (max(convolution.stride) > 1 or max(convolution.kernel_size) > 3)
