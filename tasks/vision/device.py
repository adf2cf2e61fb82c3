"""The device, its seeds and its memory: what every stage that computes sets up first."""

from __future__ import annotations

import os
import random
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.vision.memory import keep_freed_memory


def start(seed: int) -> torch.device:
    """Seed everything, make kernels deterministic and return the device to compute on.

    The device is the GPU where there is one; hide it with `CUDA_VISIBLE_DEVICES=`. Under
    `torchrun` it is this process's own.
    """
    keep_freed_memory()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    # cuBLAS is deterministic only with a workspace of fixed size, set before its first call.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Else every new tensor is filled, in case a kernel reads what nobody wrote: a fifth of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def computes_in_bfloat16(precision: Literal["auto", "float32", "bfloat16"], on: str) -> bool:
    """Tell whether to compute in bfloat16; `auto` does so on a GPU that has it.

    On a CPU it changed one picture's class in 150, which is not worth its gain.
    """
    if precision == "auto":
        return on == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bfloat16"


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return an array as a tensor on the device, without waiting for work that is queued there."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor
    # Only pinned memory is copied while the GPU goes on computing.
    return tensor.pin_memory().to(device, non_blocking=True)
