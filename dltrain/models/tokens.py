"""Tokens as vectors, and vectors as guesses of tokens."""

from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.errors import ConfigError
from dltrain.models.attention import Cache
from dltrain.models.positions import Positions

PADDING = 0  # the token that stands for none


class Tokens(nn.Module):
    """(batch, steps) of tokens to (batch, steps, width), their places added, for sequences of up to `length`.

    `guesses` goes back with the same weights (https://arxiv.org/abs/1608.05859), which are drawn with a variance of
    1 / width and read sqrt(width) times as large (https://arxiv.org/abs/1706.03762, section 3.4).
    """

    def __init__(self, vocabulary: int, width: int, positions: str, length: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.normal_(torch.empty(vocabulary, width), std=width**-0.5))
        self.scale = sqrt(width)
        self.positions = Positions(positions, length, width)

    def forward(self, tokens: Tensor, start: int = 0) -> Tensor:
        return self.positions(F.embedding(tokens, self.weight) * self.scale, start)

    def guesses(self, x: Tensor) -> Tensor:
        """(batch, steps, width) to logits (batch, steps, vocabulary)."""
        return F.linear(x, self.weight)


def check_tokens(model: str, data: str, vocabulary: Any, shape_out: tuple[int, ...]) -> None:
    """Raise ConfigError unless there are tokens to read and to guess."""
    if vocabulary is None:
        raise ConfigError(f"model={model} must read tokens, got numbers; use data={data}")
    if len(shape_out) != 2 or shape_out[1] != vocabulary:
        raise ConfigError(
            f"model={model} must guess one of the {vocabulary} tokens at each step, got outputs of shape {shape_out}"
        )


def steps_seen(cache: Cache | None, blocks: nn.ModuleList) -> int:
    """How many steps a cache holds."""
    first: Any = blocks[0]
    return cache.seen[first.attention][0].shape[2] if cache is not None and first.attention in cache.seen else 0
