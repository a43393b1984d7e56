"""From frames to Data: roles of columns, split, what is learnt from training rows, and three splits as tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from dltrain.data import pipeline, target
from dltrain.data import split as splits
from dltrain.data.columns import FEATURES, KINDS, Column, Place, absent, days, infer, numbers, text
from dltrain.data.description import describe, warn
from dltrain.data.encoding import Encoding
from dltrain.data.files import nearest_column
from dltrain.data.preparation import Preparation, row_weights
from dltrain.data.rows import Data, Rows
from dltrain.data.target import Target
from dltrain.errors import ConfigError, DataError, nearest


@dataclass(frozen=True)
class Piece:
    """Some rows of a file and where they stand in it."""

    frame: pd.DataFrame
    place: Place

    def take(self, positions: np.ndarray) -> "Piece":
        """The rows at these positions."""
        rows = self.place.rows
        assert isinstance(rows, np.ndarray)
        return Piece(self.frame.iloc[positions], Place(self.place.source, rows[positions]))


@dataclass
class Table:
    """Settings every table of rows has, and the one way from its frames to Data."""

    target: Sequence[str]
    pipeline: Mapping[str, Any] = field(default_factory=dict)
    split: splits.Split = field(default_factory=splits.Split)
    id: Sequence[str] = ()
    ignore: Sequence[str] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    weight: str | None = None
    target_transform: str = "standard"
    reading: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        target.check_transform(self.target_transform)

    def data(self, frames: dict[str, tuple[pd.DataFrame, str]], content: dict[str, Any]) -> Data:
        """Frames (with their file's name) by split: `train` alone is split, `valid` and `test` are taken as they are.

        content: source and hashes, for the description. Raises ConfigError for a setting, DataError for rows.
        """
        pieces, dropped = {}, 0
        for name, (frame, source) in frames.items():
            self._check_roles(frame, source)
            piece = Piece(frame, Place(source, np.arange(len(frame))))
            pieces[name], missing = self._labelled(piece)
            dropped += missing
        told = {**self._target_kind(pieces["train"]), **self.columns}
        pieces = self._split(pieces, told)
        train = pieces["train"]
        goal = target.fit(train.frame, tuple(self.target), train.place, self.target_transform, told)
        kinds = self._kinds(train)
        preparation, features, said = self._fit(train, goal, kinds)
        rows = {name: self._rows(piece, preparation) for name, piece in pieces.items() if name != "train"}
        rows["train"] = self._rows(train, preparation, preparation.fold(features, train.frame, train.place))
        three = {name: rows[name] for name in ("train", "valid", "test")}
        description = describe(
            train.frame, kinds, preparation, three, {**content, "dropped_rows": dropped, "split": self.split}
        )
        return Data(
            **three,
            preparation=preparation,
            description=description,
            warnings=said + warn(three, goal, train.frame, kinds),
        )

    def _check_roles(self, frame: pd.DataFrame, source: str) -> None:
        roles = {"target": self.target, "id": self.id, "ignore": self.ignore}
        roles["weight"] = [self.weight] if self.weight else []
        roles["split.by"] = [self.split.by] if self.split.by else []
        for role, names in roles.items():
            for name in names:
                if name not in frame.columns:
                    raise ConfigError(
                        f"data.{role} must be a column of {source}, got {name}{nearest_column(name, frame.columns)}"
                    )
        for role in ("id", "ignore", "weight", "split.by"):
            both = [name for name in self.target if name in roles[role]]
            if both:
                raise ConfigError(f"data.target must not be in data.{role} as well, got {', '.join(both)}")
        for name, kind in self.columns.items():
            if name not in frame.columns:
                raise ConfigError(
                    f"data.columns.{name} must name a column of {source},"
                    f" got {name}{nearest_column(name, frame.columns)}"
                )
            if kind not in KINDS:
                raise ConfigError(
                    f"data.columns.{name} must be one of {', '.join(KINDS)}, got {kind}{nearest(str(kind), KINDS)}"
                )

    def _labelled(self, piece: Piece) -> tuple[Piece, int]:
        """The rows that have a target, and how many have none."""
        if not self.target:
            return piece, 0
        gaps = target.missing(piece.frame, tuple(self.target))
        count, source = int(gaps.sum()), piece.place.source
        if count == len(gaps):
            raise DataError(f"{source}, column {', '.join(self.target)}: the target is missing in all {count} rows")
        if 2 * count > len(gaps):
            raise DataError(
                f"{source}, column {', '.join(self.target)}: the target is missing in {count} of {len(gaps)} rows"
            )
        return piece.take(np.flatnonzero(~gaps)), count

    def _target_kind(self, piece: Piece) -> dict[str, str]:
        """The kind of a single target, by all rows that are to be split: on fewer it may look like another."""
        if len(self.target) != 1 or self.target[0] in self.columns:
            return {}
        kind = target.kind_of(piece.frame[self.target[0]], piece.place)
        return {self.target[0]: "number" if kind == "number" else "category"}

    def _split(self, pieces: dict[str, Piece], told: Mapping[str, str]) -> dict[str, Piece]:
        """Training rows, and those of the splits that have no file of their own."""
        piece = pieces["train"]
        valid, test = "valid" not in pieces, "test" not in pieces
        if not valid and not test:
            if len(piece.frame) < 2:
                raise DataError(f"{piece.place.source}: {len(piece.frame)} row is too few to learn from")
            return pieces
        classes = self._strata(piece, told)
        by = self._order(piece)
        source = piece.place.source
        found = splits.assign(
            self.split, len(piece.frame), source, by, None if classes is None else classes[0], valid=valid, test=test
        )
        if classes is not None:
            splits.check(found, *classes, source=source, column=self.target[0])
        own = {name: piece.take(rows) for name, rows in found.items() if name == "train" or name not in pieces}
        return {**pieces, **own}

    def _strata(self, piece: Piece, told: Mapping[str, str]) -> tuple[np.ndarray, tuple[str, ...]] | None:
        """Codes of the classes to stratify by, and their names; None where the split is another."""
        if self.split.kind not in ("auto", "stratified"):
            return None
        name, one = ", ".join(self.target), len(self.target) == 1
        kind = target.kind_of(piece.frame[name], piece.place, told[name]) if one else "several columns"
        if kind in ("binary", "classes"):
            names, codes = np.unique(target.labels(piece.frame[name], piece.place).astype(str), return_inverse=True)
            return codes, tuple(names.tolist())
        if self.split.kind == "stratified":
            got = "numbers" if kind == "number" else kind if self.target else "none"
            raise ConfigError(
                f"data.split.kind=stratified must go with a target of classes, got {got} ({', '.join(self.target)})"
            )
        return None

    def _order(self, piece: Piece) -> np.ndarray | None:
        """What a split by time or group goes by: (rows,)."""
        name = self.split.by
        if name is None:
            return None
        series = piece.frame[name]
        if self.split.kind == "group":
            words = text(series)
            return np.where(absent(words), "", words).astype(str)
        column = infer(series, piece.place, self.columns.get(name))
        times = days(series, column.form, piece.place) if column.kind == "date" else numbers(series, piece.place)
        if np.isnan(times).any():
            raise piece.place.error(int(np.argmax(np.isnan(times))), name, "a time to split by", "")
        return times

    def _kinds(self, train: Piece) -> list[Column]:
        """Kinds of all columns that are neither the target nor ignored."""
        aside = {*self.target, *self.ignore, *([self.weight] if self.weight else [])}
        if self.split.kind == "group" and self.split.by:
            aside.add(self.split.by)
        kinds = []
        for name in train.frame.columns:
            if name in aside:
                continue
            if name in self.id:
                kinds.append(Column(name, "identifier"))
            elif self.shape is not None and name not in self.columns:  # a pixel that is always dark is a pixel
                numbers(train.frame[name], train.place)
                kinds.append(Column(name, "number"))
            else:
                kinds.append(infer(train.frame[name], train.place, self.columns.get(name)))
        if not any(column.kind in FEATURES for column in kinds):
            told = ", ".join(f"{column.name}: {column.kind}" for column in kinds) or "there is no column but the target"
            raise DataError(f"{train.place.source}: no column is left to learn from ({told})")
        return kinds

    def _fit(self, train: Piece, goal: Target, kinds: list[Column]) -> tuple[Preparation, np.ndarray, list[str]]:
        """Everything learnt from the training rows, their features (rows, n), and what the pipeline warned of."""
        encoding = Encoding([column for column in kinds if column.kind in FEATURES], indicate=self.shape is None)
        features = encoding.fit(train.frame, train.place)
        n_in = features.shape[1]
        steps = pipeline.build(self.pipeline, self.shape, self.split.seed)
        codes = goal.encode(train.frame, train.place.source, train.place.rows).double().numpy()
        with encoding.blamed(train.frame, train.place):
            features, said = pipeline.fit(
                steps, features, codes[:, 0] if codes.ndim == 2 and codes.shape[1] == 1 else codes
            )
        shape = pipeline.folded(self.shape, steps, n_in, features.shape[1])
        return Preparation(encoding, steps, shape, goal, list(self.id), self.weight, self.reading), features, said

    def _rows(self, piece: Piece, preparation: Preparation, features: torch.Tensor | None = None) -> Rows:
        frame, source, numbers_ = piece.frame, piece.place.source, piece.place.rows
        if features is None:
            features = preparation.features(frame, source, numbers_)
        rows = {
            "features": features,
            "target": preparation.targets(frame, source, numbers_),
            "row": torch.from_numpy(np.asarray(numbers_, np.int64).copy()),
        }
        if self.weight is not None:
            if self.weight not in frame.columns:
                raise DataError(f"{source}: there is no column {self.weight} (data.weight)")
            rows["weight"] = torch.from_numpy(row_weights(frame[self.weight], piece.place).astype(np.float32))
        return rows


def names(setting: str, value: Any) -> list[str]:
    """One column or a list of them as a list; raises ConfigError."""
    found = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    if len(set(map(str, found))) < len(found):
        raise ConfigError(f"{setting} must name each column once, got {value}")
    return [str(name) for name in found]


def shape_of(value: Any) -> tuple[int, ...] | None:
    """`data.shape` as a tuple; raises ConfigError."""
    if value is None:
        return None
    sizes = list(value) if isinstance(value, list | tuple) else [value]
    if not sizes or not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
        raise ConfigError(f"data.shape must be whole numbers such as [1,28,28], got {value}")
    return tuple(sizes)


def count_of(setting: str, value: Any, least: int = 1) -> int | None:
    """A number of rows, or None; raises ConfigError."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= least):
        return value
    raise ConfigError(f"{setting} must be a whole number of at least {least}, or null, got {value}")
