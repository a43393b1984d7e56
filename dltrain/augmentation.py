"""Signals and images changed at random, each row by a seed of its own: neither its batch nor its shard matters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.errors import must, real

STREAM = 0xD1342543DE82EF95 - 2**64  # odd, as 64 signed bits: between two draws of one row
FIRST, SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64  # of splitmix64
TRUTH: tuple[Callable[[Any], bool], str] = (lambda v: isinstance(v, bool), "true or false")
SHARE: tuple[Callable[[Any], bool], str] = (lambda v: real(v) and 0 <= v < 1, "in [0, 1)")
FACTOR: tuple[Callable[[Any], bool], str] = (lambda v: real(v) and 0 <= v <= 1, "in [0, 1]")
SIZE: tuple[Callable[[Any], bool], str] = (lambda v: real(v) and v >= 0, "a number of at least 0")
RULES = {
    "shift": SHARE,
    "crop": (lambda v: real(v) and 0 < v <= 1, "above 0 and at most 1"),
    "rotation": (lambda v: real(v) and 0 <= v <= 180, "in [0, 180] degrees"),
    "flip": TRUTH,
    "flip_vertical": TRUTH,
    "brightness": SIZE,
    "contrast": FACTOR,
    "saturation": FACTOR,
    "scale": SIZE,
    "cutout": SHARE,
}
OF_IMAGES = {"flip": "mirrors", "flip_vertical": "mirrors", "rotation": "turns"}


@dataclass
class Augmentation:
    """What may happen to rows of `shape_in`, (channels, length) or (channels, height, width), in this order.

    A window of at least `crop` of both sides, turned by up to `rotation` degrees, is enlarged to the whole by linear
    interpolation. It moves by up to `shift` of each side, in whole places, and half of all images are mirrored: left to
    right if `flip`, upside down if `flip_vertical`. Zeros, the mean after pipeline=standard, come in from outside.
    Up to `brightness`, in the pipeline's units, is added or taken away; the distances from the row's mean change by up
    to the share `contrast`, those from the mean of its three colours by up to `saturation`; all of it is multiplied by
    1 + `scale` * N(0, 1). A square of zeros, `cutout` of the shorter side, covers a place whose middle is anywhere in
    the row (https://arxiv.org/abs/1708.04552). Signals are neither turned nor mirrored. Raises ConfigError.
    """

    group: ClassVar[str] = "task.look"  # how its settings are typed

    shape_in: tuple[int, ...]
    shift: float = 0.125
    crop: float = 1.0
    rotation: float = 0.0
    flip: bool = False
    flip_vertical: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    scale: float = 0.0
    cutout: float = 0.0

    def __post_init__(self) -> None:
        for name, (right, requirement) in RULES.items():
            value = getattr(self, name)
            must(right(value), f"{self.group}.{name}", requirement, value)
            if name in OF_IMAGES and len(self.shape_in) == 2:
                off = "false" if isinstance(value, bool) else "0"
                must(not value, f"{self.group}.{name}", f"{off} for signals (it {OF_IMAGES[name]} images)", value)
        of_colours = not self.saturation or (len(self.shape_in), self.shape_in[0]) == (3, 3)
        unless = "0 unless images have three channels (it mixes colours)"
        must(of_colours, f"{self.group}.saturation", unless, self.saturation)

    def __call__(self, x: Tensor, seeds: Tensor) -> Tensor:
        """(batch, *shape_in), each row changed as its seed says, of seeds (batch,) int64."""
        window, moves, mirrors, colours, hole = uniform(seeds, 14).split([4, 2, 2, 4, 2], 1)
        if self.crop < 1 or self.rotation:
            x = self._enlarged(x, *window.unbind(1))
        for dim, draw in self._sides(moves):
            if reach := round(self.shift * x.shape[dim]):
                x = shifted(x, dim, below(draw, 2 * reach + 1) - reach)
        for dim, draw, wanted in zip((-2, -1), mirrors.unbind(1), (self.flip_vertical, self.flip), strict=True):
            if wanted:
                x = torch.where(each(draw < 0.5, x), x.flip(dim), x)
        return self._covered(self._coloured(x, colours), hole)

    def _sides(self, draws: Tensor) -> list[tuple[int, Tensor]]:
        """The dimensions of space, each with its column of draws (batch, 2)."""
        return list(enumerate(draws.unbind(1)[: len(self.shape_in) - 1], 2))

    def _enlarged(self, x: Tensor, turn: Tensor, size: Tensor, across: Tensor, down: Tensor) -> Tensor:
        """A window that lies within the row before it is turned around its own middle."""
        maps = x if x.ndim == 4 else x.unsqueeze(2)
        height, width = maps.shape[2:]
        part, angle = 1 - (1 - self.crop) * size, torch.deg2rad(self.rotation * (2 * turn - 1))
        right, lower = ((1 - part) * (side - 1) * (draw - 0.5) for side, draw in ((width, across), (height, down)))
        numbers = (part * angle.cos(), part * angle.sin(), right, lower)
        straight, aslant, right, lower = (each(values, maps[:, 0]).to(x.dtype) for values in numbers)
        row, column = (torch.arange(side, device=x.device) - (side - 1) / 2 for side in (height, width))
        # by products and sums alone, whose last bits do not depend on how many rows there are
        source = column * straight - row[:, None] * aslant + right, column * aslant + row[:, None] * straight + lower
        grid = torch.stack([source[0] * (2 / width), source[1] * (2 / height)], -1)
        return F.grid_sample(maps, grid, align_corners=False).view_as(x)

    def _coloured(self, x: Tensor, draws: Tensor) -> Tensor:
        light, contrast, saturation, scale = (each(draw, x) for draw in draws.unbind(1))
        if self.brightness:
            x = x + (self.brightness * (2 * light - 1)).to(x.dtype)
        for change, draw, over in ((self.contrast, contrast, range(1, x.ndim)), (self.saturation, saturation, [1])):
            if change:
                middle = x.mean([*over], keepdim=True, dtype=draws.dtype).to(x.dtype)
                x = middle + (x - middle) * (1 + change * (2 * draw - 1)).to(x.dtype)
        return x * (1 + self.scale * torch.special.ndtri(scale)).to(x.dtype) if self.scale else x

    def _covered(self, x: Tensor, draws: Tensor) -> Tensor:
        size = round(self.cutout * min(self.shape_in[1:]))
        if not size:
            return x
        masks = []
        for dim, draw in self._sides(draws):
            place = torch.arange(x.shape[dim], device=x.device) - below(draw, x.shape[dim])[:, None] + size // 2
            masks.append(along((place >= 0) & (place < size), x, dim))
        return x.masked_fill(masks[0] & masks[-1], 0)


def uniform(seeds: Tensor, n: int) -> Tensor:
    """(rows, n) of numbers between 0 and 1, neither included: splitmix64 (doi.org/10.1145/2660193.2660195) of seeds."""
    bits = scrambled(seeds[:, None] + torch.arange(1, n + 1, device=seeds.device) * STREAM)
    kind, kept = (torch.float32, 23) if seeds.device.type == "mps" else (torch.float64, 52)  # mps has no float64
    return (after(bits, 64 - kept).to(kind) + 0.5) * 2.0**-kept


def scrambled(bits: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64, whose products wrap around."""
    bits = (bits ^ after(bits, 30)) * FIRST
    bits = (bits ^ after(bits, 27)) * SECOND
    return bits ^ after(bits, 31)


def after(bits: Tensor, places: int) -> Tensor:
    """Bits moved to the right with zeros behind them, where int64 brings its sign."""
    return (bits >> places) & (2 ** (64 - places) - 1)


def below(draws: Tensor, n: int) -> Tensor:
    """Whole numbers from 0 to n - 1 from numbers between 0 and 1."""
    return (draws * n).long().clamp(max=n - 1)


def each(values: Tensor, x: Tensor) -> Tensor:
    """(batch,), to go with all of a row of x."""
    return values.view(-1, *[1] * (x.ndim - 1))


def along(values: Tensor, x: Tensor, dim: int) -> Tensor:
    """(batch, size), to go with one dimension of the rows of x."""
    return values.view(len(x), *[x.shape[k] if k == dim else 1 for k in range(1, x.ndim)])


def shifted(x: Tensor, dim: int, steps: Tensor) -> Tensor:
    """Each row moved along one dimension by its own number of places; what comes in is zero."""
    source = along(torch.arange(x.shape[dim], device=x.device) - steps[:, None], x, dim)
    inside = (source >= 0) & (source < x.shape[dim])
    return x.gather(dim, source.clamp(0, x.shape[dim] - 1).expand_as(x)) * inside
