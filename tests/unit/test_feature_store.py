"""The store of frozen features: computed once, by content, and never half of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks import feature_store
from tasks.packed import Pictures


def pictures(*contents: int) -> Pictures:
    """Pictures whose content hash is a number, in a folder that is never read."""
    count = len(contents)
    return Pictures(
        Path("none"),
        [f"{i}.png" for i in range(count)],
        [f"{content:064x}" for content in contents],
        np.zeros(count, np.int64),
        np.array([""] * count),
        np.zeros(count, np.int64),
    )


class Counting:
    """Computes [content, 2 * content] and remembers for which pictures it was asked."""

    def __init__(self, shown: Pictures) -> None:
        self.shown = shown
        self.asked: list[int] = []

    def __call__(self, which: NDArray[np.int64]) -> NDArray[np.float32]:
        contents = [int(self.shown.sha256[i], 16) for i in which]
        self.asked += contents
        return np.array([[c, 2 * c] for c in contents], np.float32)


def ask(root: Path, *contents: int, key: str = "key") -> tuple[list[float], list[int]]:
    """Ask for features; return the first column and the contents that were computed."""
    shown = pictures(*contents)
    compute = Counting(shown)
    vectors, computed = feature_store.features_of(shown, key, compute, root)
    assert computed == len(compute.asked)
    assert (vectors[:, 1] == 2 * vectors[:, 0]).all()
    return vectors[:, 0].tolist(), compute.asked


def test_one_percent_new_computes_one_percent(tmp_path: Path) -> None:
    ask(tmp_path, *range(200))
    found, computed = ask(tmp_path, *range(202))
    assert computed == [200, 201]
    assert found == list(range(202))
    assert ask(tmp_path, *range(202)) == (found, [])


def test_order_and_removed_pictures_do_not_matter(tmp_path: Path) -> None:
    ask(tmp_path, 1, 2, 3, 4)
    assert ask(tmp_path, 4, 2) == ([4, 2], [])


def test_equal_contents_are_computed_once(tmp_path: Path) -> None:
    assert ask(tmp_path, 7, 8, 7, 7) == ([7, 8, 7, 7], [7, 8])


def test_another_key_shares_nothing(tmp_path: Path) -> None:
    ask(tmp_path, 1, 2)
    assert ask(tmp_path, 1, 2, key="other")[1] == [1, 2]


def test_parts_that_were_done_survive_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_store, "PART", 3)
    shown = pictures(*range(8))
    compute = Counting(shown)

    def crashing(which: NDArray[np.int64]) -> NDArray[np.float32]:
        if 6 in which:
            raise RuntimeError("killed")
        return compute(which)

    with pytest.raises(RuntimeError, match="killed"):
        feature_store.features_of(shown, "key", crashing, tmp_path)
    assert ask(tmp_path, *range(8)) == (list(range(8)), [6, 7])
    assert not [p for p in tmp_path.rglob("*") if p.suffix == ".tmp"]


def test_a_process_that_does_not_write_still_has_the_features(tmp_path: Path) -> None:
    shown = pictures(1, 2)
    vectors, _ = feature_store.features_of(shown, "key", Counting(shown), tmp_path, writes=False)
    assert vectors.tolist() == [[1, 2], [2, 4]]
    assert not list(tmp_path.rglob("*"))
