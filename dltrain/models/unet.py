"""U-Net: from a signal or an image to another of the same size."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.errors import ConfigError, whole
from dltrain.models.checks import check, dropout_rate, sizes
from dltrain.models.cnn import CONV
from dltrain.models.init import initialise
from dltrain.models.positions import sinusoids


class UNet(nn.Module):
    """Residual blocks down through halved sizes and up again, each level's map handed across.

    (batch, *shape_in) to (batch, *shape_out), both of the same length or height and width, whatever it is; a table row
    (n,) is a signal of one channel. https://arxiv.org/abs/1505.04597, with the blocks of
    https://arxiv.org/abs/2006.11239. A task that trains over time (diffusion) builds it with `time=True` and calls it
    with times (batch,), in steps; one that also gives classes builds it with their number as `conditions` and calls it
    with classes (batch,), of which `conditions` itself, like no classes at all, means none.
    """

    def __init__(
        self,
        shape_in: tuple[int, ...],
        shape_out: tuple[int, ...],
        activation: Callable[[], nn.Module] = nn.ReLU,
        channels: Sequence[int] = (32, 64, 128),
        kernel: int = 3,
        dropout: float = 0.0,
        init: str = "default",
        time: bool = False,
        conditions: int = 0,
    ) -> None:
        super().__init__()
        n_in, n_out, *space = as_maps(shape_in, shape_out)
        rank, widths, rate = len(space), sizes("channels", channels, fewest=1), dropout_rate(dropout)
        check(whole(kernel, 1) and kernel % 2 == 1, "kernel", "an odd whole number of at least 1", kernel)
        told = 4 * widths[0] if time or conditions else 0
        self.context = Context(told, activation, time, conditions) if told else None

        def block(n_in: int, n_out: int) -> ResidualBlock:
            return ResidualBlock(rank, n_in, n_out, kernel, activation, rate, told)

        levels = list(pairwise(widths))
        self.stem = CONV[rank](n_in, widths[0], kernel, padding=kernel // 2)
        self.down = nn.ModuleList(block(wide, wide) for wide, _ in levels)
        self.smaller = nn.ModuleList(CONV[rank](wide, deep, 3, stride=2, padding=1) for wide, deep in levels)
        self.middle = block(widths[-1], widths[-1])
        self.up = nn.ModuleList(block(deep + wide, wide) for wide, deep in reversed(levels))
        self.last = nn.Sequential(OrderedDict(norm=group_norm(widths[0]), activation=activation()))
        self.head = CONV[rank](widths[0], n_out, kernel, padding=kernel // 2)
        initialise(self, init)

    def forward(self, features: Tensor, time: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        context = None if self.context is None else self.context(len(features), time, condition)
        x = self.stem(features.unsqueeze(1) if features.ndim == 2 else features)
        levels = []
        for block, smaller in zip(self.down, self.smaller, strict=True):
            levels.append(block(x, context))
            x = smaller(levels[-1])
        x = self.middle(x, context)
        for block in self.up:
            level = levels.pop()
            larger = F.interpolate(x, size=level.shape[2:], mode="nearest")
            x = block(torch.cat([larger, level], 1), context)
        output = self.head(self.last(x))
        return output.squeeze(1) if features.ndim == 2 else output


class Context(nn.Module):
    """What every block is told: (batch,) times and (batch,) classes to (batch, width)."""

    def __init__(self, width: int, activation: Callable[[], nn.Module], time: bool, conditions: int) -> None:
        super().__init__()
        self.width, self.none = width, conditions
        layers = {"linear": nn.Linear(width, width), "activation": activation(), "out": nn.Linear(width, width)}
        self.time = nn.Sequential(OrderedDict(layers)) if time else None
        self.embedding = nn.Embedding(conditions + 1, width) if conditions else None
        self.activation = activation()

    def forward(self, rows: int, time: Tensor | None, condition: Tensor | None) -> Tensor:
        parts = []
        if self.time is not None:
            assert time is not None, "a network built with time=True is called with times"
            parts.append(self.time(sinusoids(time, self.width)))
        if self.embedding is not None:
            if condition is None:
                condition = torch.full((rows,), self.none, device=self.embedding.weight.device)
            parts.append(self.embedding(condition))
        return self.activation(sum(parts))


class ResidualBlock(nn.Module):
    """Twice normalisation, activation and convolution, beside a shortcut: (batch, n_in, ...) to (batch, n_out, ...).

    A context (batch, n_context) scales and shifts what the second convolution sees (https://arxiv.org/abs/2102.09672).
    """

    def __init__(
        self,
        rank: int,
        n_in: int,
        n_out: int,
        kernel: int,
        activation: Callable[[], nn.Module],
        dropout: float,
        n_context: int,
    ) -> None:
        super().__init__()
        conv = CONV[rank](n_in, n_out, kernel, padding=kernel // 2)
        self.first = nn.Sequential(OrderedDict(norm=group_norm(n_in), activation=activation(), conv=conv))
        self.norm = group_norm(n_out)
        self.told = nn.Linear(n_context, 2 * n_out) if n_context else None
        conv = CONV[rank](n_out, n_out, kernel, padding=kernel // 2)
        self.second = nn.Sequential(OrderedDict(activation=activation(), dropout=nn.Dropout(dropout), conv=conv))
        self.shortcut = nn.Identity() if n_in == n_out else CONV[rank](n_in, n_out, 1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        y = self.norm(self.first(x))
        if self.told is not None:
            told = self.told(context)
            scale, shift = told.view(*told.shape, *[1] * (x.ndim - 2)).chunk(2, 1)
            y = y * (1 + scale) + shift
        return self.shortcut(x) + self.second(y)


def group_norm(channels: int) -> nn.GroupNorm:
    """Over at most 8 groups, of at least 4 channels each: where one place is left, a group of one would be zero."""
    return nn.GroupNorm(
        next(groups for groups in (8, 4, 2, 1) if groups == 1 or channels % (4 * groups) == 0), channels
    )


def as_maps(shape_in: tuple[int, ...], shape_out: tuple[int, ...]) -> tuple[int, ...]:
    """(channels in, channels out, *space); raises ConfigError unless both shapes are maps over the same space."""
    before, after = ((1, *shape) if len(shape) == 1 else tuple(shape) for shape in (shape_in, shape_out))
    if len(before) not in (2, 3) or len(shape_in) != len(shape_out) or before[1:] != after[1:]:
        raise ConfigError(
            "model=unet must make (channels, length) or (channels, height, width) of the size that it reads, "
            f"got {tuple(shape_out)} from {tuple(shape_in)}; use model=cnn or model=mlp"
        )
    return before[0], *after
