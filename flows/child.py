"""Child processes of a flow: their output line by line as it comes, and none left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from flows import guard
from flows.guard import GRACE

QUIET = 5.0  # seconds between two progress lines where nobody watches a terminal


def run(command: Sequence[str], log: Callable[[str], None]) -> tuple[int, list[str]]:
    """Run a command under `flows/guard.py` and relay its output.

    Whatever ends this call early (a cancelled flow, Ctrl-C) ends all of the command first; so does
    the guard where this process is killed.

    Args:
        command: program and arguments; a program of this environment is found first.
        log: told of each finished line.

    Returns:
        the exit code and all finished lines.
    """
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen(
        [sys.executable, "-S", guard.__file__, *command],
        stdin=subprocess.PIPE,  # held open: its end tells the guard of ours
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,  # a Ctrl-C on the terminal comes here first
    ) as process:
        try:
            assert process.stdout is not None  # noqa: S101 - for the type checker
            lines = list(_relay(process.stdout, log))
            return process.wait(), lines
        except BaseException:
            assert process.stdin is not None  # noqa: S101 - for the type checker
            process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(2 * GRACE + 5)
            end_group(process)
            raise


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads its group, and all of the group: asked first, then made to."""
    for ending in (signal.SIGTERM, signal.SIGKILL):
        end = time.monotonic() + GRACE
        try:
            os.killpg(process.pid, ending)
            while time.monotonic() < end:
                process.poll()  # a leader that nobody waited for would keep the group alive
                os.killpg(process.pid, 0)
                time.sleep(0.05)
        except ProcessLookupError:  # the group is gone
            return


def _relay(stream: IO[bytes], log: Callable[[str], None]) -> Iterator[str]:
    """Log and yield finished lines; show a progress bar in place, or now and then."""
    watched, spoke = sys.stderr.isatty(), time.monotonic()
    for text, progress in _pieces(stream):
        if not text.strip():
            continue
        if not progress:
            if watched:
                sys.stderr.write("\r\x1b[K")
            log(text)
            yield text
        elif watched:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
        elif time.monotonic() - spoke > QUIET:
            spoke = time.monotonic()
            log(text.strip())


def _pieces(stream: IO[bytes]) -> Iterator[tuple[str, bool]]:
    """Yield text up to each line end, and whether it was a progress bar's carriage return."""
    rest = b""
    while chunk := stream.read1(65536):  # type: ignore[attr-defined]
        *pieces, rest = re.split(rb"(\r\n|\r|\n)", rest + chunk)
        for text, end in zip(pieces[::2], pieces[1::2], strict=True):
            yield text.decode(errors="replace"), end == b"\r"
    if rest:
        yield rest.decode(errors="replace"), False
