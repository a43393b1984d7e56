"""Gated recurrent units."""

from torch import nn

from dltrain.models.recurrent import Recurrent


class GRU(Recurrent):
    """Layers with a reset and an update gate, lighter than an LSTM's; https://arxiv.org/abs/1406.1078."""

    layer = nn.GRU
