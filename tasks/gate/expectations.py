"""The Great Expectations suites: every check, its severity and its words for a person."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from tasks.params import Validate

Table = Literal["files", "quarantine", "pictures", "classes", "drift"]


@dataclass(frozen=True)
class Check:
    """One expectation on one of the tables of `tasks.gate.frames`.

    Attributes:
        name: as in `validate.checks` of params.yaml.
        table: what it is run on; a `files` check judges a picture by itself.
        expectation: the name of a Great Expectations class.
        arguments: of that class.
        wanted: what is expected, in words.
        advice: what a person can do when it is not met.
        key: a column of the manifest that the offenders have in common with each other.
        severity: `error`, `warn` or `off`.
    """

    name: str
    table: Table
    expectation: str
    arguments: dict[str, Any]
    wanted: str
    advice: str
    key: str | None = None
    severity: str = "error"


def checks(settings: Validate) -> list[Check]:
    """Return the checks that are not switched off.

    That a file decodes is not for discussion: such a file cannot be trained on.
    """
    every = [*_of_files(settings), *_of_pictures(settings), *_of_classes(settings)]
    severities = settings.checks.model_dump()
    judged = [replace(check, severity=severities.get(check.name, "error")) for check in every]
    return [check for check in judged if check.severity != "off"]


def _between(column: str, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"column": column, "min_value": low, "max_value": high}


def _of_files(settings: Validate) -> Iterator[Check]:
    """Yield the checks of a picture by itself."""
    between, one_of = "ExpectColumnValuesToBeBetween", "ExpectColumnValuesToBeInSet"
    side, ratio, contrast = settings.min_side, settings.max_aspect_ratio, settings.min_contrast
    yield Check(
        "decodable",
        "files",
        one_of,
        {"column": "decodable", "value_set": [True]},
        "every file is a whole picture that decodes",
        "replace or delete these files"
        + (", or set validate.on_bad_file: quarantine" if settings.on_bad_file == "fail" else ""),
    )
    yield Check(
        "min_side",
        "files",
        between,
        _between("side", low=side),
        f"the shorter side has at least {side} pixels",
        "delete these pictures, or lower validate.min_side",
    )
    yield Check(
        "max_aspect_ratio",
        "files",
        between,
        _between("aspect_ratio", high=ratio),
        f"the longer side is at most {ratio:g} times the shorter one",
        "crop or delete these pictures, or raise validate.max_aspect_ratio",
    )
    for name, column in (("allowed_formats", "format"), ("allowed_modes", "mode")):
        allowed = list(getattr(settings, name))
        yield Check(
            name,
            "files",
            one_of,
            {"column": column, "value_set": allowed},
            f"the {column} is one of {', '.join(allowed)}",
            f"convert these pictures, or add theirs to validate.{name}",
        )
    if settings.on_bad_file == "quarantine":
        share = settings.max_quarantined_share
        yield Check(
            "max_quarantined_share",
            "quarantine",
            one_of,
            {"column": "accepted", "value_set": [True], "mostly": 1 - share},
            f"at most {share:.2%} of the files are quarantined",
            "see why so many files are bad, or raise validate.max_quarantined_share",
        )
    yield Check(
        "min_contrast",
        "files",
        between,
        _between("contrast", low=contrast),
        f"the grey levels have a standard deviation of at least {contrast:g} of 255",
        "look whether these pictures are blank; delete them, or lower validate.min_contrast",
    )


def _of_pictures(settings: Validate) -> Iterator[Check]:
    """Yield the checks of a picture among the others."""
    near = f"up to {settings.near_duplicate_distance} of 256 bits of the perceptual hash"
    for name, column, key, wanted, advice in (
        (
            "exact_duplicates",
            "copies",
            "sha256",
            "no two files have the same bytes",
            "delete all but one of each: copies only weigh the picture more",
        ),
        (
            "label_conflicts",
            "labels_of_content",
            "sha256",
            "no picture lies under two labels",
            "decide which label is right and delete the other file",
        ),
        (
            "near_label_conflicts",
            "labels_of_alike",
            "alike",
            f"no two near duplicates ({near}) lie under two labels",
            "look whether they show the same thing; delete or relabel one",
        ),
        (
            "near_duplicates_across_splits",
            "splits_of_alike",
            "alike",
            f"near duplicates ({near}), and pictures of one named group, lie in one split",
            "put all of each group into one split, or keep one: across splits they make the scores "
            "too good",
        ),
    ):
        arguments = _between(column, high=1)
        yield Check(
            name, "pictures", "ExpectColumnValuesToBeBetween", arguments, wanted, advice, key
        )
    z = settings.max_outlier_z
    for column in ("brightness", "sharpness"):
        yield Check(
            f"{column}_outliers",
            "pictures",
            "ExpectColumnValuesToBeBetween",
            _between(f"{column}_z", -z, z),
            f"{column} is within {z:g} scaled median absolute deviations of the median",
            "look at these pictures; delete them if they are not what will be asked about",
        )


def _of_classes(settings: Validate) -> Iterator[Check]:
    """Yield the checks of all pictures together."""
    from great_expectations.expectations.row_conditions import Column

    between = "ExpectColumnValuesToBeBetween"
    yield Check(
        "min_classes",
        "classes",
        "ExpectTableRowCountToBeBetween",
        {"min_value": settings.min_classes, "row_condition": Column("pictures") > 0},
        f"there are at least {settings.min_classes} classes with pictures",
        "add a folder of pictures for each class",
    )
    for name, column, bounds, wanted in (
        (
            "min_per_class",
            "pictures",
            {"low": settings.min_per_class},
            f"every class has at least {settings.min_per_class} pictures",
        ),
        (
            "min_per_class_and_split",
            "smallest_split",
            {"low": settings.min_per_class_and_split},
            f"every class has at least {settings.min_per_class_and_split} pictures in each split",
        ),
        (
            "max_imbalance_ratio",
            "ratio",
            {"high": settings.max_imbalance_ratio},
            f"the largest class has at most {settings.max_imbalance_ratio:g} times the pictures "
            "of any other",
        ),
    ):
        advice = f"add pictures of these classes, or change validate.{name}"
        yield Check(name, "classes", between, _between(column, **bounds), wanted, advice)
    yield Check(
        "drift",
        "drift",
        between,
        {
            **_between("statistic", high=settings.max_drift),
            "row_condition": Column("p_value") < settings.drift_p_value,
        },
        "new pictures are like those accepted last (Kolmogorov-Smirnov distance, Cramer's V: "
        f"at most {settings.max_drift:g} where p < {settings.drift_p_value:g})",
        "look what changed (camera, export, crop); raise validate.max_drift if it is meant",
    )
