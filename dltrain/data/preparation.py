"""Everything learnt from the training rows, and all that new rows need to become features."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dltrain.data import pipeline
from dltrain.data.columns import Column, Place, numbers
from dltrain.data.encoding import Encoding
from dltrain.data.files import File
from dltrain.data.rows import Rows
from dltrain.data.target import Target, check_columns, missing
from dltrain.errors import DataError

FILE = "preparation.skops"


class Preparation:
    """From rows of a table to what a network reads: features (rows, *shape_in), targets, weights.

    Columns may come in any order, with others between them; cells may be missing; categories may be new.
    """

    gives = "features"  # what networks and tasks must read
    apart = True  # `read` gives rows as the file has them: others may prepare the same ones

    def __init__(
        self,
        encoding: Encoding,
        steps: dict[str, Any],
        shape_in: tuple[int, ...],
        target: Target,
        id_columns: list[str],
        weight: str | None = None,
        reading: dict[str, Any] | None = None,
    ) -> None:
        self.encoding = encoding
        self.steps = steps
        self.shape_in = shape_in
        self.target = target
        self.id_columns = id_columns
        self.weight = weight
        self.reading = reading or {}

    @property
    def columns(self) -> list[str]:
        """The feature columns a new file must have."""
        return [column.name for column in self.encoding.columns]

    def features(self, frame: pd.DataFrame, source: str, first_row: int | np.ndarray = 0) -> Tensor:
        """float32 (rows, *shape_in); raises DataError naming source, row and column of what cannot be read."""
        place = Place(source, first_row)
        if not len(frame):
            return torch.zeros(0, *self.shape_in)
        matrix = self.encoding.transform(frame, place)
        with self.encoding.blamed(frame, place):
            for name, step in self.steps.items():
                matrix = pipeline.apply(name, step, matrix)
        return self.fold(matrix, frame, place)

    def fold(self, matrix: np.ndarray, frame: pd.DataFrame, place: Place) -> Tensor:
        """float64 (rows, n) to float32 (rows, *shape_in); raises DataError at a number that float32 cannot hold."""
        with np.errstate(over="ignore"):
            single = np.ascontiguousarray(matrix, np.float32)
        if not np.isfinite(single).all():
            self.encoding.blame(frame, place)
            row = int(np.argmax(~np.isfinite(single).all(axis=1)))
            raise DataError(
                f"{place.source} row {place.row(row)}: expected features below 3.4e38"
                " after the pipeline, got larger ones"
            )
        return torch.from_numpy(single).reshape(len(single), *self.shape_in)

    def restored(self, features: Tensor) -> pd.DataFrame:
        """Rows as a file has them, from features (rows, *shape_in); ConfigError for a step that cannot be undone."""
        matrix = features.flatten(1).double().numpy()
        for name, step in reversed(self.steps.items()):
            matrix = pipeline.inverse(name, step, matrix)
        return self.encoding.inverse(matrix)

    def blank(self) -> pd.DataFrame:
        """One row whose features are missing, and whose target is one that training could have met."""
        cells = dict.fromkeys([*self.id_columns, *self.columns], "")
        return pd.DataFrame(cells | self.target.example(), index=[0])

    def targets(self, frame: pd.DataFrame, source: str, first_row: int | np.ndarray = 0) -> Tensor:
        """As `Target.encode`; raises DataError if a column or a cell is missing."""
        return self.target.encode(frame, source, first_row)

    def weights(self, frame: pd.DataFrame, source: str, first_row: int | np.ndarray = 0) -> Tensor | None:
        """float32 (rows,), or None without `data.weight` or its column; raises DataError at a missing or negative."""
        if self.weight is None or self.weight not in frame.columns:
            return None
        return torch.from_numpy(row_weights(frame[self.weight], Place(source, first_row)).astype(np.float32))

    def read(self, path: str, rows: int = 65_536, others: Sequence["Preparation"] = ()) -> Iterator[pd.DataFrame]:
        """Chunks of a new file (`-` is standard input), as `features` takes them; the index counts its rows from 0.

        With the columns that `others` take: what is a number to all is read as one.
        """
        file = File(str(path), self.reading.get("delimiter"), self.reading.get("encoding", "utf-8"), setting="input")
        each = (self, *others)
        text = {name for one in each for name in one._text()}
        direct = {column.name for one in each for column in one.encoding.columns} - text
        with closing(file):
            yield from file.chunks(rows, direct, text)

    def _text(self) -> set[str]:
        """The columns of a file that are taken as they are written."""
        words = {column.name for column in self.encoding.columns if column.kind != "number"}
        return {*words, *self.id_columns, *self.target.names, *([self.weight] if self.weight else [])}

    def labelled(self, path: str, rows: int = 65_536) -> Iterator[Rows]:
        """The rows of a new file that have a target, in pieces; raises DataError if it has no such column."""
        return labelled(self, path, rows)

    @cached_property
    def _fitted(self) -> bytes:
        """The fitted transformers, which never change: runs that share rows write them again and again."""
        return pipeline.dumps({"blocks": self.encoding.blocks, "steps": self.steps})

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the fitted transformers into a folder; gives the rest as what JSON can hold."""
        (Path(folder) / FILE).write_bytes(self._fitted)
        return {
            "_target_": "dltrain.data.preparation.Preparation",
            "format": 1,
            "columns": [column.to_json() for column in self.encoding.columns],
            "steps": list(self.steps),
            "shape_in": list(self.shape_in),
            "target": self.target.to_json(),
            "id_columns": self.id_columns,
            "weight": self.weight,
            "reading": self.reading,
        }

    @classmethod
    def load(cls, folder: Path, state: dict[str, Any]) -> "Preparation":
        """What `save` wrote; executes nothing of the folder's."""
        parts = pipeline.load(Path(folder) / FILE)
        columns = [Column(**column) for column in state["columns"]]
        named = [*(column.name for column in columns), *state["id_columns"], state["weight"] or ""]
        if not all(isinstance(name, str) for name in named):
            raise ValueError("a column must be named by text")
        return cls(
            Encoding(columns, parts["blocks"]),
            {name: parts["steps"][name] for name in state["steps"]},
            tuple(state["shape_in"]),
            Target.from_json(state["target"]),
            list(state["id_columns"]),
            state["weight"],
            dict(state["reading"]),
        )

    def share(self, folder: Path) -> dict[str, Any]:
        """What other processes of this machine need of it, as JSON can hold it: shapes and target."""
        shape, target = list(self.shape_in), self.target.to_json()
        return {"_target_": "dltrain.data.preparation.Preparation", "shape_in": shape, "target": target}

    @classmethod
    def shared(cls, folder: Path, state: dict[str, Any]) -> "Preparation":
        """As `share` told it; what was fitted to columns stays with the process that fitted it."""
        return cls(Encoding([]), {}, tuple(state["shape_in"]), Target.from_json(state["target"]), [])


def labelled(preparation: Any, path: str, rows: int) -> Iterator[Rows]:
    """What `preparation.read` gives of a file, but for rows without a target; raises DataError without its column."""
    name, first = "standard input" if path == "-" else Path(path).name, 0
    for frame in preparation.read(path, rows):
        check_columns(preparation.target.names, frame.columns, name)
        known = ~missing(frame, preparation.target.names)
        place = np.flatnonzero(known) + first
        features = preparation.features(frame[known], name, place)
        yield {"features": features, "target": preparation.targets(frame[known], name, place)}
        first += len(frame)


def row_weights(series: pd.Series, place: Place) -> np.ndarray:
    """(rows,) float64; raises DataError at a missing or negative weight."""
    found = numbers(series, place)
    wrong = np.isnan(found) | (found < 0)
    if wrong.any():
        position = int(np.argmax(wrong))
        got = "" if np.isnan(found[position]) else found[position].item()
        raise place.error(position, str(series.name), "a weight of at least 0", got)
    return found
