"""The file of all verdicts: nothing is lost, nothing doubled, whatever dies meanwhile."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tasks import verdicts


def test_the_same_verdict_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "verdicts.jsonl"
    for _ in range(2):
        verdicts.append({"verdict": "HOLD", "run_id": "1"}, path)
    verdicts.append({"verdict": "HOLD", "run_id": "2"}, path)
    assert [line["run_id"] for line in verdicts.read(path)] == ["1", "2"]
    assert all(line["at"] for line in verdicts.read(path))


def test_a_line_cut_short_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    verdicts.append({"run_id": "1"}, path)
    with path.open("a") as file:
        file.write('{"run_id": "2", "verd')
    verdicts.append({"run_id": "3"}, path)
    assert [line["run_id"] for line in verdicts.read(path)] == ["1", "3"]
    assert json.loads(path.read_text().splitlines()[-1])["run_id"] == "3"


def test_writers_side_by_side_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: verdicts.append({"run_id": i}, path), range(40)))
    assert sorted(line["run_id"] for line in verdicts.read(path)) == list(range(40))
