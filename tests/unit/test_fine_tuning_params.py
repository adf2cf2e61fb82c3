"""The training blocks of params.yaml, what candidates lay over them, and a training's identity."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tasks import params, training
from tasks.packed import Pictures
from tasks.vision.augmentation import Augmentation
from tasks.vision.errors import RefitError
from tasks.vision.parallel import Processes

SHIPPED = Path(__file__).resolve().parents[2] / "params.yaml"
CPU = torch.device("cpu")


def loaded(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> params.Params:
    """The shipped params after a change."""
    raw = yaml.safe_load(SHIPPED.read_text())
    change(raw)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return params.load(path)


def refused(tmp_path: Path, block: str, **values: Any) -> str:
    with pytest.raises(RefitError) as error:
        loaded(tmp_path, lambda raw: raw[block].update(values))
    return str(error.value)


def test_a_candidate_sees_its_own_figures_and_others_the_blocks(tmp_path: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["fine_tune"]["augmentation"] = {"flip": 0.5, "rotation": 5}
        raw["candidates"]["resnet18"]["head"] = {"hidden": [256], "dropout": 0.5}
        raw["candidates"]["resnet18"]["fine_tune"] = {
            "unfreeze": "last_2_blocks",
            "augmentation": {"rotation": 9},
        }

    settings = loaded(tmp_path, change)
    own = settings.for_candidate("resnet18")
    assert own.head.hidden == (256,)
    assert own.head.epochs == settings.head.epochs
    assert own.fine_tune.unfreeze == "last_2_blocks"
    assert own.fine_tune.augmentation == params.Augmentation(flip=0.5, rotation=9)
    other = settings.for_candidate("mobilenet_v2")
    assert other.head == settings.head
    assert other.fine_tune == settings.fine_tune


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"unfreeze": "last_blok"}, ["candidates.resnet18.unfreeze", "last_blok"]),
        ({"epoch": 3}, ["candidates.resnet18.epoch", "Extra inputs are not permitted"]),
    ],
)
def test_a_wrong_override_is_refused_with_its_place(
    tmp_path: Path, own: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(RefitError) as error:
        loaded(tmp_path, lambda raw: raw["candidates"]["resnet18"].update(fine_tune=own))
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "mode", ["last_block", "last_3_blocks", "last_12_layers", "all", "gradual"]
)
def test_every_unfreeze_mode_is_known(tmp_path: Path, mode: str) -> None:
    settings = loaded(tmp_path, lambda raw: raw["fine_tune"].update(unfreeze=mode))
    assert settings.fine_tune.unfreeze == mode


def test_what_contradicts_itself_is_refused(tmp_path: Path) -> None:
    assert "weigh rare classes twice" in refused(
        tmp_path, "head", sampler="balanced", class_weights="auto"
    )
    assert "mix pictures, not features" in refused(tmp_path, "head", mixup=0.2)
    assert "fine_tune.unfreeze" in refused(tmp_path, "fine_tune", unfreeze="last_0_blocks")


def test_every_figure_of_the_block_reaches_the_loop(tmp_path: Path) -> None:
    figures = {
        "epochs": 7,
        "batch_size": 9,
        "accumulate": 3,
        "optimiser": "sgd",
        "lr": 0.3,
        "lr_decay": 0.7,
        "warm_up": 0.2,
        "weight_decay": 0.4,
        "label_smoothing": 0.05,
        "mixup": 0.1,
        "cutmix": 0.6,
        "ema": 0.8,
        "clip_norm": 2.0,
        "metric": "accuracy",
        "patience": 4,
    }
    settings = loaded(tmp_path, lambda raw: raw["fine_tune"].update(figures, precision="bfloat16"))
    recipe = training.recipe_of(settings.fine_tune, 11, CPU)
    assert {name: getattr(recipe, name) for name in figures} == figures
    assert (recipe.seed, recipe.bfloat16) == (11, True)


def test_the_augmentation_of_params_is_that_of_the_code() -> None:
    shown = params.Augmentation()
    assert Augmentation(**shown.model_dump()) == Augmentation()


def pictures(labels: list[int]) -> Pictures:
    count = len(labels)
    return Pictures(
        Path("none"),
        ["x.png"] * count,
        [f"{i:064x}" for i in range(count)],
        np.array(labels),
        np.array([""] * count),
        np.zeros(count, np.int64),
    )


def test_a_training_is_named_by_params_data_weights_and_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = (pictures([0, 1, 1]), pictures([1]))
    name = training.identity({"lr": 1}, 42, "sha", pictures=both)
    assert training.identity({"lr": 1}, 42, "sha", pictures=both) == name
    others = [
        training.identity({"lr": 2}, 42, "sha", pictures=both),
        training.identity({"lr": 1}, 43, "sha", pictures=both),
        training.identity({"lr": 1}, 42, "other", pictures=both),
        training.identity({"lr": 1}, 42, "sha", pictures=(pictures([0, 1, 0]), both[1])),
        training.identity({"lr": 1}, 42, "sha", pictures=(pictures([0, 1, 1, 1]), both[1])),
    ]
    import tasks.vision.loops as loops

    changed = Path(str(loops.__file__)).with_name("recipes.py")
    monkeypatch.setattr(loops, "__file__", str(changed))
    others.append(training.identity({"lr": 1}, 42, "sha", pictures=both))
    assert len({name, *others}) == 7


def test_one_process_at_a_time_and_checkpoints_go_after_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with training.place("fine_tune", "a", Processes()) as place:
        (place.folder / "0123").mkdir()
        (place.folder / "0123" / "0.safetensors").touch()
        with (
            pytest.raises(RefitError, match="another process runs fine_tune a"),
            training.place("fine_tune", "a", Processes()),
        ):
            pass
        with training.place("fine_tune", "b", Processes()):
            place.clear()
    assert not [p for p in (tmp_path / "data/checkpoints/fine_tune/a").iterdir() if p.is_dir()]
    with training.place("fine_tune", "a", Processes()):
        shutil.rmtree(tmp_path / "data/checkpoints/fine_tune/b")
