"""Pretrained networks as a trunk of blocks and a head, and what is frozen in them.

Nothing here is written down per model: names, feature width, blocks, input size and
preprocessing are read from torchvision or found by passing shapes through the network.
"""

from __future__ import annotations

import copy
import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, takewhile
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tasks.vision.errors import RefitError

# torchvision's module of each family, and what its networks are built with. Inception: without the
# auxiliary head, and with the input scale that its weights were trained on (`_INPUT_SCALE`).
_FAMILIES: dict[str, dict[str, bool]] = {
    "vgg": {},
    "resnet": {},
    "mobilenetv2": {},
    "mobilenetv3": {},
    "inception": {"aux_logits": False, "transform_input": False, "init_weights": True},
}
# Inception's weights expect mean 0.5 and std 0.5. torchvision's transforms name ImageNet's all the
# same, because its `transform_input` converts inside the network; here nothing is converted twice.
_INPUT_SCALE = {"inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}
# Pixels. Large enough that borders do not hide a halving; shapes cost nothing.
_PROBE_SIDE = 512

Colour = tuple[float, float, float]


@functools.cache
def architectures() -> tuple[str, ...]:
    """Return the names of torchvision's VGG, ResNet, MobileNet and Inception v3 classifiers."""
    from torchvision import models

    return tuple(name for name in models.list_models(module=models) if _family(name) in _FAMILIES)


def _family(arch: str) -> str:
    from torchvision import models

    return str(models.get_model_builder(arch).__module__).rpartition(".")[2]


def _check_name(arch: str) -> None:
    if arch in architectures():
        return
    close = difflib.get_close_matches(arch.lower(), architectures())
    guess = f"; did you mean {' or '.join(close)}?" if close else "."
    raise RefitError(f"unknown arch {arch!r}{guess} Valid: {', '.join(architectures())}")


def imagenet_weights(arch: str) -> Any:
    """Return torchvision's ImageNet weights of `arch`: its `WeightsEnum` member DEFAULT.

    torchvision calls its most accurate ones on ImageNet so. They name their `url` and `meta`.

    Raises:
        RefitError: unknown `arch`.
    """
    from torchvision import models

    _check_name(arch)
    return models.get_model_weights(arch).DEFAULT


def imagenet_preprocess(arch: str) -> tuple[int, int, Colour, Colour]:
    """Return the preprocessing that `imagenet_weights(arch)` expect.

    Returns:
        resize and crop in pixels; mean and std per channel (RGB) of pixels scaled to 0..1.

    Raises:
        RefitError: unknown `arch`.
    """
    spec = imagenet_weights(arch).transforms()
    mean, std = _INPUT_SCALE.get(_family(arch), (tuple(spec.mean), tuple(spec.std)))
    return spec.resize_size[0], spec.crop_size[0], mean, std


def minimum_side(arch: str) -> int:
    """Return the smallest square input of `arch` in pixels, as torchvision publishes it.

    Raises:
        RefitError: unknown `arch`.
    """
    return int(max(imagenet_weights(arch).meta["min_size"]))


def check_input_size(arch: str, side: int) -> None:
    """Refuse an input that `arch` would shrink to nothing.

    Args:
        arch: a name of `architectures()`.
        side: of the square input, in pixels.

    Raises:
        RefitError: unknown `arch`, or `side` too small; the message names the valid sizes.
    """
    smallest = minimum_side(arch)
    if side < smallest:
        crop = imagenet_preprocess(arch)[1]
        raise RefitError(
            f"{arch} does not take pictures of {side}x{side} pixels: valid is any side from "
            f"{smallest} pixels; its ImageNet weights were trained for {crop}"
        )


class Stack(nn.Sequential):
    """Modules in order, of which frozen ones stay in eval whatever mode is asked for."""

    def train(self, mode: bool = True) -> Stack:
        """Set the mode of all but the frozen modules."""
        super().train(mode)
        _hold_frozen_in_eval(self)
        return self


class Backbone(nn.Module):
    """A classifier's convolutional trunk: normalised [N, 3, S, S] -> feature map [N, width, h, w].

    Its children, and so its state dict, keep torchvision's names.

    Attributes:
        arch: torchvision's name of the classifier.
        width: channels of the feature map.
    """

    def __init__(self, arch: str, trunk: Mapping[str, nn.Module]):
        super().__init__()
        self.arch = arch
        for name, module in trunk.items():
            self.add_module(name, module)
        # Names, not modules: a second registration would double the state dict's keys, and names
        # stay right when a unit is replaced.
        self._blocks, self.width = _group_by_resolution(dict(_units(trunk)))

    @property
    def blocks(self) -> list[Stack]:
        """The blocks from input to output, each of one spatial resolution; `forward`'s modules."""
        return [Stack(*map(self.get_submodule, names)) for names in self._blocks]

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature map [N, width, h, w] of normalised images [N, 3, S, S]."""
        return self.forward_blocks(images)

    def forward_blocks(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Run `blocks[start:stop]` on the output of the block before `start`."""
        for name in chain.from_iterable(self._blocks[start:stop]):
            x = self.get_submodule(name)(x)
        return x

    def feature_shape(self, side: int) -> tuple[int, int, int]:
        """Return the feature map's (width, h, w) for a square input of `side` pixels."""
        _, *shape = _output_shape(self, (2, 3, side, side))
        return shape[0], shape[1], shape[2]

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode of all but the frozen modules, which stay in eval."""
        super().train(mode)
        _hold_frozen_in_eval(self)
        return self


def _units(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Yield what runs one after the other: plain Sequentials opened, other modules whole."""
    for name, module in modules.items():
        # Subclasses, like torchvision's convolution + norm + activation, belong together.
        if type(module) is nn.Sequential:
            yield from _units({f"{name}.{key}": child for key, child in module.named_children()})
        else:
            yield name, module


def _group_by_resolution(units: Mapping[str, nn.Module]) -> tuple[list[list[str]], int]:
    """Group consecutive units into blocks of one resolution; return their names and the width.

    A pooling layer ends the block of the convolutions before it (VGG, a ResNet's stem); a
    strided convolution works for the new resolution and starts a block.
    """
    blocks: list[list[str]] = [[]]
    shape: Sequence[int] = (2, 3, _PROBE_SIDE, _PROBE_SIDE)
    for name, unit in units.items():
        before, shape = shape, _output_shape(unit, shape)
        # Not "differs": an unpadded convolution loses only its border.
        halves = 3 * shape[-1] < 2 * before[-1]
        learns = next(unit.parameters(), None) is not None
        if halves and learns:
            blocks.append([])
        blocks[-1].append(name)
        if halves and not learns:
            blocks.append([])
    return [names for names in blocks if names], shape[1]


def _output_shape(module: nn.Module, shape: Sequence[int]) -> Sequence[int]:
    """Return the output's shape; nothing is computed and `module` is not touched."""
    tensors = chain(module.named_parameters(), module.named_buffers())
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
    with torch.no_grad():
        output: Tensor = torch.func.functional_call(
            module, state, torch.empty(*shape, device="meta")
        )
    return output.shape


def build_backbone(arch: str, generator_seed: int | None = None) -> Backbone:
    """Build a backbone with random weights.

    Under `with torch.device("meta")` no weights are drawn: for a state dict to be loaded with
    `assign=True`. It takes the keys of a torchvision checkpoint that are in its own state dict.

    Args:
        arch: a name of `architectures()`.
        generator_seed: seeds the weights and leaves torch's global generator as it was; None
            draws from the global generator.

    Raises:
        RefitError: unknown `arch`; the message lists the valid ones.
    """
    from torchvision import models

    _check_name(arch)
    with torch.random.fork_rng(devices=[], enabled=generator_seed is not None):
        if generator_seed is not None:
            torch.default_generator.manual_seed(generator_seed)
        model = models.get_model(arch, weights=None, **_FAMILIES[_family(arch)])
    return Backbone(arch, dict(takewhile(_is_convolutional, model.named_children())))


def _is_convolutional(child: tuple[str, nn.Module]) -> bool:
    """False for the global pooling or the classifier: where the trunk ends."""
    return not isinstance(child[1], nn.AdaptiveAvgPool2d) and not any(
        isinstance(module, nn.Linear) for module in child[1].modules()
    )


class Head(nn.Module):
    """What is put on a backbone: pooling, then hidden layers of ReLU and dropout, then logits.

    Without hidden layers the dropout is on the features.

    Args:
        width: channels of the feature map.
        classes: number of logits.
        pool: "avg" averages over space, D = width; "flatten" keeps it, D = width * h * w.
        hidden: sizes of the hidden layers.
        dropout: probability; 0 leaves the layer out.
        spatial: (h, w) of the feature map; used by "flatten".

    Raises:
        RefitError: another `pool`.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        pool: str = "avg",
        hidden: Sequence[int] = (256,),
        dropout: float = 0.5,
        spatial: tuple[int, int] = (1, 1),
    ):
        super().__init__()
        if pool == "avg":
            self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            size = width
        elif pool == "flatten":
            self.pool = nn.Sequential(nn.Flatten())
            size = width * spatial[0] * spatial[1]
        else:
            raise RefitError(f"unknown pool {pool!r}. Valid: avg, flatten")
        layers: list[nn.Module] = []
        if dropout and not hidden:
            layers.append(nn.Dropout(dropout))
        for wide in hidden:
            layers += [nn.Linear(size, wide), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            size = wide
        self.layers = nn.Sequential(*layers, nn.Linear(size, classes))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [N, classes] of pooled features [N, D]."""
        logits: Tensor = self.layers(features)
        return logits


class Classifier(nn.Module):
    """A backbone and its head: normalised images [N, 3, S, S] -> logits [N, classes]."""

    def __init__(self, backbone: Backbone, head: Head):
        super().__init__()
        self.backbone = backbone
        self.head = head

    def features(self, images: Tensor) -> Tensor:
        """Return the pooled features [N, D] of normalised images [N, 3, S, S]."""
        pooled: Tensor = self.head.pool(self.backbone(images))
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, classes] of normalised images [N, 3, S, S]."""
        logits: Tensor = self.head(self.features(images))
        return logits

    @property
    def frozen_blocks(self) -> int:
        """How many of the backbone's first blocks have nothing trainable."""
        frozen = (not _trainable(block) for block in self.backbone.blocks)
        return sum(1 for _ in takewhile(bool, frozen))


