"""Transformer encoder."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dltrain.models.attention import Block
from dltrain.models.checks import count, dropout_rate, flag, one_of
from dltrain.models.head import Head
from dltrain.models.init import initialise
from dltrain.models.numbers import AffineEmbedding
from dltrain.models.positions import Positions
from dltrain.models.sequence import as_sequence, sequence_shape


class Transformer(nn.Module):
    """Blocks in which every step looks at all others, a pool over the steps, and an affine head.

    (batch, *shape_in) to (batch, *shape_out); https://arxiv.org/abs/1706.03762. The steps of a series or an image (see
    dltrain.models.sequence) pass one affine map and get their positions. Of a table row every number is a step with an
    affine map of its own, which also says which number it is (https://arxiv.org/abs/2106.11959). `pool=mean` takes the
    mean over the steps, `cls` what becomes of a learned step put before them.
    """

    def __init__(
        self,
        shape_in: tuple[int, ...],
        shape_out: tuple[int, ...],
        activation: Callable[[], nn.Module] = nn.ReLU,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        feedforward: int | None = None,
        positions: str = "sinusoidal",
        norm_first: bool = True,
        pool: str = "mean",
        dropout: float = 0.1,
        init: str = "default",
    ) -> None:
        super().__init__()
        length, n_in = sequence_shape("transformer", shape_in)
        width, rate = count("width", width), dropout_rate(dropout)
        hidden = 4 * width if feedforward is None else count("feedforward", feedforward)
        places = Positions(positions, length, width)
        table = len(shape_in) == 1
        self.embedding = AffineEmbedding(length, width) if table else nn.Linear(n_in, width)
        self.positions = nn.Identity() if table else places
        self.first = None
        if one_of("pool", pool, ("mean", "cls")) == "cls":
            self.first = nn.Parameter(nn.init.normal_(torch.empty(width), std=0.02))
        self.dropout = nn.Dropout(rate)
        self.blocks = nn.ModuleList(
            Block(width, count("heads", heads), activation, hidden, rate, flag("norm_first", norm_first))
            for _ in range(count("depth", depth))
        )
        self.norm = nn.LayerNorm(width) if norm_first else nn.Identity()
        self.head = Head(width, shape_out)
        initialise(self, init)

    def forward(self, features: Tensor) -> Tensor:
        x = self.positions(self.embedding(features if features.ndim == 2 else as_sequence(features)))
        if self.first is not None:
            x = torch.cat([self.first.expand(len(x), 1, -1), x], 1)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x.mean(1) if self.first is None else x[:, 0])
