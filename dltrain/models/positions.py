"""Where a step stands in its sequence, as a vector."""

from math import log

import torch
from torch import Tensor, nn

from dltrain.models.checks import one_of


def sinusoids(times: Tensor, width: int) -> Tensor:
    """(n,) to (n, width): sines and cosines with wave lengths from 2 pi to 10000 * 2 pi, as in
    https://arxiv.org/abs/1706.03762, all sines first. Times one apart are told apart; smaller differences hardly.
    """
    half = (width + 1) // 2
    rates = torch.exp(torch.arange(half, device=times.device) * (-log(10000) / half))
    angles = times.float().unsqueeze(1) * rates
    return torch.cat([angles.sin(), angles.cos()], 1)[:, :width]


class Positions(nn.Module):
    """Adds to every step the vector of its place: (batch, steps, width) to the same, for up to `length` steps.

    `kind` is sinusoidal (fixed) or learned. `start` is the place of the first step.
    """

    def __init__(self, kind: str, length: int, width: int) -> None:
        super().__init__()
        self.embedding: Tensor
        if one_of("positions", kind, ("sinusoidal", "learned")) == "learned":
            self.embedding = nn.Parameter(nn.init.normal_(torch.empty(length, width), std=0.02))
        else:
            self.register_buffer("embedding", sinusoids(torch.arange(length), width), persistent=False)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        return x + self.embedding[start : start + x.shape[1]]
