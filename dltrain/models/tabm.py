"""An ensemble of multilayer perceptrons in one, for tables."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from dltrain.errors import real
from dltrain.models.checks import check, count, dropout_rate, flag, sizes
from dltrain.models.init import initialise
from dltrain.models.numbers import embed_numbers, uniform


class TabM(nn.Module):
    """`members` perceptrons that share their weights but for scales, biases and heads; https://arxiv.org/abs/2410.24210.

    (batch, *shape_in) to (batch, *shape_out), the mean over the members; with `each`, every member's answer
    (batch, members, *shape_out). `mini` leaves each member the scales of its input and its head alone. `embeddings`
    makes each number a vector first (dltrain.models.numbers), for which bins are cut at quantiles of `rows`.
    """

    def __init__(
        self,
        shape_in: tuple[int, ...],
        shape_out: tuple[int, ...],
        activation: Callable[[], nn.Module] = nn.ReLU,
        hidden: Sequence[int] = (256, 256),
        members: int = 32,
        mini: bool = False,
        embeddings: str | None = None,
        embedding_width: int = 16,
        frequency_scale: float = 0.1,
        bins: int = 32,
        dropout: float = 0.1,
        init: str = "default",
        rows: Tensor | None = None,
    ) -> None:
        super().__init__()
        check(real(frequency_scale) and frequency_scale > 0, "frequency_scale", "a number above 0", frequency_scale)
        n, rate, shared = prod(shape_in), dropout_rate(dropout), flag("mini", mini)
        width, bins = count("embedding_width", embedding_width), count("bins", bins, least=2)
        self.embedding = embed_numbers(embeddings, n, width, activation, float(frequency_scale), bins, rows)
        wide = 1 if self.embedding is None else width
        widths = [n * wide, *sizes("hidden", hidden, fewest=1)]
        self.members = count("members", members)
        first = first_scales(members, n, wide, signs=self.embedding is None)
        others = [None if shared else torch.ones(members, n_in) for n_in in widths[1:-1]]
        self.blocks = nn.Sequential(
            *(
                block(n_in, n_out, scales, members, shared, activation, rate)
                for (n_in, n_out), scales in zip(pairwise(widths), [first, *others], strict=True)
            )
        )
        self.head = MemberHead(widths[-1], members, shape_out)
        initialise(self, init)

    def forward(self, features: Tensor, each: bool = False) -> Tensor:
        x = features.flatten(1)
        if self.embedding is not None:
            x = self.embedding(x).flatten(1)
        output = self.head(self.blocks(x.unsqueeze(1)))
        return output if each else output.mean(1)


def first_scales(members: int, n: int, wide: int, signs: bool) -> Tensor:
    """(members, n * wide): what makes the members differ, one draw for each of n numbers: a sign, or a normal."""
    draws = torch.randint(0, 2, (members, n)) * 2.0 - 1 if signs else torch.randn(members, n)
    return draws.repeat_interleave(wide, 1)


def block(
    n_in: int,
    n_out: int,
    scales: Tensor | None,
    members: int,
    shared: bool,
    activation: Callable[[], nn.Module],
    dropout: float,
) -> nn.Sequential:
    """One hidden layer: (batch, members or 1, n_in) to (batch, members, n_out).

    Members scale what enters by `scales` unless None. Unless it is `shared` they also scale what leaves, by ones at
    first, and add biases, the same at first (https://arxiv.org/abs/2002.06715).
    """
    layers: dict[str, nn.Module] = {} if scales is None else {"scale_in": Scale(scales)}
    layers["linear"] = nn.Linear(n_in, n_out, bias=shared)
    if not shared:
        biases = uniform(n_out, fan_in=n_in).expand(members, -1)
        layers["scale_out"] = Scale(torch.ones(members, n_out), biases)
    layers |= {"activation": activation(), "dropout": nn.Dropout(dropout)}
    return nn.Sequential(OrderedDict(layers))


class Scale(nn.Module):
    """Each member's own scale of every number, and its bias: (batch, members or 1, width) to (batch, members, width).

    They are kept as vectors: penalties of weights, and Muon, look for matrices.
    """

    def __init__(self, scales: Tensor, biases: Tensor | None = None) -> None:
        super().__init__()
        self.members = len(scales)
        self.weight = nn.Parameter(scales.flatten())
        self.bias = None if biases is None else nn.Parameter(biases.flatten())

    def forward(self, x: Tensor) -> Tensor:
        scaled = x * self.weight.view(self.members, -1)
        return scaled if self.bias is None else scaled + self.bias.view(self.members, -1)


class MemberHead(nn.Linear):
    """An affine map of each member's own: (batch, members, n_in) to (batch, members, *shape_out)."""

    def __init__(self, n_in: int, members: int, shape_out: tuple[int, ...]) -> None:
        super().__init__(n_in, members * prod(shape_out))  # one above the other, drawn as one map each
        self.members, self.shape_out = members, tuple(shape_out)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weight.unflatten(0, (self.members, -1))
        output = torch.einsum("bmi,moi->bmo", x, weights) + self.bias.view(self.members, -1)
        return output.unflatten(2, self.shape_out)
