"""What is known of every picture, so that a re-run pays only for what is new.

`facts.sqlite` keeps the facts of every content ever seen, by its hash, from the moment they are
known; `last.arrow` keeps what the last scan found at each path, so that a file whose size, time
and inode stayed is not even read; `alike.arrow` keeps the groups of near duplicates. The latter two
are tables, compared as a whole, because a picture that is not new may cost next to nothing. Losing
any of them costs time and nothing else.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import __version__ as pillow_version

from tasks import program
from tasks.fingerprint import fingerprint
from tasks.gate import facts, layout, workers
from tasks.gate.facts import Facts
from tasks.gate.workers import Reading
from tasks.vision import duplicates, images
from tasks.vision.atomic import replacing
from tasks.vision.errors import RefitError

FOLDER = Path("data/facts")
FACTS, LAST, ALIKE = "facts.sqlite", "last.arrow", "alike.arrow"
# A file written in the same tick of the disk's clock as it was read could change once more without
# showing it; 2 s is the coarsest clock in use (FAT).
TICK_NS = 2_000_000_000
AT_ONCE = 1024  # rows a transaction
PATIENCE = 60.0  # seconds that a scan waits for another one's transaction

FACT_TYPES = {
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
IDENTITY = {"size": pa.int64(), "mtime_ns": pa.int64(), "inode": pa.uint64()}
NAMES = [(name, pa.string()) for name in ("path", "label", "split", "group")]
FOUND = pa.schema([*NAMES, *IDENTITY.items()])
READ = [("read_ns", pa.int64()), ("sha256", pa.string()), *FACT_TYPES.items()]
KNOWN = pa.schema([NAMES[0], *IDENTITY.items(), *READ])
GROUPS = pa.schema([("sha256", pa.string()), ("group", pa.string())])
MANIFEST = pa.schema([*NAMES, ("sha256", pa.string()), ("bytes", pa.int64()), *FACT_TYPES.items()])


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


@dataclass(frozen=True)
class Scan:
    """What a scan found.

    Attributes:
        work: how much it had to do.
        table: the pictures that decode, by path, with the columns of `MANIFEST`.
        bad: path -> reason of those that do not.
    """

    work: Work
    table: pa.Table
    bad: dict[str, str]


def scan(
    root: Path,
    pictures: Iterable[layout.Picture],
    max_pixels: int,
    timeout: float,
    folder: Path = FOLDER,
) -> Scan:
    """Learn the facts of all pictures; only what is new or changed is read.

    Args:
        root: the folder that the pictures' paths are relative to.
        pictures: what was found there.
        max_pixels: more are refused before decoding.
        timeout: seconds for one picture.
        folder: where facts are kept.

    Raises:
        RefitError: another scan uses the folder, or the disk fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    version = fingerprint(max_pixels, pillow_version, sources=(facts, images, duplicates))
    found = pa.Table.from_batches(_batches(pictures, FOUND), FOUND).sort_by("path")
    last = _mapped(folder / LAST, KNOWN, version)
    place = _unchanged(found, last)
    new = found["path"].filter(pc.is_null(place)).combine_chunks()
    job = workers.Job(root, folder / FACTS, max_pixels, timeout)
    try:
        with closing(_opened(folder / FACTS, version)) as database:
            fresh, decoded, failed = _read(new, job, database)
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / FACTS)) from None
        raise RefitError(
            f"{folder / FACTS}: {error}; wait for the other scan if there is one; if it is "
            "damaged, delete it: it only saves time"
        ) from None
    arrived = pc.add(pc.index_in(found["path"], value_set=fresh["path"]), len(last))
    seen = _join(found, pa.concat_tables([last, fresh]), pc.coalesce(place, arrived))
    if len(new):
        _save(folder / LAST, seen.select(KNOWN.names), version)
    return Scan(Work(len(found), len(fresh), decoded), *_judged(seen, failed))


