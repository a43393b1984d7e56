"""One affine map: linear, logistic or softmax regression, by the loss that follows."""

from math import prod

from torch import Tensor, nn

from dltrain.models.checks import flag
from dltrain.models.head import Head
from dltrain.models.init import initialise


class Linear(nn.Module):
    """Affine map of the flattened row: (batch, *shape_in) to (batch, *shape_out)."""

    def __init__(
        self, shape_in: tuple[int, ...], shape_out: tuple[int, ...], bias: bool = True, init: str = "default"
    ) -> None:
        super().__init__()
        self.head = Head(prod(shape_in), shape_out, bias=flag("bias", bias))
        initialise(self, init)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(features.flatten(1))
