"""The stage as DVC starts it: on a hostile folder, and twice on the same pictures."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks import files
from tasks.gate import findings
from tests.unit import hostile
from tests.unit.gate_data import EACH, fill, outputs, pictured, put, reasons, write_params

REPOSITORY = Path(__file__).parents[2]


def start(project: Path, **environment: str) -> subprocess.Popen[str]:
    """Start the stage as DVC does, but as somebody for whom permissions count."""

    def heed_permissions() -> None:
        # Root reads everything, by two capabilities (prctl PR_CAPBSET_DROP, CAP_DAC_OVERRIDE and
        # CAP_DAC_READ_SEARCH); without them its own chmod 0 holds.
        for capability in (1, 2):
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)

    return subprocess.Popen(
        [sys.executable, "-m", "tasks.validate"],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_permissions,
    )


def test_the_same_pictures_give_the_same_bytes_anywhere(tmp_path: Path) -> None:
    folders = tmp_path / "one", tmp_path / "quite/another"
    for folder in folders:
        folder.mkdir(parents=True)
        write_params(
            folder, {"drift": "error"}, on_bad_file="quarantine", max_quarantined_share=0.5
        )
        fill(folder / "data/raw", each=EACH)
        put(
            folder / "data/raw/ant/copy.jpg", pictured("ant", 3)
        )  # so that there is something to show
        put(folder / "data/raw/ant/broken.jpg", b"x")
        put(folder / "data/raw/bee/b2f0e8f6-2b7e-4c5e-9f0e-1f2a3b4c5d6e.jpg", b"")
    running = [start(folder, PYTHONHASHSEED=str(seed)) for seed, folder in enumerate(folders)]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    one, another = map(outputs, folders)
    assert one == another
    assert len(one) > 20
    docs = "".join(p.read_text() for p in (folders[0] / files.VALIDATION).rglob("*.html"))
    assert "b2f0e8f6-2b7e-4c5e-9f0e-1f2a3b4c5d6e.jpg" in docs
    assert not re.search(r"great-expectations-web-assets|202\d{5}T\d{6}", docs)
    assert str(tmp_path) not in docs


@pytest.fixture(scope="module")
def hostile_project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, hostile.Expected]:
    project = tmp_path_factory.mktemp("hostile")
    return project, hostile.build(project / "data/raw")


def assert_every_verdict(project: Path, expected: hostile.Expected) -> None:
    found = reasons(project)
    assert found.keys() == expected.bad.keys()
    for path, words in expected.bad.items():
        assert any(word in found[path] for word in words), (path, found[path])


def test_a_hostile_folder_is_refused_with_a_reason_for_each_file(
    hostile_project: tuple[Path, hostile.Expected],
) -> None:
    project, expected = hostile_project
    assert len(expected.bad) >= 60
    write_params(project)
    process = start(project)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert "Traceback" not in errors
    assert_every_verdict(project, expected)
    small = {"train/bee/one pixel.png", "train/bee/strip.png", "train/bee/thin.png"}
    undecodable = reasons(project).keys() - small
    assert f"failed decodable: {len(undecodable)} files\n" in errors
    assert "  train/ant/broken link.jpg: broken symbolic link\n" in errors
    assert "  train/bee/strip.png: aspect ratio 10\n" in errors
    named = re.search(
        r"failed decodable.*?\n  expected.*?\n  to do.*?\n(.*?)\nfailed", errors, re.S
    )
    assert named
    assert len(named[1].splitlines()) == findings.NAMED
    assert not (project / files.MANIFEST).exists()
    assert not (project / files.CLASSES).exists()
    page = (project / files.VALIDATION / "index.html").read_text()
    assert "Refused: 3 checks failed" in page
    assert "<img src=x" not in page
    shown = re.findall(r'<img alt="" src="data:[^"]+">\s*<b>([^<]+)</b>', page)
    assert small <= set(shown)
    assert undecodable.isdisjoint(shown)


def test_a_hostile_folder_in_quarantine_trains_on_the_good_pictures_only(
    hostile_project: tuple[Path, hostile.Expected],
) -> None:
    project, expected = hostile_project
    write_params(project, on_bad_file="quarantine", max_quarantined_share=0.9)
    process = start(project)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert f"{len(expected.bad)} bad files left out" in output
    assert_every_verdict(project, expected)
    rows = {r["path"]: r for r in pq.read_table(project / files.MANIFEST).to_pylist()}
    columns = "format", "mode", "width", "height", "orientation"
    assert {p: tuple(r[c] for c in columns) for p, r in rows.items()} == expected.good
    assert all(r["split"] == p.split("/")[0] for p, r in rows.items())
    assert all(r["label"] == p.split("/")[1] for p, r in rows.items())
    page = (project / files.VALIDATION / "index.html").read_text()
    for reason, count in expected.ignored.items():
        assert re.search(rf"<td>{re.escape(reason)}<td class=.number.>{count}\n", page), reason
    assert "&lt;img src=x" in "".join(rows) or "<img src=x" not in page
