"""Finding pictures and their labels under `data/raw`, whichever of the three layouts it has.

`<class>/**`, `{train,val,test}/<class>/**`, or a `labels.csv` (path,label[,split][,group]) beside
the pictures. Nothing outside the folder is ever read, and every folder is read at most once, so
symbolic links can neither smuggle files in nor make the walk endless.
"""

from __future__ import annotations

import csv
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tasks.split import SPLITS
from tasks.vision import images
from tasks.vision.errors import RefitError

TABLE = "labels.csv"
NAMED = 20  # of the files that are left aside, how many are named for each reason


class Picture(NamedTuple):
    """A file that claims to be a picture.

    Attributes:
        path: relative to the root, with forward slashes.
        label: class name, in Unicode's composed form.
        split: `train`, `val`, `test`, or empty where the data does not say.
        group: pictures of one group stay in one split; empty where the data does not say.
        size: bytes.
        mtime_ns: when the file was last written, nanoseconds.
        inode: the file's number on its disk.
    """

    path: str
    label: str
    split: str
    group: str
    size: int
    mtime_ns: int
    inode: int


@dataclass(slots=True)
class Aside:
    """What is not trained on and why.

    Attributes:
        bad: path -> reason, of files somebody meant to be trained on.
        ignored: reason -> count, of files that are none of the gate's business.
        names: reason -> the first paths that were ignored for it.
        classes: every class that has a folder, be it an empty one.
    """

    bad: dict[str, str] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)
    classes: set[str] = field(default_factory=set)

    def ignore(self, path: str, reason: str) -> None:
        """Count a file that nobody meant to be trained on; the first ones are named."""
        self.ignored[reason] += 1
        if len(names := self.names.setdefault(reason, [])) < NAMED:
            names.append(path)


def find(root: Path, aside: Aside) -> Iterator[Picture]:
    """Yield the pictures under `root` and collect in `aside` what is none.

    Raises:
        RefitError: no such folder, nothing in it, split folders mixed with others, or a
            labels.csv that cannot be read.
    """
    if not root.is_dir():
        raise RefitError(
            f"no folder {root}: put pictures there, one folder a class ({root}/cats/1.jpg), "
            "or run `make demo`"
        )
    if (root / TABLE).is_file():
        yield from _from_table(root, aside)
    else:
        yield from _from_folders(root, aside)


def _from_folders(root: Path, aside: Aside) -> Iterator[Picture]:
    """Yield pictures whose folder names their class, below a split's folder where there is one."""
    folders = _folders(root)
    by_split = _are_splits(root, folders)
    parents = [root / name for name in folders] if by_split else [root]
    aside.classes.update(composed(name) for parent in parents for name in _folders(parent))
    for path, info in _walk(root, aside):
        split, _, rest = path.partition("/") if by_split else ("", "", path)
        label, _, name = rest.partition("/")
        if name:
            yield _picture(path, composed(label), split, "", info)
        else:
            aside.bad[path] = "lies in no class's folder, so it has no label"


def _folders(parent: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(parent) if e.is_dir() and not e.name.startswith("."))


def _are_splits(root: Path, folders: list[str]) -> bool:
    if not folders:
        raise RefitError(
            f"{root} holds no folder and no {TABLE}: put pictures there, one folder a class "
            f"({root}/cats/1.jpg)"
        )
    splits = [name for name in folders if name in SPLITS]
    others = [name for name in folders if name not in SPLITS]
    if splits and others:
        raise RefitError(
            f"{root} mixes split folders ({', '.join(splits)}) with others "
            f"({', '.join(others[:5])}): use either {root}/<class>/ or "
            f"{root}/{{train,val,test}}/<class>/"
        )
    return bool(splits)


def _from_table(root: Path, aside: Aside) -> Iterator[Picture]:
    """Yield the pictures that labels.csv lists; what it does not list is ignored."""
    top = root.resolve()
    listed: dict[str, int] = {TABLE: 0}
    for line, row in _rows(root / TABLE):
        path = row["path"].removeprefix("./")
        reason = _row_trouble(row, listed.get(path))
        listed.setdefault(path, line)
        found = None if reason else _stat_listed(top, path)
        if isinstance(found, os.stat_result):
            label = composed(row["label"])
            yield _picture(path, label, row.get("split", ""), row.get("group", ""), found)
        else:
            aside.bad[path or f"{TABLE} line {line}"] = f"{TABLE} line {line}: {reason or found}"
    beside = Aside()
    paths = {path for path, _ in _walk(root, beside)} | beside.bad.keys()
    for path in sorted(paths - listed.keys()):
        beside.ignore(path, f"not in {TABLE}")
    aside.ignored, aside.names = beside.ignored, beside.names


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, row) of labels.csv with blanks trimmed."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            missing = {"path", "label"} - set(reader.fieldnames or ())
            if missing:
                raise RefitError(
                    f"{table} has no column {' and '.join(sorted(missing))}: its first line has to "
                    "name the columns path,label[,split][,group]"
                )
            for row in reader:
                yield reader.line_num, {k: (v or "").strip() for k, v in row.items() if k}
    except (UnicodeDecodeError, csv.Error) as error:
        raise RefitError(f"{table} is not a UTF-8 CSV file: {error}") from None


