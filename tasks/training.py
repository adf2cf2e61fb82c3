"""What the two training stages share: their recipe, their place on disk, what a person sees."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from tasks import curves, files, params, program
from tasks.fingerprint import fingerprint
from tasks.packed import Pictures
from tasks.vision import device
from tasks.vision.augmentation import Augmentation
from tasks.vision.errors import RefitError
from tasks.vision.loops import Epoch, Fitted, Listener, fit
from tasks.vision.parallel import Processes
from tasks.vision.recipes import Recipe
from tasks.vision.steps import Training

SENT_AFTER = 5.0  # seconds; a shorter training never pays for a process that follows it


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


class Sender:
    """The process that shows a training in MLflow while it lasts: `tasks.live`.

    What goes wrong there stays there: training neither imports MLflow, nor waits, nor reads.

    Args:
        stage: that trains.
        candidate: that is trained.
        log: file for what the process has to say.
    """

    def __init__(self, stage: str, candidate: str, log: Path) -> None:
        self._command = [sys.executable, "-m", "tasks.live", stage, candidate]
        self._log = log
        self._due = float("inf")
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self, seconds: float) -> None:
        """Let it start at the first look after so many seconds."""
        self._due = time.monotonic() + seconds

    def look(self) -> None:
        """Start it if it is time."""
        if time.monotonic() < self._due:
            return
        self._due = float("inf")
        # Its standard input is a pipe that closes when the stage is gone, however it went. Its
        # output is not the stage's: who reads that to its end would wait for this process too.
        with suppress(OSError), self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT
            )

    def end(self, status: str) -> None:
        """Tell it how the stage ended, and do not wait for it."""
        pipe = self._process and self._process.stdin
        if pipe and not pipe.closed:
            with suppress(OSError), pipe:
                pipe.write(status.encode())


class Journal:
    """`live.jsonl`: what trains, then its epochs as they come, for others to follow.

    Args:
        path: the file.
        training: its identity.
        figures: the params that it trains with.
        resumed: whether it goes on where it was interrupted; its epochs keep their times then.
    """

    def __init__(
        self, path: Path, training: str, figures: dict[str, Any], *, resumed: bool
    ) -> None:
        head, *rows = (curves.read_lines(path) if resumed else []) or [{}]
        self._path, self._attempt = path, -1
        known = rows if head.get("training") == training else []
        self._known = {(row["attempt"], row["epoch"]): row for row in known}
        self._write("w", {"training": training, "params": figures})

    def add(self, epoch: Epoch, rate: float | None) -> None:
        """Append an epoch and the pictures a second; a second attempt begins at epoch 0 again."""
        self._attempt += epoch.epoch == 0
        row = {"attempt": self._attempt, **epoch.as_row()}
        known = self._known.get((self._attempt, epoch.epoch), {})
        now = {"time": int(time.time() * 1000), "pictures_per_second": rate}
        self._write("a", known if row.items() <= known.items() else {**row, **now})

    def _write(self, mode: str, line: dict[str, Any]) -> None:
        with self._path.open(mode, encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


@dataclass(frozen=True)
class Place:
    """Where one stage of one candidate keeps what outlives a crash.

    Attributes:
        folder: `data/checkpoints/<stage>/<candidate>`.
        processes: those that train together; the first alone writes.
        sender: shows the training in MLflow.
    """

    folder: Path
    processes: Processes
    sender: Sender

    def fit(
        self, training: Training, recipe: Recipe, name: str, identity: str, block: params.Training
    ) -> Fitted:
        """Train with a progress bar, going on from where a killed run of this identity stood.

        Each epoch's row is also appended to `live.jsonl`, so that others can follow without being
        waited for.

        Args:
            training: what is trained.
            recipe: how.
            name: for the bar.
            identity: of this training.
            block: the params behind `recipe`, to be shown beside the epochs.
        """
        checkpoints = self.folder / identity
        journal = None
        if self.processes.is_first:
            resumed = checkpoints.exists()
            path, figures = self.folder / "live.jsonl", block.model_dump()
            journal = Journal(path, identity, figures, resumed=resumed)
            # One that goes on may have little left, and a run in MLflow that says KILLED.
            self.sender.begin(0.0 if resumed else SENT_AFTER)
        with bar(name, recipe.epochs * len(training.labels), self.processes) as shown:
            return fit(
                training,
                recipe,
                listener=self._listener(shown, len(training.labels), journal),
                processes=self.processes,
                checkpoints=checkpoints,
            )

    def _listener(self, shown: tqdm[Any], pictures: int, journal: Journal | None) -> Listener:
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
            if journal:
                seen = shown.n - shown.initial
                journal.add(row, seen / (time.monotonic() - started) if seen else None)
                self.sender.look()

        def on_pictures(count: int) -> None:
            shown.update(count)
            self.sender.look()

        return Listener(on_epoch, on_pictures, say_in(self.processes))

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
    folder = files.CHECKPOINTS / stage / candidate
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
    sender = Sender(stage, candidate, folder / "sender.log")
    try:
        yield Place(folder, processes, sender)
        sender.end("FINISHED")
    except Exception:
        sender.end("FAILED")
        raise
    finally:
        sender.end("")  # interrupted; it ends its run as one that was killed
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
