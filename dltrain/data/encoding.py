"""Columns of every kind to one float64 matrix, by scikit-learn's imputers and encoders fitted on training rows."""

import contextlib
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder

from dltrain.data.columns import Column, Place
from dltrain.errors import ConfigError, DataError

LEVELS = 100  # of a category; the rarer ones and those unseen in training share one more
WORDS = 100  # of a text column
YEAR = 365.2425
HUGE = 1e38  # a number beyond it is no float32, and its square soon no float64


class Dates(TransformerMixin, BaseEstimator):
    """Days since 1970 (rows, n) to numbers that mean something, 5 or 7 a column.

    Elapsed days, the place in the year and in the week as points on a circle, and the hour likewise where one is given.
    A missing date is the median one, with a column of its own that says so.
    """

    def __init__(self, hours: tuple[bool, ...] = ()) -> None:
        self.hours = hours

    def fit(self, X: np.ndarray, y: Any = None) -> Self:
        self.imputer_ = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True).fit(X)
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        filled = self.imputer_.transform(X)
        n = X.shape[1]
        parts = [filled]
        for column, hours in zip(filled[:, :n].T, self.hours, strict=True):
            day = np.floor(column)
            turns = [day / YEAR, (day + 4) / 7]  # 1970 began on a Thursday
            turns += [column - day] if hours else []
            for turn in turns:
                parts.append(np.sin(2 * np.pi * turn)[:, None])
                parts.append(np.cos(2 * np.pi * turn)[:, None])
        return np.hstack(parts)


class Encoding:
    """The columns of a table and one fitted transformer a block: number, yes/no, date, category, text:<column>."""

    def __init__(self, columns: list[Column], blocks: dict[str, Any] | None = None, indicate: bool = True) -> None:
        self.columns = columns
        self.indicate = indicate
        self.blocks: dict[str, Any] = blocks or {}

    def fit(self, frame: pd.DataFrame, place: Place) -> np.ndarray:
        """Learn from training rows and give their matrix (rows, n)."""
        values = self._values(frame, place)
        for block, cells in values.items():
            self.blocks[block] = self._transformer(block).fit(cells)
        return self._matrix(values)

    def transform(self, frame: pd.DataFrame, place: Place) -> np.ndarray:
        """The matrix (rows, n) of new rows; raises DataError at a missing column or a wrong cell."""
        return self._matrix(self._values(frame, place))

    def inverse(self, matrix: np.ndarray) -> pd.DataFrame:
        """Rows whose matrix (rows, n) is nearest, in the order of the columns; texts are left out."""
        cells: dict[str, Any] = {}
        for block, transformer in self.blocks.items():
            width = _width(transformer)
            part, matrix = matrix[:, :width], matrix[:, width:]
            columns = [column for column in self.columns if column.kind == block]
            if columns:
                values = transformer.inverse_transform(part) if block == "category" else part[:, : len(columns)]
                cells |= {c.name: c.cells(v) for c, v in zip(columns, values.T, strict=True)}
        return pd.DataFrame({column.name: cells[column.name] for column in self.columns if column.name in cells})

    def blame(self, frame: pd.DataFrame, place: Place) -> None:
        """Raise DataError at the first huge number: what steps make of it is said otherwise, or of another column."""
        for column in self.columns:
            if column.kind == "number":
                values = column.values(frame[column.name], place)
                for position in np.flatnonzero(np.abs(values) > HUGE)[:1]:
                    raise place.error(position, column.name, f"a number below {HUGE:g}", values[position].item())

    @contextlib.contextmanager
    def blamed(self, frame: pd.DataFrame, place: Place) -> Iterator[None]:
        """What steps refuse within is the fault of a huge number, if there is one."""
        try:
            yield
        except ConfigError:
            self.blame(frame, place)
            raise

    def _values(self, frame: pd.DataFrame, place: Place) -> dict[str, np.ndarray]:
        absent = [column.name for column in self.columns if column.name not in frame.columns]
        if absent:
            raise DataError(f"{place.source}: there is no column {', '.join(absent)}")
        blocks: dict[str, list[np.ndarray]] = {}
        for column in self.columns:
            block = f"text:{column.name}" if column.kind == "text" else column.kind
            blocks.setdefault(block, []).append(column.values(frame[column.name], place))
        return {
            block: cells[0] if block.startswith("text:") else np.stack(cells, axis=1) for block, cells in blocks.items()
        }

    def _matrix(self, values: dict[str, np.ndarray]) -> np.ndarray:
        parts = []
        for block, cells in values.items():
            part = self.blocks[block].transform(cells)
            parts.append(part.toarray() if block.startswith("text:") else part)
        return np.hstack(parts).astype(np.float64, copy=False)

    def _transformer(self, block: str) -> Any:
        match block:
            case "number":
                return SimpleImputer(strategy="median", add_indicator=self.indicate, keep_empty_features=True)
            case "yes/no":
                return SimpleImputer(strategy="most_frequent", add_indicator=True, keep_empty_features=True)
            case "date":
                return Dates(tuple(column.hours for column in self.columns if column.kind == "date"))
            case "category":
                return OneHotEncoder(
                    max_categories=LEVELS + 1, handle_unknown="infrequent_if_exist", sparse_output=False
                )
            case _:
                return TfidfVectorizer(max_features=WORDS, token_pattern=r"(?u)\b\w+\b")


def _width(transformer: Any) -> int:
    """How many columns of the matrix a fitted transformer gives."""
    if isinstance(transformer, Dates):
        return _width(transformer.imputer_) + sum(4 + 2 * hours for hours in transformer.hours)
    return int(transformer.get_feature_names_out().size)
