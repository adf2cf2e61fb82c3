"""One retrain at a time in a workspace: who holds it, and what a run may change while it does."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tasks import files, params
from tasks.vision.errors import RefitError

# DVC's own place for what is of this machine and this moment; git does not see it.
FOLDER = Path(".dvc/tmp")
LOCK = FOLDER / "retrain.lock"
OWNER = FOLDER / "retrain.json"
# While a run has figures of its own: params.yaml as it was, and as that run wrote it.
KEPT = FOLDER / "params.yaml.kept"
LAID = FOLDER / "params.yaml.laid"


class BusyError(RefitError):
    """Another retrain holds this workspace."""


def owner() -> str:
    """Return who holds the workspace, as far as it has said so yet."""
    try:
        known = files.read_json(OWNER)
    except (OSError, ValueError):
        return "another retrain that is just starting"
    return f"a retrain on {known['host']}, pid {known['pid']}, since {known['since']}"


@contextmanager
def claimed(*, wait: bool = False, told: Callable[[str], None] = print) -> Iterator[None]:
    """Hold this workspace for the time of the block.

    The lock is the operating system's: a process that dies, however, no longer holds it.

    Args:
        wait: for the present owner to end, instead of giving up.
        told: is told who is waited for.

    Raises:
        BusyError: another process holds it; the message names it.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    lock = FileLock(LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise BusyError(
                f"{Path.cwd()} is held by {owner()}: two retrains at once would overwrite each "
                "other; wait for it, or end it"
            ) from None
        told(f"waiting for {owner()}, which holds {Path.cwd()}")
        lock.acquire(poll_interval=1)
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        files.write_json(OWNER, {"host": socket.gethostname(), "pid": os.getpid(), "since": since})
        put_back()
        yield
    finally:
        OWNER.unlink(missing_ok=True)
        lock.release()


def put_back() -> None:
    """Undo what `laid_over` wrote, after the run or where a killed run could not.

    A params.yaml that a person edited meanwhile is theirs and stays.
    """
    if KEPT.exists() and LAID.exists() and LAID.read_bytes() == params.PATH.read_bytes():
        KEPT.replace(params.PATH)
    KEPT.unlink(missing_ok=True)
    LAID.unlink(missing_ok=True)


@contextmanager
def laid_over(candidates: Sequence[str], overrides: Mapping[str, Any]) -> Iterator[None]:
    """Let params.yaml say, for the time of the block, what one run asks otherwise.

    DVC and every stage read that file, so all see the same figures; the results of the usual ones
    stay in DVC's cache and come back from there.

    Args:
        candidates: those to compare, of the ones in params.yaml; none means all.
        overrides: dotted name -> value, as `dvc exp run -S` takes them.

    Raises:
        RefitError: a name or a value that params.yaml cannot hold.
    """
    if not candidates and not overrides:
        yield
        return
    text = _changed(params.PATH.read_text(encoding="utf-8"), candidates, overrides)
    # LAID first: what is not laid over yet must not look as if a person had edited it.
    files.write_text(LAID, text)
    files.write_text(KEPT, params.PATH.read_text(encoding="utf-8"))
    files.write_text(params.PATH, text)
    try:
        params.load()
        yield
    finally:
        put_back()


def _changed(text: str, candidates: Sequence[str], overrides: Mapping[str, Any]) -> str:
    """Return the text of params.yaml with other figures, comments and order kept."""
    from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

    known = params.load()
    for name in candidates:
        params.candidate(known, name)
    tree = parse_yaml_for_update(text, str(params.PATH))
    for name, value in overrides.items():
        *path, last = name.split(".")
        block = tree
        for key in path:
            block = block.setdefault(key, {}) if isinstance(block, dict) else None
        if not isinstance(block, dict):
            raise RefitError(f"overrides: {name!r} is no place in {params.PATH}")
        block[last] = value
    for name in [name for name in tree["candidates"] if candidates and name not in candidates]:
        del tree["candidates"][name]
    changed: str = dumps_yaml(tree)
    return changed
