"""Principal components with a fixed sign."""

from typing import Any, Self

import numpy as np
from sklearn import decomposition


class PCA(decomposition.PCA):
    """Principal components by a full float64 SVD: (rows, n) to (rows, n_components).

    n_components: `all`, a count of at least 1, or a fraction of the variance in (0, 1). Of every component the loading
    with the largest absolute value is positive, so that two machines agree: scikit-learn's rule since 1.5
    (https://scikit-learn.org/stable/whats_new/v1.5.html).
    Raises ValueError for more components than there are columns or training rows.
    """

    def __init__(self, n_components: str | float = "all", whiten: bool = False) -> None:
        super().__init__(n_components=n_components, whiten=whiten, svd_solver="full")

    def fit(self, X: np.ndarray, y: Any = None) -> Self:
        fitted = decomposition.PCA(self._count(X.shape), whiten=self.whiten, svd_solver="full").fit(X)
        learnt = {name: value for name, value in vars(fitted).items() if name.endswith("_")}
        self.__dict__.update(learnt)
        components: np.ndarray = fitted.components_
        rows = np.arange(len(components))
        signs = np.sign(components[rows, np.abs(components).argmax(axis=1)])
        self.components_ = components * np.where(signs == 0, 1.0, signs)[:, None]
        return self

    def fit_transform(self, X: np.ndarray, y: Any = None) -> np.ndarray:
        return self.fit(X, y).transform(X)

    def _count(self, shape: tuple[int, ...]) -> int | float | None:
        wanted = self.n_components
        if wanted in (None, "all"):
            return None
        if isinstance(wanted, bool | str) or not (0 < wanted < 1 or (wanted >= 1 and float(wanted).is_integer())):
            raise ValueError(f"n_components must be all, a count, or a fraction in (0, 1), got {wanted}")
        if wanted < 1:
            return float(wanted)
        rows, columns = shape
        if wanted > min(shape):
            least = f"{columns} columns" if columns <= rows else f"{rows} training rows"
            raise ValueError(f"n_components must be at most {min(shape)} (there are {least}), got {int(wanted)}")
        return int(wanted)
