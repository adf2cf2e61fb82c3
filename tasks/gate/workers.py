"""Pictures are read by worker processes, because a decoder can hang or crash.

Each worker sets the kernel's own alarm before a file, so that a hang ends that worker, whatever the
decoder is doing; a worker that dies is replaced, and only the file it was at is blamed.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import selectors
import signal
import sqlite3
import stat
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from tasks.gate.facts import Facts, facts_of
from tasks.vision import images
from tasks.vision.errors import RefitError
from tasks.vision.memory import keep_freed_memory

AHEAD = 8  # files a worker has waiting, so that it never waits for the next
READY = "ready"
# Not forked from the stage itself, which may have threads; what it imports once serves all.
CONTEXT = multiprocessing.get_context("forkserver")


class Reading(NamedTuple):
    """What a worker found at a path.

    Attributes:
        path: relative to the root.
        size: bytes, when read.
        mtime_ns: nanoseconds, when read.
        inode: the file's number, when read.
        sha256: of the content, hex.
        read_ns: when the reading began, nanoseconds.
        facts: of the content; None when they are known already.
    """

    path: str
    size: int
    mtime_ns: int
    inode: int
    sha256: str
    read_ns: int
    facts: Facts | None


class Failure(NamedTuple):
    """A file that gave no reading, for a reason that may be gone next time."""

    path: str
    message: str


@dataclass(frozen=True, slots=True)
class Job:
    """What every worker has to know.

    Attributes:
        root: the folder that paths are relative to.
        known: an SQLite file whose table `facts` holds what need not be computed again.
        max_pixels: see `tasks.vision.images.decode`.
        timeout: seconds for one file.
    """

    root: Path
    known: Path
    max_pixels: int
    timeout: float


def read(path: str, job: Job, known: sqlite3.Connection) -> Reading | Failure:
    """Read one file; its facts are computed only if its content is not known."""
    began = time.time_ns()
    try:
        with (job.root / path).open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return Failure(path, "is no regular file any more")
            limit = job.max_pixels * images.MAX_BYTES_PER_PIXEL
            if status.st_size > limit:
                return Failure(
                    path,
                    f"{status.st_size:,} bytes: more than any picture of the "
                    f"{job.max_pixels:,} pixels allowed could take",
                )
            data = file.read()
    except OSError as error:
        return Failure(path, f"cannot be read: {error.strerror}")
    sha256 = hashlib.sha256(data).hexdigest()
    found = known.execute("SELECT 1 FROM facts WHERE sha256 = ?", (sha256,)).fetchone()
    facts = None if found else facts_of(data, job.max_pixels)
    return Reading(path, len(data), status.st_mtime_ns, status.st_ino, sha256, began, facts)


def _work(pipe: Connection, job: Job) -> None:
    """Read what comes through the pipe, until nothing does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, even inside a decoder
    # When memory runs out, the kernel is to take a worker and not the stage.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    keep_freed_memory()
    known = sqlite3.connect(f"{job.known.resolve().as_uri()}?mode=ro", uri=True, timeout=60)
    pipe.send(READY)
    try:
        while paths := pipe.recv():
            for path in paths:
                signal.setitimer(signal.ITIMER_REAL, job.timeout)
                reading = read(path, job, known)
                signal.setitimer(signal.ITIMER_REAL, 0)
                pipe.send(reading)
    except (EOFError, BrokenPipeError):
        return


@dataclass(slots=True)
class _Worker:
    """A process, our end of its pipe, and the files it has been given, the current one first."""

    process: BaseProcess
    pipe: Connection
    waiting: deque[str] = field(default_factory=deque)
    ready: bool = False


class _Pool:
    """The worker processes of one scan."""

    def __init__(self, paths: Iterable[str], job: Job) -> None:
        self.job = job
        self.todo = iter(paths)
        self.returned: deque[str] = deque()  # what a dead worker had not begun
        self.selector = selectors.DefaultSelector()
        CONTEXT.set_forkserver_preload([__name__])

    def start(self) -> None:
        pipe, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(target=_work, args=(theirs, self.job), daemon=True)
        process.start()
        theirs.close()
        self.selector.register(pipe, selectors.EVENT_READ, _Worker(process, pipe))

    def messages(self) -> Iterator[Reading | Failure]:
        while self.selector.get_map():
            for key, _ in self.selector.select():
                worker: _Worker = key.data
                try:
                    message = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    yield self.bury(worker)
                    continue
                if message == READY:
                    worker.ready = True
                else:
                    worker.waiting.popleft()
                    yield message
                self.feed(worker)

    def feed(self, worker: _Worker) -> None:
        """Give a worker that runs low its next files; end it when there are none."""
        if len(worker.waiting) > AHEAD // 2:
            return
        files = [self.returned.popleft() for _ in range(min(AHEAD, len(self.returned)))]
        files = files or list(islice(self.todo, AHEAD))
        if files:
            worker.waiting.extend(files)
            worker.pipe.send(files)
        elif not worker.waiting:
            worker.pipe.send([])  # go home
            self.end(worker)

    def bury(self, worker: _Worker) -> Failure:
        """Replace a dead worker and blame the file it was at."""
        self.end(worker)
        code = worker.process.exitcode
        if not worker.ready:
            raise RefitError(f"a worker process could not start (exit code {code}): see above")
        culprit = worker.waiting.popleft()
        self.returned.extend(worker.waiting)
        self.start()
        if code == -signal.SIGALRM:
            return Failure(culprit, f"decoding took more than {self.job.timeout:g} s")
        return Failure(culprit, f"the decoder crashed ({_cause(code)})")

    def end(self, worker: _Worker) -> None:
        self.selector.unregister(worker.pipe)
        worker.pipe.close()
        worker.process.join()

    def close(self) -> None:
        """Leave no process behind, whatever happened."""
        for key in list(self.selector.get_map().values()):
            key.data.process.kill()
            self.end(key.data)


def _cause(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def read_all(paths: Iterable[str], job: Job, workers: int) -> Generator[Reading | Failure]:
    """Read files with several processes, in whatever order they finish.

    Raises:
        RefitError: a worker died before its first file.
    """
    pool = _Pool(paths, job)
    try:
        for _ in range(workers):
            pool.start()
        yield from pool.messages()
    finally:
        pool.close()
