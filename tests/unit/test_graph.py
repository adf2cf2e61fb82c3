"""What DVC has recorded but not kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows import graph

STAGES = """
stages:
  one:
    cmd: mkdir -p data/out && cp data/raw/a data/out/b
    deps: [data/raw]
    outs: [data/out]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one stage, up to date."""
    monkeypatch.chdir(tmp_path)
    Path("data/raw").mkdir(parents=True)
    Path("data/raw/a").write_text("content")
    with Repo.init(no_scm=True) as repo:
        repo.add("data/raw")
        Path("dvc.yaml").write_text(STAGES)
        repo.reproduce("one")
    return tmp_path


def test_what_is_up_to_date_and_kept_is_left_alone(project: Path) -> None:
    found = graph.ask()
    assert (found.stale, found.unkept, found.new_data) == (frozenset(), frozenset(), False)


def test_a_result_that_the_cache_lost_is_named(project: Path) -> None:
    with Repo() as repo:
        (out,) = next(s for s in repo.index.stages if s.addressing == "one").outs
        Path(out.cache.oid_to_path(out.hash_info.value)).unlink()
    found = graph.ask()
    assert (found.stale, found.unkept, found.new_data) == (frozenset(), frozenset({"one"}), False)


def test_data_that_the_cache_lost_are_new(project: Path) -> None:
    shutil.rmtree(".dvc/cache")
    found = graph.ask()
    assert (found.unkept, found.new_data) == (frozenset({"one"}), True)


@pytest.mark.parametrize("content", [None, "changed"], ids=["gone", "changed"])
def test_a_result_that_cache_and_project_lost_is_stale(project: Path, content: str | None) -> None:
    shutil.rmtree(".dvc/cache/files")
    Path("data/out/b").unlink()
    if content:
        Path("data/out/b").write_text(content)
    found = graph.ask()
    assert (found.stale, found.unkept) == (frozenset({"one"}), frozenset())