def build_classifier(
    arch: str, classes: int, crop: int, pool: str, hidden: Sequence[int], dropout: float
) -> Classifier:
    """Build a classifier with random weights, drawn from torch's global generator.

    Args:
        arch: a name of `architectures()`.
        classes: number of logits.
        crop: side of the square input, in pixels.
        pool: see `Head`.
        hidden: see `Head`.
        dropout: see `Head`.

    Raises:
        RefitError: unknown `arch` or `pool`, or `crop` too small.
    """
    check_input_size(arch, crop)
    backbone = build_backbone(arch)
    # Only asked where it matters: passing shapes through takes longer than it looks.
    spatial = backbone.feature_shape(crop)[1:] if pool == "flatten" else (1, 1)
    return Classifier(backbone, Head(backbone.width, classes, pool, hidden, dropout, spatial))


def freeze_all_but(classifier: Classifier, trainable_blocks: int) -> list[nn.Parameter]:
    """Freeze the backbone except its last blocks; the head trains.

    A frozen BatchNorm is in eval and stays there through `.train()`: its buffers do not move.

    Args:
        classifier: changed in place.
        trainable_blocks: 0 trains the head alone, `len(backbone.blocks)` everything.

    Returns:
        the trainable parameters, from input to output.

    Raises:
        RefitError: there are not so many blocks.
    """
    blocks = classifier.backbone.blocks
    _check_count(classifier, trainable_blocks, len(blocks), "blocks")
    return _freeze_all_but(classifier, blocks[len(blocks) - trainable_blocks :])