def _row_trouble(row: dict[str, str], earlier: int | None) -> str | None:
    """Return what is wrong with a row of labels.csv by itself; None when nothing is."""
    path, split = row["path"], row.get("split", "")
    if not path:
        return "no path"
    if earlier is not None:
        return f"listed in line {earlier} already"
    if not row["label"]:
        return "no label"
    if split and split not in SPLITS:
        return f"split {split!r} is none of {', '.join(SPLITS)}"
    if path.startswith("/") or ".." in PurePosixPath(path).parts:
        return "path leads out of the data folder"
    return None


def _stat_listed(top: Path, path: str) -> os.stat_result | str:
    """Return the stat of a listed file, or why it must not be read."""
    try:
        info = (top / path).stat()
    except (OSError, ValueError) as error:
        return _stat_trouble(top / path, error)
    if stat.S_ISDIR(info.st_mode):
        return "is a folder"
    return _refusal(top / path, info, top) or info


def _walk(root: Path, aside: Aside) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (relative path, stat) of every file with a picture's suffix, in a fixed order."""
    top = root.resolve()
    seen = {_identity(top.stat()): "."}
    stack = [""]
    while stack:
        folder = stack.pop()
        try:
            entries = sorted(os.scandir(top / folder), key=attrgetter("name"), reverse=True)
        except OSError as error:
            aside.bad[folder] = f"folder cannot be read: {error.strerror}"
            continue
        below = []
        while entries:
            entry = entries.pop()  # freed at once: it keeps its stat, half a kilobyte
            path = f"{folder}/{entry.name}" if folder else entry.name
            info = _examine(entry, path, top, aside)
            if info is None:
                continue
            if not stat.S_ISDIR(info.st_mode):
                yield path, info
            elif (first := seen.setdefault(_identity(info), path)) == path:
                below.append(path)
            else:
                aside.bad[path] = f"leads to a folder that is read already: {first}"
        stack += reversed(below)


def _examine(entry: os.DirEntry[str], path: str, top: Path, aside: Aside) -> os.stat_result | None:
    """Return the stat of a folder or picture to read; None, with the reason kept, for others."""
    if entry.name.startswith("."):
        aside.ignore(_printable(path), "hidden")
        return None
    if not path.isascii() and path != _printable(path):
        aside.bad[_printable(path)] = "its name is not UTF-8: rename it"
        return None
    try:
        info = entry.stat()
    except OSError as error:
        aside.bad[path] = _stat_trouble(top / path, error)
        return None
    folder = stat.S_ISDIR(info.st_mode)
    dot = entry.name.rfind(".")
    suffix = entry.name[dot:].lower() if dot > 0 else ""
    if not folder and suffix not in images.SUFFIXES:
        aside.ignore(path, f"not a picture: {suffix or 'no suffix'}")
        return None
    if not entry.is_symlink() and (folder or stat.S_ISREG(info.st_mode)):
        return info
    if reason := _refusal(top / path, info, top):
        aside.bad[path] = reason
        return None
    return info


def _refusal(path: Path, info: os.stat_result, top: Path) -> str | None:
    """Return why something that exists must not be read; None when it may."""
    if not path.resolve().is_relative_to(top):
        return "symbolic link to a place outside the data folder: copy the file in"
    if not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
        return "is neither a file nor a folder"
    return None


def _stat_trouble(path: Path, error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):
        return f"is no possible path: {error}"
    if isinstance(error, FileNotFoundError):
        return "broken symbolic link" if path.is_symlink() else "no such file"
    return f"cannot be read: {error.strerror}"


def _printable(path: str) -> str:
    """Return a path in which bytes that are not UTF-8 are written as backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _picture(path: str, label: str, split: str, group: str, info: os.stat_result) -> Picture:
    return Picture(path, label, split, group, info.st_size, info.st_mtime_ns, info.st_ino)


def composed(name: str) -> str:
    """Return a class name in Unicode's composed form: file systems disagree about accents."""
    return unicodedata.normalize("NFC", name)


def _identity(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino
