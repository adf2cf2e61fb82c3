"""How a process deals with the memory that it frees."""

from __future__ import annotations

import ctypes
import sys

# glibc's <malloc.h>: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_MMAP_MAX.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4


def keep_freed_memory() -> None:
    """Stop glibc from handing large blocks back to the system after every picture or batch.

    By default it maps and unmaps each, which costs as much as filling it: see mallopt(3). The
    process keeps its peak instead of its mean.
    """
    _set({_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1})


def return_freed_memory() -> None:
    """Make glibc hand every block of over a megabyte back to the system once it is freed.

    By default the limit grows to 32 MB with what a process frees, and tables of that size leave
    holes behind them.
    """
    _set({_MMAP_THRESHOLD: 2**20, _TRIM_THRESHOLD: 2**20})


def _set(options: dict[int, int]) -> None:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            for option, value in options.items():
                libc.mallopt(option, value)
