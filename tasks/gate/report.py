"""What the gate says: a page to read first, a list of bad files, and lines for a terminal."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from tasks import files
from tasks.gate import page
from tasks.gate.findings import NAMED, Finding
from tasks.gate.judge import Judgement
from tasks.gate.layout import Aside
from tasks.vision.atomic import replacing
from tasks.vision.errors import RefitError

PAGE = "index.html"
BAD_FILES = "quarantine.csv"


def write(folder: Path, judgement: Judgement, aside: Aside, quarantine: bool) -> None:
    """Write the page and the list of bad files."""
    html = page.render(
        judgement.findings, judgement.manifest, judgement.sizes, aside, quarantine, files.RAW
    )
    files.write_text(folder / PAGE, html)
    with (
        replacing(folder / BAD_FILES) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("path", "reason"), *aside.bad.items()])


def refuse(findings: list[Finding]) -> None:
    """Say what is not as expected, and fail if it must not be trained on.

    Raises:
        RefitError: with the count and the first offenders of each check that failed.
    """
    failed = [line for f in findings if f.outcome == "failed" for line in in_words(f)]
    remarks = [f for f in findings if f.outcome in ("quarantined", "warning")]
    for finding in remarks:
        print("\n".join(in_words(finding)), file=sys.stderr)
    if failed:
        words = f"{page.verdict(findings)}; what was accepted last stays. Pictures: "
        raise RefitError("\n".join([f"{words}{files.VALIDATION / PAGE}", *failed]))


def in_words(finding: Finding) -> list[str]:
    """Return a finding as lines for a terminal."""
    check = finding.check
    return [
        f"{finding.outcome} {check.name}: {page.amount(finding)}",
        f"  expected: {check.wanted}",
        f"  to do: {check.advice}",
        *listed(finding.offenders),
    ]


def listed(offenders: dict[str, str]) -> list[str]:
    """Return the first offenders as lines; a name with a line break in it stays on one."""
    first = list(offenders.items())[:NAMED]
    more = [f"  … and {len(offenders) - NAMED:,} more"] if len(offenders) > NAMED else []
    return [f"  {name if name.isprintable() else repr(name)}: {why}" for name, why in first] + more
