"""The judgement on what was found: groups, splits, every check, and the order of classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tasks import files, split
from tasks.gate import expectations, findings, frames, store
from tasks.gate.history import Accepted
from tasks.gate.layout import Aside
from tasks.gate.suites import Suites
from tasks.params import Params
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
    table: pa.Table, aside: Aside, settings: Params, last: Accepted | None, docs: Path
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
    if not good.all():
        table = table.filter(pa.array(good[: len(table)]))
    del frame
    manifest = with_splits(table, settings, last)
    results = suites.run("pictures", frames.pictures_frame(manifest), checks)
    found += findings.of_pictures(results, manifest)
    classes = class_order(manifest, aside)
    sizes = frames.classes_frame(manifest, classes)
    results = share + suites.run("classes", sizes, checks)
    results += suites.run("drift", frames.drift_frame(manifest, last), checks)
    found += findings.of_the_whole(results, sizes, manifest, settings)
    suites.write_docs()
    return Judgement(manifest.drop_columns([ALIKE]), classes, sizes, found)


def with_splits(table: pa.Table, settings: Params, last: Accepted | None) -> pa.Table:
    """Fill the columns group and split, and add a column `ALIKE`."""
    alike = store.alike(table, settings.validate_.near_duplicate_distance)
    groups = alike.to_pylist()
    named = table["group"].to_pylist()
    if any(named):
        groups = split.prefer_named(groups, named).tolist()
    previous = None if last is None else last.splits(table["sha256"]).tolist()
    splits = split.assign(groups, settings.data.split, table["split"].to_pylist(), previous)
    for name, values in (("group", groups), ("split", splits)):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, pa.array(values, pa.string()))
    return table.append_column(ALIKE, alike)


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
