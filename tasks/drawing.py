"""Inline SVG for the report: geometry only, the template draws it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Curve = list[dict[str, float | None]]

WIDTH, HEIGHT = 320.0, 120.0
GAP = 12.0  # between the two stages


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: for the legend and the CSS class.
        points: for `<polyline>`, one string a stage.
    """

    name: str
    points: list[str]


@dataclass(frozen=True)
class Chart:
    """A chart of one or more columns of the training curves, both stages side by side.

    Attributes:
        title: what is drawn.
        low: value at the bottom.
        high: value at the top.
        unfrozen: x of the moment the backbone was unfrozen; None without a second stage.
        lines: what is drawn.
    """

    title: str
    low: float
    high: float
    unfrozen: float | None
    lines: list[Line]


def chart(title: str, columns: dict[str, str], head: Curve, tuned: Curve) -> Chart | None:
    """Return a chart of the curves' columns, or None where there is nothing to draw.

    The stages share the height and get half the width each: three epochs beside sixty would
    otherwise be a dot.

    Args:
        title: what is drawn.
        columns: column -> its name in the legend.
        head: the first stage's curve.
        tuned: the second one's.
    """
    stages = [head, tuned] if len(tuned) > 1 else [head]
    values = [row[c] for stage in stages for row in stage for c in columns]
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, high = min(known), max(known)
    width = (WIDTH - GAP * (len(stages) - 1)) / len(stages)
    lines = [
        Line(
            name, [_points(s, c, i * (width + GAP), width, low, high) for i, s in enumerate(stages)]
        )
        for c, name in columns.items()
    ]
    unfrozen = width + GAP / 2 if len(stages) > 1 else None
    return Chart(title, low, high, unfrozen, lines)


def _points(curve: Curve, column: str, left: float, width: float, low: float, high: float) -> str:
    """Return the points of one stage, later epochs further right."""
    last = max(len(curve) - 1, 1)
    return " ".join(
        f"{left + width * place / last:.1f},{HEIGHT * (1 - _share(value, low, high)):.1f}"
        for place, row in enumerate(curve)
        if (value := row[column]) is not None
    )


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def confusion(true: list[str], predicted: list[str], classes: list[str]) -> list[dict[str, Any]]:
    """Return a row for each class that occurs: cells with their count and share of the row."""
    rows = []
    for actual in classes:
        mine = [p for t, p in zip(true, predicted, strict=True) if t == actual]
        cells = [
            {"count": mine.count(name), "share": mine.count(name) / max(len(mine), 1)}
            for name in classes
        ]
        rows.append({"name": actual, "count": len(mine), "cells": cells})
    return rows
