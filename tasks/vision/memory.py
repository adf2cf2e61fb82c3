"""How a process deals with the memory that it frees."""

from __future__ import annotations

import ctypes
import sys

# glibc's <malloc.h>: M_TRIM_THRESHOLD and M_MMAP_MAX.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Stop glibc from handing large blocks back to the system after every picture or batch.

    By default it maps and unmaps each, which costs as much as filling it: see mallopt(3). The
    process keeps its peak instead of its mean.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            libc.mallopt(_MMAP_MAX, 0)
            libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