def _batches(rows: Iterable[tuple[Any, ...]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Turn rows into columns, some at a time: as Python objects they take ten times the memory."""
    rows = iter(rows)
    while some := list(islice(rows, AT_ONCE)):
        columns = zip(*some, strict=True)
        arrays = [pa.array(c, t) for c, t in zip(columns, schema.types, strict=True)]
        yield pa.record_batch(arrays, schema=schema)


def alike(pictures: pa.Table, distance: int, folder: Path = FOLDER) -> pa.Array:
    """Return the group of near duplicates of each picture; only new ones are compared with all.

    A group that lost a picture is formed anew: what joined the others may be gone.

    Args:
        pictures: with the columns sha256 and phash.
        distance: see `tasks.vision.duplicates.group`.
        folder: where the groups are kept.
    """
    version = fingerprint(distance, sources=(duplicates,))
    last = _mapped(folder / ALIKE, GROUPS, version)
    gone = pc.invert(pc.is_in(last["sha256"], value_set=pictures["sha256"]))
    broken = pc.is_in(last["group"], value_set=last["group"].filter(gone))
    last = last.filter(pc.invert(broken))
    place = pc.index_in(pictures["sha256"], value_set=last["sha256"])
    # A group is named by one of its pictures.
    first = pc.index_in(last["group"].take(place), value_set=pictures["sha256"])
    changed = first.null_count > 0 or pc.any(gone).as_py()
    del last, gone, broken, place
    sha256, phash = pictures["sha256"].to_pylist(), pictures["phash"].to_pylist()
    known = ["" if row is None else sha256[row] for row in first.to_pylist()]
    groups = pa.array(duplicates.group(sha256, phash, distance, known), pa.string())
    if changed:
        _save(folder / ALIKE, pa.table([pictures["sha256"], groups], schema=GROUPS), version)
    return groups


def _mapped(path: Path, schema: pa.Schema, version: str) -> pa.Table:
    """Return a table saved by this version of the code; an empty one if there is none.

    The file is mapped and not read, so that what is not looked at takes no memory.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowException):
        return schema.empty_table()
    stored = (table.schema.metadata or {}).get(b"version", b"").decode()
    return table.replace_schema_metadata(None) if stored == version else schema.empty_table()


def _save(path: Path, table: pa.Table, version: str) -> None:
    table = table.replace_schema_metadata({"version": version})
    with replacing(path) as temporary, pa.ipc.new_file(temporary, table.schema) as writer:
        writer.write_table(table)


def _unchanged(found: pa.Table, last: pa.Table) -> pa.Array:
    """Return for each file found its row in `last`, or null if it has to be read.

    A row holds if size, time and inode are the same, and the file was not touched just before it
    was read.
    """
    place = pc.index_in(found["path"], value_set=last["path"])
    old = last.select([*IDENTITY, "read_ns"]).take(place)
    holds = pc.less(old["mtime_ns"], pc.subtract(old["read_ns"], TICK_NS))
    for name in IDENTITY:
        holds = pc.and_(holds, pc.equal(old[name], found[name]))
    return pc.if_else(holds, place, None)


def _opened(path: Path, version: str) -> sqlite3.Connection:
    """Open the facts, emptied if they are of another version of the code, or damaged."""
    columns = ", ".join(Facts._fields)
    database = sqlite3.connect(path, timeout=PATIENCE)
    try:
        with database:
            database.execute("CREATE TABLE IF NOT EXISTS version (key TEXT)")
            database.execute(f"CREATE TABLE IF NOT EXISTS facts (sha256 PRIMARY KEY, {columns})")
            if database.execute("SELECT key FROM version").fetchall() != [(version,)]:
                database.execute("DELETE FROM facts")
                database.execute("DELETE FROM version")
                database.execute("INSERT INTO version VALUES (?)", (version,))
    except sqlite3.DatabaseError as error:
        database.close()
        if isinstance(error, sqlite3.OperationalError):  # in use, or a full disk
            raise
        path.unlink()
        return _opened(path, version)
    return database


def _read(
    paths: pa.Array, job: workers.Job, database: sqlite3.Connection
) -> tuple[pa.Table, int, dict[str, str]]:
    """Read files, keep the facts of new contents, and return all as rows of `KNOWN`.

    Returns:
        The rows, how many contents were new, and path -> reason of files that gave no reading.
    """
    batches: list[pa.RecordBatch] = []
    failed: dict[str, str] = {}
    decoded = 0
    if len(paths):
        processes = min(len(os.sched_getaffinity(0)), len(paths))
        messages = workers.read_all((path.as_py() for path in paths), job, processes)
        bar = iter(program.progress(messages, "validate", "picture", total=len(paths)))
        while some := list(islice(bar, AT_ONCE)):
            readings = [r for r in some if isinstance(r, Reading)]
            failed |= {f.path: f.message for f in some if isinstance(f, workers.Failure)}
            decoded += sum(r.facts is not None for r in readings)
            _keep(readings, database)
            batches += _batches((_row(r, database) for r in readings), KNOWN)
    fresh = pa.Table.from_batches(batches, KNOWN)
    if len(fresh) + len(failed) != len(paths):
        raise RuntimeError(f"of {len(paths)} files only {len(fresh)} came back from the workers")
    return fresh, decoded, failed


def _keep(readings: list[Reading], database: sqlite3.Connection) -> None:
    marks = ", ".join("?" * (1 + len(Facts._fields)))
    with database:
        database.executemany(
            f"INSERT OR REPLACE INTO facts VALUES ({marks})",  # noqa: S608
            ((r.sha256, *r.facts) for r in readings if r.facts),
        )


def _row(reading: Reading, database: sqlite3.Connection) -> tuple[Any, ...]:
    known = reading.facts
    if known is None:
        query = "SELECT * FROM facts WHERE sha256 = ?"
        known = Facts(*database.execute(query, (reading.sha256,)).fetchone()[1:])
        known = known._replace(decodable=bool(known.decodable))  # SQLite has only numbers
    place = reading.path, reading.size, reading.mtime_ns, reading.inode, reading.read_ns
    return *place, reading.sha256, *known


def _join(found: pa.Table, known: pa.Table, place: pa.Array) -> pa.Table:
    """Return names and all that is known of each file found; `place` is its row in `known`."""
    valid = pc.is_valid(place)
    place = place.filter(valid)
    columns = {name: found[name].filter(valid) for name, _ in NAMES}
    for name in KNOWN.names[1:]:
        columns[name] = known[name].take(place)
        known = known.drop_columns([name])  # so that there is never a second copy of the whole
    return pa.table(columns)


def _judged(seen: pa.Table, failed: dict[str, str]) -> tuple[pa.Table, dict[str, str]]:
    """Return the rows of the manifest, and path -> reason of the files that are none."""
    table = seen.rename_columns({"size": "bytes"}).select(MANIFEST.names)
    broken = table.filter(pc.invert(table["decodable"]))
    reasons = zip(broken["path"].to_pylist(), broken["message"].to_pylist(), strict=True)
    bad = dict(sorted([*failed.items(), *reasons]))
    return (table.filter(table["decodable"]) if len(broken) else table), bad
