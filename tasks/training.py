"""What the two training stages share: their recipe, their place on disk, what a person sees."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from tasks import params, program
from tasks.fingerprint import fingerprint
from tasks.packed import Pictures
from tasks.vision import device
from tasks.vision.augmentation import Augmentation
from tasks.vision.errors import RefitError
from tasks.vision.loops import Epoch, Fitted, Listener, fit
from tasks.vision.parallel import Processes
from tasks.vision.recipes import Recipe
from tasks.vision.steps import Training

# Not a stage's output: DVC removes those before a stage runs, and hands out old ones.
CHECKPOINTS = Path("data/checkpoints")


def recipe_of(block: params.Training, seed: int, where: torch.device) -> Recipe:
    """Return a stage's block of params.yaml as the loop takes it."""
    names = {field.name for field in dataclasses.fields(Recipe)}
    figures = {name: value for name, value in block if name in names}
    bfloat16 = device.computes_in_bfloat16(block.precision, where.type)
    return Recipe(**figures, seed=seed, bfloat16=bfloat16)


def augmentation_of(block: params.Training) -> Augmentation:
    """Return the augmentation that a stage's block asks for."""
    return Augmentation(**block.augmentation.model_dump())


def identity(*parts: Any, pictures: tuple[Pictures, ...]) -> str:
    """Name a training by all that its result depends on: params, data, weights and code.

    Args:
        parts: JSON values: the params that are read, the SHA-256 of each file of weights.
        pictures: the splits, in order.
    """
    ours = [name for name in sorted(sys.modules) if name.partition(".")[0] in ("tasks", "__main__")]
    sources = tuple(m for m in map(sys.modules.get, ours) if m and getattr(m, "__file__", None))
    shown = [[p.sha256, p.labels.tolist()] for p in pictures]
    return fingerprint(*parts, shown, torch.__version__, sources=sources)


@dataclass(frozen=True)
class Place:
    """Where one stage of one candidate keeps what outlives a crash.

    Attributes:
        folder: `data/checkpoints/<stage>/<candidate>`.
        processes: those that train together; the first alone writes.
    """

    folder: Path
    processes: Processes

    def fit(self, training: Training, recipe: Recipe, name: str, identity: str) -> Fitted:
        """Train with a progress bar, going on from where a killed run of this identity stood.

        Each epoch's row is also appended to `live.jsonl`, with the seconds since the start and the
        pictures a second, so that others can follow without being waited for.
        """
        with bar(name, recipe.epochs * len(training.labels), self.processes) as shown:
            return fit(
                training,
                recipe,
                listener=self._listener(shown, len(training.labels)),
                processes=self.processes,
                checkpoints=self.folder / identity,
            )

    def _listener(self, shown: tqdm[Any], pictures: int) -> Listener:
        live = self.folder / "live.jsonl"
        started = time.monotonic()

        def on_epoch(row: Epoch) -> None:
            if row.epoch == 0:
                shown.reset()
            missing = row.epoch * pictures - shown.n  # resumed, or a last batch left out
            shown.initial += missing
            shown.update(missing)
            shown.set_postfix(
                epoch=row.epoch,
                loss=f"{row.val_loss if row.train_loss is None else row.train_loss:.4f}",
                val_f1=f"{row.val_f1_macro:.4f}",
                refresh=False,
            )
            if self.processes.is_first:
                seconds = time.monotonic() - started
                rate = (shown.n - shown.initial) / seconds
                line = {**row.as_row(), "seconds": seconds, "pictures_per_second": rate}
                with live.open("w" if row.epoch == 0 else "a") as file:
                    file.write(json.dumps(line) + "\n")

        return Listener(on_epoch, shown.update, say_in(self.processes))

    def clear(self) -> None:
        """Remove the checkpoints: the stage's output is written."""
        if self.processes.is_first:
            for folder in self.folder.iterdir():
                if folder.is_dir():
                    shutil.rmtree(folder)


@contextmanager
def place(stage: str, candidate: str, processes: Processes) -> Iterator[Place]:
    """Hold the place of one stage of one candidate, so that no second process trains there.

    Raises:
        RefitError: another process holds it.
    """
    folder = CHECKPOINTS / stage / candidate
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        if processes.is_first:
            lock.acquire(timeout=0)
    except Timeout:
        raise RefitError(
            f"another process runs {stage} {candidate} ({lock.lock_file} is locked): "
            "wait for it, or end it"
        ) from None
    try:
        yield Place(folder, processes)
    finally:
        lock.release()


def bar(label: str, total: int, processes: Processes) -> tqdm[Any]:
    """Return a progress bar of pictures with their rate and the ETA; the first process shows it."""
    shown = program.bar(label, "picture", total)
    shown.disable = not processes.is_first
    return shown


def say_in(processes: Processes) -> Callable[[str], None]:
    """Return what tells people something, once and not once a process."""

    def say(text: str) -> None:
        if processes.is_first:
            tqdm.write(text)

    return say
