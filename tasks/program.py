"""What every stage's command line shares: its arguments, its progress bar, its last words."""

from __future__ import annotations

import argparse
import errno
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from tasks.vision.errors import RefitError

Item = TypeVar("Item")


# What a write to a disk without room is answered: none left, none of a quota, of a file's limit.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run(stage: Callable[[], None]) -> None:
    """Run a stage; an error meant for people ends it with exit code 1 and no traceback."""
    try:
        stage()
    except RefitError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        sys.exit(f"error: {no_room(error)}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def no_room(error: OSError) -> str:
    """Return one line on a write that found no room: the file, the disk, and what to do."""
    written = Path(error.filename or ".").absolute()
    disk = next(place for place in (written, *written.parents) if place.is_dir())
    free = shutil.disk_usage(disk).free / 1e6
    while not disk.is_mount():
        disk = disk.parent
    return (
        f"{error.filename or 'a file'} was not written ({error.strerror}): the disk at {disk} has "
        f"{free:.1f} MB left; make room (`make gc` shows how) and run it again: nothing that was "
        "there before is damaged"
    )


def candidate_argument(description: str) -> str:
    """Return the candidate named on the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("candidate", help="a name under `candidates:` in params.yaml")
    return str(parser.parse_args().candidate)


def progress(items: Iterable[Item], label: str, unit: str, total: int | None = None) -> tqdm[Item]:
    """Return `items` with a progress bar on stderr that also names the rate and the ETA."""
    return tqdm(items, desc=label, unit=unit, total=total, mininterval=0.5, dynamic_ncols=True)


def bar(label: str, unit: str, total: int) -> tqdm[Any]:
    """Return a progress bar that is moved by hand, with `.update(n)`."""
    return progress((), label, unit, total)


def refuse_divergence(epoch: int | None, param: str, value: float) -> None:
    """Fail a training whose loss stopped being a number.

    Raises:
        RefitError: `epoch` is not None; the message names the rate to lower.
    """
    if epoch is not None:
        raise RefitError(
            f"the training loss was no longer a number in epoch {epoch}: lower {param} "
            f"(it is {value:g}) in params.yaml; nothing was written"
        )
