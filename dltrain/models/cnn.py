"""Convolutional network for signals and images."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import log2
from typing import Any

from torch import Tensor, nn

from dltrain.errors import ConfigError, whole
from dltrain.models.checks import check, dropout_rate, flag, sizes
from dltrain.models.head import Head
from dltrain.models.init import initialise
from dltrain.models.norms import normalise

CONV = (nn.Conv1d, nn.Conv1d, nn.Conv2d)


class CNN(nn.Module):
    """Stages of convolution, normalisation and activation, an average over space, dropout, and an affine head.

    (batch, *shape_in) to (batch, *shape_out), where shape_in is (channels, height, width) for an image,
    (channels, length) for a signal, (n,) for a signal of one channel. Padding leaves ceil(size / stride) places, so no
    size vanishes. `stride=auto` halves the map between stages while 4 places a side are left; `dilation=auto` doubles
    the reach of a signal's kernel from stage to stage.
    """

    def __init__(
        self,
        shape_in: tuple[int, ...],
        shape_out: tuple[int, ...],
        activation: Callable[[], nn.Module] = nn.ReLU,
        channels: Sequence[int] = (32, 64, 64, 128),
        kernel: int = 3,
        stride: str | int | Sequence[int] = "auto",
        dilation: str | int | Sequence[int] = "auto",
        residual: bool = False,
        dropout: float = 0.3,
        norm: str | None = "batch",
        init: str = "default",
    ) -> None:
        super().__init__()
        self.shape_in = as_map(shape_in)
        space = self.shape_in[1:]
        widths = [self.shape_in[0], *sizes("channels", channels, fewest=1)]
        check(whole(kernel, 1) and kernel % 2 == 1, "kernel", "an odd whole number of at least 1", kernel)
        stages = len(widths) - 1
        strides = per_stage("stride", stride, stages, lambda: halvings(min(space), stages))
        dilations = per_stage("dilation", dilation, stages, lambda: dilate(space, kernel, strides))
        stage = ResidualStage if flag("residual", residual) else plain_stage
        self.stages = nn.Sequential(
            *(
                stage(len(space), n_in, n_out, kernel, step, spread, activation, norm)
                for n_in, n_out, step, spread in zip(widths, widths[1:], strides, dilations, strict=False)
            )
        )
        self.dropout = nn.Dropout(dropout_rate(dropout))
        self.head = Head(widths[-1], shape_out)
        initialise(self, init)

    def forward(self, features: Tensor) -> Tensor:
        maps = self.stages(features.unflatten(1, self.shape_in) if features.ndim == 2 else features)
        return self.head(self.dropout(maps.flatten(2).mean(2)))


def plain_stage(
    rank: int, n_in: int, n_out: int, kernel: int, stride: int, dilation: int, activation: Callable, norm: str | None
) -> nn.Sequential:
    """Convolution, normalisation, activation."""
    layers = convolution(rank, n_in, n_out, kernel, stride, dilation, norm) | {"activation": activation()}
    return nn.Sequential(OrderedDict(layers))


class ResidualStage(nn.Module):
    """Two convolutions beside a shortcut, as in https://arxiv.org/abs/1512.03385."""

    def __init__(
        self,
        rank: int,
        n_in: int,
        n_out: int,
        kernel: int,
        stride: int,
        dilation: int,
        activation: Callable,
        norm: str | None,
    ) -> None:
        super().__init__()
        self.first = plain_stage(rank, n_in, n_out, kernel, stride, dilation, activation, norm)
        self.second = nn.Sequential(OrderedDict(convolution(rank, n_out, n_out, kernel, 1, dilation, norm)))
        same = n_in == n_out and stride == 1
        self.shortcut = None if same else CONV[rank](n_in, n_out, 1, stride, bias=False)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation((x if self.shortcut is None else self.shortcut(x)) + self.second(self.first(x)))


def convolution(
    rank: int, n_in: int, n_out: int, kernel: int, stride: int, dilation: int, norm: str | None
) -> dict[str, nn.Module]:
    """A convolution that keeps ceil(size / stride), and its normalisation; batch norm brings the bias."""
    padding = dilation * (kernel - 1) // 2
    conv = CONV[rank](n_in, n_out, kernel, stride, padding, dilation, bias=norm != "batch")
    return {"conv": conv} | normalise(norm, n_out, rank)


def as_map(shape_in: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with its channels first; raises ConfigError where there is no space to convolve over."""
    if len(shape_in) not in (1, 2, 3):
        raise ConfigError(
            "model=cnn must read rows of shape (n,), (channels, length) or (channels, height, width), "
            f"got {tuple(shape_in)}; set data.shape or use model=mlp"
        )
    return (1, *shape_in) if len(shape_in) == 1 else tuple(shape_in)


def per_stage(setting: str, value: Any, stages: int, auto: Callable[[], list[int]]) -> list[int]:
    """One whole number for each stage, from auto, one number or a list."""
    if value == "auto":
        return auto()
    values = [value] * stages if whole(value, 1) else value
    right = isinstance(values, list | tuple) and len(values) == stages and all(whole(v, 1) for v in values)
    check(
        right, setting, f"auto, a whole number of at least 1, or a list of {stages} of them (one for each stage)", value
    )
    return list(values)


def halvings(side: int, stages: int) -> list[int]:
    """Strides of 1 and 2: the first stage sees every place, and 4 places a side are left at the end if there were 4."""
    gaps = stages - 1
    wanted = min(gaps, int(log2(side / 4))) if side >= 8 else 0
    steps = [(gap * wanted + gaps // 2) // gaps for gap in range(stages)] if gaps else []
    return [1] + [1 + after - before for before, after in pairwise(steps)]


def dilate(space: tuple[int, ...], kernel: int, strides: list[int]) -> list[int]:
    """In signals each stage looks twice as far as the one before, while its kernel fits; images are not dilated."""
    if len(space) == 2 or kernel == 1:
        return [1] * len(strides)
    spreads, size = [], space[0]
    for stage, stride in enumerate(strides):
        spreads.append(max(1, min(2**stage, (size - 1) // (kernel - 1))))
        size = -(-size // stride)
    return spreads
