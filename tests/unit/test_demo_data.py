"""The demo's pictures: real, balanced, seeded, and never over somebody's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks import demo_data, files
from tasks.vision.errors import RefitError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written() -> dict[str, list[str]]:
    return {d.name: sorted(p.name for p in d.iterdir()) for d in files.RAW.iterdir()}


def test_the_package_s_classes_are_those_published() -> None:
    assert {label: len(paths) for label, paths in demo_data.cells().items()} == {
        "defective": 821,
        "functional": 1803,
    }


def test_a_balanced_subset_is_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMO_IMAGES", "20")
    demo_data.main()
    first = written()
    assert {label: len(names) for label, names in first.items()} == {
        "defective": 10,
        "functional": 10,
    }
    demo_data.main()
    assert written() == first
    source = demo_data.cells()["defective"]
    by_name = {path.name: path for path in source}
    name = first["defective"][0]
    assert (files.RAW / "defective" / name).read_bytes() == by_name[name].read_bytes()


def test_a_smaller_subset_takes_the_others_away(monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted in ("20", "8"):
        monkeypatch.setenv("DEMO_IMAGES", wanted)
        demo_data.main()
    assert {label: len(names) for label, names in written().items()} == {
        "defective": 4,
        "functional": 4,
    }


def test_all_takes_everything() -> None:
    everything = demo_data.cells()
    assert demo_data.choose(everything, "all") == everything


def test_somebody_s_own_pictures_are_left_alone() -> None:
    own = files.RAW / "cat" / "mine.jpg"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    with pytest.raises(RefitError, match=r"1 files that .* \(first: cat/mine.jpg\)"):
        demo_data.main()
    assert [str(p) for p in files.RAW.rglob("*.*")] == [str(own)]


@pytest.mark.parametrize("wanted", ["some", "-4", "1", "2.5"])
def test_a_count_that_is_none_is_refused(wanted: str) -> None:
    with pytest.raises(RefitError, match="neither `all` nor a number"):
        demo_data.choose(demo_data.cells(), wanted)
