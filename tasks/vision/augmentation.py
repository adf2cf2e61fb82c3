"""Augmentation: per picture, on whole batches, on the device.

All that moves pixels (crop, zoom, shift, rotation, shear, flips) is one affine map, so a picture is
interpolated once. What is drawn for a picture depends on its seed alone; see `randomness`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

from tasks.vision.device import on_device
from tasks.vision.preprocess import centre_crop
from tasks.vision.randomness import Seeds, uniforms

_PADDING = {"nearest": "border", "reflect": "reflection"}
# A column of uniform numbers for each thing that is drawn.
_COLUMNS = (
    *("flip", "vertical_flip", "area", "ratio", "top", "left", "rotation", "shift_x", "shift_y"),
    *("shear", "zoom", "brightness", "contrast", "saturation", "hue"),
    *("erase", "erase_area", "erase_ratio", "erase_top", "erase_left"),
)
_ERASED_AREA = (0.02, 0.33)  # share of the picture, and the shape below: Zhong et al. (2020)
_ERASED_RATIO = (0.3, 3.3)
# Weights of red, green and blue in a grey picture: ITU-R BT.601.
_GREY = (0.299, 0.587, 0.114)

Drawn = dict[str, Tensor]


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training picture; zero, or 1 for `crop_area`, is off.

    Attributes:
        flip: probability of a mirror image, left to right.
        vertical_flip: probability of one upside down.
        crop_area: smallest share of the packed picture that a random-resized-crop keeps
            (Szegedy et al. 2015); 1 takes the centre crop.
        crop_ratio: largest ratio of such a crop's sides, either way.
        rotation: degrees, at most, either way.
        shift: share of the crop's side, at most, in each direction.
        shear: degrees, at most, either way.
        zoom: share by which a picture is enlarged or shrunk, at most.
        brightness: share by which levels are scaled, at most.
        contrast: share by which differences from the mean are scaled, at most.
        saturation: share by which differences from grey are scaled, at most.
        hue: turn of the colour circle, at most, either way; 0.5 is all of it.
        fill: what is seen outside the packed picture: its nearest pixels, or its reflection.
        policy: torchvision's RandAugment (Cubuk et al. 2020) or TrivialAugment (Müller, Hutter
            2021), each picture by itself: slower than all else here.
        erasing: probability that a rectangle is set to the mean colour (Zhong et al. 2020).
    """

    flip: float = 0.5
    vertical_flip: float = 0.0
    crop_area: float = 1.0
    crop_ratio: float = 4 / 3
    rotation: float = 0.0
    shift: float = 0.0
    shear: float = 0.0
    zoom: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    fill: Literal["nearest", "reflect"] = "reflect"
    policy: Literal["none", "randaugment", "trivialaugment"] = "none"
    erasing: float = 0.0

    @property
    def only_flips(self) -> bool:
        """Whether nothing but a mirror image, left to right, can happen to a picture."""
        return self == Augmentation(
            flip=self.flip, crop_ratio=self.crop_ratio, fill=self.fill, policy="none"
        )

    @property
    def _moves(self) -> bool:
        return self.crop_area < 1 or any((self.rotation, self.shift, self.shear, self.zoom))

    def levels(self, images: Tensor, seeds: Seeds, side: int) -> Tensor:
        """Return augmented levels 0..255, float32 [N, 3, side, side].

        Args:
            images: packed squares uint8 [N, 3, S, S].
            seeds: [N], one a picture.
            side: of the crop, in pixels.
        """
        drawn = _draw(seeds, images.device)
        if self._moves:
            theta = self._maps(drawn, side / images.shape[-1])
            grid = F.affine_grid(theta, [len(images), 3, side, side], align_corners=False)
            padding = _PADDING[self.fill]
            moved = F.grid_sample(images.float(), grid, "bilinear", padding, align_corners=False)
        else:
            moved = centre_crop(images, side).float()
            moved = _where(drawn["flip"] < self.flip, moved.flip(-1), moved)
            if self.vertical_flip:
                moved = _where(drawn["vertical_flip"] < self.vertical_flip, moved.flip(-2), moved)
        if self.policy != "none":
            moved = self._by_policy(moved, seeds)
        return self._coloured(moved, drawn)

    def erased(self, images: Tensor, seeds: Seeds) -> Tensor:
        """Set a rectangle of some normalised pictures [N, 3, S, S] to 0, the mean colour."""
        if not self.erasing:
            return images
        drawn = _draw(seeds, images.device)
        area = _between(drawn["erase_area"], *_ERASED_AREA)
        ratio = _between(drawn["erase_ratio"], *map(math.log, _ERASED_RATIO)).exp()
        side = images.shape[-1]
        inside = (drawn["erase"] < self.erasing).view(-1, 1, 1, 1)
        for share, start, shape in (
            ((area * ratio).sqrt(), drawn["erase_top"], (1, 1, -1, 1)),
            ((area / ratio).sqrt(), drawn["erase_left"], (1, 1, 1, -1)),
        ):
            length = (share.clamp(max=1) * side).round()
            first = (start * (side - length + 1)).floor()
            at = torch.arange(side, device=images.device).view(shape)
            from_, to = first.view(-1, 1, 1, 1), (first + length).view(-1, 1, 1, 1)
            inside = inside & (at >= from_) & (at < to)
        return images.masked_fill(inside, 0.0)

    def _maps(self, drawn: Drawn, centre: float) -> Tensor:
        """Return maps [N, 2, 3] from the crop to the packed picture, both in -1..1.

        Args:
            drawn: uniform numbers.
            centre: the centre crop's side over the packed picture's.
        """
        ones = torch.ones_like(drawn["flip"])
        width = height = centre * ones
        middle_x = middle_y = 0 * ones
        if self.crop_area < 1:
            area = _between(drawn["area"], self.crop_area, 1)
            stretch = _between(drawn["ratio"], -1, 1) * math.log(self.crop_ratio)
            width = (area * stretch.exp()).sqrt().clamp(max=1)
            height = (area / stretch.exp()).sqrt().clamp(max=1)
            middle_x = _between(drawn["left"], -1, 1) * (1 - width)
            middle_y = _between(drawn["top"], -1, 1) * (1 - height)
        middle_x = middle_x + _between(drawn["shift_x"], -2, 2) * self.shift * width
        middle_y = middle_y + _between(drawn["shift_y"], -2, 2) * self.shift * height
        zoom = 1 / (1 + _between(drawn["zoom"], -1, 1) * self.zoom)
        x = width * zoom * torch.where(drawn["flip"] < self.flip, -1.0, 1.0)
        y = height * zoom * torch.where(drawn["vertical_flip"] < self.vertical_flip, -1.0, 1.0)
        angle = _between(drawn["rotation"], -1, 1) * math.radians(self.rotation)
        slant = (_between(drawn["shear"], -1, 1) * math.radians(self.shear)).tan()
        cos, sin = angle.cos(), angle.sin()
        # Rotation after shear after scale.
        rows = [
            [cos * x, (cos * slant - sin) * y, middle_x],
            [sin * x, (sin * slant + cos) * y, middle_y],
        ]
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    def _coloured(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Change brightness, contrast, saturation and hue of levels 0..255."""
        if not any((self.brightness, self.contrast, self.saturation, self.hue)):
            return images
        grey = images.new_tensor(_GREY).view(1, 3, 1, 1)
        if self.brightness:
            images = images * _factor(drawn["brightness"], self.brightness)
        if self.contrast:
            mean = (images * grey).sum(1, keepdim=True).mean((2, 3), keepdim=True)
            images = mean + (images - mean) * _factor(drawn["contrast"], self.contrast)
        if self.saturation:
            plain = (images * grey).sum(1, keepdim=True)
            images = plain + (images - plain) * _factor(drawn["saturation"], self.saturation)
        if self.hue:
            turn = _between(drawn["hue"], -1, 1) * 2 * math.pi * self.hue
            images = torch.einsum("nij,njhw->nihw", _hue_turns(turn), images)
        return images.clamp(0, 255)

    def _by_policy(self, images: Tensor, seeds: Seeds) -> Tensor:
        """Apply torchvision's policy to each picture by itself."""
        from torchvision.transforms import v2  # seconds, and most trainings do without

        policies = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}
        policy = policies[self.policy]()
        out = []
        with torch.random.fork_rng(devices=[]):
            for image, seed in zip(images.round().clamp(0, 255).byte(), seeds, strict=True):
                torch.default_generator.manual_seed(int(seed >> np.uint64(1)))
                out.append(policy(image))
        return torch.stack(out).float()


def _draw(seeds: Seeds, device: torch.device) -> Drawn:
    drawn = on_device(uniforms(seeds, len(_COLUMNS)), device)
    return dict(zip(_COLUMNS, drawn.unbind(1), strict=True))


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * uniform


def _factor(uniform: Tensor, most: float) -> Tensor:
    return _between(uniform, 1 - most, 1 + most).clamp(min=0).view(-1, 1, 1, 1)


def _where(which: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(which.view(-1, 1, 1, 1), yes, no)


def _hue_turns(angles: Tensor) -> Tensor:
    """Return matrices [N, 3, 3] that turn RGB about the grey axis by angles [N] in radians."""
    third = 1 / 3
    cos, part = angles.cos(), (1 - angles.cos()) * third
    side = angles.sin() * math.sqrt(third)
    rows = [
        [cos + part, part - side, part + side],
        [part + side, cos + part, part - side],
        [part - side, part + side, cos + part],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
