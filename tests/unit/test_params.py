"""params.yaml is read whole, typed, and refused where it is not understood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks import params
from tasks.vision.errors import RefitError


def changed(tmp_path: Path, **blocks: Any) -> Path:
    """Write the shipped params with blocks updated (None removes one)."""
    shipped = yaml.safe_load(Path("params.yaml").read_text())
    for name, change in blocks.items():
        if change is None:
            del shipped[name]
        else:
            shipped[name] = {**shipped.get(name, {}), **change}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(shipped))
    return path


def test_shipped_params_are_read_and_frozen() -> None:
    shipped = params.load()
    assert list(shipped.candidates) == ["resnet18", "mobilenet_v2"]
    assert shipped.data.split.test == 0.15
    with pytest.raises(ValueError, match="frozen"):
        shipped.data.seed = 1


def test_a_bare_off_is_a_word(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(Path("params.yaml").read_text().replace("    drift: warn", "    drift: off"))
    assert params.load(path).validate_.checks.drift == "off"


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ({"head": {"epoch": 3}}, ["1 value refused", "head.epoch", "got 3"]),
        ({"head": {"lr": -1}, "fine_tune": {"lr": "x"}}, ["2 values refused", "head.lr"]),
        ({"prepare": {"crop": 300}}, ["crop 300 is larger than resize 256"]),
        ({"data": {"split": {"val": 0.5, "test": 0.5}}}, ["leaves nothing to train on"]),
        ({"evaluate": None}, ["evaluate: Field required"]),
        ({"validate": {"max_pixels": 10**9}}, ["max_pixels"]),
        (
            {"candidates": {"a b": {"arch": "x", "weights": "random", "on_missing": "fail"}}},
            ["['a b']", "may hold only letters"],
        ),
        (
            {"candidates": {"c": {"arch": "x", "weights": "hub:y", "on_missing": "fail"}}},
            ["'hub:y' is none of imagenet, random, package:…, file:…"],
        ),
        (
            {"candidates": {"c": {"arch": "x", "weights": "file:w.pth", "on_missing": "fail"}}},
            ["needs the file's sha256"],
        ),
    ],
)
def test_what_is_not_understood_is_refused(
    tmp_path: Path, blocks: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(RefitError) as error:
        params.load(changed(tmp_path, **blocks))
    for word in words:
        assert word in str(error.value)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RefitError, match="start from the project's folder"):
        params.load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [")
    with pytest.raises(RefitError, match="is not YAML"):
        params.load(tmp_path / "params.yaml")


def test_an_unknown_candidate_is_refused_with_those_there_are() -> None:
    with pytest.raises(RefitError, match=r"'alexnet'.*\['resnet18', 'mobilenet_v2'\]"):
        params.candidate(params.load(), "alexnet")
