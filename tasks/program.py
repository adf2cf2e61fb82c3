"""What every stage's command line shares: its arguments, its progress bar, its last words."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from tqdm import tqdm

from tasks.vision.errors import RefitError

Item = TypeVar("Item")


def run(stage: Callable[[], None]) -> None:
    """Run a stage; an error meant for people ends it with exit code 1 and no traceback."""
    try:
        stage()
    except RefitError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


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