def freeze_all_but_layers(classifier: Classifier, trainable_layers: int) -> list[nn.Parameter]:
    """Freeze the backbone except its last layers; the head trains.

    A layer is a convolution with the norms up to the next one, in the order of the state dict.

    Args:
        classifier: changed in place.
        trainable_layers: 0 trains the head alone.

    Returns:
        the trainable parameters, from input to output.

    Raises:
        RefitError: there are not so many layers.
    """
    layers: list[list[nn.Module]] = []
    for module in classifier.backbone.modules():
        if isinstance(module, nn.Conv2d):
            layers.append([])
        if layers and next(module.parameters(recurse=False), None) is not None:
            layers[-1].append(module)
    _check_count(classifier, trainable_layers, len(layers), "layers")
    return _freeze_all_but(classifier, chain(*layers[len(layers) - trainable_layers :]))


def _check_count(classifier: Classifier, asked: int, there: int, what: str) -> None:
    if not 0 <= asked <= there:
        arch = classifier.backbone.arch
        raise RefitError(f"{asked} trainable {what} asked for, but {arch} has 0 to {there}")


def _freeze_all_but(classifier: Classifier, trainable: Iterable[nn.Module]) -> list[nn.Parameter]:
    classifier.requires_grad_(False)
    for module in chain(trainable, [classifier.head]):
        module.requires_grad_(True)
    classifier.train(classifier.training)
    return _trainable(classifier)


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _hold_frozen_in_eval(root: nn.Module) -> None:
    """Set modules whose own parameters are all frozen to eval.

    `requires_grad` itself is the mark, so no second one can disagree with it.
    """
    for module in root.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            module.training = False


