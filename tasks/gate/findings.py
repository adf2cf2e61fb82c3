"""What the results of the checks mean: what follows from each, and who offends, in words."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tasks import split
from tasks.gate.expectations import Check
from tasks.gate.suites import Result
from tasks.params import Params

NAMED = 20  # offenders that are named for each check

Outcome = Literal["passed", "warning", "quarantined", "failed"]


@dataclass(frozen=True)
class Finding:
    """The result of one check, in words.

    Attributes:
        check: which one.
        outcome: what follows from it.
        count: how many files, pictures, classes or columns are not as expected.
        offenders: the first `NAMED` of them -> what is wrong.
        observed: where the table as a whole offends and no row of it does, what was found.
    """

    check: Check
    outcome: Outcome
    count: int
    offenders: dict[str, str] = field(default_factory=dict)
    observed: str = ""


def outcome(result: Result, quarantine: bool) -> Outcome:
    """Return what follows from a result."""
    if result.passed:
        return "passed"
    if result.check.severity == "warn":
        return "warning"
    return "quarantined" if quarantine and result.check.table == "files" else "failed"


def bad_files(results: list[Result], reasons: dict[str, str]) -> dict[str, str]:
    """Return path -> reason of the files that fail a check of `error`.

    Args:
        results: of the checks of the table `files`.
        reasons: why files do not decode.
    """
    bad = dict(reasons)
    for result in results:
        if result.check.severity == "error" and result.check.name != "decodable":
            for path, value in result.offenders.items():
                why = f"{result.check.name}: {_value(result, value)}"
                bad[path] = f"{bad[path]}; {why}" if path in bad else why
    return dict(sorted(bad.items()))


def of_files(results: list[Result], reasons: dict[str, str], quarantine: bool) -> list[Finding]:
    """Put into words what is wrong with files by themselves."""
    found = []
    for result in results:
        first = list(result.offenders.items())[:NAMED]
        words = {p: reasons[p] if p in reasons else _value(result, v) for p, v in first}
        found.append(
            Finding(result.check, outcome(result, quarantine), len(result.offenders), words)
        )
    return found


def of_pictures(results: list[Result], manifest: pa.Table) -> list[Finding]:
    """Put into words what is wrong with pictures among the others."""
    return [
        Finding(r.check, outcome(r, False), len(r.offenders), _pictures(r, manifest))
        for r in results
    ]


def of_the_whole(
    results: list[Result], sizes: pd.DataFrame, manifest: pa.Table, settings: Params
) -> list[Finding]:
    """Put into words what is wrong with classes, columns and shares."""
    found = []
    for result in results:
        names = list(result.offenders)[:NAMED]
        if result.check.name == "min_per_class_and_split":
            words = {
                name: _lacks(name, manifest, settings) or _sizes(name, sizes) for name in names
            }
        elif result.check.table == "classes":
            words = {name: _sizes(name, sizes) for name in names}
        elif result.check.table == "drift":
            words = {name: _value(result, result.offenders[name]) for name in names}
        else:
            words = {}
        count = len(result.offenders) or int(not result.passed)
        found.append(Finding(result.check, outcome(result, False), count, words, result.observed))
    return found


def _pictures(result: Result, manifest: pa.Table) -> dict[str, str]:
    """Return the first offenders in an order that shows most: alike ones together, worst first."""
    mine = manifest.select(["path", "label", "split", "sha256", "alike"])
    mine = mine.filter(pc.is_in(mine["path"], pa.array(list(result.offenders), pa.string())))
    key = result.check.key
    if key:
        rows = mine.sort_by([(key, "ascending"), ("path", "ascending")]).to_pylist()
    else:
        rows = sorted(mine.to_pylist(), key=lambda row: -abs(result.offenders[row["path"]]))
    alike = defaultdict(list)
    for row in rows:
        alike[row[key or "path"]].append(row["path"])
    words = {}
    for row in rows[:NAMED]:
        others = [path for path in alike[row[key or "path"]] if path != row["path"]]
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        why = f"like {others[0]}{more}" if others else _value(result, result.offenders[row["path"]])
        words[row["path"]] = f"{row['label']}, {row['split']}; {why}"
    return words


def _value(result: Result, value: Any) -> str:
    column = str(result.check.arguments["column"]).replace("_", " ")
    return f"{column} {value:.4g}" if isinstance(value, float) else f"{column} {value}"


def _sizes(label: str, sizes: pd.DataFrame) -> str:
    row = sizes.loc[[label]].to_dict("records")[0]
    return f"{row['pictures']:,} pictures: " + ", ".join(f"{row[s]:,} {s}" for s in split.SPLITS)


def _lacks(label: str, manifest: pa.Table, settings: Params) -> str:
    mine = manifest.filter(pc.equal(manifest["label"], label))
    columns = mine["label"].to_pylist(), mine["split"].to_pylist()
    minimum = settings.validate_.min_per_class_and_split
    return "; ".join(split.too_small(*columns, minimum, settings.data.split))
