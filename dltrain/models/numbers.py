"""How a number of a table row becomes a vector; https://arxiv.org/abs/2203.05556."""

from collections.abc import Callable
from math import pi

import numpy as np
import torch
import torch.nn.functional as F
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
    https://arxiv.org/abs/2410.24210). The edges are quantiles of each number in the training `rows`, and without them
    those of a standard normal distribution.
    """

    def __init__(self, n: int, width: int, bins: int, rows: Tensor | None = None) -> None:
        super().__init__()
        edges = normal_edges(bins).expand(n, -1) if rows is None else quantile_edges(rows.flatten(1), bins)
        self.affine = AffineEmbedding(n, width)
        self.weight = nn.Parameter(torch.zeros(n, bins, width))
        self.left: Tensor  # where bins begin and how wide they are, (n, bins); a width of 0 is no bin
        self.size: Tensor
        self.register_buffer("left", edges[:, :-1].clone())
        self.register_buffer("size", edges.diff())

    def forward(self, features: Tensor) -> Tensor:
        return self.affine(features) + torch.einsum("bni,niw->bnw", self.share(features), self.weight)

    def share(self, features: Tensor) -> Tensor:
        """(batch, n) to (batch, n, bins): the part of each bin that lies below the number; outer bins have no end."""
        there = self.size > 0
        parts = (features.unsqueeze(2) - self.left) / torch.where(there, self.size, 1)
        low, high = torch.zeros_like(self.size), there.to(self.size.dtype)
        low[:, 0] = torch.where(there[:, 0], -torch.inf, 0)
        high[there & ~F.pad(there[:, 1:], (0, 1))] = torch.inf
        return parts.clamp(low, high)


def normal_edges(bins: int) -> Tensor:
    """(bins + 1,): quantiles of a standard normal distribution, from -3 to 3."""
    inner = torch.special.ndtri(torch.arange(1, bins) / bins)
    return torch.cat([torch.tensor([-3.0]), inner, torch.tensor([3.0])])


def quantile_edges(rows: Tensor, bins: int) -> Tensor:
    """(rows, n) to (n, bins + 1): each number's quantiles, every one once, the last again where there are fewer."""
    edges = np.quantile(rows.double().numpy(), np.linspace(0, 1, bins + 1), axis=0).astype(np.float32)
    found = [np.unique(column) for column in edges.T]
    padded = [np.pad(one, (0, bins + 1 - len(one)), mode="edge") for one in found]
    return torch.from_numpy(np.stack(padded))


def embed_numbers(
    kind: str | None,
    n: int,
    width: int,
    activation: Callable[[], nn.Module],
    scale: float,
    bins: int,
    rows: Tensor | None,
) -> nn.Module | None:
    """The embedding of that name over n numbers, or None for null."""
    check(kind in (None, "periodic", "piecewise_linear"), "embeddings", "null, piecewise_linear or periodic", kind)
    if kind == "periodic":
        return PeriodicEmbedding(n, width, activation, scale)
    return PiecewiseLinearEmbedding(n, width, bins, rows) if kind else None


def uniform(*shape: int, fan_in: int) -> Tensor:
    """Uniform within 1 / sqrt(fan_in), as torch draws its affine maps."""
    return torch.empty(*shape).uniform_(-(fan_in**-0.5), fan_in**-0.5)
