"""What `make gc` takes for unneeded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from flows import gc, workspace
from tasks import feature_store, files
from tasks.vision.errors import RefitError


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(name: str, size: int = 10) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def registry(monkeypatch: pytest.MonkeyPatch, count: int, rolled_back: str = "") -> None:
    """Let MLflow have versions 1 to `count`, the second of them champion, the first before it."""
    found = [
        SimpleNamespace(version=n, tags={"rolled_back": "why"} if str(n) == rolled_back else {})
        for n in range(1, count + 1)
    ]
    aliases = {"champion": found[1], "previous": found[0]}
    monkeypatch.setattr(gc.tracking, "versions", lambda *_: found)
    monkeypatch.setattr(gc.tracking, "by_alias", lambda _client, _model, name: aliases[name])


def test_versions_are_kept_for_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    registry(monkeypatch, 12, rolled_back="4")
    files.write_json(files.SUMMARY, {"registered_version": "6", "tracking_uri": gc.tracking.uri()})
    client: Any = None
    kept, gone = gc.kept_versions(client, "refit", 2)
    assert kept == {
        "12": "of the newest 2",
        "11": "of the newest 2",
        "6": "in the workspace",
        "4": "rolled back",
        "2": "champion",
        "1": "previous",
    }
    assert sorted(int(v.version) for v in gone) == [3, 5, 7, 8, 9, 10]


def test_a_summary_of_another_server_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    registry(monkeypatch, 4)
    files.write_json(files.SUMMARY, {"registered_version": "3", "tracking_uri": "elsewhere"})
    client: Any = None
    assert gc.kept_versions(client, "refit", 1)[0].keys() == {"4", "2", "1"}


def test_checkpoints_go_when_their_training_is_done() -> None:
    for name in ("old", "new"):
        written(f"data/checkpoints/fine_tune/stale/{name}/0.safetensors")
        written(f"data/checkpoints/fine_tune/done/{name}/0.safetensors")
    os.utime("data/checkpoints/fine_tune/stale/old", (0, 0))
    written("data/checkpoints/train_head/gone/any/0.safetensors")
    live = written("data/checkpoints/fine_tune/done/live.jsonl")
    step = gc.checkpoints_step({"stale", "done"}, frozenset({"fine_tune@stale"}))
    assert step.size == 40
    step.remove()
    left = {str(p.relative_to("data/checkpoints")) for p in Path("data").rglob("*.safetensors")}
    assert left == {"fine_tune/stale/new/0.safetensors"}
    assert live.exists()


def test_features_go_when_no_candidate_used_them_last() -> None:
    for key in ("a", "b", "c"):
        written(f"data/features/{key}/part.npz")
    feature_store.note_use("one", ["a"])
    assert gc.features_step({"one", "two"}).items == []  # what `two` uses is not known
    feature_store.note_use("two", ["b", "a"])
    step = gc.features_step({"one", "two"})
    assert (step.items, step.size) == (["data/features/c"], 10)
    step.remove()
    assert sorted(path.name for path in files.FEATURES.iterdir() if path.is_dir()) == ["a", "b"]


def test_half_written_files_go_when_their_writer_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    old = time.time() - 2 * gc.AN_HOUR
    mine = written(f"data/models/.model.safetensors.{os.getpid()}.tmp")
    young = written(f"data/models/.young.json.{ended.pid}.tmp")
    dead = written(f"data/packed/key/.shard.npy.{ended.pid}.tmp")
    named = written("data/raw/cat/.a.tmp")
    for path in (mine, dead, named):
        os.utime(path, (old, old))
    step = gc.leftovers_step()
    assert step.items == [str(dead)]
    step.remove()
    assert [path.exists() for path in (mine, young, dead, named)] == [True, True, False, True]


def test_it_waits_for_no_retrain(monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(Path(__file__).parents[2] / "params.yaml", ".")
    monkeypatch.setattr(sys, "argv", ["gc"])
    workspace.FOLDER.mkdir(parents=True)
    with FileLock(workspace.LOCK), pytest.raises(RefitError, match="is held by another retrain"):
        gc.main()
