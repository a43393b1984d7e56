"""Quantiles that fit small data."""

from typing import Any, Self

import numpy as np
from sklearn import preprocessing


class QuantileTransformer(preprocessing.QuantileTransformer):
    """scikit-learn's, (rows, n) to (rows, n), with no more quantiles than there are training rows."""

    def __init__(
        self,
        n_quantiles: int = 1000,
        output_distribution: str = "normal",
        subsample: int | None = 10_000,
        random_state: int | None = None,
    ) -> None:
        super().__init__(
            n_quantiles=n_quantiles,
            output_distribution=output_distribution,
            subsample=subsample,
            random_state=random_state,
        )

    def fit(self, X: np.ndarray, y: Any = None) -> Self:
        asked: int = self.get_params()["n_quantiles"]
        self.n_quantiles = min(asked, len(X))
        try:
            super().fit(X)
        finally:
            self.n_quantiles = asked
        return self
