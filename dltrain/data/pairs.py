"""Pairs of texts: one side is read, the other is to be told from it."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dltrain.data import split as splits
from dltrain.data.columns import Place
from dltrain.data.files import File, nearest_column
from dltrain.data.rows import Data, Rows
from dltrain.data.table import count_of
from dltrain.data.target import Target
from dltrain.data.tokens import BEGIN, END, TokenPreparation, kind_of, padded
from dltrain.errors import ConfigError, DataError, must, whole

MISSING = [""]  # of a cell: "none" and "NA" are words like any other


class Pairs:
    """Rows of two columns of text, split at random; both sides share one set of tokens, learnt from training rows.

    A target begins with BEGIN and ends with END, and both sides are padded to the longest of the file. Raises
    ConfigError for a setting, DataError for a row with an empty side.
    """

    def __init__(
        self,
        path: str,
        source: str,
        target: str,
        tokens: str = "characters",
        vocabulary: int = 1000,
        split: Mapping[str, Any] | None = None,
        delimiter: str | None = None,
        encoding: str = "utf-8",
        rows: int | None = None,
    ) -> None:
        for setting, column in (("data.source", source), ("data.target", target)):
            must(isinstance(column, str) and column != "", setting, "one column", column)
        must(source != target, "data.target", "another column than data.source", target)
        must(whole(vocabulary, 1), "data.vocabulary", "a whole number of at least 1", vocabulary)
        self.path, self.sides = path, (source, target)
        self.tokenizer, self.vocabulary = kind_of(tokens), vocabulary
        self.split = splits.from_config({"kind": "random"} | dict(split or {}))
        self.reading: dict[str, Any] = {"delimiter": delimiter, "encoding": encoding}
        self.rows = count_of("data.rows", rows, 3)

    def load(self) -> Data:
        """Read, split, learn the tokens, and give three splits."""
        file = File(self.path, **self.reading, missing=MISSING)
        for setting, name in zip(("source", "target"), self.sides, strict=True):
            if name not in file.columns:
                hint = nearest_column(name, file.columns)
                raise ConfigError(f"data.{setting} must be a column of {file.name}, got {name}{hint}")
        frame = file.read(self.rows, text=self.sides)
        sides = [cells(frame, name, Place(file.name)) for name in self.sides]
        found = splits.assign(self.split, len(frame), file.name, valid=True, test=True)
        tokenizer = self.tokenizer.fit([side[row] for side in sides for row in found["train"]], self.vocabulary)
        n_source, n_target = (max(len(tokenizer.encode(text)) for text in side) for side in sides)
        target = Target("tokens", self.sides[1:])
        reading = {**self.reading, "source": self.sides[0], "n_target": n_target + 2}
        preparation = PairsPreparation(tokenizer, (n_source,), target, reading)
        rows = {name: preparation.rows(frame.iloc[taken], file.name, taken) for name, taken in found.items()}
        description = {
            "format": 1,
            "source": file.name,
            "content_hash": file.sha256(),
            "rows": len(frame),
            "splits": {name: len(taken) for name, taken in found.items()},
            "vocabulary": tokenizer.size,
            "shape_in": [n_source],
            "tokens": {self.sides[0]: n_source, self.sides[1]: n_target},
        }
        return Data(**rows, preparation=preparation, description=description, warnings=copies(rows))


class PairsPreparation(TokenPreparation):
    """From rows of two columns to tokens: the source (rows, n_source), the target (rows, n_target) with its ends."""

    gives = "pairs"

    @property
    def n_target(self) -> int:
        """Tokens of a target, BEGIN and END among them."""
        return int(self.reading["n_target"])

    def features(self, frame: pd.DataFrame, source: str, first_row: int | np.ndarray = 0) -> Tensor:
        """int64 (rows, n_source), padded; raises DataError at a cell that is empty or longer than the longest known."""
        return self._tokens(frame, self.reading["source"], self.shape_in[0], Place(source, first_row))

    def targets(self, frame: pd.DataFrame, source: str, first_row: int | np.ndarray = 0) -> Tensor:
        """int64 (rows, n_target): BEGIN, the tokens, END, padding; raises DataError as `features` does."""
        place, (name,) = Place(source, first_row), self.target.names
        tokens = self._tokens(frame, name, self.n_target - 2, place)
        ends = torch.full((len(tokens), 1), BEGIN), torch.zeros(len(tokens), 1, dtype=torch.long)
        told = torch.cat([ends[0], tokens, ends[1]], 1)
        return told.scatter(1, (told != 0).sum(1, keepdim=True), END)

    def rows(self, frame: pd.DataFrame, source: str, numbers: np.ndarray) -> Rows:
        """The fields of a split."""
        features, targets = self.features(frame, source, numbers), self.targets(frame, source, numbers)
        return {"features": features, "target": targets, "row": torch.from_numpy(numbers.astype(np.int64))}

    def blank(self) -> pd.DataFrame:
        """One row of the commonest token on either side."""
        return pd.DataFrame({name: [" "] for name in (self.reading["source"], *self.target.names)})

    def read(self, path: str, rows: int = 65_536) -> Iterator[pd.DataFrame]:
        """Chunks of a new file (`-` is standard input), as `features` takes them."""
        options = {key: self.reading[key] for key in ("delimiter", "encoding")}
        with closing(File(str(path), **options, setting="input", missing=MISSING)) as file:
            yield from file.chunks(rows, (), {self.reading["source"], *self.target.names})

    def labelled(self, path: str, rows: int = 65_536) -> Iterator[Rows]:
        """The rows of a new file, in pieces; raises DataError without the target's column."""
        name, first = "standard input" if path == "-" else Path(path).name, 0
        for frame in self.read(path, rows):
            yield self.rows(frame, name, np.arange(first, first + len(frame)))
            first += len(frame)

    def _tokens(self, frame: pd.DataFrame, column: str, most: int, place: Place) -> Tensor:
        if column not in frame.columns:
            raise DataError(f"{place.source}: there is no column {column}")
        encoded = [self.tokenizer.encode(text) for text in cells(frame, column, place)]
        for position, tokens in enumerate(encoded):
            if len(tokens) > most:
                raise place.error(position, column, f"at most {most} tokens", len(tokens))
        return torch.tensor([padded(tokens, most) for tokens in encoded], dtype=torch.long).view(-1, most)


def cells(frame: pd.DataFrame, column: str, place: Place) -> list[str]:
    """The texts of a column; raises DataError at an empty one."""
    empty = frame[column].isna().to_numpy() | (frame[column].astype(str).str.strip() == "").to_numpy()
    if empty.any():
        raise place.error(int(np.argmax(empty)), column, "text on both sides of a pair", "")
    return [str(text) for text in frame[column]]


def copies(rows: dict[str, Rows]) -> list[str]:
    """A sentence about sources of validation and test rows that stand among the training rows."""
    known = set(map(tuple, rows["train"]["features"].tolist()))
    count = {name: sum(tuple(row) in known for row in rows[name]["features"].tolist()) for name in ("valid", "test")}
    if not any(count.values()):
        return []
    told = " and ".join(f"{n} of {len(rows[name]['row'])} {name} rows" for name, n in count.items() if n)
    return [f"{told} have a source that a training row has"]
