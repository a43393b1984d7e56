"""What rnn, lstm and gru share: torch's layers one upon the other, a pool over the steps, and a head."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from dltrain.models.checks import count, dropout_rate, flag, one_of
from dltrain.models.head import Head
from dltrain.models.init import initialise
from dltrain.models.sequence import as_sequence, sequence_shape


class Recurrent(nn.Module):
    """Recurrent layers over the steps of a row, each followed by dropout, a pool over the steps, and an affine head.

    (batch, *shape_in) to (batch, *shape_out); dltrain.models.sequence says what the steps of a row are. `pool` keeps
    the last step, of a backward direction the first, or takes the mean or the maximum over all steps.
    """

    layer: ClassVar[type[nn.RNN | nn.LSTM | nn.GRU]]

    def __init__(
        self,
        shape_in: tuple[int, ...],
        shape_out: tuple[int, ...],
        width: int = 128,
        depth: int = 1,
        bidirectional: bool = False,
        pool: str = "last",
        dropout: float = 0.0,
        init: str = "default",
    ) -> None:
        super().__init__()
        _, n_in = sequence_shape(type(self).__name__.lower(), shape_in)
        n_out = count("width", width) * (2 if flag("bidirectional", bidirectional) else 1)
        # one layer a module, as dropout of torch's own stack is not ours to see, and FSDP gathers a module at a time
        self.layers = nn.ModuleList(
            self.layer(n_out if below else n_in, width, bidirectional=bidirectional)
            for below in range(count("depth", depth))
        )
        self.dropout = nn.Dropout(dropout_rate(dropout))
        self.pool = one_of("pool", pool, ("last", "mean", "max"))
        self.width = width
        self.head = Head(n_out, shape_out)
        initialise(self, init)

    def forward(self, features: Tensor) -> Tensor:
        steps = as_sequence(features).transpose(0, 1)  # the order in which torch works
        for layer in self.layers:
            steps = self.dropout(layer(steps)[0])
        return self.head(self.pooled(steps))

    def pooled(self, steps: Tensor) -> Tensor:
        """(steps, batch, n_out) to (batch, n_out)."""
        if self.pool == "mean":
            return steps.mean(0)
        if self.pool == "max":
            return steps.amax(0)
        return torch.cat([steps[-1, :, : self.width], steps[0, :, self.width :]], 1)
