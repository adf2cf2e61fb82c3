"""The judgement on what was found: groups, splits, every check, and the order of classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks import files, split
from tasks.gate import expectations, findings, frames
from tasks.gate.layout import Aside
from tasks.gate.suites import Suites
from tasks.params import Params
from tasks.vision import duplicates
from tasks.vision.errors import RefitError

ALIKE = "alike"  # group of near duplicates, whatever groups the data names


@dataclass(frozen=True)
class Judgement:
    """What the gate found.

    Attributes:
        manifest: the good pictures, with the columns of `tasks.gate.store.MANIFEST`.
        classes: class names in the order of their indices.
        sizes: see `tasks.gate.frames.classes_frame`.
        findings: of all checks.
    """

    manifest: pa.Table
    classes: list[str]
    sizes: pd.DataFrame
    findings: list[findings.Finding]


def judge(
    table: pa.Table, aside: Aside, settings: Params, last: pa.Table | None, docs: Path
) -> Judgement:
    """Run every check, first on files by themselves, then on the good ones together.

    Args:
        table: the pictures that decode, with the columns of `tasks.gate.store.MANIFEST`.
        aside: the files that do not; those that fail a check of their own are added.
        settings: all of params.yaml.
        last: the manifest accepted last.
        docs: a new folder for Data Docs.
    """
    checks = expectations.checks(settings.validate_)
    quarantine = settings.validate_.on_bad_file == "quarantine"
    suites = Suites(docs)
    frame = frames.files_frame(table, list(aside.bad))
    results = suites.run("files", frame, checks)
    found = findings.of_files(results, aside.bad, quarantine)
    aside.bad = findings.bad_files(results, aside.bad)
    good = ~frame.index.isin(list(aside.bad))
    share = suites.run("quarantine", frame.assign(accepted=good), checks)
    manifest = with_splits(table.filter(pa.array(good[: len(table)])), settings, last)
    results = suites.run("pictures", frames.pictures_frame(manifest), checks)
    found += findings.of_pictures(results, manifest)
    classes = class_order(manifest, aside)
    sizes = frames.classes_frame(manifest, classes)
    results = share + suites.run("classes", sizes, checks)
    results += suites.run("drift", frames.drift_frame(manifest, last), checks)
    found += findings.of_the_whole(results, sizes, manifest, settings)
    suites.write_docs()
    return Judgement(manifest.drop_columns([ALIKE]), classes, sizes, found)


def with_splits(table: pa.Table, settings: Params, last: pa.Table | None) -> pa.Table:
    """Fill the columns group and split, and add a column `ALIKE`."""
    distance = settings.validate_.near_duplicate_distance
    hashes = table["sha256"].to_pylist(), table["phash"].to_pylist()
    alike = duplicates.group(*hashes, distance).tolist()
    groups = split.prefer_named(alike, table["group"].to_pylist()).tolist()
    previous = None if last is None else previous_splits(table, last)
    splits = split.assign(groups, settings.data.split, table["split"].to_pylist(), previous)
    for name, values in (("group", groups), ("split", splits)):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, pa.array(values, pa.string()))
    return table.append_column(ALIKE, pa.array(alike, pa.string()))


def previous_splits(table: pa.Table, last: pa.Table) -> list[str]:
    """Return the split in the last accepted manifest of each picture's content, "" if new."""
    place = pc.index_in(table["sha256"], value_set=last["sha256"].combine_chunks())
    splits: list[str] = pc.fill_null(last["split"].take(place), "").to_pylist()
    return splits


def last_accepted(path: Path) -> pa.Table | None:
    """Return the manifest that was accepted last; None before the first.

    Raises:
        RefitError: it cannot be read.
    """
    if not path.exists():
        return None
    try:
        return pq.read_table(path, columns=["sha256", "split", *frames.NUMBERS, *frames.NAMES])
    except (pa.ArrowException, OSError, KeyError) as error:
        raise RefitError(
            f"{path} cannot be read ({error}): get it back with `dvc checkout {path}`, or delete "
            "it, which may move pictures between splits"
        ) from None


def class_order(manifest: pa.Table, aside: Aside) -> list[str]:
    """Return the class names: those known keep their places, new ones follow and are announced.

    Raises:
        RefitError: the known names cannot be read.
    """
    found = aside.classes | set(pc.unique(manifest["label"]).to_pylist())
    if not files.CLASSES.exists():
        return sorted(found)
    try:
        known: list[str] = files.read_json(files.CLASSES)
        new = sorted(found - set(known))
    except (ValueError, TypeError) as error:
        raise RefitError(
            f"{files.CLASSES} is no JSON list of names ({error}): get it back with "
            f"`dvc checkout {files.CLASSES}`; without it classes may change their numbers"
        ) from None
    if new:
        print(f"new, at the end of {files.CLASSES}: {', '.join(new)}")
    return known + new
