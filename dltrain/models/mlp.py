"""Multilayer perceptron."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from dltrain.models.checks import dropout_rate, sizes
from dltrain.models.head import Head
from dltrain.models.init import initialise
from dltrain.models.norms import normalise


class MLP(nn.Module):
    """Blocks of affine map, normalisation, activation and dropout, then an affine head.

    (batch, *shape_in) to (batch, *shape_out). `hidden=[]` leaves the head alone: one affine map.
    """

    def __init__(
        self,
        shape_in: tuple[int, ...],
        shape_out: tuple[int, ...],
        activation: Callable[[], nn.Module] = nn.ReLU,
        hidden: Sequence[int] = (256, 256),
        dropout: float = 0.0,
        norm: str | None = None,
        init: str = "default",
    ) -> None:
        super().__init__()
        widths = [prod(shape_in), *sizes("hidden", hidden)]
        rate = dropout_rate(dropout)
        self.blocks = nn.Sequential(*(block(n_in, n_out, activation, rate, norm) for n_in, n_out in pairwise(widths)))
        self.head = Head(widths[-1], shape_out)
        initialise(self, init)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.blocks(features.flatten(1)))


def block(
    n_in: int, n_out: int, activation: Callable[[], nn.Module], dropout: float, norm: str | None
) -> nn.Sequential:
    """One hidden layer: (batch, n_in) to (batch, n_out)."""
    layers: dict[str, nn.Module] = {"linear": nn.Linear(n_in, n_out, bias=norm != "batch")}  # batch norm has a bias
    layers |= normalise(norm, n_out)
    layers["activation"] = activation()
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    return nn.Sequential(OrderedDict(layers))