def prefix(classifier: Classifier) -> Stack:
    """Return the frozen first blocks: images -> the boundary's activations; weights are shared."""
    return Stack(*classifier.backbone.blocks[: classifier.frozen_blocks])


def suffix(classifier: Classifier) -> Stack:
    """Return all after `prefix`: the boundary's activations -> logits; weights are shared."""
    blocks = classifier.backbone.blocks[classifier.frozen_blocks :]
    return Stack(*blocks, classifier.head.pool, classifier.head)


def fold_batchnorm(module: nn.Module) -> nn.Module:
    """Return a frozen copy in eval whose BatchNorms are folded into the convolutions before them.

    It takes the same input and gives the same output up to rounding, in a third less time.
    """
    folded = copy.deepcopy(module).eval()
    for convolution, norm in _convolution_norm_pairs(folded):
        fused = fuse_conv_bn_eval(
            cast(nn.Conv2d, folded.get_submodule(convolution)),
            cast(nn.BatchNorm2d, folded.get_submodule(norm)),
        )
        folded.set_submodule(convolution, fused)
        folded.set_submodule(norm, nn.Identity())
    return folded.requires_grad_(False).eval()


class _WholeConvolutions(fx.Tracer):
    """Takes every convolution as one step, those of our own classes, too."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Whether a module is one step of the trace."""
        return isinstance(module, nn.Conv2d) or super().is_leaf_module(module, name)


def _convolution_norm_pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Name each BatchNorm that alone reads a convolution, with that convolution, by tracing."""
    modules = dict(module.named_modules())
    pairs = []
    for node in _WholeConvolutions().trace(module).nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        source = node.args[0]
        if (
            source.op == "call_module"
            and isinstance(modules[source.target], nn.Conv2d)
            and len(source.users) == 1
        ):
            pairs.append((source.target, node.target))
    return pairs
