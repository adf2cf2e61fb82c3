"""The four tables that the expectations look at, derived from the manifest.

Great Expectations judges columns row by row, and names the rows that offend. So what concerns
several rows at once (copies, a class's size, drift) is made a column here, and every check is one
of its stock expectations on a column.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from tasks.gate.history import Accepted
from tasks.split import SPLITS

Integers = NDArray[np.int64]
Numbers = NDArray[np.float64]
# What drift is looked for in, and its test.
NUMBERS = ("bytes", "width", "height", "mean", "std", "sharpness")
NAMES = ("format", "mode")


def files_frame(table: pa.Table, undecodable: list[str]) -> pd.DataFrame:
    """Return one row a file: whether it decodes, and what matters of a picture by itself."""
    width, height = (table[c].to_numpy().astype(np.int64) for c in ("width", "height"))
    frame = pd.DataFrame(
        {
            "decodable": True,
            "side": np.minimum(width, height),
            "aspect_ratio": np.maximum(width, height) / np.minimum(width, height),
            "format": _categories(table["format"]),
            "mode": _categories(table["mode"]),
            "contrast": table["std"].to_numpy(),
        },
        index=_index(table),
    )
    if undecodable:
        others = pd.DataFrame({"decodable": False}, index=pd.Index(undecodable, name="path"))
        frame = pd.concat([frame, others])
    return frame


def pictures_frame(manifest: pa.Table) -> pd.DataFrame:
    """Return one row an accepted picture: what it has in common with others, how far out it is."""
    content, alike = _codes(manifest["sha256"]), _codes(manifest["alike"])
    label, split = _codes(manifest["label"]), _codes(manifest["split"])
    group = _codes(manifest["group"])
    return pd.DataFrame(
        {
            "copies": np.bincount(content)[content] if len(content) else content,
            "labels_of_content": distinct(content, label),
            "labels_of_alike": distinct(alike, label),
            "splits_of_alike": np.maximum(distinct(alike, split), distinct(group, split)),
            "brightness_z": robust_z(manifest["mean"].to_numpy()),
            "sharpness_z": robust_z(np.log1p(manifest["sharpness"].to_numpy())),
        },
        index=_index(manifest),
    )


def classes_frame(manifest: pa.Table, classes: list[str]) -> pd.DataFrame:
    """Return one row a class, empty ones included: its pictures in all, in each split, and ratio.

    `ratio` is the pictures of the largest class for each one of this class.
    """
    counts = pd.crosstab(manifest["label"].to_pandas(), manifest["split"].to_pandas())
    frame = counts.reindex(index=classes, columns=list(SPLITS), fill_value=0)
    frame.columns.name = None
    frame.insert(0, "pictures", frame.sum(axis=1))
    frame["smallest_split"] = frame[list(SPLITS)].min(axis=1)
    frame["ratio"] = frame["pictures"].max() / frame["pictures"].where(frame["pictures"] > 0)
    return frame


def drift_frame(manifest: pa.Table, last: Accepted | None) -> pd.DataFrame:
    """Return one row a column of the manifest: how far its new pictures are from the last ones.

    Only pictures whose content is new are compared, with all of the last accepted manifest:
    within the whole they would hide behind the many old ones.

    Returns:
        Columns `statistic` (0..1: Kolmogorov-Smirnov's distance for numbers, Cramer's V for
        names) and `p_value`; no row when nothing is new.
    """
    rows = {}
    if last is not None:
        fresh = manifest.filter(pa.array(last.splits(manifest["sha256"]) == ""))
        if len(fresh):
            rows = {c: _numbers_differ(fresh[c], last.column(c)) for c in NUMBERS}
            rows |= {c: _names_differ(fresh[c], last.column(c)) for c in NAMES}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["statistic", "p_value"])
    return frame.astype(float).rename_axis("column")


def _numbers_differ(new: pa.ChunkedArray, last: pa.ChunkedArray) -> tuple[float, float]:
    from scipy.stats import ks_2samp

    result = ks_2samp(new.to_numpy(), last.to_numpy())
    return float(result.statistic), float(result.pvalue)


def _names_differ(new: pa.ChunkedArray, last: pa.ChunkedArray) -> tuple[float, float]:
    from scipy.stats import chi2_contingency
    from scipy.stats.contingency import association

    both = _codes(pa.chunked_array([*new.chunks, *last.chunks]))
    counts = np.stack(
        [np.bincount(part, minlength=both.max() + 1) for part in np.split(both, [len(new)])]
    )
    if counts.shape[1] == 1:
        return 0.0, 1.0
    return float(association(counts)), float(chi2_contingency(counts).pvalue)


def distinct(key: Integers, value: Integers) -> Integers:
    """Return for each row how many distinct values the rows with its key have.

    Args:
        key: [n], from 0.
        value: [n], from 0.

    Returns:
        [n], at least 1.
    """
    if not len(key):
        return key
    pairs = np.unique(key * (value.max() + 1) + value)
    return np.bincount(pairs // (value.max() + 1))[key]


def robust_z(values: Numbers) -> Numbers:
    """Return the distances from the median in median absolute deviations, scaled as a z score.

    Iglewicz and Hoaglin (How to Detect and Handle Outliers, 1993): unlike mean and standard
    deviation, these are not moved by the outliers themselves. All zero when over half of the
    values are equal.
    """
    if not len(values):
        return values
    from scipy.stats import median_abs_deviation

    spread = median_abs_deviation(values, scale="normal")
    return (values - np.median(values)) / spread if spread else np.zeros_like(values)


def _codes(column: pa.ChunkedArray) -> Integers:
    """Return a number from 0 for each distinct value."""
    codes: Integers = (
        column.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    )
    return codes


def _categories(column: pa.ChunkedArray) -> pd.Categorical:
    encoded = column.combine_chunks().dictionary_encode()
    return pd.Categorical.from_codes(encoded.indices.to_numpy(), encoded.dictionary.to_pylist())


def _index(table: pa.Table) -> pd.Index[str]:
    paths: pd.Series[str] = table["path"].to_pandas()
    return pd.Index(paths, name="path")
