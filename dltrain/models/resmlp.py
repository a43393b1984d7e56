"""Residual multilayer perceptron, deep without losing its gradient."""

from collections import OrderedDict
from collections.abc import Callable
from math import prod

from torch import Tensor, nn

from dltrain.models.checks import count, dropout_rate
from dltrain.models.head import Head
from dltrain.models.init import initialise
from dltrain.models.norms import normalise


class ResidualBlock(nn.Module):
    """x + affine(activation(affine(norm(x)))): (batch, width) to (batch, width)."""

    def __init__(self, width: int, activation: Callable[[], nn.Module], dropout: float, norm: str | None) -> None:
        super().__init__()
        layers = normalise(norm, width)
        layers |= {"linear": nn.Linear(width, width), "activation": activation()}
        layers["dropout"] = nn.Dropout(dropout)
        layers["out"] = nn.Linear(width, width)
        self.body = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ResMLP(nn.Module):
    """Residual blocks of one width with normalisation before each; (batch, *shape_in) to (batch, *shape_out).

    After the ResNet of https://arxiv.org/abs/2106.11959.
    """

    def __init__(
        self,
        shape_in: tuple[int, ...],
        shape_out: tuple[int, ...],
        activation: Callable[[], nn.Module] = nn.ReLU,
        width: int = 256,
        depth: int = 4,
        dropout: float = 0.0,
        norm: str | None = "layer",
        init: str = "default",
    ) -> None:
        super().__init__()
        count("width", width)
        rate = dropout_rate(dropout)
        self.stem = nn.Linear(prod(shape_in), width)
        self.blocks = nn.ModuleList(
            ResidualBlock(width, activation, rate, norm) for _ in range(count("depth", depth, least=0))
        )
        self.last = nn.Sequential(OrderedDict(normalise(norm, width) | {"activation": activation()}))
        self.head = Head(width, shape_out)
        initialise(self, init)

    def forward(self, features: Tensor) -> Tensor:
        x = self.stem(features.flatten(1))
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x))
