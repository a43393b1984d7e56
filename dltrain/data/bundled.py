"""The small data sets that scikit-learn carries."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn import datasets

from dltrain.data import split as splits
from dltrain.data.rows import Data
from dltrain.data.table import Table, count_of, shape_of
from dltrain.errors import ConfigError, nearest

TARGETS = {
    "digits": "digit",
    "iris": "species",
    "wine": "cultivar",
    "breast_cancer": "diagnosis",
    "diabetes": "progression",
}


class Bundled:
    """One of scikit-learn's data sets by name, classes by their names where it has some."""

    def __init__(
        self,
        name: str,
        shape: Sequence[int] | None = None,
        split: Mapping[str, Any] | splits.Split | None = None,
        rows: int | None = None,
        target_transform: str = "standard",
        pipeline: Mapping[str, Any] | None = None,
    ) -> None:
        if name not in TARGETS:
            raise ConfigError(f"data.name must be one of {', '.join(TARGETS)}, got {name}{nearest(str(name), TARGETS)}")
        self.name = name
        self.rows = count_of("data.rows", rows, 2)
        self.table = Table(
            target=[TARGETS[name]],
            pipeline=pipeline or {},
            split=splits.from_config(split),
            columns={TARGETS[name]: "number" if name == "diabetes" else "category"},
            shape=shape_of(shape),
            target_transform=target_transform,
        )

    def load(self) -> Data:
        """Split, fit, and give three splits."""
        frame = self.frame()
        content = {"source": f"scikit-learn's {self.name}", "content_hash": values_sha256(frame), "rows": len(frame)}
        return self.table.data({"train": (frame, self.name)}, content)

    def frame(self) -> pd.DataFrame:
        """Features and target as a table; with `rows`, so many spread evenly over it (it is sorted by class)."""
        found = getattr(datasets, f"load_{self.name}")(as_frame=True)
        frame = found.data.copy()
        target = found.target.to_numpy()
        if self.name in ("iris", "wine", "breast_cancer"):
            target = np.asarray(found.target_names, object)[target].astype(str)
        frame[TARGETS[self.name]] = target
        if self.rows is not None and self.rows < len(frame):
            frame = frame.iloc[np.linspace(0, len(frame) - 1, self.rows).round().astype(int)].reset_index(drop=True)
        return frame


def values_sha256(frame: pd.DataFrame) -> str:
    """SHA-256 of names and values, in order."""
    digest = hashlib.sha256()
    for name in frame.columns:
        cells = frame[name].to_numpy()
        digest.update(f"{name}\0".encode())
        digest.update(
            "\0".join(map(str, cells)).encode()
            if cells.dtype.kind not in "iuf"
            else np.ascontiguousarray(cells).tobytes()
        )
    return digest.hexdigest()
