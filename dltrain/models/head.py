"""The last layer of a network."""

from math import prod

from torch import Tensor, nn


class Head(nn.Linear):
    """One affine map to outputs of any shape: (batch, n_in) to (batch, *shape_out)."""

    def __init__(self, n_in: int, shape_out: tuple[int, ...], bias: bool = True) -> None:
        super().__init__(n_in, prod(shape_out), bias=bias)
        self.shape_out = tuple(shape_out)

    def forward(self, features: Tensor) -> Tensor:
        output = super().forward(features)
        return output if len(self.shape_out) == 1 else output.unflatten(1, self.shape_out)
