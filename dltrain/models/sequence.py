"""How a row is read as a sequence of steps."""

from math import prod

from torch import Tensor

from dltrain.errors import ConfigError


def sequence_shape(model: str, shape_in: tuple[int, ...]) -> tuple[int, int]:
    """(steps, numbers of a step) of a row: a table row of n numbers is n steps of one, a series (channels, length) is
    `length` steps of `channels` numbers, an image (channels, height, width) its `height` rows from the top.

    Raises ConfigError naming the model for rows of another rank.
    """
    if len(shape_in) not in (1, 2, 3):
        raise ConfigError(
            f"model={model} must read rows of shape (n,), (channels, length) or (channels, height, width), "
            f"got {tuple(shape_in)}; set data.shape or use model=mlp"
        )
    if len(shape_in) == 1:
        return shape_in[0], 1
    channels, length, *width = shape_in
    return length, channels * prod(width)


def as_sequence(features: Tensor) -> Tensor:
    """(batch, *shape_in) to (batch, steps, numbers of a step)."""
    return features.unsqueeze(2) if features.ndim == 2 else features.transpose(1, 2).flatten(2)
