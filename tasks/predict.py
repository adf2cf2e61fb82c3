"""Predict the classes of pictures with an exported model; ONNX Runtime alone, no torch."""

from __future__ import annotations

import argparse
import csv
import glob
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import numpy.typing as npt

from tasks.program import progress, run
from tasks.serving import Provider, Session
from tasks.vision.atomic import replacing
from tasks.vision.errors import PictureError, RefitError
from tasks.vision.images import SUFFIXES, read_picture

if TYPE_CHECKING:
    from tasks.drift import FactsFile

# Pictures are decoded and computed in groups: large enough to batch, and of bounded memory.
GROUP_PICTURES = 16
GROUP_BYTES = 32 * 2**20
REGISTERED = "models:/"

Picture = tuple[str, npt.NDArray[np.uint8]]


class Reader:
    """Reads pictures one after the other; bad ones are reported, counted and left out.

    Attributes:
        seen: pictures so far, the bad ones included.
        bad: those that could not be read.
    """

    def __init__(self) -> None:
        self.seen = self.bad = 0

    def read(self, paths: Iterable[str]) -> Iterator[Picture]:
        """Yield each readable picture with its path."""
        for path in paths:
            self.seen += 1
            try:
                yield path, read_picture(path)
            except PictureError as error:
                self.bad += 1
                print(f"skipped {path}: {error}", file=sys.stderr)


def expand(places: Iterable[str]) -> Iterator[str]:
    """Yield the pictures that the command line names.

    A file stands for itself; a folder and a glob for what they hold with a picture's suffix,
    sorted, sub-folders of a folder included. What exists is never taken for a glob, and a glob
    that matches nothing is passed on, to be reported like a missing file.
    """
    for place in places:
        if Path(place).is_dir():
            yield from _within(place)
        elif glob.has_magic(place) and not Path(place).exists():
            # Path.glob takes no absolute patterns.
            matches = sorted(glob.glob(place, recursive=True))  # noqa: PTH207
            yield from filter(_is_picture, matches) if matches else [place]
        else:
            yield place


def _within(folder: str) -> Iterator[str]:
    for root, folders, names in os.walk(folder):
        folders.sort()
        yield from (str(Path(root, name)) for name in sorted(names) if _is_picture(name))


def _is_picture(path: str) -> bool:
    return Path(path).suffix.lower() in SUFFIXES


def grouped(pictures: Iterable[Picture], at_once: int = GROUP_PICTURES) -> Iterator[list[Picture]]:
    """Yield the pictures in groups of at most `at_once`, closed early by `GROUP_BYTES`."""
    group: list[Picture] = []
    for picture in pictures:
        group.append(picture)
        if len(group) == at_once or sum(p.nbytes for _, p in group) >= GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


def line(
    path: str,
    probabilities: npt.NDArray[np.float32],
    class_names: list[str],
    top_k: int | None,
    as_json: bool,
) -> str:
    """Return what is printed for one picture.

    Args:
        path: as given or found.
        probabilities: float32 [C].
        class_names: C names.
        top_k: how many classes to name, the most probable first; None names all in JSON and one
            in the table.
        as_json: an object `path, label, probability, probabilities`; else columns between tabs.
    """
    ranked = np.argsort(-probabilities, kind="stable")
    best = ranked[0]
    if as_json:
        named = range(len(class_names)) if top_k is None else ranked[:top_k]
        return json.dumps(
            {
                "path": path,
                "label": class_names[best],
                "probability": float(probabilities[best]),
                "probabilities": {class_names[c]: float(probabilities[c]) for c in named},
            }
        )
    columns = [f"{class_names[c]}\t{probabilities[c]:.4f}" for c in ranked[: top_k or 1]]
    return "\t".join([path, *columns])


def csv_columns(class_names: list[str], top_k: int | None) -> list[str]:
    """Return the head of the CSV: all classes by name, or the most probable by rank."""
    if top_k is None:
        return ["path", "label", "probability", *(f"p({name})" for name in class_names)]
    ranks = range(1, min(top_k, len(class_names)) + 1)
    return ["path", *(f"{what}_{rank}" for rank in ranks for what in ("label", "probability"))]


