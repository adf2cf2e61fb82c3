"""The device, its seeds and its memory: what every stage that computes sets up first."""

from __future__ import annotations

import ctypes
import random
import sys

import numpy as np
import torch

# glibc's <malloc.h>: M_TRIM_THRESHOLD and M_MMAP_MAX.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def start(seed: int) -> torch.device:
    """Seed everything, make kernels deterministic and return the device to compute on.

    The device is the GPU where there is one; hide it with `CUDA_VISIBLE_DEVICES=`.
    """
    _keep_freed_memory()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _keep_freed_memory() -> None:
    """Stop glibc from handing activations back to the system at every batch.

    By default it maps and unmaps each large tensor, which costs more than computing it: see
    mallopt(3). The process keeps its peak instead of its mean.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            libc.mallopt(_MMAP_MAX, 0)
            libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
