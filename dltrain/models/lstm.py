"""Long short-term memory."""

from torch import nn

from dltrain.models.recurrent import Recurrent


class LSTM(Recurrent):
    """Layers with a memory cell behind input, forget and output gates; https://doi.org/10.1162/neco.1997.9.8.1735."""

    layer = nn.LSTM
