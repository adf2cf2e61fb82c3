"""The page that a person reads first: one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

import base64
import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from tasks.gate.findings import Finding
from tasks.gate.layout import Aside
from tasks.split import SPLITS
from tasks.vision import images
from tasks.vision.errors import PictureError

LISTED = 200  # bad files on the page; the others are in quarantine.csv
SHOT = 160  # pixels, longer side of a thumbnail
BINS = 40
UNITS = {
    "files": ("file", "files"),
    "quarantine": ("file", "files"),
    "pictures": ("picture", "pictures"),
    "classes": ("class", "classes"),
    "drift": ("column", "columns"),
}
SEVEREST = ("failed", "quarantined", "warning", "passed")


def render(
    findings: list[Finding],
    manifest: pa.Table,
    sizes: pd.DataFrame,
    aside: Aside,
    quarantine: bool,
    root: Path,
) -> str:
    """Return the page.

    Args:
        findings: of all checks.
        manifest: the accepted pictures.
        sizes: what `tasks.gate.frames.classes_frame` returned.
        aside: bad and ignored files.
        quarantine: whether bad files are left out rather than fatal.
        root: the folder that paths are relative to, for thumbnails.
    """
    ordered = sorted(findings, key=lambda finding: SEVEREST.index(finding.outcome))
    wrong = [finding for finding in ordered if finding.outcome != "passed"]
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        tone=ordered[0].outcome,
        verdict=verdict(findings),
        pictures=len(manifest),
        findings=findings,
        open=wrong,
        shots=thumbnails(wrong, root),
        amount=amount,
        bad=aside.bad,
        listed=LISTED,
        quarantine=quarantine,
        ignored=[
            {"reason": reason, "count": count, "names": aside.names[reason]}
            for reason, count in sorted(aside.ignored.items())
        ],
        sizes=sizes.reset_index().to_dict("records"),
        splits=SPLITS,
        largest=sizes["pictures"].max(),
        plots=plots(manifest),
    )


def verdict(findings: list[Finding]) -> str:
    """Return the verdict in a few words."""
    count = {outcome: sum(f.outcome == outcome for f in findings) for outcome in SEVEREST}
    if failed := count["failed"]:
        return f"Refused: {failed} check{'s' * (failed > 1)} failed"
    if remarks := count["warning"] + count["quarantined"]:
        return f"Accepted, with {remarks} remark{'s' * (remarks > 1)}"
    return "Accepted"


def amount(finding: Finding) -> str:
    """Return how many offend, or what was found where nothing can be counted."""
    if finding.observed:
        return f"found {finding.observed}"
    return f"{finding.count:,} {UNITS[finding.check.table][finding.count != 1]}"


def thumbnails(findings: list[Finding], root: Path) -> dict[str, str]:
    """Return path -> data URI of those offenders that are pictures.

    Never of files that were found not to decode: they may be links to elsewhere, or hang a decoder.
    """
    shots: dict[str, str] = {}
    for finding in findings:
        if finding.check.table in ("files", "pictures") and finding.check.name != "decodable":
            for path in finding.offenders.keys() - shots.keys():
                with suppress(PictureError):  # gone or changed since it was read
                    shots[path] = thumbnail(root / path)
    return shots


def thumbnail(path: Path) -> str:
    """Return a picture as a small JPEG data URI.

    Raises:
        PictureError: it does not decode.
    """
    picture = Image.fromarray(images.read_picture(path))
    picture.thumbnail((SHOT, SHOT))
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()


def plots(manifest: pa.Table) -> list[dict[str, Any]]:
    """Return the histograms of the manifest's numbers."""
    if not len(manifest):
        return []
    side = np.minimum(manifest["width"].to_numpy(), manifest["height"].to_numpy())
    columns = {
        "shorter side, pixels": side,
        "file size, bytes (logarithmic)": manifest["bytes"].to_numpy(),
        "brightness, mean grey level": manifest["mean"].to_numpy(),
        "contrast, standard deviation of grey levels": manifest["std"].to_numpy(),
        "sharpness, variance of the Laplacian (logarithmic)": manifest["sharpness"].to_numpy(),
    }
    return [histogram(title, values, "logarithmic" in title) for title, values in columns.items()]


def histogram(title: str, values: NDArray[Any], logarithmic: bool) -> dict[str, Any]:
    """Return a histogram's bars, 0..60 high, and the words below its axis."""
    places = np.log1p(values) if logarithmic else values
    counts, _ = np.histogram(places, BINS)
    return {
        "title": title,
        "heights": [round(60 * count / counts.max(), 1) for count in counts.tolist()],
        **{
            name: number(f(values))
            for name, f in (("low", np.min), ("median", np.median), ("high", np.max))
        },
    }


def number(value: float) -> str:
    """Return a number as short as a person wants it."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