def csv_row(
    path: str, probabilities: npt.NDArray[np.float32], class_names: list[str], top_k: int | None
) -> list[str | float]:
    """Return one picture's row under `csv_columns`."""
    ranked = np.argsort(-probabilities, kind="stable")
    named = [x for c in ranked[: top_k or 1] for x in (class_names[c], float(probabilities[c]))]
    return [path, *named, *(probabilities.tolist() if top_k is None else [])]


def printer(
    arguments: argparse.Namespace, class_names: list[str]
) -> Callable[[str, npt.NDArray[np.float32]], object]:
    """Return what prints a picture's path and probabilities; a CSV's head is printed at once."""
    if not arguments.csv:
        return lambda path, row: print(
            line(path, row, class_names, arguments.top_k, arguments.json)
        )
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(csv_columns(class_names, arguments.top_k))
    return lambda path, row: writer.writerow(csv_row(path, row, class_names, arguments.top_k))


def model_file(name: str) -> Path:
    """Return the file that MODEL names: a path, or `models:/NAME@ALIAS` in MLflow's registry.

    Raises:
        RefitError: the registry does not answer or has no such version.
    """
    if not name.startswith(REGISTERED):
        return Path(name)
    from tasks import tracking  # seconds, which a path does not have to pay

    return tracking.fetch(name)


def predict(arguments: argparse.Namespace) -> None:
    """Print a line for each picture.

    Raises:
        RefitError: the model cannot be used, no picture was found, or some could not be read;
            the others have been printed by then.
    """
    session = Session(model_file(arguments.model), arguments.provider)
    print(f"{arguments.model} on {session.provider}", file=sys.stderr)
    paths: Iterable[str] = expand(arguments.pictures)
    if sys.stderr.isatty() and not sys.stdout.isatty():
        paths = progress(paths, "predict", "picture")
    reader = Reader()
    show = printer(arguments, session.class_names)
    with replacing(arguments.facts) if arguments.facts else nullcontext() as temporary:
        facts = _facts_file(temporary)
        for group in grouped(reader.read(paths), arguments.batch):
            probabilities, _ = session.predict([picture for _, picture in group])
            for (path, _), row in zip(group, probabilities, strict=True):
                show(path, row)
                if facts:
                    facts.add(path, session.class_names[row.argmax()], float(row.max()))
            sys.stdout.flush()
        if facts:
            facts.close()
    if not reader.seen:
        raise RefitError(f"no pictures in {' '.join(arguments.pictures)}")
    if reader.bad:
        raise RefitError(f"{reader.bad} of {reader.seen} pictures could not be read")


def _facts_file(path: Path | None) -> FactsFile | None:
    if path is None:
        return None
    from tasks.drift import FactsFile

    return FactsFile(path)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tasks.predict", description=__doc__)
    parser.add_argument(
        "model", metavar="MODEL", help="an exported .onnx file, or models:/NAME@champion"
    )
    parser.add_argument(
        "pictures", nargs="+", metavar="PICTURE", help="files, folders or quoted globs"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object a line")
    form.add_argument("--csv", action="store_true", help="a CSV with a head")
    parser.add_argument(
        "--provider", choices=get_args(Provider), default="auto", help="what computes"
    )
    parser.add_argument(
        "--top-k", type=_positive, metavar="N", help="name the N most probable classes"
    )
    parser.add_argument(
        "--batch",
        type=_positive,
        default=GROUP_PICTURES,
        metavar="N",
        help=f"pictures decoded and computed together (default {GROUP_PICTURES})",
    )
    parser.add_argument(
        "--facts",
        type=Path,
        metavar="FILE.parquet",
        help="also write each picture's facts, as in the manifest, and the confidence",
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def main() -> None:
    """Run the command line; a reader that closes the pipe early ends it in silence."""
    arguments = parse()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    try:
        run(lambda: predict(arguments))
    except BrokenPipeError:
        # The interpreter flushes standard output once more when it ends: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
