"""What is known of every picture, kept under its content hash: a re-run pays for what is new.

One SQLite file with two tables. `files` says which content a path had when it was last read, so
that a path whose size, time and inode stayed need not be read again; `facts` says what is known of
a content. Rows go through SQLite on disk and not through Python's memory, which therefore does not
grow with the number of pictures. Losing the file costs time and nothing else.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
from PIL import __version__ as pillow_version

from tasks import program
from tasks.fingerprint import fingerprint
from tasks.gate import facts, workers
from tasks.gate.layout import Picture
from tasks.vision import duplicates, images
from tasks.vision.errors import RefitError

FACTS = Path("data/facts/facts.sqlite")
COLUMNS = facts.Facts._fields
# A file written in the same tick of the disk's clock as it was read could change once more without
# showing it; 2 s is the coarsest clock in use (FAT).
TICK_NS = 2_000_000_000
AT_ONCE = 1024  # rows a transaction
PATIENCE = 60.0  # seconds that a second scan waits for the first one's transaction

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS version (key TEXT);
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, size INT, mtime_ns INT, inode INT, sha256 BLOB, read_ns INT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (sha256 BLOB PRIMARY KEY, {", ".join(COLUMNS)}) WITHOUT ROWID;
CREATE TEMP TABLE scan (
    path TEXT PRIMARY KEY, label TEXT, split TEXT, "group" TEXT,
    size INT, mtime_ns INT, inode INT
) WITHOUT ROWID;
CREATE TEMP TABLE failures (path TEXT PRIMARY KEY, message TEXT) WITHOUT ROWID;
CREATE TEMP TABLE todo (path TEXT);
"""
# A path is trusted when nothing about it changed, and it was not touched just before the reading.
FIND_WORK = f"""
INSERT INTO todo SELECT path FROM scan
LEFT JOIN files USING (path, size, mtime_ns, inode) LEFT JOIN facts USING (sha256)
WHERE facts.sha256 IS NULL OR files.mtime_ns > files.read_ns - {TICK_NS} ORDER BY path
"""  # noqa: S608 - no value from outside
COMPLETE = "FROM scan JOIN files USING (path) JOIN facts USING (sha256)"
FORGET = """
DELETE FROM files
WHERE path NOT IN (SELECT path FROM scan) OR path IN (SELECT path FROM todo)
"""
TABLE = pa.schema(
    {
        "path": pa.string(),
        "label": pa.string(),
        "split": pa.string(),
        "group": pa.string(),
        "sha256": pa.string(),
        "bytes": pa.int64(),
        "width": pa.int32(),
        "height": pa.int32(),
        "mode": pa.string(),
        "format": pa.string(),
        "orientation": pa.int8(),
        "phash": pa.string(),
        "mean": pa.float64(),
        "std": pa.float64(),
        "sharpness": pa.float64(),
        "decodable": pa.bool_(),
        "message": pa.string(),
    }
)


@dataclass(frozen=True)
class Work:
    """How much a scan had to do.

    Attributes:
        pictures: found under the root.
        hashed: of those, how many were read, being new or changed.
        decoded: of those, how many had a content never seen before.
    """

    pictures: int
    hashed: int
    decoded: int


@contextmanager
def opened(path: Path, max_pixels: int) -> Iterator[Store]:
    """Open the store, a new one if there is none or it is damaged.

    Raises:
        RefitError: another scan is using it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        store = Store(path, max_pixels)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise RefitError(f"{path} cannot be used: {error}; is another scan running?") from None
        path.unlink()
        store = Store(path, max_pixels)
    try:
        yield store
    except sqlite3.DatabaseError as error:
        raise RefitError(f"{path}: {error}; if it is damaged, delete it: it is a cache") from None
    finally:
        store.connection.close()


class Store:
    """The facts of all pictures ever seen, and the pictures of the scan at hand."""

    def __init__(self, path: Path, max_pixels: int) -> None:
        self.path = path
        self.max_pixels = max_pixels
        self.connection = sqlite3.connect(path, timeout=PATIENCE)
        self.connection.executescript(SCHEMA)
        key = fingerprint(max_pixels, pillow_version, sources=(facts, images, duplicates))
        with self.connection as db:
            if db.execute("SELECT key FROM version").fetchall() != [(key,)]:
                db.execute("DELETE FROM facts")
                db.execute("DELETE FROM version")
                db.execute("INSERT INTO version VALUES (?)", (key,))

    def scan(self, root: Path, pictures: Iterable[Picture], timeout: float) -> Work:
        """Take in what was found under `root` and compute what is not known yet."""
        with self.connection as db:
            db.executemany("INSERT INTO scan VALUES (?, ?, ?, ?, ?, ?, ?)", pictures)
            db.execute(FIND_WORK)
            db.execute(FORGET)
        job = workers.Job(root, self.path, self.max_pixels, timeout)
        todo = self._count("todo")
        if not todo:
            return Work(self._count("scan"), 0, 0)
        paths = (path for (path,) in self.connection.execute("SELECT path FROM todo"))
        readings = workers.read_all(paths, job, min(len(os.sched_getaffinity(0)), todo))
        hashed = decoded = 0
        bar = iter(program.progress(readings, "validate", "picture", total=todo))
        while batch := list(islice(bar, AT_ONCE)):
            done = [r for r in batch if isinstance(r, workers.Reading)]
            hashed += len(done)
            decoded += sum(r.facts is not None for r in done)
            self._keep(done, [r for r in batch if isinstance(r, workers.Failure)])
        if hashed + self._count("failures") != todo:
            raise RuntimeError(f"of {todo} files only {hashed} came back from the workers")
        return Work(self._count("scan"), hashed, decoded)

    def _keep(self, done: list[workers.Reading], failed: list[workers.Failure]) -> None:
        with self.connection as db:
            db.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)",
                (r[:6] for r in done),
            )
            db.executemany(
                f"INSERT OR REPLACE INTO facts VALUES (?{', ?' * len(COLUMNS)})",  # noqa: S608
                ((r.sha256, *r.facts) for r in done if r.facts),
            )
            db.executemany("INSERT INTO failures VALUES (?, ?)", failed)

    def _count(self, table: str) -> int:
        return int(self.connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608

    def bad(self) -> dict[str, str]:
        """Return path -> reason of the pictures that do not decode or could not be read."""
        query = f"SELECT path, message {COMPLETE} WHERE NOT decodable UNION SELECT * FROM failures"  # noqa: S608
        return dict(self.connection.execute(query))

    def table(self) -> pa.Table:
        """Return the decodable pictures by path, with the columns of `TABLE`."""
        query = (
            'SELECT path, label, split, "group", lower(hex(sha256)), files.size, '
            f"{', '.join(COLUMNS)} {COMPLETE} WHERE decodable ORDER BY path"
        )
        rows = self.connection.execute(query)
        batches = []
        while batch := rows.fetchmany(AT_ONCE):
            columns = zip(*batch, strict=True)
            arrays = [pa.array(c).cast(t) for c, t in zip(columns, TABLE.types, strict=True)]
            batches.append(pa.record_batch(arrays, schema=TABLE))
        return pa.Table.from_batches(batches, TABLE)
