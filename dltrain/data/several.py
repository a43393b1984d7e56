"""The same rows prepared in several ways, as the members of an ensemble read them."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dltrain.data.preparation import labelled
from dltrain.data.rows import Rows
from dltrain.errors import ConfigError


class Several:
    """Features (rows, n): those of every view, one after the other. The target is as the first view encodes it.

    Raises ConfigError for views that do not read the same rows of a file.
    """

    gives = "features"

    def __init__(self, views: Sequence[Any]) -> None:
        first = views[0]
        if not all(type(view) is type(first) and view.apart for view in views):
            raise ConfigError("runs must share their pipeline for rows that are windows or texts, got several")
        self.views, self.target, self.id_columns = list(views), first.target, first.id_columns
        self.shape_in = (sum(math.prod(view.shape_in) for view in views),)

    def features(self, frame: pd.DataFrame, source: str, first_row: int | np.ndarray = 0) -> Tensor:
        """float32 (rows, n); raises DataError as the views do."""
        return torch.cat([view.features(frame, source, first_row).flatten(1) for view in self.views], 1)

    def targets(self, frame: pd.DataFrame, source: str, first_row: int | np.ndarray = 0) -> Tensor:
        """As `Target.encode`; raises DataError if a column or a cell is missing."""
        targets: Tensor = self.views[0].targets(frame, source, first_row)
        return targets

    def blank(self) -> pd.DataFrame:
        """One row whose features are missing, with the columns of every view."""
        frame = pd.concat([view.blank() for view in self.views], axis=1)
        return frame.loc[:, ~frame.columns.duplicated()]

    def read(self, path: str, rows: int = 65_536) -> Iterator[pd.DataFrame]:
        """Chunks of a new file with all columns that any view reads."""
        found: Iterator[pd.DataFrame] = self.views[0].read(path, rows, self.views[1:])
        return found

    def labelled(self, path: str, rows: int = 65_536) -> Iterator[Rows]:
        """The rows of a new file that have a target, in pieces; raises DataError if it has no such column."""
        return labelled(self, path, rows)

    def save(self, folder: Path) -> dict[str, Any]:
        """Each view in a folder of its own, named by its number; the rest as what JSON can hold."""
        views = []
        for number, view in enumerate(self.views):
            (folder / str(number)).mkdir()
            views.append(view.save(folder / str(number)))
        return {"_target_": "dltrain.data.several.Several", "views": views}


def beside(views: Sequence[Rows]) -> Rows:
    """Rows as `Several` gives them, from the same rows as each view has them; raises ConfigError if they are others."""
    if len(views) == 1:
        return views[0]
    first = views[0]
    if not all(torch.equal(view["row"], first["row"]) for view in views):
        raise ConfigError("runs must have the same rows of each split, got runs of others")
    return {**first, "features": torch.cat([view["features"].flatten(1) for view in views], 1)}
