"""How a number of a table row becomes a vector; https://arxiv.org/abs/2203.05556."""

from collections.abc import Callable
from math import pi

import torch
from torch import Tensor, nn

from dltrain.models.checks import check


class AffineEmbedding(nn.Module):
    """x * weight + bias, each number with vectors of its own: (batch, n) to (batch, n, width).

    The feature tokens of https://arxiv.org/abs/2106.11959.
    """

    def __init__(self, n: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(uniform(n, width, fan_in=width))
        self.bias = nn.Parameter(uniform(n, width, fan_in=width))

    def forward(self, features: Tensor) -> Tensor:
        return features.unsqueeze(2) * self.weight + self.bias


class PeriodicEmbedding(nn.Module):
    """Sines and cosines of each number at learned frequencies, an affine map of its own, and an activation.

    (batch, n) to (batch, n, width). Frequencies begin as normal with deviation `scale`, whose best value differs
    between tables by orders of magnitude: 0.01 makes it all but linear, 1 fits steps within a tenth of a deviation.
    """

    def __init__(
        self, n: int, width: int, activation: Callable[[], nn.Module], scale: float, frequencies: int = 48
    ) -> None:
        super().__init__()
        self.frequency = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(n, frequencies), 0, scale, -3 * scale, 3 * scale)
        )
        self.weight = nn.Parameter(uniform(n, 2 * frequencies, width, fan_in=2 * frequencies))
        self.bias = nn.Parameter(uniform(n, width, fan_in=2 * frequencies))
        self.activation = activation()

    def forward(self, features: Tensor) -> Tensor:
        angles = 2 * pi * self.frequency * features.unsqueeze(2)
        waves = torch.cat([angles.cos(), angles.sin()], 2)
        return self.activation(torch.einsum("bni,niw->bnw", waves, self.weight) + self.bias)


class PiecewiseLinearEmbedding(nn.Module):
    """A piecewise linear curve for each number and each of `width` outputs: (batch, n) to (batch, n, width).

    It begins as an affine embedding; slopes change at edges, from where they are learned (version B of
    https://arxiv.org/abs/2410.24210). The edges are the quantiles of a standard normal distribution: with
    pipeline=quantile those of the training rows.
    """

    def __init__(self, n: int, width: int, bins: int) -> None:
        super().__init__()
        inner = torch.special.ndtri(torch.arange(1, bins) / bins)
        edges = torch.cat([torch.tensor([-3.0]), inner, torch.tensor([3.0])])
        self.affine = AffineEmbedding(n, width)
        self.weight = nn.Parameter(torch.zeros(n, bins, width))
        self.left: Tensor
        self.size: Tensor
        self.register_buffer("left", edges[:-1], persistent=False)
        self.register_buffer("size", edges.diff(), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.affine(features) + torch.einsum("bni,niw->bnw", self.share(features), self.weight)

    def share(self, features: Tensor) -> Tensor:
        """(batch, n) to (batch, n, bins): the part of each bin that lies below the number; outer bins have no end."""
        parts = (features.unsqueeze(2) - self.left) / self.size
        low, high = torch.zeros_like(self.left), torch.ones_like(self.left)
        low[0], high[-1] = -torch.inf, torch.inf
        return parts.clamp(low, high)


def embed_numbers(
    kind: str | None, n: int, width: int, activation: Callable[[], nn.Module], scale: float, bins: int
) -> nn.Module | None:
    """The embedding of that name over n numbers, or None for null."""
    check(kind in (None, "periodic", "piecewise_linear"), "embeddings", "null, piecewise_linear or periodic", kind)
    if kind == "periodic":
        return PeriodicEmbedding(n, width, activation, scale)
    return PiecewiseLinearEmbedding(n, width, bins) if kind else None


def uniform(*shape: int, fan_in: int) -> Tensor:
    """Uniform within 1 / sqrt(fan_in), as torch draws its affine maps."""
    return torch.empty(*shape).uniform_(-(fan_in**-0.5), fan_in**-0.5)
