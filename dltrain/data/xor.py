"""Exclusive or: the smallest problem that no line can separate."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from dltrain.data import split as splits
from dltrain.data.bundled import values_sha256
from dltrain.data.rows import Data
from dltrain.data.table import Table, count_of
from dltrain.errors import ConfigError


class XOR:
    """Points around (0, 0), (0, 1), (1, 0), (1, 1), in turn; class 1 where one of the two is 1.

    noise: deviation around a corner.
    """

    def __init__(
        self,
        rows: int = 400,
        noise: float = 0.1,
        seed: int = 0,
        split: Mapping[str, Any] | splits.Split | None = None,
        pipeline: Mapping[str, Any] | None = None,
    ) -> None:
        rows_ = count_of("data.rows", rows, 8)
        if rows_ is None:
            raise ConfigError("data.rows must be a whole number of at least 8, got null")
        if isinstance(noise, bool) or not isinstance(noise, int | float) or noise < 0:
            raise ConfigError(f"data.noise must be a number of at least 0, got {noise}")
        self.rows, self.noise, self.seed = rows_, noise, seed
        self.table = Table(
            target=["xor"],
            pipeline=pipeline or {},
            split=splits.from_config(split),
            columns={"a": "number", "b": "number", "xor": "category"},
        )

    def load(self) -> Data:
        """Draw, split, fit, and give three splits."""
        frame = self.frame()
        content = {"source": "xor", "content_hash": values_sha256(frame), "rows": len(frame)}
        return self.table.data({"train": (frame, "xor")}, content)

    def frame(self) -> pd.DataFrame:
        """The points as a table with columns a, b and xor."""
        corner = np.arange(self.rows) % 4
        a, b = corner // 2, corner % 2
        noise = np.random.default_rng(self.seed).normal(0.0, self.noise, (2, self.rows))
        return pd.DataFrame({"a": a + noise[0], "b": b + noise[1], "xor": a ^ b})
