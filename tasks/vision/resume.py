"""Checkpoints of a training: tensors and text only, written whole or not at all."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from tasks.vision import checkpoints
from tasks.vision.errors import RefitError

SECONDS = 30.0  # between two checkpoints: what a kill can cost


class Checkpoint:
    """One training's file: where it stands, to go on from there with the same bits.

    Args:
        path: the file; who chooses it must name it by all that the training depends on.
        seconds: how long to wait between two writes.
    """

    def __init__(self, path: Path, seconds: float = SECONDS) -> None:
        self.path = path
        self._seconds = seconds
        self._written = time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return what `save` wrote last: tensors and position; None without a usable file."""
        if not self.path.exists():
            return None
        try:
            tensors, metadata = checkpoints.load(self.path)
            return tensors, json.loads(metadata["position"])
        except (RefitError, KeyError, ValueError):
            # A disk that lost its power half-way: training anew is right, if longer.
            return None

    @property
    def is_due(self) -> bool:
        """Whether the last write is long enough ago."""
        return time.monotonic() - self._written >= self._seconds

    def save(self, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> None:
        """Write the file; `position` holds plain JSON values."""
        checkpoints.save(self.path, tensors, {"position": json.dumps(position)})
        self._written = time.monotonic()


@contextmanager
def postponed_signals() -> Iterator[Callable[[], bool]]:
    """Hold SIGINT and SIGTERM back; yield a function that tells whether one has come.

    The block looks at a moment that suits it and raises KeyboardInterrupt itself. A second signal
    interrupts at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may set handlers
        return
    came: list[int] = []

    def note(number: int, _frame: object) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
