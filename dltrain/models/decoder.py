"""From a vector to a signal or an image."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import prod

from torch import Tensor, nn

from dltrain.errors import ConfigError, whole
from dltrain.models.checks import check, sizes
from dltrain.models.cnn import CONV
from dltrain.models.init import initialise
from dltrain.models.norms import normalise


class Decoder(nn.Module):
    """An affine map to a small map of many channels, then stages that double its sides, and a last convolution.

    (batch, *shape_in) to (batch, *shape_out), where shape_out is (channels, length) or (channels, height, width). The
    mirror of a CNN, with the convolutions after nearest-neighbour upsampling that leave no checkerboard
    (https://distill.pub/2016/deconv-checkerboard). One number in `channels` for each stage; sides that are not a power
    of two times the smallest are rounded up on the way.
    """

    def __init__(
        self,
        shape_in: tuple[int, ...],
        shape_out: tuple[int, ...],
        activation: Callable[[], nn.Module] = nn.ReLU,
        channels: Sequence[int] = (128, 64, 32),
        kernel: int = 3,
        norm: str | None = "batch",
        init: str = "default",
    ) -> None:
        super().__init__()
        if len(shape_out) not in (2, 3):
            raise ConfigError(
                "model=decoder must make (channels, length) or (channels, height, width), "
                f"got {tuple(shape_out)}; use model=mlp"
            )
        widths = sizes("channels", channels, fewest=1)
        check(whole(kernel, 1) and kernel % 2 == 1, "kernel", "an odd whole number of at least 1", kernel)
        n_out, *space = shape_out
        spaces = [tuple(-(-side // 2**halvings) for side in space) for halvings in reversed(range(len(widths)))]
        start = (widths[0], *spaces[0])
        self.stem = nn.Sequential(
            OrderedDict(linear=nn.Linear(prod(shape_in), prod(start)), fold=nn.Unflatten(1, start)),
        )
        self.first = nn.Sequential(OrderedDict(normalise(norm, widths[0], len(space)) | {"activation": activation()}))
        self.stages = nn.Sequential(
            *(
                stage(n_in, n_wide, target, kernel, activation, norm)
                for n_in, n_wide, target in zip(widths, widths[1:], spaces[1:], strict=False)
            )
        )
        self.head = CONV[len(space)](widths[-1], n_out, kernel, padding=kernel // 2)
        initialise(self, init)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.stages(self.first(self.stem(features.flatten(1)))))


def stage(
    n_in: int, n_out: int, space: tuple[int, ...], kernel: int, activation: Callable[[], nn.Module], norm: str | None
) -> nn.Sequential:
    """(batch, n_in, *half of space) to (batch, n_out, *space): upsampling, convolution, normalisation, activation."""
    rank = len(space)
    layers: dict[str, nn.Module] = {"larger": nn.Upsample(size=space, mode="nearest")}
    layers["conv"] = CONV[rank](n_in, n_out, kernel, padding=kernel // 2, bias=norm != "batch")
    layers |= normalise(norm, n_out, rank)
    return nn.Sequential(OrderedDict(layers | {"activation": activation()}))
