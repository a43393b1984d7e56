"""Recurrent network in its plainest form."""

from torch import nn

from dltrain.models.recurrent import Recurrent


class RNN(Recurrent):
    """Layers of h = tanh(W x + U h + b); https://doi.org/10.1207/s15516709cog1402_1. Forgets within some ten steps."""

    layer = nn.RNN
