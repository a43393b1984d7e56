"""Standardisation: of a table column by column, of an image or a series channel by channel."""

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn import preprocessing


class StandardScaler(preprocessing.StandardScaler):
    """scikit-learn's, (rows, n) to (rows, n); with a spatial shape (channels, ...) one mean and deviation a channel.

    A pixel that is dark but for a few training rows has a tiny deviation of its own, which would blow it up to 30.
    """

    def __init__(self, shape: Sequence[int] | None = None, with_mean: bool = True, with_std: bool = True) -> None:
        super().__init__(with_mean=with_mean, with_std=with_std)
        self.shape = shape

    def fit(self, X: np.ndarray, y: Any = None, sample_weight: Any = None) -> Self:
        super().fit(X, y, sample_weight)
        shape = self.shape
        if shape is None or len(shape) < 2 or math.prod(shape) != X.shape[1]:
            return self
        channels = preprocessing.StandardScaler().fit(
            np.asarray(X).reshape(len(X), shape[0], -1).swapaxes(1, 2).reshape(-1, shape[0])
        )
        pixels = X.shape[1] // shape[0]
        for name in ("mean_", "var_", "scale_"):
            if getattr(self, name) is not None:
                setattr(self, name, np.repeat(getattr(channels, name), pixels))
        return self
